"""Further labels of a training row: the name of the marked object at each mention of a mark.

A question about several marks is answered in steps (which view, what is in it, which option), and
the answer alone is a weak signal for them. These labels supervise the first step wherever a mark is
mentioned. It does not know what is asked.
"""

from __future__ import annotations

from collections.abc import Sequence

from default_model.scenes.scene import Scene
from vip_llava.errors import PhraseError
from vip_llava.prompting.processor import Processor
from vip_llava.regions import Region
from vip_llava.regions.phrases import phrase

IGNORED = -100
"""The label of tokens without supervision."""


def mention_labels(
    scene: Scene,
    shown: Sequence[Region],
    ids: Sequence[int],
    labels: Sequence[int],
    processor: Processor,
) -> list[int]:
    """Labels for the T ids of a row: after each mention of a mark, the first token of its object.

    shown: the scene's regions, each with a focal view; with fewer than two there are no labels. A
    mention counts only after the focal view of its region, and not where the row has labels of its
    own. All other labels are `IGNORED`.
    """
    names = [IGNORED] * len(ids)
    if len(shown) < 2:
        return names
    holder, tokens = processor.image_token_id, processor.tokens_per_view
    # The last token of each focal view; the first view is the whole image.
    ends = [i for i, id_ in enumerate(ids) if id_ == holder][2 * tokens - 1 :: tokens]
    for region, thing, end in zip(shown, scene.marked, ends, strict=True):
        try:
            words = phrase(region, shown)
        except PhraseError:  # two equal marks at one place have no phrases of their own
            continue
        # After its first word, a phrase has the same tokens everywhere.
        spoken = _tokens(words[words.index(" ") :], processor)
        first = _tokens(thing.label, processor)[0]
        for start in range(end, len(ids) - len(spoken)):
            behind = start + len(spoken)
            if list(ids[start:behind]) == spoken and labels[behind] == IGNORED:
                names[behind] = first
    return names


def _tokens(text: str, processor: Processor) -> list[int]:
    return [piece.id for piece in processor.tokenizer.plain(text, at_start=False)]
