"""What a training run on rows is: every choice of it, as checked values with a description each.

A `Recipe` is read from a YAML file by `recipe_files.read`. It says what shall happen, never how: it
deliberately knows no model, no file and no trainer. The default model's own recipes are
`settings.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

__all__ = [
    "Adapter",
    "Batch",
    "Data",
    "Log",
    "Model",
    "Optimizer",
    "Parallel",
    "Part",
    "Recipe",
    "Save",
    "TinyModel",
    "Tracker",
    "Train",
]

Part: TypeAlias = Literal["projector", "language", "tower"]
Tracker: TypeAlias = Literal["tensorboard", "wandb", "trackio"]
Parallel: TypeAlias = Literal[
    "none", "ddp", "fsdp2", "fsdp2-offload", "zero2", "zero3", "zero3-offload"
]


def _listed(value: object) -> object:
    """One item stands for a list of it, as people write YAML."""
    return [value] if isinstance(value, str) else value


Parts: TypeAlias = Annotated[tuple[Part, ...], BeforeValidator(_listed)]
Names: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class _Values(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TinyModel(_Values):
    """A random model with a tokenizer of its own, to try training without any weights."""

    width: int = Field(64, description="width of language model and image encoder", gt=0)
    layers: int = Field(2, description="layers of the language model", gt=0)
    tower_layers: int = Field(12, description="layers of the image encoder", ge=11)
    heads: int = Field(4, description="attention heads of both", gt=0)
    vocabulary: int = Field(512, description="pieces of the tokenizer, at most", ge=300)
    image: int = Field(112, description="side of the square that the encoder sees", gt=0)
    patch: int = Field(14, description="side of a patch", gt=0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name, whole, part in (
            ("width", self.width, self.heads),
            ("image", self.image, self.patch),
        ):
            if whole % part:
                raise ValueError(f"{name} {whole} can't be divided by {part}")
        return self


class Model(_Values):
    """Where the run starts: one of `start`, `base` (with tower and projector) or `tiny`."""

    start: str | None = Field(
        None, description="a whole multimodal model to go on from: folder or hub id"
    )
    base: str | None = Field(
        None, description="a language model to build on: folder or hub id; needs `projector`"
    )
    tower: str | None = Field(
        None, description="the image encoder, where the start has none: folder or hub id"
    )
    projector: str | None = Field(
        None, description="`new` for fresh weights, or the folder of a trained projector"
    )
    features: tuple[int, ...] | int = Field(
        (-2, -5, -8, -11, 6),
        description="hidden states of the encoder that a new projector reads: five, or one",
    )
    tiny: TinyModel | None = Field(None, description="build a small random model instead")
    adapter: str | None = Field(
        None, description="go on with this LoRA folder on top of the start or base"
    )
    template: str | None = Field(
        None, description="conversation template; the start's own if not given"
    )
    aspect: Literal["pad", "square", "resize"] | None = Field(
        None, description="how images become square; the start's own if not given"
    )

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        given = [n for n in ("start", "base", "tiny") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of start, base and tiny, not {given or 'none'}")
        if (self.base is None) != (self.projector is None):
            raise ValueError("base and projector belong together: `projector: new` or a folder")
        if isinstance(self.features, tuple) and self.features != (-2, -5, -8, -11, 6):
            raise ValueError("features are [-2, -5, -8, -11, 6] or one number")
        if self.projector == "new" and self.adapter is not None:
            raise ValueError("an adapter is trained on a projector: `projector: new` has none")
        return self

    @property
    def name(self) -> str:
        """What the run starts from, in a word."""
        return self.start or self.base or "tiny"


class Data(_Values):
    """The rows, and how they become sequences."""

    files: Names = Field(
        description="row files (JSON, JSONL, Parquet, data-set folders), read one after the other",
        min_length=1,
    )
    root: str = Field(
        ".", description="folder that files and images are in; `$recipe`: the recipe's folder"
    )
    images: str = Field(".", description="folder of the images, within root")
    max_length: int = Field(2048, description="tokens of a row, images included; rest cut", gt=1)
    max_failures: int | float = Field(
        0.001,
        description="rows that may be unusable: a count, or below 1 a share; more end the run",
        ge=0,
    )
    packing: bool = Field(
        False, description="several rows in one sequence without padding; attention stays apart"
    )
    packed_tokens: int | None = Field(
        None, description="tokens of a packed sequence; max_length x per_device if not given", gt=1
    )
    grouped: bool = Field(
        False, description="batches of rows of like length, and with or without images"
    )
    feature_cache: bool = Field(
        False, description="store the encoder's outputs once; only with the projector alone"
    )
    workers: int = Field(4, description="processes that prepare rows, for each device", ge=0)
    rows: int | None = Field(
        None, description="about how many rows, for a plan where the files are absent", gt=0
    )


class Adapter(_Values):
    """Low-rank changes of the language model instead of all its weights."""

    kind: Literal["lora", "qlora"] = Field(
        description="lora, or qlora: the same on a base with few bits"
    )
    rank: int = Field(128, description="rank r of the change", gt=0)
    alpha: float = Field(256, description="scale of the change, divided by the rank", gt=0)
    dropout: float = Field(0.05, description="dropout in front of the change", ge=0, lt=1)
    bits: Literal[4, 8] = Field(4, description="of the base, for qlora")


class Train(_Values):
    """What learns."""

    parts: Parts = Field(description="projector, language, tower: what learns whole", min_length=1)
    adapter: Adapter | None = Field(
        None, description="LoRA on the language model; then `parts` must not name language"
    )
    weights: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="kind of the learning weights; bfloat16 halves memory, but loses small steps",
    )

    @model_validator(mode="after")
    def _once(self) -> Self:
        if self.adapter is not None and "language" in self.parts:
            raise ValueError("the language model learns whole or by an adapter, not both")
        if len(set(self.parts)) != len(self.parts):
            raise ValueError(f"a part is named twice: {list(self.parts)}")
        return self


class Optimizer(_Values):
    """AdamW and its rates."""

    lr: float = Field(description="peak rate", gt=0)
    projector_lr: float | None = Field(None, description="the projector's, if it differs", gt=0)
    tower_lr: float | None = Field(None, description="the image encoder's, if it differs", gt=0)
    weight_decay: float = Field(0.0, description="decay of matrices, not of norms", ge=0)
    warmup_ratio: float = Field(0.03, description="share of steps with a rising rate", ge=0, lt=1)
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="of the rate after the rise"
    )
    betas: tuple[float, float] = Field((0.9, 0.999), description="of the two averages")
    clip: float = Field(1.0, description="largest norm of the gradient; 0: none", ge=0)


class Batch(_Values):
    """How many rows a step takes, whatever the number of devices."""

    size: int = Field(description="rows of one optimizer step, over all devices", gt=0)
    per_device: int = Field(description="rows at once on a device, at most", gt=0)


class Save(_Values):
    """Checkpoints to go on from, and the layout of the result."""

    every: int = Field(1000, description="steps between checkpoints; 0: none", ge=0)
    keep: int = Field(2, description="checkpoints that stay", gt=0)
    layout: Literal["hf", "original"] = Field("hf", description="of the whole model at the end")


class Log(_Values):
    """What is reported during the run. metrics.jsonl and the loss curve are always written."""

    every: int = Field(10, description="steps between reports", gt=0)
    to: Annotated[tuple[Tracker, ...], BeforeValidator(_listed)] = Field(
        (), description="also to tensorboard, wandb or trackio"
    )
    samples: int = Field(0, description="rows whose answers are written out during the run", ge=0)
    samples_every: int = Field(500, description="steps between those answers", gt=0)


class Recipe(_Values):
    """A whole run on rows."""

    kind: Literal["rows"] = Field("rows", description="tells it from the default model's recipes")
    about: str = Field("", description="one line for people")
    out: str | None = Field(None, description="folder of the result, if --out is not given")
    model: Model
    data: Data
    train: Train
    optimizer: Optimizer
    batch: Batch
    epochs: float = Field(1.0, description="times through the rows", gt=0)
    steps: int | None = Field(None, description="optimizer steps instead of epochs", gt=0)
    precision: Literal["bf16", "fp16", "float32"] = Field(
        "bf16", description="kind of the computation; float32 where a device has no other"
    )
    activation_checkpointing: bool = Field(
        True, description="compute activations again instead of keeping them"
    )
    compile: bool = Field(
        False, description="torch.compile the layers of the language model and of a frozen tower"
    )
    save: Save = Field(default_factory=lambda: Save.model_validate({}))
    log: Log = Field(default_factory=lambda: Log.model_validate({}))
    parallel: Parallel = Field("ddp", description="how devices share the work")
    seed: int = Field(
        0, description="of new weights, of the order of rows and of drawn marks", ge=0
    )

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.data.feature_cache and self.train.parts != ("projector",):
            raise ValueError("data.feature_cache needs `parts: [projector]` and no adapter")
        if self.data.feature_cache and self.train.adapter is not None:
            raise ValueError("data.feature_cache needs `parts: [projector]` and no adapter")
        if self.data.feature_cache and self.sharded:
            raise ValueError(
                f"data.feature_cache can't be had with parallel {self.parallel}; use ddp"
            )
        if self.model.adapter is not None and self.train.adapter is None:
            raise ValueError("model.adapter goes on with an adapter: train.adapter must say how")
        if self.log.samples and self.sharded:
            raise ValueError(f"log.samples can't be had with parallel {self.parallel}")
        if self.quantized and self.sharded:
            raise ValueError(f"qlora can't be had with parallel {self.parallel}; use ddp")
        return self

    @property
    def sharded(self) -> bool:
        """Whether no device holds the whole model."""
        return self.parallel.startswith(("fsdp2", "zero3"))

    @property
    def quantized(self) -> bool:
        """Whether the base has few bits."""
        return self.train.adapter is not None and self.train.adapter.kind == "qlora"

    def accumulation(self, world: int) -> tuple[int, int]:
        """Rows at once on each of `world` devices and rounds of them, so that `batch.size` is kept.

        Raises ValueError where it can't be kept.
        """
        if self.batch.size % world:
            raise ValueError(
                f"batch.size {self.batch.size} can't be divided among {world} devices; "
                "change one of them"
            )
        share = self.batch.size // world
        rows = next(n for n in range(min(share, self.batch.per_device), 0, -1) if share % n == 0)
        return rows, share // rows

    def resolved(self) -> dict[str, Any]:
        """All values as JSON, defaults included."""
        values: dict[str, Any] = self.model_dump(mode="json")
        return values
