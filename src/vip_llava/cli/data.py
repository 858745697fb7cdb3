"""`vip-llava data`: check data files, view their rows, and convert public data sets."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vip_llava.cli.data_report import show_report
from vip_llava.cli.model_options import DebugFlag, SourceOptions, option_name
from vip_llava.cli.terminal import counting, loading, note
from vip_llava.errors import RequestError

if TYPE_CHECKING:
    from vip_llava.data.converters import ConversionReport, Converter
    from vip_llava.data.reading import RowFile
    from vip_llava.prompting.processor import Processor

__all__ = ["CHECK_EPILOG", "CONVERT_EPILOG", "VIEW_EPILOG", "check", "convert", "view"]

CHECK_EPILOG = """Examples

  vip-llava data check rows.jsonl

  vip-llava data check rows.jsonl --images photos --open

  vip-llava data check rows.jsonl --images photos --json
"""

VIEW_EPILOG = """Examples

  vip-llava data view rows.jsonl --images photos -o page.html

  vip-llava data view rows.jsonl --images photos --rows 1,2 -o page.html
"""

CONVERT_EPILOG = """Examples

  vip-llava data convert refcocog refs.json instances.json -o rows.jsonl

  vip-llava data convert coco instances.json --ids ids.txt -o rows.jsonl
"""

BAD_ROWS_EXIT = 2

FileArgument = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", help="A JSON, JSON Lines or Parquet file, or a saved Hugging Face dataset."
    ),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option(
        "--images", metavar="DIR", help="Folder of the images (if not given: that of FILE)."
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME", help="Use the tokenizer and image size of this model."),
]
MaxLengthOption = Annotated[
    int,
    typer.Option("--max-length", metavar="N", min=1, help="Longest sample, with --model."),
]


def check(
    *,
    file: FileArgument,
    images: ImagesOption = None,
    open_images: Annotated[
        bool, typer.Option("--open", help="Open every image and check its regions.")
    ] = False,
    model: ModelOption = None,
    parts: SourceOptions,
    max_length: MaxLengthOption = 2048,
    most: Annotated[
        int | None, typer.Option("--most", metavar="N", min=1, help="Check the first N rows only.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    debug: DebugFlag = False,
) -> None:
    """Check a data file before training on it.

    Counts the rows of each kind, lists bad rows with reasons, missing images and duplicate rows, and
    shows a histogram of lengths: in words, or with --model in tokens of the whole sample.
    The exit code is 2 if a row is bad or an image is missing.
    """
    from vip_llava.data.check import check as check_rows

    rows = _open_rows(file)
    folder = _folder(images, file)
    measure = None
    processor = _processor(model, parts)
    if processor is not None:
        from vip_llava.data.view import Viewer

        viewer = Viewer(rows, folder, processor=processor, max_length=max_length)
        measure = viewer.length
    with counting(f"checking {file}", "rows") as progress:
        report = check_rows(
            rows,
            folder,
            open_images=open_images,
            measure=measure,
            most=most,
            progress=progress,
        )
    if as_json:
        sys.stdout.write(json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n")
    else:
        show_report(report)
    if not report.usable:
        raise typer.Exit(BAD_ROWS_EXIT)


def view(
    *,
    file: FileArgument,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="PAGE.html", help="The page to write.")
    ],
    images: ImagesOption = None,
    rows: Annotated[
        str | None,
        typer.Option("--rows", metavar="1,5,8-10", help="These rows, counted from 1."),
    ] = None,
    most: Annotated[
        int,
        typer.Option("--most", metavar="N", min=1, help="Without --rows: N evenly spaced rows."),
    ] = 24,
    seed: Annotated[int, typer.Option("--seed", help="The seed of the training run.")] = 0,
    epoch: Annotated[
        int,
        typer.Option(
            "--epoch", metavar="N", min=0, help="The epoch; visual prompts differ by epoch."
        ),
    ] = 0,
    model: ModelOption = None,
    parts: SourceOptions,
    max_length: MaxLengthOption = 2048,
    template: Annotated[
        str, typer.Option("--template", metavar="NAME", help="Chat template, without --model.")
    ] = "llava_v1",
    debug: DebugFlag = False,
) -> None:
    """Show rows as training samples on one HTML page.

    Each row has its images, with the visual prompts of this seed and epoch, and its prompt with the
    learned parts highlighted: token by token with --model, else as text.
    """
    from vip_llava.data.atomic_write import atomic_writer
    from vip_llava.data.html_page import page
    from vip_llava.data.view import Viewer

    if out.suffix.lower() not in (".html", ".htm"):
        raise RequestError(f"-o {out}: the name must end in .html")
    found = _open_rows(file)
    chosen = _chosen(rows, most, len(found))
    viewer = Viewer(
        found,
        _folder(images, file),
        processor=_processor(model, parts),
        template=template,
        seed=seed,
        epoch=epoch,
        max_length=max_length,
    )
    remarks = [f"{len(chosen)} of {len(found)} rows", f"seed {seed}", f"epoch {epoch}"]
    remarks.append(f"template {viewer.template.name}" + ("" if model is None else f" of {model}"))
    with counting(f"drawing {file}", "rows") as progress, atomic_writer(out) as stream:
        cards = (viewer.card(index) for index in _counted(chosen, progress))
        stream.writelines(page(file.name, remarks, cards))
    note(f"written: {out}")


def convert(
    *,
    name: Annotated[str, typer.Argument(metavar="SOURCE", help="Name of the data set; see above.")],
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILES", help="Its files, in the order above.")
    ] = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="ROWS.jsonl", help="JSON Lines, or a .json list.")
    ],
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="NAME", help="The split to convert, or all."),
    ] = None,
    ids: Annotated[
        Path | None,
        typer.Option(
            "--ids", metavar="FILE", help="Convert only images with the ids in this file."
        ),
    ] = None,
    prefix: Annotated[
        str, typer.Option("--prefix", metavar="DIR", help="Prepended to every image name.")
    ] = "",
    max_failures: Annotated[
        int,
        typer.Option(
            "--max-failures", metavar="N", min=0, help="Maximum number of broken entries."
        ),
    ] = 0,
    debug: DebugFlag = False,
) -> None:
    """Convert the files of a public data set to rows.

    Sources and their files: coco (instances or captions), refcoco, refcoco+ and refcocog (the
    references as JSON, instances.json), visual-genome (relationships.json, image_data.json),
    flickr30k (the folders Sentences and Annotations of Entities), vcr (train.jsonl, the folder
    vcr1images), visual7w (dataset_v7w_pointing.json), pointqa (looktwiceqa_dataset.json).

    If the files hold several splits, the default is train. --ids is a text file with one id per
    line, or a JSON list. Skipped entries are counted by reason on stderr.
    """
    from vip_llava.data.converters import CONVERTERS, ConversionReport, RawFiles
    from vip_llava.data.failures import Failures

    if name not in CONVERTERS:
        raise RequestError(f"{name}: unknown data set; known: {', '.join(CONVERTERS)}")
    if out.suffix.lower() not in (".jsonl", ".json"):
        raise RequestError(f"-o {out}: the name must end in .jsonl or .json")
    source = CONVERTERS[name]
    raw = RawFiles(
        files=tuple(path.expanduser() for path in files or ()),
        split=_split(source, split),
        keep=None if ids is None else _ids(ids),
        prefix=prefix,
    )
    report = ConversionReport(Failures(max_failures))
    _write(source, raw, report, out)
    for reason, count in report.skipped.most_common():
        note(f"skipped: {count} x {reason}")
    for bad in report.failures.report()["first"]:
        note(f"broken: {bad['where']}: {bad['reason']}")
    parts = f" of {raw.split}" if raw.split else ""
    note(f"written: {report.rows} {source.kind} rows{parts}, {out}")


def _open_rows(file: Path) -> RowFile:
    from vip_llava.data.reading import RowFile

    path = file.expanduser()
    if not path.exists():
        raise RequestError(f"{file}: no such file")
    return RowFile.open(path)


def _folder(images: Path | None, file: Path) -> Path:
    folder = (images or file.parent).expanduser()
    if not folder.is_dir():
        raise RequestError(f"--images {images}: no such folder")
    return folder


def _processor(name: str | None, parts: SourceOptions) -> Processor | None:
    """The processor of a model, opened without building the model if possible.

    Raises RequestError for model options without --model.
    """
    if name is None:
        for given in parts.keywords():
            raise RequestError(f"{option_name(given)} needs --model")
        return None
    from vip_llava.models.checkpoints import CheckpointSource, open_checkpoint
    from vip_llava.models.hub import DEFAULT_NAME
    from vip_llava.models.loading import load_model
    from vip_llava.models.processor_loading import build_processor

    with loading(f"opening {name}") as progress:
        if name == DEFAULT_NAME:
            return load_model(name, progress=progress, **parts.keywords())[1]
        opened = open_checkpoint(
            CheckpointSource.from_names(name, progress=progress, **parts.keywords())
        )
        return build_processor(opened, None, None)


def _chosen(text: str | None, most: int, total: int) -> list[int]:
    """The indices (from 0) of the rows to show."""
    if text is None:
        step = max(total / most, 1)
        return [int(place * step) for place in range(min(most, total))]
    chosen: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise RequestError(f"--rows {text}: must be numbers and ranges, like 1,5,8-10")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last <= total:
            raise RequestError(f"--rows {part.strip()}: the file has rows 1 to {total}")
        chosen += range(first - 1, last)
    return chosen


def _counted(chosen: Sequence[int], progress: Any) -> Iterator[int]:
    for done, index in enumerate(chosen):
        progress(done, len(chosen))
        yield index


def _split(source: Converter, given: str | None) -> str | None:
    if given == "all":
        return None
    if given is None and source.splits:
        note(f"split {source.splits[0]}; choose another with --split: {', '.join(source.splits)}")
        return source.splits[0]
    return given


def _ids(path: Path) -> frozenset[str]:
    """The image ids in a JSON list or text file, without file name extensions."""
    from vip_llava.data.converters.base import read_json

    if not path.expanduser().is_file():
        raise RequestError(f"--ids {path}: no such file")
    if path.suffix.lower() == ".json":
        listed = read_json(path.expanduser())
        if not isinstance(listed, list):
            raise RequestError(f"--ids {path}: must be a JSON list")
    else:
        listed = path.expanduser().read_text(encoding="utf-8").split()
    found = frozenset(re.sub(r"\.(jpe?g|png)$", "", str(each)) for each in listed)
    if not found:
        raise RequestError(f"--ids {path}: contains no ids")
    return found


def _write(source: Converter, raw: Any, report: ConversionReport, out: Path) -> None:
    from vip_llava.data.atomic_write import atomic_writer
    from vip_llava.data.converters import convert as rows_of

    as_list = out.suffix.lower() == ".json"
    with counting(f"converting {source.name}", "rows") as progress, atomic_writer(out) as stream:
        for number, row in enumerate(rows_of(source, raw, report)):
            if as_list:
                stream.write(",\n" if number else "[\n")
            stream.write(json.dumps(row, ensure_ascii=False) + ("" if as_list else "\n"))
            if number % 1000 == 0:
                progress(number, 0)
        if report.rows == 0:
            reasons = ", ".join(f"{n} x {why}" for why, n in report.skipped.items())
            raise RequestError(
                f"{out} is not written because no entry gives a row: "
                + (f"skipped: {reasons}" if reasons else "none matches --split and --ids")
            )
        if as_list:
            stream.write("\n]\n")
