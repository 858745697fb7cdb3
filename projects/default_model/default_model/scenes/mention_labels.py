"""What each mention of a mark means: the words of marked things, as further labels of a training row.

A question about several marks is answered in steps (which view, what is in it, which option); an answer
alone teaches them badly. Here the first step gets labels of its own, wherever a mark is spoken of. It
deliberately does not know what is asked.
"""

from __future__ import annotations

from collections.abc import Sequence

from default_model.scenes.scene import Scene
from vip_llava.errors import PhraseError
from vip_llava.prompting.processor import Processor
from vip_llava.regions import Region
from vip_llava.regions.phrases import phrase

IGNORED = -100
"""Stands where nothing is learned."""


def mention_labels(
    scene: Scene,
    shown: Sequence[Region],
    ids: Sequence[int],
    labels: Sequence[int],
    processor: Processor,
) -> list[int]:
    """For the T ids of a row: the first token of a marked thing's word behind each mention of its mark.

    Only of several `shown` regions (the scene's, each with a focal view), only where that view comes
    before, and not where the row's own labels are; `IGNORED` everywhere else.
    """
    names = [IGNORED] * len(ids)
    if len(shown) < 2:
        return names
    holder, tokens = processor.image_token_id, processor.tokens_per_view
    # The last place of each focal view; the first view is the whole image.
    ends = [i for i, id_ in enumerate(ids) if id_ == holder][2 * tokens - 1 :: tokens]
    for region, thing, end in zip(shown, scene.marked, ends, strict=True):
        try:
            words = phrase(region, shown)
        except PhraseError:  # alike ones, at one place: nothing is said of either alone
            continue
        # Behind its first word, a wording has the same tokens everywhere.
        spoken = _tokens(words[words.index(" ") :], processor)
        first = _tokens(thing.label, processor)[0]
        for start in range(end, len(ids) - len(spoken)):
            behind = start + len(spoken)
            if list(ids[start:behind]) == spoken and labels[behind] == IGNORED:
                names[behind] = first
    return names


def _tokens(text: str, processor: Processor) -> list[int]:
    return [piece.id for piece in processor.tokenizer.plain(text, at_start=False)]
