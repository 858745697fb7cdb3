"""What `ask`, `chat` and `draw` share: read the photo and the question, draw, save, load a model.

Mistakes on the command line are reported here, before any model is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vip_llava.cli.legacy_options import LegacyOptions
from vip_llava.cli.model_options import ModelOptions
from vip_llava.cli.option_groups import typed_options
from vip_llava.cli.region_options import RegionOptions, regions_from_typed
from vip_llava.cli.terminal import loading, note
from vip_llava.errors import ImageError, RequestError

if TYPE_CHECKING:
    from PIL.Image import Image

    from vip_llava.assistant import Assistant
    from vip_llava.prompting.turns import MarkedImage

__all__ = [
    "PhotoArgument",
    "check_target",
    "mark",
    "open_assistant",
    "open_photo",
    "photo_and_question",
    "question_from",
    "save_image",
]

PhotoArgument = Annotated[
    str | None, typer.Argument(metavar="PHOTO", help="The photo; - reads it from stdin.")
]
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
FORMATS |= {".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF"}


def photo_and_question(
    photo: str | None, question: str | None, image_file: str | None, query: str | None
) -> tuple[str, str | None]:
    """The photo and the question, from arguments or the original's flags.

    With `--image-file` the first argument is the question. Raises RequestError if one of them is
    given twice, or if the photo is missing.
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
        raise RequestError('no photo given; for example: vip-llava ask photo.jpg "What is this?"')
    return photo, question


def question_from(question: str | None, *, stdin_allowed: bool = True) -> str:
    """The question as typed, or from a piped stdin if it is `-` or missing."""
    piped = stdin_allowed and not sys.stdin.isatty()
    if question == "-" or (question is None and piped):
        question = sys.stdin.read()
    if question is None or not question.strip():
        raise RequestError(
            'no question: write it after the photo, like vip-llava ask photo.jpg "What is this?" '
            "(for a conversation: vip-llava chat photo.jpg)"
        )
    return question.strip()


def open_photo(photo: str) -> Image:
    """The photo as RGB, turned as its EXIF data says; `-` reads it from stdin."""
    from vip_llava.images import open_image

    if photo == "-":
        try:
            return open_image(sys.stdin.buffer.read())
        except ImageError as error:
            raise ImageError(f"the photo from stdin (-): {error}") from error
    if photo.startswith(("http://", "https://", "data:")):
        return open_image(photo)
    path = Path(photo).expanduser()
    if not path.exists():
        raise ImageError(f"{photo}: no such photo")
    if path.is_dir():
        raise ImageError(f"{photo}: a folder, not a photo")
    try:
        return open_image(path)
    except ImageError as error:
        if photo in str(error):
            raise
        raise ImageError(f"{photo}: {error}") from error


def mark(
    ctx: typer.Context, photo: str, regions: RegionOptions, legacy: LegacyOptions
) -> tuple[MarkedImage, list[str]]:
    """The photo with the typed regions drawn on it, and notes on what was changed (clipping).

    The notes are also printed on stderr.
    """
    from vip_llava.prompting.turns import MarkedImage, draw_images

    image = open_photo(photo)
    found = regions_from_typed(typed_options(ctx), image.size, unit=regions.unit, legacy=legacy)
    [marked], notes = draw_images([MarkedImage(image, tuple(found))])
    for text in notes:
        note(text)
    return marked, notes


def check_target(target: str | None, photo: str = "-") -> None:
    """RequestError unless `target` is None, `-` or the name of a file that may be written.

    The photo itself may not: marks that overwrite the only copy can't be removed.
    """
    if target is None or target == "-":
        return
    path = Path(target).expanduser()
    if path.suffix.lower() not in FORMATS:
        raise RequestError(f"--save {target}: the name must end in {', '.join(FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise RequestError(f"--save {target}: there is no folder {path.absolute().parent}")
    if path.is_dir():
        raise RequestError(f"--save {target}: this is a folder; name a file")
    original = Path(photo).expanduser()
    if photo != "-" and path.exists() and original.exists() and path.samefile(original):
        raise RequestError(f"--save {target}: this is the photo itself; name another file")


def save_image(image: Image, target: str) -> None:
    """Write `image` to the file `target`; `-` writes PNG to stdout."""
    if target == "-":
        image.save(sys.stdout.buffer, format="PNG")
        sys.stdout.buffer.flush()
        return
    check_target(target)
    path = Path(target).expanduser()
    kind = FORMATS[path.suffix.lower()]
    try:
        image.save(path, format=kind, **({"quality": 95} if kind in ("JPEG", "WEBP") else {}))
    except OSError as error:  # the error of a full disk does not name the file
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"can't be written: {reason}", f"--save {target}") from error
    note(f"drawn image: {target}")


def open_assistant(options: ModelOptions, sampling: Mapping[str, Any]) -> Assistant:
    """Load the model with progress on stderr. RequestError first, if `sampling` is invalid."""
    keywords = options.keywords()
    with loading(f"opening {options.model or 'the default model'}") as progress:
        from vip_llava.assistant import load
        from vip_llava.sampling_params import SamplingParams

        SamplingParams(**sampling)
        return load(options.model, progress=progress, **keywords)
