"""Options of the model, for every verb that opens one, and of sampling, with the original's spellings.

Only names and help texts live here; values are checked where they are used. Imports nothing heavy.
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
    "photo_and_question",
]

MODEL_PANEL = "Model"
SAMPLING_PANEL = "Answer"


def _model(*flags: str, metavar: str, text: str) -> Any:
    return typer.Option(*flags, metavar=metavar, help=text, rich_help_panel=MODEL_PANEL)


def _sampling(*flags: str, metavar: str, text: str) -> Any:
    return typer.Option(*flags, metavar=metavar, help=text, rich_help_panel=SAMPLING_PANEL)


def _set_debug(ctx: typer.Context, value: bool) -> None:
    if value and isinstance(ctx.obj, dict):
        ctx.obj["debug"] = True


DebugFlag = Annotated[
    bool,
    typer.Option("--debug", help="Show the traceback of an error.", callback=_set_debug),
]


BaseOption = Annotated[
    str | None,
    _model(
        "--base",
        "--model-base",
        metavar="NAME|FOLDER",
        text="Model that a projector or LoRA folder belongs to.",
    ),
]
VisionTowerOption = Annotated[
    str | None,
    _model(
        "--vision-tower",
        metavar="NAME|FOLDER",
        text="Image encoder, if the checkpoint has none inside.",
    ),
]
RevisionOption = Annotated[
    str | None,
    _model("--revision", metavar="COMMIT", text="Branch, tag or commit of a hub model."),
]


def option_name(keyword: str) -> str:
    """The option for a keyword of `vip_llava.load`: `vision_tower` is `--vision-tower`."""
    return f"--{keyword.replace('_', '-')}"


@dataclasses.dataclass(frozen=True, slots=True)
class SourceOptions:
    """Where the parts of a checkpoint are, for verbs that take the model itself in another way."""

    base: BaseOption = None
    vision_tower: VisionTowerOption = None
    revision: RevisionOption = None

    def keywords(self) -> dict[str, Any]:
        """The chosen values as keywords of `vip_llava.load`; unset options are left out."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in found.items() if value is not None}


@dataclasses.dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which model is opened, and how: one option for each keyword of `vip_llava.load`."""

    model: Annotated[
        str | None,
        _model(
            "--model",
            "--model-path",
            "-m",
            metavar="NAME|FOLDER",
            text="Model to use; the default model if not given. See `vip-llava models`.",
        ),
    ] = None
    base: BaseOption = None
    vision_tower: VisionTowerOption = None
    revision: RevisionOption = None
    merge_adapter: Annotated[
        bool,
        typer.Option(
            "--merge-adapter/--no-merge-adapter",
            help="Fold a LoRA into the weights, or keep it as an adapter.",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = True
    device: Annotated[
        str | None, _model("--device", metavar="DEVICE", text="cpu, cuda, cuda:1, mps.")
    ] = None
    device_map: Annotated[
        str | None,
        _model("--device-map", metavar="MAP", text="auto spreads a model over several GPUs."),
    ] = None
    dtype: Annotated[
        str, _model("--dtype", metavar="DTYPE", text="auto, float32, bfloat16 or float16.")
    ] = "auto"
    quantization: Annotated[
        str | None, _model("--quantization", metavar="BITS", text="8bit or 4bit weights.")
    ] = None
    template: Annotated[
        str | None,
        _model(
            "--template",
            "--conv-mode",
            metavar="NAME",
            text="Conversation template, if the model does not say it.",
        ),
    ] = None
    image_aspect_ratio: Annotated[
        str | None,
        _model(
            "--image-aspect-ratio",
            "--image_aspect_ratio",
            metavar="pad|square|resize",
            text="How images become square, if not as the model says.",
        ),
    ] = None
    load_4bit: Annotated[
        bool,
        typer.Option(
            "--load-4bit", help="Same as --quantization 4bit.", rich_help_panel=LEGACY_PANEL
        ),
    ] = False
    load_8bit: Annotated[
        bool,
        typer.Option(
            "--load-8bit", help="Same as --quantization 8bit.", rich_help_panel=LEGACY_PANEL
        ),
    ] = False

    def keywords(self) -> dict[str, Any]:
        """The chosen values as keywords of `vip_llava.load`; unset options are left out."""
        wanted = {
            "base": self.base,
            "vision_tower": self.vision_tower,
            "revision": self.revision,
            "merge_adapter": None if self.merge_adapter else False,
            "device": self.device,
            "device_map": self.device_map,
            "dtype": self.dtype if self.dtype != "auto" else None,
            "quantization": self._quantization(),
            "template": self.template,
            "image_aspect_ratio": self.image_aspect_ratio,
        }
        return {name: value for name, value in wanted.items() if value is not None}

    def arguments(self) -> list[str]:
        """The chosen values, without the model's name, as arguments of another process."""
        found = []
        for name, value in self.keywords().items():
            if value is False:
                found.append(f"--no-{name.replace('_', '-')}")
            else:
                found += [option_name(name), str(value)]
        return found

    def check_models(self, models: Iterable[str | None]) -> None:
        """RequestError where an option can't apply to all of these models; None is the default."""
        names = list(models)
        if len(names) > 1 and self.revision is not None:
            raise RequestError(
                "--revision belongs to one hub model and can't apply to several; serve that model "
                "alone, with --model and --revision"
            )
        parts = SourceOptions(self.base, self.vision_tower).keywords()
        if len(names) > 1 and None in names and parts:
            raise RequestError(
                f"{option_name(min(parts))} applies to all models, and the default model takes none; "
                "leave default out of --models, or serve it alone"
            )

    def _quantization(self) -> str | None:
        asked = {self.quantization.lower().replace("-", "")} if self.quantization else set()
        asked |= {"4bit"} if self.load_4bit else set()
        asked |= {"8bit"} if self.load_8bit else set()
        asked = {f"{bits}bit" if bits in ("4", "8") else bits for bits in asked}
        if len(asked) > 1:
            raise RequestError(
                "more than one quantization is asked for: choose one of --quantization, "
                "--load-4bit and --load-8bit"
            )
        return asked.pop() if asked else None


@dataclasses.dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How the answer is chosen. None means: the library's default."""

    max_new_tokens: Annotated[
        int | None,
        _sampling(
            "--max-new-tokens",
            "--max_new_tokens",
            metavar="N",
            text="Longest answer, in tokens (512 if not given).",
        ),
    ] = None
    temperature: Annotated[
        float | None,
        _sampling("--temperature", metavar="T", text="0 takes the likeliest word (the default)."),
    ] = None
    top_p: Annotated[
        float | None,
        _sampling("--top-p", "--top_p", metavar="P", text="Keep the likeliest words up to P."),
    ] = None
    top_k: Annotated[
        int | None, _sampling("--top-k", metavar="K", text="Keep the K likeliest words; 0: all.")
    ] = None
    min_p: Annotated[
        float | None,
        _sampling("--min-p", metavar="P", text="Drop words below P times the likeliest."),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        _sampling("--repetition-penalty", metavar="R", text="Above 1 repeats less."),
    ] = None
    seed: Annotated[
        int | None,
        _sampling("--seed", metavar="N", text="The same seed gives the same sampled answer."),
    ] = None
    stop: Annotated[
        list[str] | None,
        _sampling("--stop", metavar="TEXT", text="End the answer before this text (repeatable)."),
    ] = None

    def keywords(self) -> dict[str, Any]:
        """What was chosen, as keywords of `Assistant.ask`; unset options are left out."""
        chosen = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.stop is not None:
            chosen["stop"] = tuple(self.stop)
        return {name: value for name, value in chosen.items() if value is not None}


def photo_and_question(
    photo: str | None, question: str | None, image_file: str | None, query: str | None
) -> tuple[str, str | None]:
    """The photo and the question, whichever way they were typed.

    With `--image-file` the first positional text is the question. Raises RequestError when one is
    given twice or the photo is missing.
    """
    if image_file is not None:
        if question is not None:
            raise RequestError("the photo is given twice: as PHOTO and with --image-file")
        photo, question = image_file, photo
    if query is not None:
        if question is not None:
            raise RequestError("the question is given twice: as QUESTION and with --query")
        question = query
    if photo is None:
        raise RequestError('which photo? for example: vip-llava ask photo.jpg "What is this?"')
    return photo, question
