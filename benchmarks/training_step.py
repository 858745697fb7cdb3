"""Training steps of the plain way and of ours, side by side in one process, on ragged rows.

Plain: transformers' own model, rows in random order padded to the longest of a batch, logits of all
positions in float32, every layer recomputed. Ours: rows packed, attention by borders, the loss of
supervised positions only, the frozen tower without a graph and ended at the deepest layer used.
Same random weights, same rows, same AdamW (with a rate of 0, so that the weights stay the same and
the losses can be compared afterwards).

    python benchmarks/training_step.py [--stage 2] [--rows 256] [--tokens 16384] [--keep-layers 0.25]
    python benchmarks/training_step.py --tiny      # a few seconds on a CPU; shows that it runs
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from vip_llava.data.batches import PackedCollator, PaddedCollator
from vip_llava.data.packing import PackedBatches
from vip_llava.data.samples import Sample
from vip_llava.model.towers import used_states
from vip_llava.training.attention import use_packed_attention
from vip_llava.training.losses import compute_loss_inside
from vip_llava.training.parts import choose_trainable, feature_layers
from vip_llava.training.vision import read_views

PARTS = {1: ("projector",), 2: ("projector", "language")}
NOT_FOR_THE_MODEL = ("bad", "num_items")


@dataclass(frozen=True)
class Size:
    """A model and the lengths of its rows."""

    text: dict[str, int]
    vision: dict[str, int]
    shortest: int
    longest: int

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
    40, 700,
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
    6, 60,
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One way: rows and tokens (without padding) a second, GiB at the peak, loss over all rows."""

    rows: float
    tokens: float
    memory: float
    loss: float


def build(size: Size, device: str, dtype: torch.dtype, stage: int) -> Any:
    """A random five-layer VipLlava in training mode; the tower is frozen."""
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
    choose_trainable(model, PARTS[stage])
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)()
    return model.train()


def make_samples(size: Size, count: int, pictured: float, seed: int = 0) -> list[Sample]:
    """Rows as a mix has them: most with one picture, the others text; a fifth of the text is learned."""
    generator = torch.Generator().manual_seed(seed)
    image = size.text["vocab_size"] - 1
    samples = []
    for number in range(count):
        # Short ones are more frequent.
        share = torch.rand((), generator=generator).item() ** 2
        length = size.shortest + round(share * (size.longest - size.shortest))
        ids = torch.randint(1, image, (length,), generator=generator).tolist()
        learned = max(length // 5, 1)
        pixels = None
        if number < pictured * count:
            ids[1:1] = [image] * size.view_tokens
            side = size.vision["image_size"]
            pixels = torch.randn(1, 3, side, side, generator=generator)
        labels = [-100] * (len(ids) - learned) + ids[-learned:]
        samples.append(Sample(str(number), ids, labels, pixels))
    order = torch.randperm(count, generator=generator).tolist()
    return [samples[place] for place in order]


def on_device(batch: dict[str, Any], model: Any) -> dict[str, Any]:
    moved = {
        key: value.to(model.device) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
        if key not in NOT_FOR_THE_MODEL
    }
    if "pixel_values" in moved:
        moved["pixel_values"] = moved["pixel_values"].to(model.dtype)
    return moved


def synchronize(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def measure(model: Any, batches: Sequence[dict[str, Any]], samples: list[Sample]) -> Measured:
    """One warm pass over two batches, then one timed pass over all, a step for each batch."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    cuda = model.device.type == "cuda"
    optimizer = torch.optim.AdamW(weights, lr=0.0, weight_decay=0.0, fused=cuda)
    ready = [on_device(batch, model) for batch in batches]

    def step(batch: dict[str, Any]) -> torch.Tensor:
        return one_step(model, batch, optimizer)

    for batch in sorted(ready, key=lambda batch: -batch["input_ids"].numel())[:2]:
        step(batch)
    synchronize(model)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    losses = [step(batch) for batch in ready]
    synchronize(model)
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else float("nan")
    counts = [batch["num_items"] for batch in batches]
    total = sum(loss.item() * count for loss, count in zip(losses, counts, strict=True))
    tokens = sum(sample.length for sample in samples)
    return Measured(len(samples) / seconds, tokens / seconds, peak, total / sum(counts))


def one_step(model: Any, batch: dict[str, Any], optimizer: torch.optim.Optimizer) -> torch.Tensor:
    loss: torch.Tensor = model(**batch, use_cache=False).loss
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def stop_tower(model: Any) -> None:
    """End the tower at the deepest hidden state used, as loading does; indices count from 0."""
    config = model.config
    states = used_states(feature_layers(config), config.vision_config.num_hidden_layers)
    found: Any = model.model.vision_tower
    encoder = next(part for part in found.modules() if hasattr(part, "layers"))
    encoder.layers = encoder.layers[: max(states)]
    name = "vision_feature_layer" if hasattr(config, "vision_feature_layer") else None
    setattr(config, name or "vision_feature_layers", list(states))


def switch(model: Any, keep: float, compiled: bool) -> None:
    """From the plain way to ours; there is no way back."""
    read_views(model)
    stop_tower(model)
    compute_loss_inside(model)
    use_packed_attention(model)
    layers = model.get_decoder().layers
    for layer in layers[: round(keep * len(layers))]:
        layer.gradient_checkpointing = False
    if compiled:
        for layer in layers:
            layer.compile(dynamic=True)


def compare(given: argparse.Namespace) -> tuple[Measured, Measured]:
    size = TINY if given.tiny else BIG
    device = "cuda" if torch.cuda.is_available() and not given.tiny else "cpu"
    model = build(size, device, torch.float32 if given.tiny else torch.bfloat16, given.stage)
    samples = make_samples(size, given.rows, given.pictured)
    pad = PaddedCollator(0)
    starts = range(0, len(samples), given.batch)
    padded = [pad(samples[start : start + given.batch]) for start in starts]
    plain = measure(model, padded, samples)
    if device == "cuda":
        torch.cuda.empty_cache()
    switch(model, given.keep_layers, given.compile)
    packs = PackedBatches([sample.length for sample in samples], given.tokens)
    collate = PackedCollator(0, given.tokens)
    packed = [collate([samples[row] for row in rows]) for rows in packs.batches(0)]
    return plain, measure(model, packed, samples)


def report(given: argparse.Namespace, plain: Measured, ours: Measured) -> str:
    cuda = torch.cuda.is_available() and not given.tiny
    where = torch.cuda.get_device_name() if cuda else f"CPU ({platform.machine()})"
    lines = [
        f"{where}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"stage {given.stage}, {given.rows} rows, {given.pictured:.0%} with a picture",
        f"plain: {given.batch} padded rows a step; "
        f"ours: {given.tokens} tokens a step, {given.keep_layers:.0%} of layers not recomputed",
        f"{'':8}{'rows/s':>10}{'tokens/s':>12}{'peak GiB':>10}{'loss':>12}",
    ]
    for name, found in (("plain", plain), ("ours", ours)):
        numbers = (
            f"{found.rows:>10.2f}{found.tokens:>12.0f}{found.memory:>10.1f}{found.loss:>12.6f}"
        )
        lines.append(f"{name:8}{numbers}")
    distance = abs(plain.loss - ours.loss) / plain.loss
    lines.append(
        f"{ours.rows / plain.rows:.2f} times the rows a second; losses differ by {distance:.1e}"
    )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--stage", type=int, choices=(1, 2), default=2)
    parser.add_argument("--rows", type=int, help="rows (256; tiny 24)")
    parser.add_argument("--batch", type=int, help="rows of a padded batch (16; tiny 4)")
    parser.add_argument("--tokens", type=int, help="tokens of a packed batch (16384; tiny 256)")
    parser.add_argument(
        "--pictured", type=float, help="share of rows with a picture (stage 1: 1, stage 2: 0.6)"
    )
    parser.add_argument(
        "--keep-layers", type=float, default=0.0, help="share of layers that ours doesn't recompute"
    )
    parser.add_argument("--compile", action="store_true", help="compile ours' decoder layers")
    given = parser.parse_args(arguments)
    if given.pictured is None:
        given.pictured = {1: 1.0, 2: 0.6}[given.stage]
    usual = (24, 4, 256) if given.tiny else (256, 16, 16384)
    for name, value in zip(("rows", "batch", "tokens"), usual, strict=True):
        setattr(given, name, getattr(given, name) or value)
    print(report(given, *compare(given)))


if __name__ == "__main__":
    main()
