"""The schema of a training recipe: every choice of a run, with a type, a default and a description.

A `Recipe` is read from a YAML file by `recipe_files.load_recipe`. It says what a run does, not how:
it does not know models, files or the trainer.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

__all__ = [
    "AdapterConfig",
    "BatchConfig",
    "DataConfig",
    "LogConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Part",
    "Recipe",
    "SaveConfig",
    "TinyModelConfig",
    "TrainConfig",
]

Part: TypeAlias = Literal["projector", "language", "tower"]
Tracker: TypeAlias = Literal["tensorboard", "wandb", "trackio"]
ParallelStrategy: TypeAlias = Literal[
    "none", "ddp", "fsdp2", "fsdp2-offload", "zero2", "zero3", "zero3-offload"
]


def _as_list(value: object) -> object:
    """A single string stands for a list of it."""
    return [value] if isinstance(value, str) else value


Parts: TypeAlias = Annotated[tuple[Part, ...], BeforeValidator(_as_list)]
Names: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_as_list)]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TinyModelConfig(_Config):
    """A small random model with a tokenizer of its own, for trying a run without any weights."""

    width: int = Field(64, description="hidden size of the language model and the tower", gt=0)
    layers: int = Field(2, description="layers of the language model", gt=0)
    tower_layers: int = Field(12, description="layers of the vision tower", ge=11)
    heads: int = Field(4, description="attention heads of both", gt=0)
    vocabulary: int = Field(512, description="maximum vocabulary size of the tokenizer", ge=300)
    image: int = Field(112, description="side of the tower's square input in pixels", gt=0)
    patch: int = Field(14, description="side of a patch in pixels", gt=0)

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        for name, whole, part in (
            ("width", self.width, self.heads),
            ("image", self.image, self.patch),
        ):
            if whole % part:
                raise ValueError(f"{name} {whole} must be divisible by {part}")
        return self


class ModelConfig(_Config):
    """The initial model: exactly one of `start`, `base` (with tower and projector) and `tiny`."""

    start: str | None = Field(
        None, description="a multimodal model to continue from: folder or hub id"
    )
    base: str | None = Field(
        None, description="a language model to build on: folder or hub id; needs `projector`"
    )
    tower: str | None = Field(
        None, description="the vision tower, if the initial model has none: folder or hub id"
    )
    projector: str | None = Field(
        None, description="`new` for a randomly initialized one, or a trained projector's folder"
    )
    features: tuple[int, ...] | int = Field(
        (-2, -5, -8, -11, 6),
        description="hidden states of the tower that a new projector reads: one, or several",
    )
    tiny: TinyModelConfig | None = Field(None, description="build a small random model")
    adapter: str | None = Field(
        None, description="a LoRA folder on top of `start` or `base` to continue from"
    )
    template: str | None = Field(
        None, description="conversation template; by default the initial model's"
    )
    aspect: Literal["pad", "square", "resize"] | None = Field(
        None, description="how images become square; by default as in the initial model"
    )

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        given = [n for n in ("start", "base", "tiny") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of start, base and tiny, not {given or 'none'}")
        if (self.base is None) != (self.projector is None):
            raise ValueError("base and projector belong together: `projector: new` or a folder")
        if self.features == ():
            raise ValueError("features must name at least one hidden state of the tower")
        if self.projector == "new" and self.adapter is not None:
            raise ValueError("adapter needs the projector it was trained with, not `new`")
        return self

    @property
    def name(self) -> str:
        """The initial model's name for messages and the model card."""
        return self.start or self.base or "tiny"


class DataConfig(_Config):
    """Rows, and how they become sequences."""

    files: Names = Field(
        description="row files (JSON, JSONL, Parquet, folders of datasets), read in sequence",
        min_length=1,
    )
    root: str = Field(
        ".", description="folder of the row files and images; `$recipe` is the recipe's folder"
    )
    images: str = Field(".", description="folder of the images, relative to `root`")
    max_length: int = Field(
        2048, description="maximum tokens of a row, image tokens included; longer rows are cut",
        gt=1,
    )  # fmt: skip
    max_failures: int | float = Field(
        0.001,
        description="bad rows that the run tolerates: a count, or a fraction below 1",
        ge=0,
    )
    packing: bool = Field(
        False, description="pack rows into sequences without padding; rows do not attend to others"
    )
    packed_tokens: int | None = Field(
        None, description="tokens of a packed sequence; by default at most max_length x per_device",
        gt=1,
    )  # fmt: skip
    grouped: bool = Field(
        False, description="group rows of similar length, and rows with and without images"
    )
    feature_cache: bool = Field(
        False,
        description="cache the frozen tower's outputs; only if the projector alone is trained",
    )
    workers: int = Field(4, description="data-loader processes per device", ge=0)
    rows: int | None = Field(
        None, description="approximate number of rows, for a plan without the files", gt=0
    )


class AdapterConfig(_Config):
    """LoRA on the language model, in place of training all its weights."""

    kind: Literal["lora", "qlora"] = Field(
        description="`lora`, or `qlora`: LoRA on a quantized base"
    )
    rank: int = Field(128, description="rank of the update", gt=0)
    alpha: float = Field(256, description="the update is scaled by alpha / rank", gt=0)
    dropout: float = Field(0.05, description="dropout on the adapter's input", ge=0, lt=1)
    bits: Literal[4, 8] = Field(4, description="bits of the base's weights, for qlora")


class TrainConfig(_Config):
    """What is trained."""

    parts: Parts = Field(
        description="the parts to train in full: projector, language, tower", min_length=1
    )
    adapter: AdapterConfig | None = Field(
        None, description="LoRA on the language model; then `parts` must not contain language"
    )
    weights: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="dtype of trainable weights; bfloat16 halves memory, but rounds off small steps",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.adapter is not None and "language" in self.parts:
            raise ValueError("train the language model in full or with an adapter, not both")
        if len(set(self.parts)) != len(self.parts):
            raise ValueError(f"a part is named twice: {list(self.parts)}")
        return self


class OptimizerConfig(_Config):
    """AdamW and its learning rates."""

    lr: float = Field(description="peak learning rate", gt=0)
    projector_lr: float | None = Field(None, description="the projector's; by default `lr`", gt=0)
    tower_lr: float | None = Field(None, description="the vision tower's; by default `lr`", gt=0)
    weight_decay: float = Field(0.0, description="weight decay of matrices", ge=0)
    warmup_ratio: float = Field(0.03, description="fraction of steps for warm-up", ge=0, lt=1)
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="learning-rate schedule after warm-up"
    )
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's betas")
    clip: float = Field(1.0, description="maximum gradient norm; 0: no clipping", ge=0)


class BatchConfig(_Config):
    """Rows of an optimizer step, independent of the number of devices."""

    size: int = Field(description="rows of an optimizer step over all devices", gt=0)
    per_device: int = Field(description="maximum rows of a micro-batch on a device", gt=0)


class SaveConfig(_Config):
    """Checkpoints to resume from, and the layout of the result."""

    every: int = Field(1000, description="steps between checkpoints; 0: none", ge=0)
    keep: int = Field(2, description="checkpoints to keep", gt=0)
    layout: Literal["hf", "original"] = Field("hf", description="layout of an exported model")


class LogConfig(_Config):
    """Reports during the run; metrics.jsonl and the loss curve are always written."""

    every: int = Field(10, description="steps between reports", gt=0)
    to: Annotated[tuple[Tracker, ...], BeforeValidator(_as_list)] = Field(
        (), description="further trackers: tensorboard, wandb, trackio"
    )
    samples: int = Field(0, description="rows that the model answers during the run", ge=0)
    samples_every: int = Field(500, description="steps between those answers", gt=0)


class Recipe(_Config):
    """A whole training run on rows."""

    kind: Literal["rows"] = Field("rows", description="distinguishes recipes of other trainers")
    about: str = Field("", description="one line that describes the run")
    out: str | None = Field(None, description="folder of the result, unless --out is given")
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    optimizer: OptimizerConfig
    batch: BatchConfig
    epochs: float = Field(1.0, description="passes over the rows", gt=0)
    steps: int | None = Field(None, description="optimizer steps, in place of `epochs`", gt=0)
    precision: Literal["bf16", "fp16", "float32"] = Field(
        "bf16", description="dtype of the computation; always float32 on a CPU"
    )
    activation_checkpointing: bool = Field(
        True, description="recompute activations in the backward pass to save memory"
    )
    compile: bool = Field(
        False, description="torch.compile the layers of the language model and of a frozen tower"
    )
    save: SaveConfig = Field(default_factory=lambda: SaveConfig.model_validate({}))
    log: LogConfig = Field(default_factory=lambda: LogConfig.model_validate({}))
    parallel: ParallelStrategy = Field("ddp", description="how several devices share the work")
    seed: int = Field(
        0, description="seed of new weights, of the order of rows and of drawn marks", ge=0
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.data.feature_cache:
            if self.train.parts != ("projector",) or self.train.adapter is not None:
                raise ValueError("data.feature_cache needs `parts: [projector]` and no adapter")
            if self.sharded:
                raise ValueError(
                    f"data.feature_cache does not work with parallel {self.parallel}; use ddp"
                )
        if self.model.adapter is not None and self.train.adapter is None:
            raise ValueError("model.adapter needs train.adapter with the same rank and alpha")
        if self.log.samples and self.sharded:
            raise ValueError(f"log.samples does not work with parallel {self.parallel}")
        if self.quantized and self.sharded:
            raise ValueError(f"qlora does not work with parallel {self.parallel}; use ddp")
        return self

    @property
    def sharded(self) -> bool:
        """Whether the weights are sharded, so that no device holds the whole model."""
        return self.parallel.startswith(("fsdp2", "zero3"))

    @property
    def quantized(self) -> bool:
        """Whether the base is quantized."""
        return self.train.adapter is not None and self.train.adapter.kind == "qlora"

    def accumulation(self, world_size: int) -> tuple[int, int]:
        """Micro-batch size and accumulation steps with which a step has `batch.size` rows.

        Raises ValueError if `batch.size` can't be divided among the devices.
        """
        if self.batch.size % world_size:
            raise ValueError(
                f"batch.size {self.batch.size} can't be divided among {world_size} devices; "
                "change one of them"
            )
        share = self.batch.size // world_size
        rows = next(n for n in range(min(share, self.batch.per_device), 0, -1) if share % n == 0)
        return rows, share // rows

    def resolved(self) -> dict[str, Any]:
        """All values as JSON, defaults included."""
        values: dict[str, Any] = self.model_dump(mode="json")
        return values
