"""One name for each object class: the synonyms that data sets use for it, merged.

Data sets name one class in several ways ("sofa", "couch"), so that a comparison of words needs a
canonical one. It is the name in COCO, where COCO has the class. `label_names.json` lists the
synonyms of each name. It does not know benchmarks.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

__all__ = ["canonical"]


def canonical(label: str) -> str:
    """The canonical name for a label of any data set: lower case, synonyms merged."""
    plain = label.strip().lower()
    return _synonyms().get(plain, plain)


@functools.cache
def _synonyms() -> dict[str, str]:
    listed = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
    return {each: name for name, several in listed.items() for each in several}
