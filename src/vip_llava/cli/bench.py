"""`vip-llava bench`: how fast a model answers on this machine, beside transformers in the same run."""

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

from vip_llava.cli.inputs import open_assistant
from vip_llava.cli.model_options import DebugFlag, ModelOptions, option_name
from vip_llava.cli.terminal import note
from vip_llava.errors import RequestError

if TYPE_CHECKING:
    from vip_llava.bench.bench_model import BenchModel
    from vip_llava.bench.roofline import Roofline
    from vip_llava.bench.workloads import Load, Measurement

__all__ = ["EPILOG", "bench", "report"]

EPILOG = """Examples

  vip-llava bench --random tiny --concurrency 2 --new-tokens 4 --runs 1

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
            help="decode, first-token, concurrent, second-turn, quantized (8- and 4-bit weights) or "
            "compiled (transformers with torch.compile; slow). Repeatable; default: the first four.",
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
    concurrency: Annotated[
        int,
        typer.Option("--concurrency", metavar="N", min=1, help="Requests at once in `concurrent`."),
    ] = 64,
    seconds: Annotated[
        float | None,
        typer.Option("--seconds", metavar="S", help="Start no workload after this time."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    write: Annotated[
        Path | None, typer.Option("--write", metavar="FILE.md", help="Also write the table.")
    ] = None,
    model: ModelOptions,
    debug: DebugFlag = False,
) -> None:
    """Measure how fast a model answers on this machine.

    Every workload runs by this project's engine and by the generate method of transformers, in turn
    in one process, so that the ratio is of one run. The table is on stdout.
    """
    from vip_llava.bench.roofline import allocated_bytes, measure_roofline, peak_bytes
    from vip_llava.bench.workloads import DEFAULT_WORKLOADS, WORKLOADS, Load

    unknown = [name for name in workload or () if name not in WORKLOADS]
    if unknown:
        raise RequestError(f"--workload {unknown[0]}: must be one of {', '.join(WORKLOADS)}")
    if write is not None and not write.absolute().parent.is_dir():
        raise RequestError(f"--write {write}: there is no folder {write.absolute().parent}")
    name, measured = _bench_model(random, model)
    load = Load(text_tokens=text_tokens, new_tokens=new_tokens, concurrency=concurrency, runs=runs)
    device = measured.model.device
    roofline = measure_roofline(device, measured.model.dtype)
    found: list[Measurement] = []
    failed: list[str] = []
    peak, start = 0, time.perf_counter()
    for each in workload or DEFAULT_WORKLOADS:
        began = time.perf_counter()
        try:
            if seconds is not None and began - start > seconds:
                raise TimeoutError(f"not started, --seconds {seconds:g} have passed")
            found += WORKLOADS[each](measured, load)
            note(f"measured {each} in {time.perf_counter() - began:.0f} s")
        except Exception as error:  # the other workloads are still measured
            failed.append(f"{each}: {type(error).__name__}: {error}")
            note(f"failed: {failed[-1]}")
        peak = max(peak, peak_bytes(device))
        allocated_bytes(device)  # frees the memory of the workload
        text = report(name, measured, load, found, roofline, peak, failed)
        if write is not None:
            write.write_text(text, encoding="utf-8")
    if write is not None:
        note(f"written: {write}")
    if as_json:
        whole: dict[str, Any] = {"model": name, "measurements": [asdict(each) for each in found]}
        whole |= {**asdict(roofline), "peak_bytes": peak, "failed": failed}
        text = f"{json.dumps(whole, indent=1)}\n"
    sys.stdout.write(text)
    if failed:
        raise typer.Exit(1)


def _bench_model(random: str | None, options: ModelOptions) -> tuple[str, BenchModel]:
    """The name of the model to measure, and the model."""
    from vip_llava.backends.native import as_native
    from vip_llava.bench.bench_model import BenchModel, random_model

    if random is None:
        assistant = open_assistant(options, {})
        native = as_native(assistant.backend)
        processor = native.processor
        return assistant.info.name, BenchModel(
            native.model,
            processor.image_token_id,
            processor.tokens_per_view,
            processor.geometry.size,
        )
    if random not in RANDOM_SIZES:
        raise RequestError(f"--random {random}: must be one of {', '.join(RANDOM_SIZES)}")
    import torch

    given = options.keywords()
    refused = sorted(given.keys() - {"device", "dtype", "quantization"})
    refused += ["model"] * (options.model is not None)
    if refused:
        raise RequestError(f"--random cannot be combined with {option_name(refused[0])}")
    dtype: Any = getattr(torch, given["dtype"], None) if "dtype" in given else None
    if "dtype" in given and not isinstance(dtype, torch.dtype):
        raise RequestError(f"--dtype {given['dtype']}: torch has no such dtype")
    device = given.get("device", "cuda" if torch.cuda.is_available() else "cpu")
    measured = random_model(random, device, dtype)
    if "quantization" not in given:
        return f"random {random}", measured
    from vip_llava.models.quantize import parse_quantization, quantize_model

    quantization = parse_quantization(given["quantization"], measured.model.device)
    assert quantization is not None
    quantize_model(measured.model, quantization)
    what = f"{quantization.bits}-bit weights, {quantization.library}"
    return f"random {random}, {what}", measured


def report(
    name: str,
    measured: BenchModel,
    load: Load,
    measurements: Sequence[Measurement],
    roofline: Roofline,
    peak: int,
    failed: Sequence[str] = (),
) -> str:
    """The measurements as a page in Markdown, with their ratios to the best of transformers."""
    import torch
    import transformers

    model: Any = measured.model
    device = model.device
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    lines = [
        f"# Speed of {name}",
        "",
        f"{what or device.type}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, Python "
        f"{platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, {str(model.dtype).removeprefix('torch.')}.",
        f"One image of {measured.tokens_per_view} tokens and {load.text_tokens} of text in, "
        f"{load.new_tokens} out; median of {load.runs} runs (`concurrent`: one).",
        f"A copy moves {roofline.copy_gigabytes:.1f} GB/s, a large product does "
        f"{roofline.matmul_teraflops:.2f} TFLOP/s; peak memory: {peak / 1e9:.2f} GB.",
        "",
        "| workload | implementation | median | p95 | unit | times transformers |",
        "|---|---|---|---|---|---|",
    ]
    for each in measurements:
        peers = [one for one in measurements if one.workload == each.workload]
        theirs = [one for one in peers if one.implementation.startswith("transformers")]
        ratio = min((each.better_than(one) for one in theirs), default=None)
        lines.append(
            f"| {each.workload} | {each.implementation} | {each.value:.4g} | {each.p95:.4g} | "
            f"{each.unit} | {'' if ratio is None else f'{ratio:.2f}'} |"
        )
        share = _share_of_roofline(each, measured, load, roofline)
        if share:
            lines.append(f"| | | | | | {share} |")
    lines += [f"\nNot measured: {each}" for each in failed]
    return "\n".join(lines) + "\n"


def _share_of_roofline(
    each: Measurement, measured: BenchModel, load: Load, roofline: Roofline
) -> str:
    """The share of the device's peak rate that a measurement of the engine is, if that is simple."""
    from vip_llava.bench.roofline import decode_bytes, prefill_flops
    from vip_llava.bench.workloads import DECODE, ENGINE, TTFT

    if each.unit == "GB/s":
        return f"{100 * each.value / roofline.copy_gigabytes:.0f} % of the copy"
    if each.implementation != ENGINE:
        return ""
    if each.workload == DECODE:
        rate = decode_bytes(measured.model) * each.value / 1e9
        share = 100 * rate / roofline.copy_gigabytes
        return f"weights read at {rate:.1f} GB/s, {share:.0f} % of the copy"
    if each.workload == TTFT:
        tokens = load.text_tokens + measured.tokens_per_view
        rate = prefill_flops(measured.model, tokens, measured.tokens_per_view) / each.value / 1e9
        share = 100 * rate / roofline.matmul_teraflops
        return f"{rate:.2f} TFLOP/s in products, {share:.0f} % of the large one"
    return ""
