"""The chunked loss of supervised positions equals plain cross entropy, in value and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vip_llava.training import chunked_cross_entropy as chunked
from vip_llava.training.losses import head_loss, patch_loss, supervised_positions

WIDTH, VOCABULARY = 8, 23


def case(
    dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = (3, 11), seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, head weight and labels; about half of the labels are supervised."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*shape, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, VOCABULARY, shape, generator=generator)
    labels[torch.rand(shape, generator=generator) < 0.5] = -100
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), labels


def supervised_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    num_items: Any = None,
    chunk: int | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The loss of whole rows through a head's weight, from the package's functions."""
    positions, targets = supervised_positions(labels)
    states = hidden.flatten(0, -2).index_select(0, positions)
    total = chunked.chunked_cross_entropy(states, weight, targets, bias=bias, chunk=chunk)
    return total / (max(len(targets), 1) if num_items is None else num_items)


def through(head: nn.Module, hidden: Tensor, labels: Tensor, chunk: int) -> Tensor:
    positions, targets = supervised_positions(labels)
    return head_loss(head, hidden.flatten(0, -2)[positions], targets, chunk=chunk)


def supervised_count(labels: Tensor) -> int:
    return len(supervised_positions(labels)[1])


def plain_loss(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None
) -> Tensor:
    logits = F.linear(hidden, weight, bias)[..., :-1, :].reshape(-1, VOCABULARY)
    return F.cross_entropy(logits.to(torch.float64), labels[..., 1:].reshape(-1))


def close(found: Any, expected: Any, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("chunk", [None, 1, 4, 1000])
@pytest.mark.parametrize("shape", [(3, 11), (11,), (1, 2), (2, 2, 5)])
def test_loss_and_gradients_are_the_plain_ones(chunk: int | None, shape: tuple[int, ...]) -> None:
    hidden, weight, labels = case(shape=shape)
    labels[..., -1] = 5
    expected = plain_loss(hidden, weight, labels)
    found = supervised_loss(hidden, weight, labels, chunk=chunk)
    close(found, expected)
    wanted = torch.autograd.grad(expected * 3, (hidden, weight))
    close(torch.autograd.grad(found * 3, (hidden, weight)), wanted)


def test_a_bias_gets_its_gradient() -> None:
    hidden, weight, labels = case()
    bias = torch.linspace(-1, 1, VOCABULARY, dtype=torch.float64, requires_grad=True)
    expected = plain_loss(hidden, weight, labels, bias)
    found = supervised_loss(hidden, weight, labels, bias=bias, chunk=5)
    everything = (hidden, weight, bias)
    close(torch.autograd.grad(found, everything), torch.autograd.grad(expected, everything), 1e-10)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_frozen_inputs_get_no_gradient(frozen: str) -> None:
    hidden, weight, labels = case()
    {"hidden": hidden, "weight": weight}[frozen].requires_grad_(False)
    free = weight if frozen == "hidden" else hidden
    expected = torch.autograd.grad(plain_loss(hidden, weight, labels), free)
    loss = supervised_loss(hidden, weight, labels, chunk=4)
    loss.backward()  # type: ignore[no-untyped-call]
    close(free.grad, expected[0])
    assert (hidden if frozen == "hidden" else weight).grad is None


def test_gradients_match_finite_differences() -> None:
    hidden, weight, labels = case(shape=(2, 5))
    assert torch.autograd.gradcheck(
        lambda h, w: supervised_loss(h, w, labels, num_items=7, chunk=3), (hidden, weight)
    )


def test_nothing_supervised_is_zero_and_not_nan() -> None:
    hidden, weight, labels = case()
    labels[:] = -100
    labels[:, 0] = 3  # no position predicts the first label of a row
    loss = supervised_loss(hidden, weight, labels)
    assert loss == 0
    gradients = torch.autograd.grad(loss, (hidden, weight))
    assert all(bool((gradient == 0).all()) for gradient in gradients)
    assert supervised_count(labels) == 0


@pytest.mark.parametrize("as_tensor", [True, False])
def test_losses_of_a_step_add_up_to_the_mean_over_its_tokens(as_tensor: bool) -> None:
    """Gradient accumulation over rows with very different answer lengths."""
    hidden, weight, labels = case(shape=(4, 20))
    labels[0, 2:] = -100
    whole = plain_loss(hidden, weight, labels)
    number = supervised_count(labels)
    items: Any = torch.tensor(number) if as_tensor else number
    parts = [supervised_loss(hidden[row], weight, labels[row], num_items=items) for row in range(4)]
    close(sum(parts), whole)
    means = torch.stack([supervised_loss(hidden[row], weight, labels[row]) for row in range(4)])
    assert abs((means.mean() - whole).item()) > 1e-3  # unlike the mean of the means


def test_gradients_averaged_over_ranks_are_those_of_the_mean() -> None:
    """Each rank divides by the tokens of all ranks and multiplies by the number of ranks."""
    hidden, weight, labels = case(shape=(4, 20))
    number = supervised_count(labels)
    expected = torch.autograd.grad(plain_loss(hidden, weight, labels), weight)[0]
    gradients = []
    for rank in range(2):
        mine = slice(rank, None, 2)
        loss = supervised_loss(hidden[mine], weight, labels[mine], num_items=number) * 2
        gradients.append(torch.autograd.grad(loss, weight)[0])
    close(torch.stack(gradients).mean(0), expected)


def test_half_precision_is_summed_in_float32() -> None:
    hidden, weight, labels = case(torch.bfloat16, shape=(1, 3000))
    exact = case(torch.bfloat16, shape=(1, 3000))[0].detach().double().requires_grad_()
    wide = weight.detach().double().requires_grad_()
    loss = supervised_loss(hidden, weight, labels, chunk=7)
    expected = plain_loss(exact, wide, labels)
    assert loss.dtype == torch.float32
    assert abs((loss - expected).item()) < 2e-3 * expected.item()
    loss.backward()  # type: ignore[no-untyped-call]
    expected.backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert weight.grad is not None
    assert wide.grad is not None
    assert weight.grad.dtype == hidden.grad.dtype == torch.bfloat16
    # Sums over 214 chunks in bfloat16 would have lost small gradients.
    distance = (weight.grad.double() - wide.grad).norm() / wide.grad.norm()
    assert float(distance) < 5e-3


def test_autocast_gives_gradients_in_the_parameters_dtype() -> None:
    hidden, weight, labels = case(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = supervised_loss(hidden, weight, labels, chunk=4)
    expected = plain_loss(hidden, weight, labels)
    assert abs((loss - expected).item()) < 0.02 * expected.item()
    gradients = torch.autograd.grad(loss, (hidden, weight))
    wanted = torch.autograd.grad(expected, (hidden, weight))
    for found, want in zip(gradients, wanted, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, want, rtol=0.05, atol=2e-3)


def counted(head: nn.Module) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    head.register_forward_hook(lambda m, args, out: shapes.append(tuple(out.shape)))
    return shapes


def test_a_linear_head_is_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, labels = case()
    head = nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=torch.float64)
    head.weight = nn.Parameter(weight.detach().clone())
    shapes = counted(head)
    loss = through(head, hidden, labels, chunk=2)
    close(loss, plain_loss(hidden, weight, labels))
    assert shapes == [()]
    assert "forward" not in vars(head)
    assert head(hidden).shape == (*hidden.shape[:-1], VOCABULARY)


class WrappedHead(nn.Module):
    """A head like one with an adapter: a linear layer and another parameter."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.base = nn.Parameter(weight.detach().clone())
        self.scale = nn.Parameter(torch.ones((), dtype=weight.dtype))

    def forward(self, states: Tensor) -> Tensor:
        return F.linear(states, self.base) * self.scale


@pytest.mark.parametrize("supervised", [True, False])
def test_a_wrapped_head_is_called_in_chunks(supervised: bool) -> None:
    hidden, weight, labels = case()
    if not supervised:
        labels[:] = -100
    head = WrappedHead(weight)
    shapes = counted(head)
    loss = through(head, hidden, labels, chunk=4)
    assert max(shape[0] for shape in shapes) <= 4
    loss.backward()  # type: ignore[no-untyped-call]
    assert head.base.grad is not None
    assert head.scale.grad is not None
    if not supervised:
        assert loss == 0
        return
    expected = plain_loss(hidden, weight, labels)
    close(loss, expected)
    close(head.base.grad, torch.autograd.grad(expected, weight)[0])


def test_logits_exist_only_for_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    linear = F.linear

    def watched(states: Tensor, *rest: Any) -> Tensor:
        sizes.append(len(states))
        return linear(states, *rest)

    monkeypatch.setattr(F, "linear", watched)
    monkeypatch.setattr(chunked, "MAX_CHUNK_LOGITS", 5 * VOCABULARY)
    hidden, weight, labels = case(shape=(2, 40))
    supervised_loss(hidden, weight, labels)
    assert max(sizes) == 5
    assert sum(sizes) == supervised_count(labels) < 60


def test_evaluation_computes_no_gradients() -> None:
    hidden, weight, labels = case()
    with torch.no_grad():
        loss = supervised_loss(hidden, weight, labels)
    assert not loss.requires_grad
    close(loss, plain_loss(hidden, weight, labels).detach())


def test_a_patched_model_returns_the_loss(
    make_vip: Callable[..., Any], make_row: Callable[..., dict[str, Any]]
) -> None:
    model = make_vip()
    row = make_row([2, "view", 8], learned=4)
    batch = {
        "input_ids": torch.tensor([row["input_ids"]]),
        "labels": torch.tensor([row["labels"]]),
        "pixel_values": row["pixel_values"],
    }
    expected = model(**batch).loss
    wanted = torch.autograd.grad(expected, model.lm_head.weight)[0]
    patch_loss(model)
    out = model(**batch)
    # transformers sums in float32
    close(out.loss, expected.double(), 1e-6)
    close(torch.autograd.grad(out.loss, model.lm_head.weight)[0], wanted, 1e-6)
    assert out.logits is None
    close(model(**batch, num_items_in_batch=8).loss * 2, out.loss)
    labels = batch.pop("labels")
    assert model(**batch).logits.shape == (*labels.shape, 100)
    assert model.generate(**batch, max_new_tokens=2, do_sample=False).shape[1] > labels.shape[1]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_on_the_head_is_used(
    make_vip: Callable[..., Any], make_row: Callable[..., dict[str, Any]]
) -> None:
    """An adapter that is added after `patch_loss` is part of the loss."""
    from peft import LoraConfig, get_peft_model

    model = make_vip()
    patch_loss(model)
    config = LoraConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, config).double()
    row = make_row([3, "view", 5], learned=3)
    batch = {"input_ids": torch.tensor([row["input_ids"]]), "pixel_values": row["pixel_values"]}
    labels = torch.tensor([row["labels"]])
    loss = adapted(**batch, labels=labels).loss
    logits = adapted(**batch).logits[0, :-1]
    close(loss, F.cross_entropy(logits, labels[0, 1:]), 1e-9)
    loss.backward()
    learned = [name for name, p in adapted.named_parameters() if p.grad is not None]
    assert any("lm_head.lora_A" in name for name in learned)
