"""Random marks for training, drawn from one explicit generator (`random.Random`).

`policies` holds the shapes and colours of each data source, `marks` samples one mark for one target,
`targets` finds points in boxes and outlines. The results are Regions; `regions.draw` draws them.
"""

from __future__ import annotations

from vip_llava.regions.sampling.marks import sample_region
from vip_llava.regions.sampling.policies import (
    POLICIES,
    TRAINED_SHAPES,
    Policy,
    Style,
    VisualPrompt,
    find_policy,
    generator,
    sample_visual_prompts,
)

__all__ = [
    "POLICIES",
    "TRAINED_SHAPES",
    "Policy",
    "Style",
    "VisualPrompt",
    "find_policy",
    "generator",
    "sample_region",
    "sample_visual_prompts",
]
