"""Weights and arithmetic against the original's: embeddings, logits, losses, greedy tokens.

The original marks an image by -200 and puts the features there; the helper here writes that as
transformers' placeholders, one id for each feature.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from vip_llava.models.loading import load_weights

pytestmark = pytest.mark.conformance

TOLERANCE = 1e-4
IMAGE, IGNORED = -200, -100


@dataclass
class Case:
    """One recorded call of the original and what came out."""

    name: str
    record: dict[str, Any]
    tensors: dict[str, Tensor]
    eos: int

    def get(self, key: str) -> Tensor | None:
        return self.tensors.get(f"{self.name}.{key}")


@dataclass
class Inputs:
    """The same call in transformers' form; one row may have been padded on either side."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    pixel_values: Tensor | None


def open_folder(folder: Path, **settings: Any) -> PreTrainedModel:
    """A folder of the family: a checkpoint of its own, or one that builds on the common base."""
    if (folder / "checkpoint").is_dir():
        return load_weights(folder / "checkpoint", device="cpu", **settings)
    family = folder.parent
    return load_weights(
        folder,
        base=family / "base_llm",
        vision_tower=family / "vision_tower",
        device="cpu",
        **settings,
    )


def cases_of(folder: Path) -> Iterator[Case]:
    checkpoint = folder / "checkpoint"
    config = json.loads(
        ((checkpoint if checkpoint.is_dir() else folder) / "config.json").read_text()
    )
    tensors = load_file(folder / "expected.safetensors")
    for record in json.loads((folder / "expected.json").read_text())["cases"]:
        if "error" not in record:
            yield Case(record["name"], record, tensors, config["eos_token_id"])


def to_placeholders(case: Case, model: PreTrainedModel) -> Inputs:
    """Ids, mask and labels with the features in place; a row without an image skips one slot."""
    ids = case.get("input_ids")
    assert ids is not None
    mask, labels, pixels = case.get("attention_mask"), case.get("labels"), case.get("pixel_values")
    token, count = model.config.image_token_id, model.config.image_seq_length
    limit = case.record["config_overrides"].get("tokenizer_model_max_length")
    left = case.record["config_overrides"].get("tokenizer_padding_side") == "left"
    rows: list[tuple[list[int], list[int]]] = []
    slots: list[int] = []
    slot = 0
    for row in range(len(ids)):
        kept = mask[row].bool() if mask is not None else torch.ones(ids.shape[1], dtype=torch.bool)
        row_labels = labels[row] if labels is not None else torch.full_like(ids[row], IGNORED)
        new_ids: list[int] = []
        new_labels: list[int] = []
        for id_, label in zip(ids[row][kept].tolist(), row_labels[kept].tolist(), strict=True):
            image = id_ == IMAGE
            new_ids += [token] * count if image else [id_]
            new_labels += [IGNORED] * count if image else [label]
            if image:
                slots.append(slot)
                slot += 1
        slot += IMAGE not in ids[row]
        rows.append((new_ids[:limit], new_labels[:limit]))
    width = max(len(row) for row, _ in rows)
    return Inputs(
        padded([row for row, _ in rows], width, 0, left),
        padded([[1] * len(row) for row, _ in rows], width, 0, left),
        padded([row for _, row in rows], width, IGNORED, left),
        pixels[slots] if pixels is not None and slots else None,
    )


def padded(rows: list[list[int]], width: int, fill: int, left: bool) -> Tensor:
    return torch.tensor(
        [[fill] * (width - len(r)) + r if left else r + [fill] * (width - len(r)) for r in rows]
    )


def embedded(model: PreTrainedModel, inputs: Inputs) -> Tensor:
    """What the language model gets: text embeddings with the projected features in place."""
    embeddings: Tensor = model.get_input_embeddings()(inputs.input_ids)
    if inputs.pixel_values is None:
        return embeddings
    features = model.get_image_features(pixel_values=inputs.pixel_values).pooler_output
    flat = features if isinstance(features, Tensor) else torch.stack(list(features))
    place = (inputs.input_ids == model.config.image_token_id).unsqueeze(-1)
    return embeddings.masked_scatter(place, flat.to(embeddings))


@torch.no_grad()
def greedy(model: PreTrainedModel, inputs: Inputs, row: int, eos: int, count: int) -> list[int]:
    """Greedy tokens of one row without the end token, each step a whole forward pass."""
    keep = inputs.attention_mask[row].bool()
    alone = Inputs(
        inputs.input_ids[row : row + 1, keep],
        inputs.attention_mask[row : row + 1, keep],
        inputs.labels[row : row + 1, keep],
        inputs.pixel_values,
    )
    images = [
        int((ids == model.config.image_token_id).sum()) // model.config.image_seq_length
        for ids in inputs.input_ids
    ]
    if alone.pixel_values is not None:
        begin = sum(images[:row])
        chosen = alone.pixel_values[begin : begin + images[row]]
        alone.pixel_values = chosen if len(chosen) else None
    embeddings = embedded(model, alone)
    tokens: list[int] = []
    for _ in range(count):
        logits = model.lm_head(model.model.language_model(inputs_embeds=embeddings)[0][0, -1])
        logits[eos] = -torch.inf
        tokens.append(int(logits.argmax()))
        new = model.get_input_embeddings()(torch.tensor([[tokens[-1]]]))
        embeddings = torch.cat([embeddings, new], dim=1)
    return tokens


@pytest.fixture(scope="module")
def folders(family: Callable[[str], Path]) -> list[Path]:
    found = sorted(path.parent for path in family("model").glob("*/expected.json"))
    assert found, "the model family has no folder with expected.json"
    return found


@pytest.fixture(scope="module")
def opened(folders: list[Path]) -> list[tuple[Path, PreTrainedModel]]:
    return [(folder, open_folder(folder)) for folder in folders]


def largest(a: Tensor, b: Tensor, mask: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs()[mask.bool()].max())


def test_embeddings_logits_and_losses(opened: list[tuple[Path, PreTrainedModel]]) -> None:
    seen = 0
    for folder, model in opened:
        for case in cases_of(folder):
            where = f"{folder.name}/{case.name}"
            inputs = to_placeholders(case, model)
            want_loss = case.record.get("loss")
            with torch.no_grad():
                embeddings = embedded(model, inputs)
                out = model(
                    input_ids=inputs.input_ids,
                    attention_mask=inputs.attention_mask,
                    pixel_values=inputs.pixel_values,
                    labels=inputs.labels if want_loss is not None else None,
                )
            for key, got in (("inputs_embeds", embeddings), ("logits", out.logits)):
                want = case.get(key)
                assert want is not None, where
                error = largest(got, want, inputs.attention_mask)
                print(f"{where} {key}: largest difference {error:.2e}")
                assert error <= TOLERANCE, f"{where}: {key} off by {error}"
            # All masked: the original gives NaN.
            if want_loss is not None and math.isfinite(want_loss):
                assert abs(float(out.loss) - want_loss) <= TOLERANCE, where
            recorded = case.record.get("labels_after_image_insertion")
            if recorded is not None:
                assert inputs.labels.tolist() == recorded, where
            seen += 1
    assert seen


def test_greedy_tokens(opened: list[tuple[Path, PreTrainedModel]]) -> None:
    seen = 0
    for folder, model in opened:
        for case in cases_of(folder):
            inputs = to_placeholders(case, model)
            want = case.record.get("greedy_12") or []
            lengths = inputs.attention_mask.sum(dim=1)
            for row, tokens in enumerate(want):
                # In a right-padded batch the original continues short rows from padding.
                if not case.record["greedy_meaningful"] and lengths[row] < lengths.max():
                    continue
                got = greedy(model, inputs, row, case.eos, len(tokens) - 1)
                assert got == tokens[1:], f"{folder.name}/{case.name} row {row}"
                seen += 1
    assert seen


def test_encoder_and_projector(opened: list[tuple[Path, PreTrainedModel]]) -> None:
    for folder, model in opened:
        for case in cases_of(folder):
            pixels, want = case.get("extra_pixel_values"), case.get("extra_projector_output")
            if pixels is None or want is None:
                continue
            with torch.no_grad():
                features = model.get_image_features(pixel_values=pixels).pooler_output
            got = features if isinstance(features, Tensor) else torch.stack(list(features))
            assert got.shape == want.shape
            assert float((got - want).abs().max()) <= TOLERANCE, folder.name


def test_unmerged_adapters_give_the_same(folders: list[Path]) -> None:
    with_adapters = [f for f in folders if (f / "adapter_config.json").is_file()]
    if not with_adapters:
        pytest.skip("the recorded results have no adapter folder")
    for folder in with_adapters:
        model = open_folder(folder, merge_adapter=False)
        assert any("lora_A" in name for name, _ in model.named_parameters())
        for case in cases_of(folder):
            inputs = to_placeholders(case, model)
            with torch.no_grad():
                out = model(
                    input_ids=inputs.input_ids,
                    attention_mask=inputs.attention_mask,
                    pixel_values=inputs.pixel_values,
                )
            want = case.get("logits")
            assert want is not None
            assert largest(out.logits, want, inputs.attention_mask) <= TOLERANCE
