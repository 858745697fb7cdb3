"""Concurrent clients get the answers that each would get alone."""

from __future__ import annotations

import base64
import gc
import io
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from vip_llava import Assistant, load
from vip_llava.backends.native import NativeBackend
from vip_llava.engine import EngineConfig


def address(seed: int) -> str:
    file = io.BytesIO()
    rng = random.Random(seed)
    image = Image.new("RGB", (80, 60), (rng.randrange(256), rng.randrange(256), 90))
    image.paste((rng.randrange(256), 10, rng.randrange(256)), (5, 5, 30 + seed % 20, 40))
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def asked(seed: int) -> tuple[Any, ...]:
    """A distinct question for each seed, with or without an image and a region."""
    box = {"shape": "box", "frame": "unit", "box": [0.1, 0.1, 0.4 + seed % 5 / 10, 0.7]}
    part: dict[str, Any] = {"type": "image_url", "image_url": {"url": address(seed)}}
    if seed % 3 == 0:
        return (f"Only words, number {seed}?",)
    if seed % 3 == 1:
        return (part, f"What is this, number {seed}?")
    return ({**part, "regions": [box]}, f"What is <region:1>, number {seed}?")


def keys(seed: int) -> dict[str, Any]:
    sampled = {"temperature": 0.9, "seed": seed} if seed % 4 == 0 else {}
    return {"max_tokens": 4 + seed % 17, **sampled}


def together(api: Any, seeds: list[int], clients: int) -> dict[int, Any]:
    """The choices of all seeds, requested at random times from several threads."""
    rng = random.Random(1)
    pauses = {seed: rng.random() * 0.05 for seed in seeds}

    def one(seed: int) -> Any:
        time.sleep(pauses[seed])
        return api.told(*asked(seed), **keys(seed))["choices"]

    with ThreadPoolExecutor(clients) as pool:
        return dict(zip(seeds, pool.map(one, seeds), strict=True))


def test_concurrent_answers_equal_single_ones(serve: Callable[..., Any]) -> None:
    api = serve()
    seeds = list(range(40))
    singles = {seed: api.told(*asked(seed), **keys(seed))["choices"] for seed in seeds}
    assert len({choices[0]["message"]["content"] for choices in singles.values()}) > 15
    random.Random(2).shuffle(seeds)
    assert together(api, seeds, clients=12) == singles


@pytest.fixture
def cramped(tiny_model_folder: Path) -> Assistant:
    """The tiny model with memory for few requests, so that caches are evicted constantly."""
    roomy = load(tiny_model_folder)
    config = EngineConfig(
        kv_cache_tokens=256, max_num_seqs=4, max_batched_tokens=64, encoder_cache_bytes=20_000
    )
    return Assistant(
        NativeBackend(roomy.backend.model, roomy.backend.processor, name="cramped", config=config)
    )


def test_reused_memory_leaks_nothing_between_clients(
    serve: Callable[..., Any], cramped: Assistant, tiny: Assistant
) -> None:
    """Evicting cached prefixes and images of other clients does not change answers."""
    api = serve(assistants={"tiny": tiny, "cramped": cramped})
    seeds = list(range(24))
    wanted = {seed: api.told(*asked(seed), **keys(seed))["choices"] for seed in seeds}

    def one(seed: int) -> Any:
        return api.told(*asked(seed), model="cramped", **keys(seed))["choices"]

    for _ in range(2):
        with ThreadPoolExecutor(8) as pool:
            assert dict(zip(seeds, pool.map(one, seeds), strict=True)) == wanted
    stats = cramped.backend.engine.stats()
    assert stats.encoder_cache_misses > len(seeds)  # images were evicted and encoded again
    assert stats.kv_cache_tokens == 256


def test_memory_stays_flat(serve: Callable[..., Any], photo_file: bytes) -> None:
    """A short soak test; `benchmarks/soak.py` is the long one."""
    api = serve()
    process = psutil.Process()
    seen: list[tuple[float, int, int]] = []
    for round_ in range(4):
        together(api, list(range(50 * round_, 50 * round_ + 50)), clients=8)
        kind = {"content-type": "image/png"}
        left = api.client.post("/v1/uploads", content=photo_file, headers=kind).json()["id"]
        assert api.client.delete(f"/v1/uploads/{left}").status_code == 200
        assert api.refused("x", max_tokens=10**6)[0] == 422
        gc.collect()
        memory = process.memory_info().rss / 2**20
        seen.append((memory, threading.active_count(), process.num_fds()))
    assert seen[-1][0] - seen[1][0] < 25, seen  # MB, over 100 requests
    assert seen[-1][1] <= seen[1][1] + 1, seen
    assert seen[-1][2] <= seen[1][2] + 10, seen
    assert api.app.state.generations.reserved == 0
    assert not api.app.state.generations.running
