from __future__ import annotations

import pytest
import torch

from vip_llava.data.collators import PackedCollator, PaddedCollator
from vip_llava.data.samples import BadRow, Sample
from vip_llava.prompting.tokenization import IGNORED_LABEL

IMAGE, PAD, SIDE = 90, 7, 4


def sample(name: str, ids: list[int], learned: int, views: int = 0) -> Sample:
    labels = [IGNORED_LABEL] * (len(ids) - learned) + ids[len(ids) - learned :]
    # Each view is told by its value.
    pixels = torch.full((views, 3, SIDE, SIDE), float(ids[0])) if views else None
    return Sample(name, ids, labels, pixels)


IMAGED = sample("a", [11, IMAGE, IMAGE, IMAGE, IMAGE, 12, 13], 2, views=2)
TEXT = sample("b", [21, 22, 23], 1)
# A label at the first token: nothing predicts it.
WHOLE = sample("c", [31, 32], 2)
LATE = sample("d", [41, 42, IMAGE, IMAGE, 43], 1, views=1)
BAD = BadRow("rows.json: row 9", "x", "no answer")


def test_padded_rows() -> None:
    batch = PaddedCollator(PAD)([TEXT, IMAGED, BAD, LATE])
    assert batch["input_ids"].tolist() == [
        [21, 22, 23, PAD, PAD, PAD, PAD],
        IMAGED.input_ids,
        [41, 42, IMAGE, IMAGE, 43, PAD, PAD],
    ]
    assert batch["attention_mask"].tolist() == [[1] * 3 + [0] * 4, [1] * 7, [1] * 5 + [0] * 2]
    assert batch["labels"][0].tolist() == [-100, -100, 23, -100, -100, -100, -100]
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [11, 11, 41]
    assert batch["num_items"] == 4
    assert batch["bad"] == [BAD]
    assert set(batch) == {
        "input_ids", "labels", "attention_mask", "pixel_values", "num_items", "bad",
    }  # fmt: skip


def test_packed_rows() -> None:
    batch = PackedCollator(PAD)([BAD, TEXT, IMAGED, WHOLE, LATE])
    assert batch["input_ids"].tolist() == [
        TEXT.input_ids + IMAGED.input_ids + WHOLE.input_ids + LATE.input_ids
    ]
    positions = [*range(3), *range(7), *range(2), *range(5)]
    assert batch["position_ids"].tolist() == [positions]
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 10, 12, 17]
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert batch["cu_seq_lens_k"] is batch["cu_seq_lens_q"]
    assert batch["max_length_q"] == batch["max_length_k"] == 7
    labels = batch["labels"][0].tolist()
    firsts = [place for place, position in enumerate(positions) if position == 0]
    assert all(labels[place] == IGNORED_LABEL for place in firsts)
    assert [label for label in labels if label != IGNORED_LABEL] == [23, 12, 13, 32, 43]
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [11, 11, 41]
    assert batch["num_items"] == 5
    assert batch["bad"] == [BAD]
    assert "attention_mask" not in batch
    # Making a batch leaves the samples alone.
    assert WHOLE.labels == [31, 32]


def test_both_collators_learn_the_same_tokens() -> None:
    rows = [TEXT, IMAGED, WHOLE, LATE]
    assert PackedCollator(PAD)(rows)["num_items"] == PaddedCollator(PAD)(rows)["num_items"] == 5


@pytest.mark.parametrize("collator", [PaddedCollator, PackedCollator])
def test_a_batch_of_bad_rows(collator: type[PaddedCollator] | type[PackedCollator]) -> None:
    assert collator(PAD)([BAD, BAD]) == {"bad": [BAD, BAD], "num_items": 0}
    assert collator(PAD)([]) == {"bad": [], "num_items": 0}
    assert "pixel_values" not in collator(PAD)([TEXT, WHOLE])


def test_widths_are_multiples() -> None:
    padded = PaddedCollator(PAD, multiple_of=4)([TEXT, LATE])
    assert padded["input_ids"].shape == padded["labels"].shape == (2, 8)
    assert padded["attention_mask"].sum(1).tolist() == [3, 5]
    packed = PackedCollator(PAD, multiple_of=16)([TEXT, LATE])
    assert packed["input_ids"].shape == (1, 16)
    assert packed["cu_seq_lens_q"].tolist() == [0, 3, 8, 16]
    assert packed["position_ids"][0, 8:].tolist() == list(range(8))
    assert packed["labels"][0, 8:].tolist() == [IGNORED_LABEL] * 8
    assert packed["input_ids"][0, 8:].tolist() == [PAD] * 8


def test_fixed_shapes() -> None:
    collator = PackedCollator(PAD, 12, fixed=True)
    assert collator([TEXT, LATE])["input_ids"].shape == (1, 12)
    assert collator([IMAGED, LATE])["input_ids"].shape == (1, 12)
    # Estimates may have been too low; nothing is cut.
    assert collator([IMAGED, LATE, TEXT])["input_ids"].shape == (1, 15)
    assert PackedCollator(PAD, 12)([TEXT])["input_ids"].shape == (1, 3)
