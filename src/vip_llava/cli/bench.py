"""`vip-llava bench`: how fast a model answers here, beside transformers' own way in the same run."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vip_llava.backends.native import as_native
from vip_llava.cli.inputs import open_assistant
from vip_llava.cli.model_options import DebugFlag, ModelOptions, option_name
from vip_llava.cli.terminal import note
from vip_llava.errors import RequestError

if TYPE_CHECKING:
    from vip_llava.bench.bench_model import Subject
    from vip_llava.bench.roofline import Ceilings
    from vip_llava.bench.workloads import Figure, Load

__all__ = ["EPILOG", "bench", "report"]

EPILOG = """Examples

  vip-llava bench --random tiny --askers 2 --new-tokens 4 --runs 1

  vip-llava bench --random tiny --workload decode --runs 2 --new-tokens 4 --json
"""

RANDOM_SIZES = ("tiny", "7b")


def bench(
    *,
    random: Annotated[
        str | None,
        typer.Option(
            "--random", metavar="SIZE", help="Random weights, tiny or 7b, instead of a model."
        ),
    ] = None,
    workload: Annotated[
        list[str] | None,
        typer.Option(
            "--workload",
            metavar="NAME",
            help="decode, first-token, many, second-turn, small (8- and 4-bit weights) or compiled "
            "(repeatable; the first four if not given).",
        ),
    ] = None,
    runs: Annotated[
        int, typer.Option("--runs", metavar="N", min=1, help="Runs of each measurement.")
    ] = 5,
    new_tokens: Annotated[
        int, typer.Option("--new-tokens", metavar="N", min=2, help="Tokens of an answer.")
    ] = 100,
    text_tokens: Annotated[
        int, typer.Option("--text-tokens", metavar="N", min=1, help="Tokens of a question.")
    ] = 64,
    askers: Annotated[
        int, typer.Option("--askers", metavar="N", min=1, help="Askers at once in `many`.")
    ] = 64,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compiled", help="As --workload compiled: a static cache and torch.compile (slow)."
        ),
    ] = False,
    seconds: Annotated[
        float | None,
        typer.Option("--seconds", metavar="S", help="Begin nothing more after so many seconds."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    write: Annotated[
        Path | None, typer.Option("--write", metavar="FILE.md", help="Also write the table.")
    ] = None,
    model: ModelOptions,
    debug: DebugFlag = False,
) -> None:
    """Measure how fast a model answers on this machine.

    Every workload is run by this project's engine and by the generate method of transformers, by
    turns in one process, so that the ratio is of one run. The table is on stdout.
    """
    from vip_llava.bench.roofline import ceilings, held_bytes, peak_bytes
    from vip_llava.bench.workloads import USUAL, WORKLOADS, Load, measure

    unknown = [name for name in workload or () if name not in WORKLOADS]
    if unknown:
        raise RequestError(f"--workload {unknown[0]}: known are {', '.join(WORKLOADS)}")
    if write is not None and not write.absolute().parent.is_dir():
        raise RequestError(f"{write}: there is no folder {write.absolute().parent}")
    name, subject = _subject(random, model)
    load = Load(text_tokens=text_tokens, new_tokens=new_tokens, askers=askers, runs=runs)
    device = subject.model.device
    best = ceilings(device, subject.model.dtype)
    figures: list[Figure] = []
    failed: list[str] = []
    peak, start = 0, time.perf_counter()
    for each in [*(workload or USUAL), *["compiled"] * compiled]:
        began = time.perf_counter()
        try:
            if seconds is not None and began - start > seconds:
                raise TimeoutError("the time was over")
            figures += measure(subject, load, each)
            note(f"measured: {each}, {time.perf_counter() - began:.0f} s")
        except Exception as error:  # the others still tell something
            failed.append(f"{each}: {type(error).__name__}: {error}")
            note(f"failed: {failed[-1]}")
        peak = max(peak, peak_bytes(device))
        held_bytes(device)  # what the last one left behind is given back
        text = report(name, subject, load, figures, best, peak, failed)
        if write is not None:
            write.write_text(text, encoding="utf-8")
    if write is not None:
        note(f"written: {write}")
    if as_json:
        found_json = [asdict(each) for each in figures]
        whole = {"model": name, "figures": found_json, **asdict(best), "peak_bytes": peak}
        whole |= {"failed": failed}
        text = f"{json.dumps(whole, indent=1)}\n"
    sys.stdout.write(text)
    if failed:
        raise typer.Exit(1)


def _subject(random: str | None, options: ModelOptions) -> tuple[str, Subject]:
    """What is measured, with its name."""
    from vip_llava.bench.bench_model import Subject, random_subject

    if random is None:
        assistant = open_assistant(options, {})
        processor = as_native(assistant.backend).processor
        return assistant.info.name, Subject(
            as_native(assistant.backend).model,
            processor.image_token_id,
            processor.tokens_per_view,
            processor.geometry.size,
        )
    if random not in RANDOM_SIZES:
        raise RequestError(f"--random {random}: known are {', '.join(RANDOM_SIZES)}")
    import torch

    chosen = options.keywords()
    known = {"device", "dtype", "quantization"}
    refused = sorted(chosen.keys() - known) + ["model"] * (options.model is not None)
    if refused:
        raise RequestError(f"--random can't go with {option_name(refused[0])}")
    dtype: Any = getattr(torch, chosen["dtype"], None) if "dtype" in chosen else None
    if "dtype" in chosen and not isinstance(dtype, torch.dtype):
        raise RequestError(f"--dtype {chosen['dtype']}: no such type of numbers")
    device = chosen.get("device", "cuda" if torch.cuda.is_available() else "cpu")
    subject, small = random_subject(random, device, dtype), chosen.get("quantization")
    if small is None:
        return f"random {random}", subject
    from vip_llava.models.quantize import parse_quantization, quantize_model

    quantization = parse_quantization(small, subject.model.device)
    assert quantization is not None
    quantize_model(subject.model, quantization)
    way = f"{quantization.bits}-bit weights, {quantization.library}"
    return f"random {random}, {way}", subject


def report(
    name: str,
    subject: Subject,
    load: Load,
    figures: Sequence[Figure],
    best: Ceilings,
    peak: int,
    failed: Sequence[str] = (),
) -> str:
    """The figures as a page in Markdown; each way beside the best of transformers."""
    import torch
    import transformers

    model: Any = subject.model
    device = model.device
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    lines = [
        f"# Speed of {name}",
        "",
        f"{what or device.type}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, Python "
        f"{platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, {str(model.dtype).removeprefix('torch.')}.",
        f"One image of {subject.tokens_per_view} tokens and {load.text_tokens} of text in, "
        f"{load.new_tokens} out; middle of {load.runs} runs (`many`: one).",
        f"A copy moves {best.copy_gigabytes:.1f} GB/s, a large product does "
        f"{best.product_teraflops:.2f} TFLOP/s; most memory held: {peak / 1e9:.2f} GB.",
        "",
        "| workload | way | middle | 95 in 100 | unit | times transformers |",
        "|---|---|---|---|---|---|",
    ]
    for each in figures:
        plain = [
            other
            for other in figures
            if other.workload == each.workload and other.way.startswith("transformers")
        ]
        ratio = min((each.better_than(other) for other in plain), default=None)
        lines.append(
            f"| {each.workload} | {each.way} | {each.value:.4g} | {each.p95:.4g} | {each.unit} "
            f"| {'' if ratio is None else f'{ratio:.2f}'} |"
        )
        told = _share(each, subject, load, best)
        if told:
            lines.append(f"| | | | | | {told} |")
    lines += [f"\nNot measured: {each}" for each in failed]
    return "\n".join(lines) + "\n"


def _share(figure: Figure, subject: Subject, load: Load, best: Ceilings) -> str:
    """How much of what the device can do a figure of the engine is, where that is simple to say."""
    from vip_llava.bench.roofline import first_token_work, step_bytes

    if figure.workload.startswith("weights read"):
        return f"{100 * figure.value / best.copy_gigabytes:.0f} % of the copy"
    if figure.way != "engine":
        return ""
    if figure.workload.startswith("decode"):
        rate = step_bytes(subject.model) * figure.value / 1e9
        share = 100 * rate / best.copy_gigabytes
        return f"weights read at {rate:.1f} GB/s, {share:.0f} % of the copy"
    if figure.workload == "first token, new image":
        tokens = load.text_tokens + subject.tokens_per_view
        rate = first_token_work(subject.model, tokens, subject.tokens_per_view) / figure.value / 1e9
        share = 100 * rate / best.product_teraflops
        return f"{rate:.2f} TFLOP/s in products, {share:.0f} % of the large one"
    return ""
