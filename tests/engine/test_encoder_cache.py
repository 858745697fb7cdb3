"""Views are encoded together and once; the cache is bounded and keyed by pixels."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from vip_llava.engine.encoder_cache import EncoderCache, view_digests

ONE_VIEW = 4 * 32 * 4  # tokens x width x bytes


@pytest.fixture(params=["vip_model", "llava_model"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def views() -> Tensor:
    return torch.randn(6, 3, 28, 28, generator=torch.Generator().manual_seed(3))


def ask(*views: Tensor) -> tuple[list[bytes], Tensor]:
    pixels = torch.stack(views)
    return view_digests(pixels), pixels


def count_encoded(model: Any, seen: list[int]) -> Any:
    return model.model.vision_tower.register_forward_hook(
        lambda m, args, kwargs, out: seen.append(len(out.last_hidden_state)), with_kwargs=True
    )


@torch.inference_mode()
def test_together_equals_one_by_one(model: Any, views: Tensor) -> None:
    wanted = [ask(views[0]), ask(views[1], views[2]), ask(*views[3:])]
    together = EncoderCache(model, 0).features(wanted)
    for (digests, pixels), features in zip(wanted, together, strict=True):
        assert features.shape == (4 * len(pixels), 32)
        alone = [EncoderCache(model, 0).features([ask(view)])[0] for view in pixels]
        torch.testing.assert_close(features, torch.cat(alone), atol=5e-5, rtol=1e-5)
        assert len(digests) == len(pixels)


@torch.inference_mode()
def test_a_view_is_encoded_once(vip_model: Any, views: Tensor) -> None:
    seen: list[int] = []
    hook = count_encoded(vip_model, seen)
    try:
        cache = EncoderCache(vip_model, 100 * ONE_VIEW, max_views=3)
        first = cache.features([ask(views[0], views[1]), ask(views[1]), ask(views[2], views[3])])
        again = cache.features([ask(views[1]), ask(views[4])])
    finally:
        hook.remove()
    assert seen == [3, 1, 1]
    assert (cache.hits, cache.misses, cache.bytes) == (2, 5, 5 * ONE_VIEW)
    assert torch.equal(first[0][4:], first[1])
    assert torch.equal(again[0], first[1])
    cache.clear()
    assert cache.bytes == 0
    cache.features([ask(views[1])])
    assert cache.misses == 6


@torch.inference_mode()
def test_the_least_recently_used_features_are_dropped(vip_model: Any, views: Tensor) -> None:
    cache = EncoderCache(vip_model, 2 * ONE_VIEW)
    for view in (views[0], views[1], views[0], views[2]):
        cache.features([ask(view)])
        assert cache.bytes <= 2 * ONE_VIEW
    assert (cache.hits, cache.misses) == (1, 3)
    cache.features([ask(views[0])])  # used in between, so it is kept
    cache.features([ask(views[1])])
    assert (cache.hits, cache.misses) == (2, 4)
    tiny = EncoderCache(vip_model, ONE_VIEW - 1)
    tiny.features([ask(views[0])])
    tiny.features([ask(views[0])])
    assert (tiny.hits, tiny.misses, tiny.bytes) == (0, 2, 0)


def test_a_digest_covers_dtype_shape_and_every_pixel(views: Tensor) -> None:
    one = views[:1]
    changed = one.clone()
    changed[0, 2, 27, 27] += 1e-3
    strided = views.flip(-1).flip(-1)[:1]
    assert view_digests(one) == view_digests(strided) == view_digests(views)[:1]
    others = [changed, one.double(), one.bfloat16(), one.reshape(1, 3, 14, 56)]
    assert len({view_digests(other)[0] for other in [one, *others]}) == 5


def test_a_digest_of_a_large_view_covers_every_part_in_its_place() -> None:
    views = torch.randn(2, 3, 200, 200, generator=torch.Generator().manual_seed(0))
    first, second = view_digests(views)
    assert [first, second] == [view_digests(views[:1])[0], view_digests(views[1:])[0]]
    known = {first, second, view_digests(views[:1].roll(128 * 256))[0]}
    for at in range(0, views[0].numel(), 30_000):  # in every part
        other = views[:1].clone()
        other.view(-1)[at] += 1
        known |= set(view_digests(other))
    assert len(known) == 3 + 4
    assert len(view_digests(views[:0])) == 0


@torch.inference_mode()
def test_captured_encodings_are_composed(model: Any, views: Tensor) -> None:
    """Of 6, 2 and 1 views; each number is captured once."""
    plain, cache = EncoderCache(model, 0), EncoderCache(model, 0, cuda_graphs=True)
    runs: list[int] = []
    run = cache._run
    cache._run = lambda pixels: (runs.append(len(pixels)), run(pixels))[1]  # type: ignore[method-assign]
    for count in (6, 3, 1):
        [found] = cache.features([ask(*views[:count])])
        [expected] = plain.features([ask(*views[:count])])
        torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-5)
    assert runs == [6, 2, 1, 1]
    assert (cache.pool.num_captured, plain.pool.num_captured) == (3, 0)
    cache.features([ask(views[5])])
    assert cache.pool.num_captured == 3


@torch.inference_mode()
def test_reset_looks_at_hooks_and_weights_anew(vip_model: Any, views: Tensor) -> None:
    model = copy.deepcopy(vip_model)
    cache = EncoderCache(model, 100 * ONE_VIEW, cuda_graphs=True)
    [before] = cache.features([ask(views[0])])
    seen: list[int] = []
    hook = count_encoded(model, seen)
    cache.reset()
    cache.features([ask(views[0])])
    assert (seen, cache.pool.num_captured) == ([1], 1)
    hook.remove()
    weight = model.model.multi_modal_projector.linear_2.weight
    weight.data = weight.data * 2
    cache.reset()
    [after] = cache.features([ask(views[0])])
    assert cache.pool.num_captured == 2
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, EncoderCache(model, 0).features([ask(views[0])])[0])


@torch.inference_mode()
def test_encodings_that_cannot_be_captured_run_without_graphs(
    vip_model: Any, views: Tensor
) -> None:
    cache = EncoderCache(vip_model, 0, cuda_graphs=True)

    def refuse(work: Any) -> Any:
        raise ValueError("odd")

    cache.pool.capture = refuse  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="without graphs: ValueError: odd"):
        [found] = cache.features([ask(views[0])])
    [expected] = EncoderCache(vip_model, 0).features([ask(views[0])])
    torch.testing.assert_close(found, expected)
    assert cache.features([ask(views[1])])
