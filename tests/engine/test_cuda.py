"""On a GPU: graphs give what ordinary steps give, for small and for real widths."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from vip_llava.engine import Engine, EngineConfig, RequestOutput
from vip_llava.engine.encoder_cache import EncoderCache, view_digests
from vip_llava.engine.prefill_graphs import PrefillGraphs
from vip_llava.models.quantize import Quantization, quantize_model
from vip_llava.sampling_params import SamplingParams

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

COUNT = 12
LENGTHS = (30, 1, 200, 7, 65, 90)


def llava(width: int, heads: int, kv_heads: int, inner: int, rows: int, kind: torch.dtype) -> Any:
    """A random model of two layers; the image's token is the last one."""
    tower = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=11, num_attention_heads=4,
        image_size=56, patch_size=14,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=2, vocab_size=rows,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=512,
    )  # fmt: skip
    torch.manual_seed(0)
    config = VipLlavaConfig(vision_config=tower, text_config=text, image_token_index=rows - 1)
    with torch.device("cuda"):
        model: Any = VipLlavaForConditionalGeneration(config)
    with torch.no_grad():
        # Larger than usual, so that the most probable token is clearly so.
        model.lm_head.weight.mul_(6)
    return model.to(kind).eval()


@pytest.fixture(scope="module")
def tiny() -> Any:
    return llava(128, 8, 2, 192, 320, torch.float32)


@pytest.fixture(scope="module")
def wide() -> Any:
    return llava(4096, 32, 32, 11008, 32064, torch.bfloat16)


def engine_of(model: Any, cuda_graphs: bool | None = None, **given: Any) -> Engine:
    rows = len(model.get_input_embeddings().weight)
    return Engine(
        model,
        image_token_id=rows - 1,
        suppress_ids=[rows - 1],
        config=EngineConfig(cuda_graphs=cuda_graphs, **given),
    )


def prompt(model: Any, length: int, seed: int = 0) -> tuple[list[int], torch.Tensor | None]:
    """Random ids; prompts of ten and more tokens contain an image."""
    rows = len(model.get_input_embeddings().weight)
    generator = torch.Generator().manual_seed(1000 * seed + length)
    ids = torch.randint(1, rows - 2, (length,), generator=generator).tolist()
    if length < 10:
        return ids, None
    return [*ids[:5], *[rows - 1] * 16, *ids[5:]], torch.randn(1, 3, 56, 56, generator=generator)


def answers(engine: Engine, asks: list[Any], **params: Any) -> list[RequestOutput]:
    sampling = SamplingParams(max_new_tokens=COUNT, **params)
    return [handle.result() for handle in [engine.submit(*ask, sampling) for ask in asks]]


def same(mine: list[RequestOutput], theirs: list[RequestOutput], near: float) -> None:
    """Equal tokens with similar logprobs, up to where two tokens are about equally probable."""
    agreed = 0
    for one, other in zip(mine, theirs, strict=True):
        assert one.logprobs and other.logprobs
        pairs = zip(one.tokens, other.tokens, one.logprobs, other.logprobs, strict=True)
        for token, wanted, found, expected in pairs:
            assert found.best[0][1] == pytest.approx(expected.best[0][1], abs=near)
            if token != wanted:
                assert expected.best[0][1] - expected.best[1][1] < near
                break
            agreed += 1
    assert agreed > 0.5 * sum(len(one.tokens) for one in mine)


@pytest.mark.parametrize(
    ("name", "bits", "near"),
    [("tiny", None, 1e-3), ("wide", None, 0.6), ("wide", 8, 0.6), ("wide", 4, 0.6)],
)
def test_graphs_give_what_ordinary_steps_give(
    name: str, bits: Any, near: float, request: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[int] = []
    call = PrefillGraphs.__call__

    def run(self: PrefillGraphs, seq: Any, count: int) -> Any:
        fed.append(count)
        return call(self, seq, count)

    monkeypatch.setattr(PrefillGraphs, "__call__", run)
    model = request.getfixturevalue(name)
    if bits:
        model = copy.deepcopy(model)
        quantize_model(model, Quantization(bits))
    # With quantized weights each number of rows compiles kernels of its own: use few.
    asks = [prompt(model, length) for length in (LENGTHS[2:5] if bits else LENGTHS)]
    ordinary = answers(engine_of(model, False), asks, logprobs=5)
    engine = engine_of(model, max_num_seqs=2 if bits else 4, max_batched_tokens=70)
    if not bits:
        engine.warm_up()
    same(answers(engine, asks, logprobs=5), ordinary, near)
    assert len(fed) >= (2 if bits else 7)  # the longest in several chunks
    stats = engine.stats()
    assert (stats.graph_steps > COUNT, stats.fallback) == (True, "")


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "top_p": 0.9, "seed": 5}])
def test_steps_launched_ahead_give_the_same(wide: Any, params: dict[str, Any]) -> None:
    """The same steps, read one by one and read one late, repeatedly."""
    asks = [prompt(wide, length) for length in LENGTHS]
    engine = engine_of(wide, prefix_cache_tokens=0)
    engine.warm_up()
    with torch.inference_mode():  # so that prompts are computed the same way each time
        graphs: Any = engine._core.runner.prefill_graphs
        graphs.warm_up(len(ids) for ids, _ in asks)
    calm = [answer.tokens for answer in answers(engine, asks, logprobs=0, **params)]
    for _ in range(3):
        assert [answer.tokens for answer in answers(engine, asks, **params)] == calm
    assert engine.stats().fallback == ""


def test_tokens_of_transformers(tiny: Any) -> None:
    asks = [prompt(tiny, length) for length in LENGTHS]
    found = answers(engine_of(tiny), asks)
    for (ids, pixels), answer in zip(asks, found, strict=True):
        given = torch.tensor([ids], device="cuda")
        seen = {} if pixels is None else {"pixel_values": pixels.to("cuda")}
        with torch.inference_mode():
            theirs = tiny.generate(
                input_ids=given,
                attention_mask=torch.ones_like(given),
                **seen,
                max_new_tokens=COUNT,
                do_sample=False,
                eos_token_id=None,
                suppress_tokens=[319],
            )
        assert list(answer.tokens) == theirs[0, len(ids) :].tolist()


def test_arrivals_and_cancellations_change_no_answer(tiny: Any) -> None:
    """Little memory, cancellations, late arrivals, a thread that drives and one that submits."""
    asks = [prompt(tiny, length) for length in LENGTHS]
    alone = [answers(engine_of(tiny), [ask])[0].tokens for ask in asks]
    engine = engine_of(
        tiny, kv_cache_tokens=400, max_num_seqs=4, prefix_cache_tokens=0, max_batched_tokens=100
    )
    sampling = SamplingParams(max_new_tokens=COUNT)
    engine.start()
    try:
        for turn in range(4):
            handles = [engine.submit(*ask, sampling) for ask in asks]
            for number in range(turn, len(handles), 5):
                next(handles[number])
                handles[number].cancel()
            for number, handle in enumerate(handles):
                if number % 5 != turn % 5 or number < turn:
                    assert handle.result().tokens == alone[number]
    finally:
        engine.stop()
    assert engine.stats().kv_cache_tokens_used == 0


def test_a_growing_kv_cache_is_captured_anew(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [answers(engine_of(tiny), [prompt(tiny, n)])[0].tokens for n in LENGTHS]
    # As if the GPU had no room for the whole KV cache at once.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (0, 1))
    engine = engine_of(tiny, kv_cache_tokens=8192, prefix_cache_tokens=0)
    asks = [prompt(tiny, length) for length in LENGTHS]
    first = engine.submit(*asks[0], SamplingParams(max_new_tokens=COUNT))
    for _ in range(5):
        engine.step()
    small = engine.stats().kv_cache_bytes
    more = [answer.tokens for answer in answers(engine, asks * 4)]
    assert more == alone * 4
    assert first.result().tokens == alone[0]
    assert engine.stats().kv_cache_bytes > small
    assert engine.stats().fallback == ""


def test_garbage_of_another_engine_breaks_no_capture(tiny: Any) -> None:
    """Its graphs, events and pinned memory are in cycles, which the collector may find any time."""
    often = gc.get_threshold()
    for _ in range(3):
        answers(engine_of(tiny), [prompt(tiny, 30)])
        gc.set_threshold(1, 1, 1)
        try:
            engine = engine_of(tiny, max_num_seqs=4)
            engine.warm_up()
        finally:
            gc.set_threshold(*often)
        assert (engine.stats().graphs > 3, engine.stats().fallback) == (True, "")
        assert gc.isenabled()


def test_captured_encodings_equal_the_tower(wide: Any) -> None:
    cache = EncoderCache(wide, 0, cuda_graphs=True)
    plain = EncoderCache(wide, 0)
    with torch.inference_mode():
        for count in (1, 7, 7, 1):
            views = torch.randn(count, 3, 56, 56)
            wanted = [(view_digests(views), views)]
            [mine], [theirs] = cache.features(wanted), plain.features(wanted)
            assert (mine - theirs).norm() < 0.02 * theirs.norm()
    assert cache.pool.num_captured == 2


def test_other_threads_may_use_the_gpu_during_capture(tiny: Any) -> None:
    """Another thread allocates and synchronizes during captures."""
    over = threading.Event()
    failed: list[BaseException] = []

    def work(again: Callable[[], object]) -> None:
        try:
            while not over.is_set():
                again()
        except BaseException as error:
            failed.append(error)

    def busy() -> None:
        size = int(torch.randint(1, 2**22, ()))
        torch.ones(size, device="cuda").sum().item()

    thread = threading.Thread(target=work, args=(busy,))
    thread.start()
    try:
        for _ in range(3):
            engine = engine_of(tiny, max_num_seqs=4)
            engine.warm_up()
            # 1, 2 and 4 sequences; 1, 2 and 4 views; 16, 32, 64, 128 and 192 tokens of prompts.
            assert (engine.stats().graphs, engine.stats().fallback) == (3 + 3 + 5, "")
    finally:
        over.set()
        thread.join()
    assert failed == []
