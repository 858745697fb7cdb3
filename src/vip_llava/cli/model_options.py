"""The options of the model, for every verb that loads one, and of sampling.

This module holds names and help texts; values are checked where they are used. It imports nothing
heavy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from vip_llava.cli.legacy_options import LEGACY_PANEL
from vip_llava.errors import RequestError

__all__ = [
    "BaseOption",
    "DebugFlag",
    "ModelOptions",
    "RevisionOption",
    "SamplingOptions",
    "SourceOptions",
    "VisionTowerOption",
    "option_name",
]

MODEL_PANEL = "Model"
SAMPLING_PANEL = "Answer"


def _model(*flags: str, metavar: str | None, text: str) -> Any:
    return typer.Option(
        *flags, metavar=metavar, help=text, rich_help_panel=MODEL_PANEL, show_default=False
    )


def _sampling(*flags: str, metavar: str, text: str) -> Any:
    return typer.Option(*flags, metavar=metavar, help=text, rich_help_panel=SAMPLING_PANEL)


def _load_bits(bits: int) -> Any:
    text = f"Same as --quantization {bits}bit."
    return typer.Option(f"--load-{bits}bit", help=text, rich_help_panel=LEGACY_PANEL)


def _set_debug(ctx: typer.Context, value: bool) -> None:
    if value and isinstance(ctx.obj, dict):
        ctx.obj["debug"] = True


DebugFlag = Annotated[
    bool,
    typer.Option("--debug", help="Show the traceback of an error.", callback=_set_debug),
]
BaseOption = Annotated[
    str | None,
    _model("--base", metavar="NAME|FOLDER", text="Base model of a projector or LoRA folder."),
]
VisionTowerOption = Annotated[
    str | None,
    _model(
        "--vision-tower",
        metavar="NAME|FOLDER",
        text="Image encoder, if the checkpoint does not contain one.",
    ),
]
RevisionOption = Annotated[
    str | None,
    _model("--revision", metavar="COMMIT", text="Branch, tag or commit of a hub model."),
]


def option_name(keyword: str) -> str:
    """The option for a keyword of `vip_llava.load`: `vision_tower` is `--vision-tower`."""
    if keyword == "merge_adapter":  # True without the option
        return "--no-merge-adapter"
    return f"--{keyword.replace('_', '-')}"


def _given(options: Any) -> dict[str, Any]:
    """The fields of an option group that are not None."""
    found = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return {name: value for name, value in found.items() if value is not None}


@dataclasses.dataclass(frozen=True, slots=True)
class SourceOptions:
    """Where to find the parts of a checkpoint, for verbs that name the model itself otherwise."""

    base: BaseOption = None
    vision_tower: VisionTowerOption = None
    revision: RevisionOption = None

    def keywords(self) -> dict[str, Any]:
        """The given values as keywords of `vip_llava.load`."""
        return _given(self)


@dataclasses.dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which model to load, and how: one option for each keyword of `vip_llava.load`."""

    model: Annotated[
        str | None,
        _model(
            "--model",
            "-m",
            metavar="NAME|FOLDER",
            text="Model to load (default: the shipped one); see vip-llava models.",
        ),
    ] = None
    base: BaseOption = None
    vision_tower: VisionTowerOption = None
    revision: RevisionOption = None
    no_merge_adapter: Annotated[
        bool,
        _model("--no-merge-adapter", metavar=None, text="Keep a LoRA as an adapter, unmerged."),
    ] = False
    device: Annotated[
        str | None, _model("--device", metavar="DEVICE", text="cpu, cuda, cuda:1 or mps.")
    ] = None
    device_map: Annotated[
        str | None,
        _model("--device-map", metavar="MAP", text="auto spreads a model over several GPUs."),
    ] = None
    dtype: Annotated[
        str, _model("--dtype", metavar="DTYPE", text="auto (default), float32, bfloat16, float16.")
    ] = "auto"
    quantization: Annotated[
        str | None, _model("--quantization", metavar="BITS", text="8bit or 4bit weights.")
    ] = None
    template: Annotated[
        str | None,
        _model(
            "--template",
            metavar="NAME",
            text="Chat template, if the checkpoint does not name one.",
        ),
    ] = None
    image_aspect_ratio: Annotated[
        str | None,
        _model(
            "--image-aspect-ratio",
            metavar="MODE",
            text="pad, square (crop) or resize, instead of the checkpoint's.",
        ),
    ] = None
    load_4bit: Annotated[bool, _load_bits(4)] = False
    load_8bit: Annotated[bool, _load_bits(8)] = False

    def keywords(self) -> dict[str, Any]:
        """The given values as keywords of `vip_llava.load`."""
        found = _given(self)
        for name in ("model", "load_4bit", "load_8bit", "quantization", "no_merge_adapter"):
            found.pop(name, None)
        if self.no_merge_adapter:
            found["merge_adapter"] = False
        if self.dtype == "auto":
            del found["dtype"]
        quantization = self._quantization()
        return found if quantization is None else {**found, "quantization": quantization}

    def arguments(self) -> list[str]:
        """The given values, except the model's name, as arguments of another process."""
        found = []
        for name, value in self.keywords().items():
            found += [option_name(name), *([] if value is False else [str(value)])]
        return found

    def check_models(self, models: Iterable[str | None]) -> None:
        """RequestError if an option can't apply to all these models; None is the default model."""
        names = list(models)
        if len(names) > 1 and self.revision is not None:
            raise RequestError(
                "--revision belongs to one hub model and can't apply to several; serve that model "
                "alone, with --model and --revision"
            )
        parts = SourceOptions(self.base, self.vision_tower).keywords()
        if len(names) > 1 and None in names and parts:
            raise RequestError(
                f"{option_name(min(parts))} applies to all models, but the default model does not "
                "accept it; leave default out of --models, or serve it alone"
            )

    def _quantization(self) -> str | None:
        given = {self.quantization.lower().replace("-", "")} if self.quantization else set()
        given |= {"4bit"} if self.load_4bit else set()
        given |= {"8bit"} if self.load_8bit else set()
        given = {f"{bits}bit" if bits in ("4", "8") else bits for bits in given}
        if len(given) > 1:
            raise RequestError(
                "more than one quantization is given: use one of --quantization, --load-4bit and "
                "--load-8bit"
            )
        return given.pop() if given else None


@dataclasses.dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How tokens are chosen; None is the default of `SamplingParams`."""

    max_new_tokens: Annotated[
        int | None,
        _sampling("--max-new-tokens", metavar="N", text="Longest answer in tokens (default: 512)."),
    ] = None
    temperature: Annotated[
        float | None,
        _sampling("--temperature", metavar="T", text="0 (default): the most probable token."),
    ] = None
    top_p: Annotated[
        float | None,
        _sampling("--top-p", metavar="P", text="Sample from the top P probability."),
    ] = None
    top_k: Annotated[
        int | None,
        _sampling("--top-k", metavar="K", text="Sample from the K most probable tokens; 0: all."),
    ] = None
    min_p: Annotated[
        float | None,
        _sampling("--min-p", metavar="P", text="Drop tokens below P times the most probable."),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        _sampling("--repetition-penalty", metavar="R", text="Above 1: fewer repetitions."),
    ] = None
    seed: Annotated[
        int | None,
        _sampling("--seed", metavar="N", text="The same seed samples the same answer."),
    ] = None
    stop: Annotated[
        list[str] | None,
        _sampling("--stop", metavar="TEXT", text="End the answer before this text (repeatable)."),
    ] = None

    def keywords(self) -> dict[str, Any]:
        """The given values as keywords of `Assistant.ask`."""
        given = _given(self)
        return {**given, "stop": tuple(given["stop"])} if "stop" in given else given
