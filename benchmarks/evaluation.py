"""Rows per second of an evaluation: a batched run compared with a loop of batch size 1.

Both ask the same rows of a made Visual7W file in one process: photos of random pixels, four marks, a
question with four options, answers of `--new-tokens` tokens. Loop: each row is opened, drawn, worded and
answered with transformers' `generate`, one after the other, as evaluations are usually written. Ours:
`evaluation.run` with `--batch-size`. The weights are random, and all answers have the full length.

    python benchmarks/evaluation.py --random 7b --rows 256 --batch-size 64 [--write NAME_OF_HARDWARE]
    python benchmarks/evaluation.py --random tiny --rows 8        # takes seconds on a CPU; checks that it runs
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from vip_llava.assistant import Assistant
from vip_llava.backends.native import NativeBackend
from vip_llava.bench.bench_model import random_model
from vip_llava.engine import EngineConfig
from vip_llava.evaluation.benchmark import Benchmark
from vip_llava.evaluation.benchmarks import open_benchmark
from vip_llava.evaluation.run import run, select_items
from vip_llava.prompting.geometry import ImageGeometry
from vip_llava.prompting.processor import Processor
from vip_llava.prompting.templates import get_template

RESULTS = Path(__file__).parent / "results"
BOXES = [[20, 20, 200, 160], [240, 20, 420, 160], [20, 200, 200, 340], [240, 200, 420, 340]]
QUESTION = "Which of the things in the photo is the one that a person would pick up first?"


def write_rows(folder: Path, count: int) -> None:
    """Write rows with photos of 480 x 360 random pixels, of which there are 16."""
    rng = np.random.default_rng(0)
    for number in range(min(16, count)):
        pixels = rng.integers(0, 255, (360, 480, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    rows = [
        {
            "id": f"v7w-{number}",
            "image": f"{number % 16}.jpg",
            "question": QUESTION,
            "bboxes": BOXES,
            "answer": BOXES[number % 4],
        }
        for number in range(count)
    ]
    (folder / "v7w-test.json").write_text(json.dumps(rows), encoding="utf-8")


def random_assistant(size: str, device: str, batch_size: int) -> Assistant:
    """A model with random weights and a new tokenizer (vocabulary 400)."""
    bench_model = random_model(size, device)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([QUESTION], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    geometry = ImageGeometry(mode="pad", size=bench_model.side, mean=mean, std=std)
    template = get_template("vicuna_v1")
    image, per_view = bench_model.image_token_id, bench_model.tokens_per_view
    processor = Processor(tokenizer, geometry, template, image, per_view)
    config = EngineConfig(max_num_seqs=batch_size, kv_cache_tokens=1024 * batch_size)
    return Assistant(
        NativeBackend(bench_model.model, processor, name=f"random {size}", config=config)
    )


def loop(assistant: Assistant, benchmark: Benchmark, rows: int, new_tokens: int) -> float:
    """Rows per second with transformers' generate, one after the other."""
    model: Any = assistant.backend.model
    items = select_items(benchmark, rows)
    _finish(model)
    began = time.perf_counter()
    for item in items:
        prepared = assistant.prepare(item.build_request())
        inputs = assistant.backend.processor([prepared.turns])
        with torch.inference_mode():
            model.generate(
                input_ids=inputs["input_ids"].to(model.device),
                attention_mask=inputs["attention_mask"].to(model.device),
                pixel_values=inputs["pixel_values"].to(model.device, model.dtype),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
            )
    _finish(model)
    return len(items) / (time.perf_counter() - began)


def batched(
    assistant: Assistant, benchmark: Benchmark, rows: int, new_tokens: int, batch_size: int
) -> float:
    """Rows per second of a complete run, scores and run directory included."""
    sampling = {"max_new_tokens": new_tokens}
    with tempfile.TemporaryDirectory() as folder:
        _finish(assistant.backend.model)
        began = time.perf_counter()
        result = run(
            assistant,
            benchmark,
            Path(folder) / "run",
            limit=rows,
            batch_size=batch_size,
            sampling=sampling,
        )
        seconds = time.perf_counter() - began
    short = sum(row.tokens < new_tokens for row in result.rows)
    if short:
        print(f"note: {short} answers ended before {new_tokens} tokens")
    return len(result.rows) / seconds


def _finish(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--random", choices=("tiny", "7b"), default="tiny")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument(
        "--loop-rows", type=int, default=0, help="rows of the loop (default: a quarter of --rows)"
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--write", metavar="NAME_OF_HARDWARE")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assistant = random_assistant(given.random, device, given.batch_size)
    with tempfile.TemporaryDirectory() as made:
        write_rows(Path(made), given.rows)
        benchmark = open_benchmark("visual7w", Path(made))
        loop(assistant, benchmark, 2, given.new_tokens)  # warm-up
        batched(
            assistant,
            benchmark,
            min(given.rows, given.batch_size),
            given.new_tokens,
            given.batch_size,
        )
        alone = loop(
            assistant, benchmark, given.loop_rows or max(2, given.rows // 4), given.new_tokens
        )
        ours = batched(assistant, benchmark, given.rows, given.new_tokens, given.batch_size)
    where = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU"
    lines = [
        f"# Evaluation: rows per second, random {given.random}, {where}",
        "",
        f"{datetime.date.today()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{assistant.info.dtype}; {given.rows} rows, {given.new_tokens} new tokens each.",
        "",
        "| what | rows/s |",
        "|---|---|",
        f"| loop: one row at a time, transformers' generate | {alone:.2f} |",
        f"| ours: `evaluation.run`, batch {given.batch_size} | {ours:.2f} |",
        f"| ours / loop | {ours / alone:.2f} |",
        "",
    ]
    print("\n".join(lines))
    if given.write:
        name = f"evaluation_{given.write}_{datetime.date.today()}.md"
        (RESULTS / name).write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
