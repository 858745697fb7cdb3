"""Training steps of plain transformers and of this package, side by side in one process.

Plain: transformers' own model, rows in random order padded to the longest of a batch, float32 logits
of all positions, activation checkpointing in every layer. Ours: packed rows, variable-length
attention, the loss of supervised positions only, a frozen tower without a graph that ends at the
deepest hidden state used, compiled layers, and as many layers without checkpointing as fit. Both use
the same random weights, rows and AdamW; its learning rate is 0, so that the losses can be compared.

    python benchmarks/training_step.py [--case stage1 --case stage2 ...] [--write NAME]
    python benchmarks/training_step.py --tiny      # a smoke test, one minute on a CPU

Cases: `stage1`, the projector alone, 32 rows of 624 tokens per step, also with cached tower features;
`stage2`, projector and language model, 16 rows of 832 tokens; `ragged`, stage 2 with the lengths of
real conversations about regions, 625 to 906 tokens, two fifths of the rows text of 40 to 700 tokens;
`drawn`, stage 2 with random lengths of up to 1,276 tokens; `curves`, the losses of 12 steps with a
learning rate (4 layers); `qlora`, the memory of adapters on a 4-bit base.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from vip_llava.data.collators import PackedCollator, PaddedCollator
from vip_llava.data.packing import PackedBatchSampler
from vip_llava.data.samples import Sample
from vip_llava.models.spec import layer_setting
from vip_llava.models.truncate_layers import hidden_state_indices
from vip_llava.training.adapters import add_adapter
from vip_llava.training.attention import use_packed_attention
from vip_llava.training.losses import patch_loss
from vip_llava.training.param_groups import set_trainable
from vip_llava.training.recipes.recipe import AdapterConfig
from vip_llava.training.vision import compile_layers, patch_image_inputs, tower_features

RESULTS = Path(__file__).parent / "results"
LISTED = Path(__file__).parent / "ragged_rows.json"
PARTS = {1: ("projector",), 2: ("projector", "language")}
Batch = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """The configuration of a model, and the factor by which its rows are shorter."""

    text: dict[str, int]
    vision: dict[str, int]
    scale: float = 1.0

    @property
    def view_tokens(self) -> int:
        return int(self.vision["image_size"] // self.vision["patch_size"]) ** 2


BIG = Size(
    {
        "vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    },
    {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
    },
)  # fmt: skip
TINY = Size(
    {
        "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    },
    {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 12,
        "num_attention_heads": 4, "image_size": 56, "patch_size": 14,
    },
    1 / 36,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Rows of a stage: `rows` of them, `batch` in a plain step, `shortest` to `longest` text tokens."""

    stage: int
    batch: int
    rows: int
    shortest: int
    longest: int
    imaged: float = 1.0
    listed: bool = False
    """Whether rows with an image have the lengths in `ragged_rows.json`."""


CASES = {
    "stage1": Case(1, 32, 128, 48, 48),
    "stage2": Case(2, 16, 96, 256, 256),
    "ragged": Case(2, 16, 160, 40, 700, 0.6, listed=True),
    "drawn": Case(2, 16, 160, 40, 700, 0.6),
    "curves": Case(2, 8, 96, 40, 700, 0.6),
    "qlora": Case(2, 16, 32, 256, 256),
}


@dataclass(frozen=True)
class Measurement:
    """One result: rows and tokens (without padding) per second, peak GiB, loss over all rows."""

    case: str
    way: str
    rows: float
    tokens: float
    memory: float
    loss: float


class Bench:
    """Runs cases on one device and collects their results and notes."""

    def __init__(self, size: Size, device: str, compiled: bool, dynamic: bool) -> None:
        self.size, self.device = size, device
        self.compiled, self.dynamic = compiled, dynamic
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.results: list[Measurement] = []
        self.notes: list[str] = []

    def run(self, name: str) -> None:
        """Run one case; an error becomes a note, and earlier results are kept."""
        try:
            runs: dict[str, Callable[[str, Case], None]] = {
                "curves": self.curves,
                "qlora": self.qlora,
            }
            runs.get(name, self.compare)(name, CASES[name])
        except Exception as error:
            traceback.print_exc()
            self.notes.append(f"{name}: {type(error).__name__}: {error}"[:300])
        self.clear()

    def clear(self) -> None:
        """Free memory, and the compiled code of models that no longer exist."""
        gc.collect()
        torch._dynamo.reset()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def compare(self, name: str, case: Case) -> None:
        """Measure plain and ours on one model; in stage 1 ours also with cached features."""
        model = build_model(self.size, self.device, self.dtype, case.stage)
        samples = make_samples(self.size, case)
        plain = self.measure(model, padded_batches(samples, case.batch), samples, name, "plain")
        apply_optimizations(model, self.compiled, self.dynamic)
        # As many tokens per step as plain steps have on average.
        most = case.batch * sum(sample.length for sample in samples) // len(samples)
        batches = packed_batches(samples, most)
        ours = self.with_memory(model, batches, samples, name, "ours")
        if case.stage == 1:
            with_features = [with_cached_features(model, batch) for batch in batches]
            self.with_memory(model, with_features, samples, name, "ours, cached")
        distance = abs(plain.loss - ours.loss) / plain.loss
        self.notes.append(f"{name}: the losses of plain and ours differ by {distance:.1e}")

    def with_memory(
        self, model: Any, batches: list[Batch], samples: list[Sample], name: str, way: str
    ) -> Measurement:
        """Measure with as many layers without activation checkpointing as fit into memory."""
        layers = model.get_decoder().layers
        for share in (1.0, 0.75, 0.5, 0.25, 0.0):
            for number, layer in enumerate(layers):
                layer.gradient_checkpointing = number >= round(share * len(layers))
            try:
                return self.measure(model, batches, samples, name, f"{way} ({share:.0%} kept)")
            except torch.OutOfMemoryError:
                model.zero_grad(set_to_none=True)
            self.clear()
        raise torch.OutOfMemoryError("also with activation checkpointing in all layers")

    def measure(
        self, model: Any, batches: Sequence[Batch], samples: list[Sample], name: str, way: str
    ) -> Measurement:
        """Time a pass over all batches, after a warm-up pass with the largest batches first.

        The warm-up covers all batches, because another kind of length (such as equal rows) can
        compile once more, which a run of hours also does only once. Its time is printed apart.
        """
        optimizer = adamw(model, 0.0)
        ready = [to_device(batch, model) for batch in batches]
        began = time.perf_counter()
        for batch in sorted(ready, key=lambda batch: -batch["input_ids"].numel()):
            train_step(model, batch, optimizer)
        self.wait()
        warm = time.perf_counter() - began
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        losses = [train_step(model, batch, optimizer) for batch in ready]
        self.wait()
        seconds = time.perf_counter() - began
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.device == "cuda" else float("nan")
        counts = [batch["num_items"] for batch in batches]
        total = sum(loss.item() * count for loss, count in zip(losses, counts, strict=True))
        tokens = sum(sample.length for sample in samples)
        made = Measurement(
            name, way, len(samples) / seconds, tokens / seconds, peak, total / sum(counts)
        )
        self.results.append(made)
        print(f"{line(made)}   warm-up {warm:.1f} s", flush=True)
        return made

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def curves(self, name: str, case: Case) -> None:
        """Compare the losses of steps with a learning rate, on the same rows and weights."""
        small = Size({**self.size.text, "num_hidden_layers": 4}, self.size.vision, self.size.scale)
        samples = make_samples(small, case)
        groups = [samples[at : at + case.batch] for at in range(0, len(samples), case.batch)]
        collators: dict[str, Any] = {"plain": PaddedCollator(0), "ours": PackedCollator(0)}
        losses = {}
        for way, collate in collators.items():
            model = build_model(small, self.device, self.dtype, case.stage)
            if way == "ours":
                apply_optimizations(model, self.compiled, self.dynamic)
            optimizer = adamw(model, 1e-4)
            batches = (to_device(collate(rows), model) for rows in groups)
            losses[way] = [train_step(model, batch, optimizer).item() for batch in batches]
            del model, optimizer
            self.clear()
        pairs = list(zip(losses["plain"], losses["ours"], strict=True))
        distance = max(abs(a - b) / a for a, b in pairs)
        first, last = pairs[0][0], pairs[-1][0]
        self.notes.append(
            f"{name}: the loss goes from {first:.3f} to {last:.3f} in {len(pairs)} steps; "
            f"the largest relative difference of ours is {distance:.1e}"
        )

    def qlora(self, name: str, case: Case) -> None:
        """Measure rank-128 adapters on a 4-bit base, with activation checkpointing everywhere."""
        model = build_model(self.size, self.device, self.dtype, case.stage)
        settings = AdapterConfig(kind="qlora", bits=4, rank=128, alpha=256)
        add_adapter(model, settings, device=torch.device(self.device))
        kind = type(model.get_decoder().layers[0].mlp.down_proj.get_base_layer())
        model.enable_input_require_grads()
        apply_optimizations(model, compiled=False)
        samples = make_samples(self.size, case)
        batches = packed_batches(samples, case.batch * samples[0].length)
        way = f"ours ({kind.__module__.split('.')[0]} {kind.__name__})"
        self.measure(model, batches, samples, name, way)


def build_model(size: Size, device: str, dtype: torch.dtype, stage: int) -> Any:
    """A random VipLlava with a frozen tower, in training mode, with activation checkpointing."""
    text = LlamaConfig(**size.text, max_position_embeddings=4096)
    config = VipLlavaConfig(
        vision_config=CLIPVisionConfig(**size.vision),
        text_config=text,
        image_token_index=size.text["vocab_size"] - 1,
        image_seq_length=size.view_tokens,
    )
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model: Any = VipLlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(usual)
    set_trainable(model, PARTS[stage])
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)()
    return model.train()


def make_samples(size: Size, case: Case, seed: int = 0) -> list[Sample]:
    """Random rows: some with one image, others text; a fifth of a random text is supervised."""
    generator = torch.Generator().manual_seed(seed)
    image = size.text["vocab_size"] - 1
    shortest, longest = (max(round(size.scale * n), 3) for n in (case.shortest, case.longest))
    listed = json.loads(LISTED.read_text(encoding="utf-8")) if case.listed else []
    samples = []
    for number in range(case.rows):
        # Short texts are more frequent.
        share = torch.rand((), generator=generator).item() ** 2
        length = shortest + round(share * (longest - shortest))
        learned = max(length // 5, 1)
        imaged = number < case.imaged * case.rows
        if imaged and listed:
            length, learned = (max(round(size.scale * n), 3) for n in listed[number % len(listed)])
        ids = torch.randint(1, image, (length,), generator=generator).tolist()
        pixels = None
        if imaged:
            ids[1:1] = [image] * size.view_tokens
            side = size.vision["image_size"]
            pixels = torch.randn(1, 3, side, side, generator=generator)
        labels = [-100] * (len(ids) - learned) + ids[-learned:]
        samples.append(Sample(str(number), ids, labels, pixels))
    order = torch.randperm(case.rows, generator=generator).tolist()
    return [samples[place] for place in order]


def padded_batches(samples: list[Sample], batch: int) -> list[Batch]:
    collate: Any = PaddedCollator(0)
    return [collate(samples[at : at + batch]) for at in range(0, len(samples), batch)]


def packed_batches(samples: list[Sample], tokens: int) -> list[Batch]:
    collate: Any = PackedCollator(0, tokens)
    packs = PackedBatchSampler([sample.length for sample in samples], tokens)
    return [collate([samples[row] for row in rows]) for rows in packs.batches(0)]


def with_cached_features(model: Any, batch: Batch) -> Batch:
    """The batch with tower features in place of its images."""
    with torch.no_grad():
        features = tower_features(model, batch["pixel_values"].to(model.device))
    return {**batch, "pixel_values": {"features": features}}


def to_device(batch: Batch, model: Any) -> Batch:
    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: moved(one) for key, one in value.items()}
        if not isinstance(value, torch.Tensor):
            return value
        value = value.to(model.device)
        return value.to(model.dtype) if value.is_floating_point() else value

    return {key: moved(value) for key, value in batch.items() if key not in ("bad", "num_items")}


def adamw(model: Any, rate: float) -> torch.optim.Optimizer:
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(weights, lr=rate, weight_decay=0.0, fused=model.device.type == "cuda")


def train_step(model: Any, batch: Batch, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    loss: torch.Tensor = model(**batch, use_cache=False).loss
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def truncate_tower(model: Any) -> None:
    """Remove the tower's layers behind the deepest hidden state used, as loading does."""
    config = model.config
    states = hidden_state_indices(layer_setting(config), config.vision_config.num_hidden_layers)
    found: Any = model.model.vision_tower
    encoder = next(part for part in found.modules() if hasattr(part, "layers"))
    encoder.layers = encoder.layers[: max(states)]
    name = "vision_feature_layer" if hasattr(config, "vision_feature_layer") else None
    setattr(config, name or "vision_feature_layers", list(states))


def apply_optimizations(model: Any, compiled: bool, dynamic: bool = True) -> None:
    """Turn the plain model into ours, for good."""
    patch_image_inputs(model)
    truncate_tower(model)
    patch_loss(model)
    use_packed_attention(model)
    if compiled:
        # Like recipes: `dynamic` compiles once for batches of any length.
        compile_layers(model, True if dynamic else None)


def line(found: Measurement) -> str:
    return (
        f"{found.case:8}{found.way:28}{found.rows:>9.2f}{found.tokens:>10.0f}"
        f"{found.memory:>10.1f}{found.loss:>12.5f}"
    )


def report(bench: Bench) -> Iterator[str]:
    cuda = bench.device == "cuda"
    where = torch.cuda.get_device_name() if cuda else f"CPU ({platform.machine()})"
    yield f"{where}, torch {torch.__version__}, transformers {transformers.__version__}"
    yield f"{'case':8}{'way':28}{'rows/s':>9}{'tokens/s':>10}{'peak GiB':>10}{'loss':>12}{'x plain':>9}"
    plain = {found.case: found.rows for found in bench.results if found.way == "plain"}
    for found in bench.results:
        times = found.rows / plain[found.case] if found.case in plain else float("nan")
        yield f"{line(found)}{times:>9.2f}"
    yield from bench.notes


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and optionally write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--case", action="append", choices=list(CASES), help="default: all cases")
    parser.add_argument("--eager", action="store_true", help="do not compile ours")
    parser.add_argument(
        "--constant", action="store_true", help="compile ours for constant lengths, unlike recipes"
    )
    parser.add_argument("--write", metavar="NAME", help="write results/training-step_NAME.md")
    given = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() and not given.tiny else "cpu"
    bench = Bench(TINY if given.tiny else BIG, device, not given.eager, not given.constant)
    for name in given.case or CASES:
        bench.run(name)
    text = "\n".join(report(bench))
    print(text)
    if given.write:
        path = RESULTS / f"training-step_{given.write}.md"
        path.write_text(f"# Training steps\n\n```text\n{text}\n```\n", encoding="utf-8")


if __name__ == "__main__":
    main()
