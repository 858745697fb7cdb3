"""The trainer with a tiny model: it learns, saves the averaged weights, and keeps the others."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from default_model.scenes.augment import AugmentSettings
from default_model.scenes.mixture import RegionMixture
from default_model.scenes.mixture_config import MixtureConfig
from default_model.scenes.photos import read_regions
from default_model.training.recipe import StageRecipe
from default_model.training.trainer import RegionTrainer
from vip_llava.errors import CheckpointError, RequestError
from vip_llava.models.default.build import apply_trained, read_trained, save_trained, trained_focal
from vip_llava.prompting.focal_views import FocalSettings
from vip_llava.prompting.processor import Processor

KINDS = ("one", "whole", "two", "four")
FAST: dict[str, Any] = {
    "steps": 16,
    "warmup": 2,
    "lora_rank": 4,
    "lora_alpha": 8,
    "lr_language": 1e-2,
    "lr_projector": 1e-2,
    "lr_tower": 3e-3,
    "average": 0.5,
    "workers": 0,
    "report_every": 1,
}
MakeTrainer = Callable[..., RegionTrainer]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_trainer(
    labelled_folder: Path, lite_processor: Processor, lite_model: Callable[..., Any]
) -> MakeTrainer:
    photos = list(read_regions(labelled_folder))

    def make(*start: Path, **changes: Any) -> RegionTrainer:
        torch.manual_seed(0)
        mix = MixtureConfig(
            shares={"one": 0.7, "whole": 0.1, "two": 0.1, "four": 0.1},
            rows={"one": 8, "whole": 4, "two": 4, "four": 2},
            text_tokens={"one": 150, "whole": 150, "two": 150, "four": 300},
            augment=AugmentSettings(longest=100),
            mosaic_share=0.0,
        )
        made = RegionMixture(photos, [], lite_processor, FocalSettings(), mix)
        settings = StageRecipe(**{**FAST, **changes})
        return RegionTrainer(lite_model(), made, settings, "cpu", compiled=False, start=start)

    return make


def batch_of(trainer: RegionTrainer, kind: str = "one") -> dict[str, Any]:
    number = next(n for n in range(500) if trainer.mix.kind_of(n) == kind)
    made = trainer.mix.batch(number)
    return {k: v if isinstance(v, str) else torch.from_numpy(v) for k, v in made.items()}


def logits_of(model: Any, batch: dict[str, Any], trainer: RegionTrainer) -> Tensor:
    """Logits by transformers' own forward, for a whole batch."""
    views = batch["views"].flatten(0, 1).permute(0, 3, 1, 2).float() / 255
    pixels = (views - trainer.mean) / trainer.std
    model.train(False)
    with torch.no_grad():
        found = model(input_ids=batch["input_ids"], pixel_values=pixels).logits
    assert isinstance(found, Tensor)
    return found


def test_answer_and_class_loss_of_a_repeated_batch_fall(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    batch = batch_of(trainer)
    with torch.no_grad():
        before = [float(loss) for loss in trainer.losses(batch)]
    for number in range(16):
        trainer.step(batch, number)
    with torch.no_grad():
        after = [float(loss) for loss in trainer.losses(batch)]
    assert after[0] < 0.6 * before[0] and after[1] < 0.9 * before[1]


def test_mention_labels_have_a_loss_of_their_own(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(naming=1.0)
    batch = batch_of(trainer, "four")
    places = (batch["names"] != -100).nonzero()
    assert len(places) > len(batch["names"])
    # These labels are neither input nor answer.
    changed = {**batch, "names": batch["names"].clone()}
    row, at = places[0].tolist()
    changed["names"][row, at] += 1
    with torch.no_grad():
        before, other = trainer.losses(batch), trainer.losses(changed)
    assert torch.equal(before[0], other[0]) and not torch.equal(before[2], other[2])
    for number in range(16):
        trainer.step(batch, number)
    with torch.no_grad():
        assert float(trainer.losses(batch)[2]) < 0.7 * float(before[2])
        assert float(trainer.losses(batch_of(trainer))[2]) == 0
        assert float(make_trainer().losses(batch)[2]) == 0  # off by default


def test_the_loss_falls(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer()
    batch = batch_of(trainer)
    with torch.no_grad():
        before = float(trainer.losses(batch)[0])
    log = trainer.run(tmp_path)
    with torch.no_grad():
        after = float(trainer.losses(batch)[0])
    assert after < 0.6 * before
    assert [row["step"] for row in log] == list(range(16))
    assert json.loads((tmp_path / "log.json").read_text()) == log
    assert all(math.isfinite(row["loss"]) and math.isfinite(row["norm"]) for row in log)
    assert json.loads((tmp_path / "parts.json").read_text())["settings"]["lora_rank"] == 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_transformers_forward(make_trainer: MakeTrainer, kind: str) -> None:
    """The fast path (blank views, no mask, logits of answers only) equals the slow one."""
    trainer = make_trainer()
    batch = batch_of(trainer, kind)
    with torch.no_grad():
        answer, classes, _ = trainer.losses(batch)
    logits = logits_of(trainer.model, batch, trainer)[:, :-1]
    targets = batch["labels"][:, 1:]
    total = weights = 0.0
    for row, wanted in zip(logits, targets, strict=True):
        chosen = wanted != -100
        losses = torch.nn.functional.cross_entropy(row[chosen], wanted[chosen], reduction="none")
        weight = 1 / math.sqrt(int(chosen.sum()))
        total += float(losses.sum()) * weight
        weights += len(losses) * weight
    assert float(answer) == pytest.approx(total / weights, rel=1e-4)
    if kind == "whole":
        assert float(classes) == 0
    if kind == "one":
        assert float(classes) == pytest.approx(math.log(len(trainer.mix.classes)), rel=0.5)


def test_the_averaged_weights_are_saved(
    make_trainer: MakeTrainer, lite_model: Callable[..., Any], tmp_path: Path
) -> None:
    """LoRA merged into a fresh model equals the trained model with its averages in place."""
    trainer = make_trainer()
    trainer.run(tmp_path)
    batch = batch_of(trainer)
    live = logits_of(trainer.model, batch, trainer)
    with torch.no_grad():
        for weight, average in zip(trainer.weights, trainer.averages, strict=True):
            weight.copy_(average)
    wanted = logits_of(trainer.model, batch, trainer)
    fresh = lite_model()
    untouched = logits_of(fresh, batch, trainer)
    apply_trained(fresh, tmp_path)
    found = logits_of(fresh, batch, trainer)
    real = batch["input_ids"] != trainer.mix.processor.pad_id
    error = (found - wanted)[real].abs().max()
    assert error < 0.02 * (wanted - untouched)[real].abs().max()
    assert error < 0.2 * (wanted - live)[real].abs().max()


def test_saving_does_not_disturb_training(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    plain, saving = make_trainer(steps=6), make_trainer(steps=6, save_every=2)
    plain.run(tmp_path / "plain")
    saving.run(tmp_path / "saving")
    for one, other in zip(plain.weights, saving.weights, strict=True):
        assert torch.equal(one, other)


def test_frozen_weights_and_statistics_stay(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(steps=4)
    trained = {id(weight) for weight in trainer.weights}
    held = {
        name: value.detach().clone()
        for name, value in trainer.model.named_parameters()
        if id(value) not in trained
    }
    statistics = {
        name: value.clone()
        for name, value in trainer.model.model.vision_tower.named_buffers()
        if "running" in name
    }
    assert len(held) > 10 and len(statistics) > 10
    assert all("language_model" in name or "lm_head" in name for name in held)
    moving = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if n not in held}
    trainer.run(tmp_path)
    now = dict(trainer.model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in held.items())
    assert [name for name, value in moving.items() if torch.equal(now[name], value)] == []
    buffers = dict(trainer.model.model.vision_tower.named_buffers())
    assert all(torch.equal(buffers[name], value) for name, value in statistics.items())


def test_start_loads_trained_weights(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    first = make_trainer()
    first.run(tmp_path)
    batch = batch_of(first)
    second = make_trainer(tmp_path)
    with torch.no_grad():
        for weight, average in zip(first.weights, first.averages, strict=True):
            weight.copy_(average)
    fresh = logits_of(make_trainer().model, batch, first)
    wanted = logits_of(first.model, batch, first)
    found = logits_of(second.model, batch, first)
    real = batch["input_ids"] != first.mix.processor.pad_id
    assert (found - wanted)[real].abs().max() < 0.02 * (wanted - fresh)[real].abs().max()
    assert all(torch.equal(a, w) for a, w in zip(second.averages, second.weights, strict=True))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lora_rank": 8, "lora_alpha": 16}, "the LoRA weights do not fit"),
        ({"lora_alpha": 4}, "LoRA scale 2"),
        ({"lora_rank": 0}, "with LoRA"),
    ],
)
def test_start_refuses_weights_of_another_kind(
    make_trainer: MakeTrainer, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    make_trainer(steps=1).run(tmp_path)
    with pytest.raises(CheckpointError, match=reason):
        make_trainer(tmp_path, **changes)


def test_rank_zero_tunes_and_saves_the_language_model(
    make_trainer: MakeTrainer, lite_model: Callable[..., Any], tmp_path: Path
) -> None:
    trainer = make_trainer(lora_rank=0, steps=4, average=0.0)
    trainer.run(tmp_path)
    assert read_trained(tmp_path).language and not read_trained(tmp_path).lora
    fresh = lite_model()
    batch = batch_of(trainer)
    untouched = logits_of(fresh, batch, trainer)
    apply_trained(fresh, tmp_path)
    wanted, found = (logits_of(m, batch, trainer) for m in (trainer.model, fresh))
    assert (found - wanted).abs().max() < 0.05 * (wanted - untouched).abs().max()


def test_runs_are_reproducible_and_stop_in_time(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    logs = [make_trainer(steps=4).run(tmp_path / str(i)) for i in range(2)]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]
    reports: list[dict[str, Any]] = []
    stopped = make_trainer().run(tmp_path / "short", seconds=0, report=reports.append)
    assert [row["step"] for row in stopped] == [0] and reports == stopped
    assert json.loads((tmp_path / "short" / "parts.json").read_text())["steps"] == 1


def test_dropped_tokens_and_views(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(drop_token=0.3, drop_view=0.5)
    features = torch.ones(200, 17, 4)
    kept = trainer._dropped(features, 2)[..., 0]
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    whole, focal = kept[0::2], kept[1::2]
    assert 0.6 < focal.mean() < 0.8 and 0.25 < whole.mean() < 0.45
    assert (focal.sum(1) > 0).all()  # a focal view is never set to 0 completely
    assert (trainer._dropped(features, 1).mean() - 0.7).abs() < 0.05
    assert torch.equal(make_trainer()._dropped(features, 2), features)


def test_the_rate_warms_up_and_falls(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(steps=100, warmup=10, final=0.1)
    rates = [trainer._rate(number) for number in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0 and rates == [*rates[:10], *sorted(rates[10:])[::-1]]
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_workers_give_the_same_batches(make_trainer: MakeTrainer) -> None:
    alone = [batch["input_ids"] for batch in make_trainer(steps=3)._stream()]
    shared = [batch["input_ids"] for batch in make_trainer(steps=3, workers=2)._stream()]
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_the_weights_include_the_focal_settings(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    focal = FocalSettings(1.5, minimum=16, named=True)
    save_trained({}, tmp_path / "new", lora_scale=1, metadata={"steps": 1}, focal=focal)
    assert trained_focal(tmp_path / "new") == focal
    # Weights without settings.
    (tmp_path / "parts.json").write_text('{"files": [], "lora_scale": 1}')
    assert trained_focal(tmp_path) == FocalSettings()
    (tmp_path / "parts.json").write_text('{"focal": {"zoom": 2}}')
    with pytest.raises(CheckpointError, match="focal"):
        trained_focal(tmp_path)


def test_the_mean_with_the_start(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    first = make_trainer()
    first.run(tmp_path / "first")
    alone = make_trainer(tmp_path / "first", steps=3)
    alone.run(tmp_path / "alone")
    both = make_trainer(tmp_path / "first", steps=3, mean_with_start=True)
    both.run(tmp_path / "both")
    old, new, mean = (read_trained(tmp_path / name) for name in ("first", "alone", "both"))
    for piece in ("tower", "projector", "lora"):
        parts = [getattr(each, piece) for each in (old, new, mean)]
        for name, value in parts[2].items():
            between = (parts[0][name] + parts[1][name]) / 2
            # The weights are stored in 16 bit.
            torch.testing.assert_close(value, between, rtol=4e-3, atol=1e-4)
    assert any(not torch.equal(mean.lora[name], old.lora[name]) for name in old.lora)
    with pytest.raises(RequestError, match="needs weights to start from"):
        make_trainer(mean_with_start=True)


def test_the_mean_of_several_starts(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    for seed, folder in enumerate(folders):
        make_trainer(seed=seed, steps=4, lr_tower=1e-3 * (seed + 1)).run(folder)
    trained = [read_trained(folder) for folder in folders]
    mean = make_trainer(*folders).model.state_dict()
    seen = 0
    for name, value in trained[0].lora.items():
        letter = {"A": "lora_A.default.weight", "B": "lora_B.default.weight"}[name[-1]]
        found = mean[f"model.language_model.{name[:-1]}{letter}"]
        torch.testing.assert_close(found, (value + trained[1].lora[name]) / 2)
        seen += not torch.equal(value, trained[1].lora[name])
    for name, value in trained[0].projector.items():
        found = mean[f"model.multi_modal_projector.{name}"]
        torch.testing.assert_close(found, (value + trained[1].projector[name]) / 2)
    assert seen > 0
    make_trainer(steps=1, lora_rank=8, lora_alpha=16).run(tmp_path / "other")
    with pytest.raises(CheckpointError, match="have different weights"):
        make_trainer(folders[0], tmp_path / "other")


def test_parts_without_a_rate_are_frozen(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(lr_projector=0.0, lr_tower=0.0, tuned_layers=1)
    language = trainer.model.model.language_model
    learning = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    last = len(language.layers) - 1
    assert learning and all(f"language_model.layers.{last}." in name for name in learning)
    trainer.step(batch_of(trainer), 0)
    rest = make_trainer(lr_language=0.0)
    assert all(not p.requires_grad for p in rest.model.model.language_model.parameters())
    rest.step(batch_of(rest), 0)
