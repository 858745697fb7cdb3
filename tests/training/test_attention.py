"""Packed rows equal separate rows in loss and gradients, and never attend to each other."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vip_llava.data.collators import PackedCollator
from vip_llava.data.samples import Sample
from vip_llava.errors import RequestError
from vip_llava.training import attention
from vip_llava.training.attention import (
    PACKED_ATTENTION,
    cu_seqlens_from_positions,
    packed_attention,
    use_packed_attention,
)
from vip_llava.training.losses import patch_loss

Rows = list[dict[str, Any]]

# Several images, one and none; images in later turns; answers of different lengths.
SHAPES: list[tuple[list[int | str], int]] = [
    ([2, "view", "view", 5], 3),
    ([9], 4),
    ([1, "view", 3, "view", 6], 2),
    ([4, "view", 2], 1),
    ([6], 5),
]


@pytest.fixture
def rows(make_row: Callable[..., dict[str, Any]]) -> Rows:
    return [make_row(parts, learned, seed=10 + n) for n, (parts, learned) in enumerate(SHAPES)]


def pack(rows: Rows, *, with_borders: bool = True) -> dict[str, Any]:
    batch = PackedCollator(0)([Sample("", **row) for row in rows])
    borders = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
    left_out = {"bad", "num_items"} | set(() if with_borders else borders)
    return {key: value for key, value in batch.items() if key not in left_out}


def separate(model: Any, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of each row by itself, with transformers' own loss and attention."""
    count = sum(sum(label != -100 for label in row["labels"]) for row in rows)
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        inputs = {"input_ids": torch.tensor([row["input_ids"]])}
        if row["pixel_values"] is not None:
            inputs["pixel_values"] = row["pixel_values"]
        logits = model(**inputs).logits[0, :-1]
        total = total + nn.functional.cross_entropy(
            logits, torch.tensor(row["labels"][1:]), reduction="sum"
        )
    loss = total / count
    return loss, gradients(model, loss)


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize(
    ("backbone", "window"), [("llama", None), ("phi3", None), ("phi3", 5)], ids=str
)
@pytest.mark.parametrize("with_borders", [True, False])
def test_packed_rows_equal_separate_rows(
    make_vip: Callable[..., Any],
    rows: Rows,
    backbone: str,
    window: int | None,
    with_borders: bool,
) -> None:
    model = make_vip(backbone, window)
    expected, expected_gradients = separate(model, rows)
    use_packed_attention(model)
    patch_loss(model)
    loss = model(**pack(rows, with_borders=with_borders)).loss
    found = gradients(model, loss)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    assert found.keys() == expected_gradients.keys()
    assert any("multi_modal_projector" in name for name in found)
    assert any("vision_tower" in name for name in found)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-7, atol=1e-10)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_changes_nothing(make_vip: Callable[..., Any], rows: Rows) -> None:
    model = make_vip().train()
    use_packed_attention(model)
    patch_loss(model)
    plain = gradients(model, model(**pack(rows)).loss)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = gradients(model, model(**pack(rows)).loss)
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-9, atol=1e-12)


def leak(model: Any, batch: dict[str, Any], first: int, second: int) -> float:
    """Largest gradient of the hidden states of places `first`.. by the inputs outside of them."""
    embedded = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    keys = ("position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
    given = {key: batch[key] for key in keys if key in batch}
    language = model.get_decoder()
    hidden = language(inputs_embeds=embedded, **given, **batch.get("more", {})).last_hidden_state
    hidden[0, first:second].square().sum().backward()
    others = embedded.grad[0].clone()
    others[first:second] = 0
    return float(others.abs().max())


@pytest.mark.parametrize("with_borders", [True, False])
@pytest.mark.parametrize("use_cache", [True, False])
def test_no_conversation_sees_another(
    make_vip: Callable[..., Any], rows: Rows, with_borders: bool, use_cache: bool
) -> None:
    model = make_vip()
    use_packed_attention(model)
    batch = pack(rows, with_borders=with_borders) | {"more": {"use_cache": use_cache}}
    start = 0
    for row in rows:
        stop = start + len(row["input_ids"])
        assert leak(model, batch, start, stop) == 0.0
        start = stop


def test_transformers_own_boundaries_leak_with_a_cache(
    make_vip: Callable[..., Any], rows: Rows
) -> None:
    """transformers drops the boundaries it derives as soon as a cache is in use."""
    model = make_vip()
    batch = pack(rows, with_borders=False)
    first = len(rows[0]["input_ids"])
    second = first + len(rows[1]["input_ids"])
    assert leak(model, batch | {"more": {"use_cache": False}}, first, second) == 0.0
    assert leak(model, batch | {"more": {"use_cache": True}}, first, second) > 0.0


def test_unpacked_batches_are_unchanged(make_vip: Callable[..., Any], rows: Rows) -> None:
    model = make_vip().eval()
    width = 12
    ids = torch.tensor([[7] * width, [3] * width, [5] * width])
    mask = torch.ones_like(ids)
    mask[0, 8:] = 0
    mask[1, :3] = 0
    calls: list[dict[str, Any]] = [
        {"input_ids": ids, "attention_mask": mask},
        {"input_ids": ids},
        {"input_ids": ids[:1]},
        {"input_ids": ids[:1], "attention_mask": mask[1:2]},
    ]
    with torch.no_grad():
        expected = [model(**call).logits for call in calls]
        prompt = {"input_ids": torch.tensor([rows[1]["input_ids"]])}
        told = model.generate(**prompt, max_new_tokens=5, do_sample=False)
        use_packed_attention(model)
        for call, logits in zip(calls, expected, strict=True):
            seen = call.get("attention_mask", torch.ones_like(call["input_ids"])).bool()
            torch.testing.assert_close(model(**call).logits[seen], logits[seen])
        assert torch.equal(model.generate(**prompt, max_new_tokens=5, do_sample=False), told)


def test_only_the_language_model_uses_packed_attention(make_vip: Callable[..., Any]) -> None:
    model = make_vip()
    tower = model.model.vision_tower.config._attn_implementation
    use_packed_attention(model)
    assert model.model.language_model.config._attn_implementation == PACKED_ATTENTION
    assert model.model.vision_tower.config._attn_implementation == tower != PACKED_ATTENTION


def test_cu_seqlens_from_positions() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 0, 1, 5, 6]])
    assert cu_seqlens_from_positions(positions).tolist() == [0, 3, 4, 6, 8]
    assert cu_seqlens_from_positions(torch.arange(4)[None]).tolist() == [0, 4]


def test_a_packed_batch_is_one_row_without_a_mask() -> None:
    states = torch.zeros(2, 4, 6, 8)
    borders = torch.tensor([0, 6], dtype=torch.int32)
    with pytest.raises(RequestError, match="2 rows and no mask"):
        packed_attention(nn.Module(), states, states, states, None, cu_seq_lens_q=borders)
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    with pytest.raises(RequestError, match="1 rows and a mask"):
        packed_attention(
            nn.Module(), states[:1], states[:1], states[:1], mask, cu_seq_lens_q=borders
        )


SIGNATURES = {
    "2.13": ({"scale", "window_size", "enable_gqa"}, True),
    "2.10": ({"scale", "is_causal"}, False),
    "unwrap": ({"is_causal"}, False),
}


@pytest.mark.parametrize("version", list(SIGNATURES))
@pytest.mark.parametrize("window", [None, 3])
def test_the_kernel_gets_the_arguments_of_its_torch_version(
    monkeypatch: pytest.MonkeyPatch, version: str, window: int | None
) -> None:
    """A fake kernel checks layouts and arguments; the real one runs on CUDA only."""
    settings, grouped = SIGNATURES[version]

    def kernel(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        borders: Tensor,
        same: Tensor,
        most: int,
        more: int,
        **given: Any,
    ) -> Tensor:
        assert set(given) <= settings
        assert grouped or q.shape[1] == k.shape[1]
        assert most == more == 4
        left, right = given.get("window_size", (-1, 0))
        assert right == 0 or given.get("is_causal")
        return attention.sequential_attention(
            *(states.transpose(0, 1).unsqueeze(0) for states in (q, k, v)),
            borders,
            most,
            0.0,
            given.get("scale"),
            None if left == -1 else left + 1,
        )[0]

    monkeypatch.setattr(attention, "_KERNEL", (kernel, frozenset(settings)))
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 9, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)
    borders = torch.tensor([0, 4, 5, 9], dtype=torch.int32)
    given = (query, key, value, borders, None, 0.0, 0.2, window)
    torch.testing.assert_close(
        attention.varlen_attention(*given), attention.sequential_attention(*given)
    )


def test_the_kernel_is_used_in_half_precision_on_cuda_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def fits(device: str, dtype: torch.dtype, width: int = 64, dropout: float = 0.0) -> bool:
        query: Any = SimpleNamespace(
            device=torch.device(device), dtype=dtype, shape=(1, 1, 1, width)
        )
        return attention._kernel_supports(query, dropout)

    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device=None: SimpleNamespace(major=9)
    )
    assert fits("cuda", torch.bfloat16) == (attention._KERNEL is not None)
    assert not fits("cpu", torch.bfloat16)
    assert not fits("cuda", torch.float32)
    assert not fits("cuda", torch.bfloat16, 512)
    assert not fits("cuda", torch.bfloat16, dropout=0.1)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device=None: SimpleNamespace(major=7)
    )
    assert not fits("cuda", torch.bfloat16)


def test_sequences_of_one_length_may_be_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[Any, ...]] = []
    monkeypatch.setattr(attention, "cudnn_works", lambda *given: not tried.append(given))

    def alike(lengths: list[int], longest: int | None = 5, heads: int = 4, **more: Any) -> bool:
        borders = torch.tensor([0, *lengths]).cumsum(0)
        query = torch.empty(1, 4, sum(lengths), more.get("width", 128))
        key = torch.empty(1, heads, sum(lengths), more.get("width", 128))
        return attention._batchable(query, key, borders, longest, more.get("window"))

    def device(major: int) -> None:
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda device=None: SimpleNamespace(major=major)
        )

    device(9)
    assert alike([5, 5, 5])
    assert tried == [("cpu", torch.float32, 128)]
    assert alike([5, 5], window=5)
    assert not alike([5, 5], window=4)
    assert not alike([5, 4, 5])
    assert not alike([5, 5], longest=None)
    assert not alike([5, 5], heads=2)
    assert not alike([5, 5], width=96)
    monkeypatch.setattr(attention, "cudnn_works", lambda *given: False)
    assert not alike([5, 5, 5])
    device(8)
    monkeypatch.setattr(attention, "cudnn_works", lambda *given: True)
    assert not alike([5, 5, 5])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_cudnn_is_tried_outside_of_compiled_code() -> None:
    assert not attention.cudnn_works("cpu", torch.bfloat16, 128)

    def asked(x: Tensor) -> Tensor:
        return x + 1 if attention.cudnn_works(x.device.type, x.dtype, 128) else x - 1

    compiled: Any = torch.compile(asked, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1)) == -1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel runs on CUDA only")
def test_batched_attention_equals_sequential_attention() -> None:
    torch.manual_seed(0)
    states = [torch.randn(1, 4, 300, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    borders = torch.tensor([0, 100, 200, 300], dtype=torch.int32, device="cuda")
    if not attention.cudnn_works("cuda", torch.bfloat16, 128):
        pytest.skip("no cuDNN for it")
    results = []
    for run in (attention.batched_attention, attention.sequential_attention):
        inputs = [s.clone().requires_grad_() for s in states]
        out = run(*inputs, borders, 100, 0.0, None, None)
        out.float().square().sum().backward()
        results.append([out, *(s.grad for s in inputs)])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=3e-2, atol=3e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel runs on CUDA only")
@pytest.mark.parametrize("window", [None, 40])
def test_the_kernel_equals_sequential_attention(window: int | None) -> None:
    torch.manual_seed(0)
    states = [
        torch.randn(1, heads, 300, 64, device="cuda", dtype=torch.bfloat16) for heads in (8, 2, 2)
    ]
    borders = torch.tensor([0, 120, 121, 300], dtype=torch.int32, device="cuda")
    results = []
    for run in (attention.varlen_attention, attention.sequential_attention):
        inputs = [s.clone().requires_grad_() for s in states]
        out = run(*inputs, borders, 179, 0.0, None, window)
        out.float().square().sum().backward()
        results.append([out, *(s.grad for s in inputs)])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=3e-2, atol=3e-2)
