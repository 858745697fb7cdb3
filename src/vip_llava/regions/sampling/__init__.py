"""The random marks that training draws, from one explicit generator (`random.Random`).

`policies.py` says which shapes and colours each data source uses, `draws.py` draws one mark,
`places.py` finds points in boxes and outlines. What comes out are Regions: drawing is elsewhere.
"""

from __future__ import annotations

from vip_llava.regions.sampling.draws import sample_region, sample_regions
from vip_llava.regions.sampling.policies import (
    POLICIES,
    Policy,
    Prompt,
    Style,
    generator,
    policy,
    sample_prompts,
)

__all__ = [
    "POLICIES",
    "Policy",
    "Prompt",
    "Style",
    "generator",
    "policy",
    "sample_prompts",
    "sample_region",
    "sample_regions",
]
