"""The training loop: an exact loss, exact resuming, bad rows that are counted, full disks."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import Rows, padded, trainer, vip_llava

from vip_llava.data.collators import PackedCollator, PaddedCollator
from vip_llava.data.packing import PackedBatchSampler
from vip_llava.errors import CheckpointError, DataError, RequestError
from vip_llava.training.attention import use_packed_attention
from vip_llava.training.dataloader import RankBatchSampler, ShuffledBatches
from vip_llava.training.resume.checkpoint_folder import latest_checkpoint, why_incomplete
from vip_llava.training.resume.rng_state import get_rng_state, seed_all, set_rng_state

SCRIPT = Path(__file__).parent / "tiny.py"


def process(settings: dict[str, Any], *, expected: int = 0) -> None:
    command = [sys.executable, str(SCRIPT), json.dumps(settings)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == expected, result.stderr[-2000:]


def log_of(checkpoint: Path) -> list[dict[str, Any]]:
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]


def assert_same(one: Path, other: Path) -> None:
    """The same run bit for bit: weights, optimizer, scheduler, generators, position, every loss."""
    for name in ("model.safetensors", "optimizer.safetensors"):
        first, second = load_file(one / name), load_file(other / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    for name in ("state.json", "random.json"):
        assert json.loads((one / name).read_text()) == json.loads((other / name).read_text())
    states = [json.loads((folder / "trainer_state.json").read_text()) for folder in (one, other)]
    for key in ("global_step", "epoch", "max_steps"):
        assert states[0][key] == states[1][key]
    assert log_of(one) == log_of(other)


# --- Loss ---------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_the_tokens_of_the_whole_step(
    tmp_path: Path, tiny_vip: Any
) -> None:
    """Two batches of two rows give transformers' own loss of one batch of four."""
    made = trainer(tmp_path, model=tiny_vip, max_steps=1, save_steps=99, learning_rate=0.0)
    grads: dict[str, torch.Tensor] = {}
    made.optimizer = torch.optim.SGD(made.create_optimizer().param_groups, lr=0.0)

    def keep(*args: Any, **kwargs: Any) -> None:
        trainable = [(n, p) for n, p in tiny_vip.named_parameters() if p.requires_grad]
        grads.update({n: p.grad.clone() for n, p in trainable})

    made.args.max_grad_norm = 0.0
    made.optimizer.register_step_pre_hook(keep)
    made.train()
    step = [row for batch in made.batches.batches(0)[:2] for row in batch]
    rows = Rows(20)
    rows.set_epoch(0)
    batch = padded([rows[index] for index in step])
    del batch["num_items"], batch["bad"]
    tiny_vip.zero_grad()
    labels = batch.pop("labels")
    logits = tiny_vip(**batch).logits
    plain = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    plain.backward()
    assert made.state.log_history[0]["loss"] == pytest.approx(plain.item(), abs=1e-5)
    for name, parameter in tiny_vip.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_the_projector_has_its_own_learning_rate(tmp_path: Path) -> None:
    made = trainer(tmp_path, projector_lr=5e-2)
    rates = {group["part"]: group["lr"] for group in made.create_optimizer().param_groups}
    assert rates == {"language": 1e-2, "projector": 5e-2}


def test_packed_batches_make_the_step_of_padded_ones(tmp_path: Path) -> None:
    """The same twelve rows as one padded batch and as several packs."""
    results = []
    for name in ("padded", "packed"):
        model = vip_llava()
        rows = Rows(12, (5,))
        packs = PackedBatchSampler(
            [len(Rows(12)[index].input_ids) for index in range(12)], 40, seed=1
        )
        rounds = len(packs.batches(0)) if name == "packed" else 1
        size, options = 12, {"gradient_accumulation_steps": rounds, "max_steps": 2, "limit": 2}
        options |= {"per_device_train_batch_size": size, "save_steps": 99, "rows": 12}
        made = trainer(tmp_path / name, model=model, **options)
        made.train_dataset = rows
        if name == "packed":
            assert rounds > 3
            use_packed_attention(model)
            made.batches, made.data_collator.collator = packs, PackedCollator(0, 40)
        else:
            made.data_collator.collator = PaddedCollator(0)
        made.train()
        assert made.failures.report()["failed"] == 2
        losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
        results.append((losses, model.state_dict()))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-5)
    for name, weight in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], weight, rtol=1e-4, atol=1e-4, msg=name)


# --- Order --------------------------------------------------------------------------------------


def test_processes_and_accumulation_make_the_same_steps() -> None:
    source = ShuffledBatches(23, 2, seed=1)
    alone = RankBatchSampler(source, 0, 1)
    pair = [RankBatchSampler(source, rank, 2) for rank in (0, 1)]
    for epoch in (0, 1):
        for sampler in (alone, *pair):
            sampler.set_epoch(epoch)
        one, two = list(alone), [list(sampler) for sampler in pair]
        assert len(two[0]) == len(two[1]) == len(pair[0]) == 6
        dealt = [batch for step in zip(*two, strict=True) for batch in step if batch]
        assert dealt == one
        assert sorted(row for batch in one for _, row in batch) == list(range(23))
    assert list(alone) != list(RankBatchSampler(source, 0, 1))


def test_epochs_with_more_batches_are_refused() -> None:
    class Growing:
        def batches(self, epoch: int) -> list[list[int]]:
            return [[0]] * (epoch + 1)

    sampler = RankBatchSampler(Growing(), 0, 1)
    sampler.set_epoch(1)
    with pytest.raises(DataError, match="epoch 1 has 2 batches"):
        list(sampler)


def test_workers_change_nothing(tmp_path: Path) -> None:
    for name, workers in (("none", 0), ("two", 2)):
        options = {"dataloader_num_workers": workers, "dropout": 0.1, "save_total_limit": 1}
        trainer(tmp_path / name, **options).train()
    assert_same(tmp_path / "none" / "checkpoint-10", tmp_path / "two" / "checkpoint-10")


# --- Resuming -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("kill", "log", "last"), [(4, 1, 3), (8, 4, 6)])
def test_resumed_after_a_kill_equals_uninterrupted(
    tmp_path: Path, kill: int, log: int, last: int
) -> None:
    """Within the first epoch and within the second; also with fewer reports than checkpoints."""
    common = {"dropout": 0.2, "logging_steps": log, "bad": [7], "limit": 5}
    trainer(tmp_path / "whole", **common).train()
    out = tmp_path / "cut"
    process({"out": str(out), "kill": kill, **common}, expected=-signal.SIGKILL)
    assert latest_checkpoint(out) == out / f"checkpoint-{last}"
    trainer(out, **common).train(resume_from_checkpoint=True)
    assert_same(tmp_path / "whole" / "checkpoint-10", out / "checkpoint-10")


def test_resumed_between_epochs_equals_uninterrupted(tmp_path: Path) -> None:
    common = {"dropout": 0.2, "save_steps": 5}
    trainer(tmp_path / "whole", **common).train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-5", tmp_path / "cut" / "checkpoint-5")
    trainer(tmp_path / "cut", **common).train(resume_from_checkpoint=True)
    assert_same(tmp_path / "whole" / "checkpoint-10", tmp_path / "cut" / "checkpoint-10")


def test_a_damaged_checkpoint_is_ignored(tmp_path: Path) -> None:
    common = {"dropout": 0.2, "save_total_limit": 3}
    trainer(tmp_path / "whole", **common).train()
    trainer(tmp_path / "cut", **common).train()
    for step in (9, 10):
        with (tmp_path / "cut" / f"checkpoint-{step}" / "model.safetensors").open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)[0]
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last ^ 1]))
    made = trainer(tmp_path / "cut", **common)
    made.train(resume_from_checkpoint=True)
    assert_same(tmp_path / "whole" / "checkpoint-10", tmp_path / "cut" / "checkpoint-10")


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        trainer(tmp_path).train(resume_from_checkpoint=True)
    trainer(tmp_path).train()
    folder = tmp_path / "checkpoint-9"
    with pytest.raises(CheckpointError, match="rows is 18 and was 20"):
        trainer(tmp_path, rows=18).train(resume_from_checkpoint=folder)
    with pytest.raises(CheckpointError, match="processes times accumulation"):
        trainer(tmp_path, gradient_accumulation_steps=1).train(resume_from_checkpoint=folder)
    with pytest.raises(CheckpointError, match=r"other train\.parts"):
        trainer(tmp_path, parts=("projector",)).train(resume_from_checkpoint=folder)
    (folder / "random.json").unlink()
    with pytest.raises(CheckpointError, match=r"random\.json is missing"):
        trainer(tmp_path).train(resume_from_checkpoint=folder)


def test_another_base_model_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, parts=("projector",)).train()
    made = trainer(tmp_path, parts=("projector",))
    with torch.no_grad():
        made.model.lm_head.weight[0, 0] += 1
    with pytest.raises(CheckpointError, match="another base model"):
        made.train(resume_from_checkpoint=True)


def test_no_pickle_is_written_or_read(tmp_path: Path) -> None:
    trainer(tmp_path).train()
    names = {path.name for path in (tmp_path / "checkpoint-10").iterdir()}
    kinds = {name.rpartition(".")[2] for name in names}
    assert kinds == {"json", "safetensors"}
    made = trainer(tmp_path)
    with pytest.raises(CheckpointError, match="export"):
        made.save_model()


def test_generator_states_are_restored() -> None:
    seed_all("any", 1)
    random.gauss(0, 1)
    np.random.standard_normal()
    state = json.loads(json.dumps(get_rng_state()))
    first = [random.gauss(0, 1), np.random.standard_normal(), torch.rand(3).tolist()]
    set_rng_state(state)
    assert first == [random.gauss(0, 1), np.random.standard_normal(), torch.rand(3).tolist()]
    seed_all("any", 2)
    assert first[2] != torch.rand(3).tolist()


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, writes = os.write, [0]

    def write(file: int, data: Any) -> int:
        writes[0] += 1
        if writes[0] > 200:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return usual(file, data)

    full = r"No space left.*complete checkpoint is checkpoint-3"
    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match=full):
        patch.setattr(os, "write", write)
        trainer(tmp_path).train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]
    made = trainer(tmp_path)
    made.train(resume_from_checkpoint=True)
    assert made.state.global_step == 10


def test_old_checkpoints_are_pruned_after_the_new_one_is_complete(tmp_path: Path) -> None:
    trainer(tmp_path, save_total_limit=1).train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]
    assert why_incomplete(tmp_path / "checkpoint-10") is None


# --- Bad rows -----------------------------------------------------------------------------------


def test_bad_rows_are_counted_and_not_replaced(tmp_path: Path) -> None:
    bad = (3, 4, 11)
    made = trainer(tmp_path, bad=bad, limit=6, save_steps=99)
    seen: list[int] = []
    usual = made.compute_loss

    def compute_loss(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        seen.append(len(inputs["input_ids"]) if "input_ids" in inputs else 0)
        return usual(model, inputs, *args, **kwargs)

    made.compute_loss = compute_loss
    made.train()
    report = made.failures.report()
    assert report["failed"] == 6  # three rows in each of two epochs
    assert report["rows"] == 40
    assert {entry["id"] for entry in report["first"]} == {"3", "4", "11"}
    assert sum(seen) == 40 - 6


def test_more_bad_rows_than_allowed_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)the limit is 1 rows.*rows\.json.*spoiled"):
        trainer(tmp_path, bad=(3, 4, 11), limit=1).train()
    with pytest.raises(DataError, match="the limit is 0 rows"):
        trainer(tmp_path, bad=(3,)).train()


def test_a_batch_of_only_bad_rows(tmp_path: Path, tiny_vip: Any) -> None:
    """It changes no weight, and no loss becomes NaN."""
    made = trainer(tmp_path, model=tiny_vip, rows=4, bad=(0, 1, 2, 3), limit=99, weight_decay=0.0)
    before = {name: p.detach().clone() for name, p in tiny_vip.named_parameters()}
    made.train()
    assert all(torch.equal(p, before[name]) for name, p in tiny_vip.named_parameters())
    assert all(entry.get("loss", 0.0) == 0.0 for entry in made.state.log_history)


def test_pushing_is_not_supported(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="export"):
        trainer(tmp_path, push_to_hub=True)
