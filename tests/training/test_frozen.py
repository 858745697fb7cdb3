"""Frozen layers by the short way give what transformers' give, in value and slope."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama import modeling_llama as llama

from vip_llava.data.batches import PackedCollator, PaddedCollator
from vip_llava.data.samples import Sample
from vip_llava.training.attention import use_packed_attention
from vip_llava.training.frozen import plain
from vip_llava.training.frozen.decoder import hasten
from vip_llava.training.frozen.eight import Eight
from vip_llava.training.frozen.layer import Asked, Exact
from vip_llava.training.losses import compute_loss_inside
from vip_llava.training.parts import choose_trainable
from vip_llava.training.vision import read_views

Made = Callable[..., Any]
T, WIDTH, HEADS, HEAD, EPS = 7, 48, 3, 16, 1e-5


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    """The kernels, run by Triton's interpreter where there is no GPU."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from vip_llava.kernels.fused import setting

    if not setting.INTERPRETED and not torch.cuda.is_available():
        pytest.skip("needs a GPU or TRITON_INTERPRET=1")
    from vip_llava.training.frozen import gpu

    return gpu


def angles(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    half = random(T, HEAD // 2)
    both = torch.cat([half, half], dim=1)
    return both.cos().to(dtype), both.sin().to(dtype)


@pytest.mark.parametrize("more", [True, False])
def test_the_norm_is_transformers_norm(more: bool) -> None:
    norm = llama.LlamaRMSNorm(WIDTH, EPS).double()
    norm.weight.data = random(WIDTH)
    x, other = random(T, WIDTH).requires_grad_(), random(T, WIDTH, seed=1) if more else None
    slope, residual = random(T, WIDTH, seed=2), random(T, WIDTH, seed=3)
    wanted_total = x if other is None else x + other
    wanted = norm(wanted_total)
    total, found = plain.add_norm(x.detach(), other, norm.weight.detach(), EPS)
    torch.testing.assert_close(total, wanted_total.detach())
    assert total.data_ptr() != x.data_ptr()
    # transformers' norm is made in float32
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-6, atol=1e-6)
    (lean,) = torch.autograd.grad(wanted, x, slope)
    made = plain.norm_backward(slope, total, norm.weight.detach(), EPS, residual)
    torch.testing.assert_close(made, lean + residual, rtol=1e-5, atol=1e-5)


def test_turning_is_transformers_turning() -> None:
    cos, sin = angles()
    x = random(T, HEADS * HEAD).requires_grad_()
    heads = x.view(1, T, HEADS, HEAD).transpose(1, 2)
    wanted = llama.apply_rotary_pos_emb(heads, heads, cos[None], sin[None])[0]
    wanted = wanted.transpose(1, 2).reshape(T, -1)
    torch.testing.assert_close(plain.turn(x.detach(), cos, sin), wanted.detach())
    slope = random(T, HEADS * HEAD, seed=1)
    (lean,) = torch.autograd.grad(wanted, x, slope)
    torch.testing.assert_close(plain.turn(slope, cos, sin, back=True), lean)
    same = x.detach().clone()
    assert plain.turn(same, cos, sin, inplace=True) is same
    torch.testing.assert_close(same, wanted.detach())


def test_the_gate_and_its_slopes() -> None:
    first, second = (random(T, WIDTH, seed=at).requires_grad_() for at in (0, 1))
    wanted = torch.nn.functional.silu(first) * second
    torch.testing.assert_close(plain.gate(first.detach(), second.detach()), wanted.detach())
    slope = random(T, WIDTH, seed=2)
    found = plain.gate_backward(slope, first.detach(), second.detach())
    torch.testing.assert_close(found, torch.autograd.grad(wanted, (first, second), slope))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernels_compute_what_plain_torch_does(gpu: ModuleType, dtype: torch.dtype) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x, more, slope, rest = (random(T, WIDTH, seed=at).to(device, dtype) for at in range(4))
    weight = random(WIDTH).to(device, dtype)
    cos, sin = (each.to(device) for each in angles(dtype))
    calls: list[Callable[[Any], Any]] = [
        lambda do: do.add_norm(x, more, weight, EPS),
        lambda do: do.add_norm(x, None, weight, EPS),
        lambda do: do.norm_backward(slope, x, weight, EPS, rest),
        lambda do: do.turn(x, cos, sin),
        lambda do: do.turn(x, cos, sin, back=True),
        lambda do: do.turn(x.clone(), cos, sin, inplace=True),
        lambda do: do.gate(x, more),
        lambda do: do.gate_backward(slope, x, more),
    ]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for call in calls:
        torch.testing.assert_close(call(gpu), call(plain), rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile(capability: int) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compiling_frozen.py")
    done = subprocess.run(
        [sys.executable, str(script), str(capability)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[0]) >= 10


class Model:
    """A model whose projector alone learns, with packed rows; how often it went the short way."""

    def __init__(self, model: Any, make_row: Made, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model = model.train()
        choose_trainable(model, ["projector"])
        read_views(model)
        use_packed_attention(model)
        compute_loss_inside(model)
        rows = [make_row([2, "view", 6], 3), make_row([1, "view", 3], 2, seed=1)]
        self.samples = [Sample("", **row) for row in rows]
        self.taken = 0
        usual = Asked.forward

        def counted(*given: Any) -> Any:
            self.taken += 1
            return usual(*given)

        monkeypatch.setattr(Asked, "forward", staticmethod(counted))

    def learn(self, collate: Any = None, **more: Any) -> tuple[Tensor, list[Tensor]]:
        """The loss and the slopes of what learns."""
        batch = (collate or PackedCollator(0))(self.samples)
        batch = {k: v for k, v in batch.items() if k not in ("bad", "num_items")} | more
        loss = self.model(**batch).loss
        weights = [p for p in self.model.parameters() if p.requires_grad]
        return loss.detach(), list(torch.autograd.grad(loss, weights))


@pytest.fixture
def made(make_vip: Made, make_row: Made, monkeypatch: pytest.MonkeyPatch) -> Model:
    return Model(make_vip(), make_row, monkeypatch)


def test_loss_and_slopes_are_transformers(made: Model) -> None:
    usual = made.learn()
    assert hasten(made.model)
    assert made.taken == 0
    found = made.learn()
    assert made.taken == 1  # of two layers; the last one is done where it is read
    # transformers' norms are made in float32
    torch.testing.assert_close(found, usual, rtol=1e-5, atol=1e-6)


def test_without_borders_they_are_read_off_positions(made: Model) -> None:
    hasten(made.model)
    usual = made.learn()
    found = made.learn(cu_seq_lens_q=None, max_length_q=None)
    assert made.taken == 2
    torch.testing.assert_close(found, usual)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_layers_may_be_recomputed(made: Model) -> None:
    hasten(made.model)
    usual = made.learn()
    made.model.gradient_checkpointing_enable({"use_reentrant": False})
    found = made.learn()
    assert made.taken == 3
    torch.testing.assert_close(found, usual)


def test_a_graph_can_be_gone_through_twice(made: Model) -> None:
    hasten(made.model)
    batch = PackedCollator(0)(made.samples)
    loss = made.model(**{k: v for k, v in batch.items() if k not in ("bad", "num_items")}).loss
    weights = [p for p in made.model.parameters() if p.requires_grad]
    first = torch.autograd.grad(loss, weights, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, weights), first, rtol=0, atol=0)


def _learn_all(model: Any) -> None:
    choose_trainable(model, ["projector", "language"])


def _learn_a_norm(model: Any) -> None:
    model.get_decoder().layers[0].input_layernorm.weight.requires_grad_(True)


def _hook(model: Any) -> None:
    model.get_decoder().layers[0].mlp.up_proj.register_forward_hook(lambda *_given: None)


def _adapt(model: Any) -> None:
    layer = model.get_decoder().layers[0].mlp
    layer.up_proj = torch.nn.Sequential(layer.up_proj)


def _other_attention(model: Any) -> None:
    AttentionInterface.register("of_ones_own", sdpa_attention_forward)
    model.get_decoder().set_attn_implementation("of_ones_own")


def _other_kind(model: Any) -> None:
    model.get_decoder().layers[0].mlp.up_proj.weight.data = (
        model.get_decoder().layers[0].mlp.up_proj.weight.data.float()
    )
    model.get_decoder().layers[0].mlp.up_proj.forward = lambda x: torch.nn.functional.linear(
        x, model.get_decoder().layers[0].mlp.up_proj.weight.double()
    )


@pytest.mark.parametrize(
    "change", [_learn_all, _learn_a_norm, _hook, _adapt, _other_attention, _other_kind]
)
def test_what_is_not_known_goes_the_usual_way(made: Model, change: Callable[[Any], None]) -> None:
    hasten(made.model)
    change(made.model)
    made.learn()
    assert made.taken == 0


@pytest.mark.parametrize("attention", ["packed", "sdpa", "eager"])
def test_padded_rows_go_the_short_way_too(made: Model, attention: str) -> None:
    if attention != "packed":
        made.model.get_decoder().set_attn_implementation(attention)
    usual = made.learn(PaddedCollator(0))
    hasten(made.model)
    found = made.learn(PaddedCollator(0))
    assert made.taken == 1
    torch.testing.assert_close(found, usual, rtol=1e-5, atol=1e-6)


def test_a_call_for_no_gradient_and_other_models_are_left(made: Model, make_vip: Made) -> None:
    hasten(made.model)
    ids = torch.tensor([[1, 2, 3]])
    assert made.model(input_ids=ids).logits.shape[:2] == ids.shape
    assert made.model.generate(input_ids=ids, max_new_tokens=2, do_sample=False).shape[1] > 3
    assert made.taken == 0
    assert not hasten(make_vip("phi3"))


def test_half_precision_of_the_trainer(make_vip: Made, make_row: Made, monkeypatch: Any) -> None:
    """Weights of 16 bits, what learns in 32, products by autocast: as `Trainer` runs it."""
    made = Model(make_vip().bfloat16(), make_row, monkeypatch)
    made.model.model.multi_modal_projector.float()
    for sample in made.samples:
        assert sample.pixel_values is not None
        sample.pixel_values = sample.pixel_values.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        usual = made.learn()
        hasten(made.model)
        found = made.learn()
    assert made.taken == 1
    assert abs(float(found[0] / usual[0]) - 1) < 0.02
    for mine, other in zip(found[1], usual[1], strict=True):
        assert mine.dtype == torch.float32
        assert float((mine - other).norm() / other.norm()) < 0.1
    made.model.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made.learn()  # frozen weights of 32 bits: their products would not be what they are here
    assert made.taken == 1


def test_8_bits_are_near(made: Model) -> None:
    hasten(made.model)
    exact = made.learn()
    hasten(made.model, Eight())
    found = made.learn()
    assert made.taken == 2
    assert abs(float(found[0] / exact[0]) - 1) < 0.05
    assert not torch.equal(found[0], exact[0])
    for mine, other in zip(found[1], exact[1], strict=True):
        assert float((mine - other).norm() / other.norm()) < 0.3


def test_products_of_8_bits() -> None:
    linears = [torch.nn.Linear(48, wide, bias=False).requires_grad_(False) for wide in (16, 32)]
    x, slopes = random(T, 48).float(), [random(T, wide).float() for wide in (16, 32)]
    exact, eight = Exact(), Eight()

    def made(by: Any) -> list[Tensor]:
        return [*by.forth(by.given([x]), linears), by.back(by.given(slopes), linears)]

    wanted, found = made(exact), made(eight)
    for mine, other in zip(found, wanted, strict=True):
        assert 0 < float((mine - other).norm() / other.norm()) < 0.05
    with torch.no_grad():
        for linear in linears:
            linear.weight.mul_(2)
    torch.testing.assert_close(made(eight), [each * 2 for each in found])


def test_8_bits_of_rows(gpu: ModuleType) -> None:
    """Pieces of a row side by side, with one scale: that of the largest number in any of them."""
    from vip_llava.training.frozen import eight_gpu

    # Numbers that 8 bits can hold: how the interpreter rounds others is its own affair.
    pieces = [random(3, wide).to(torch.float8_e4m3fn).float() for wide in (20, 12, 40)]
    for at, piece in enumerate(pieces):
        piece[0, at] = 448 * (at + 1)
        piece[1] = 0
        piece[2, 1] = -448 / 2**at
    for count in (1, 2, 3):
        values, scales = eight_gpu.narrow(pieces[:count])
        assert scales[0] == count
        assert scales[2] == 1
        assert not values[1].float().any()
        wanted, wanted_scales = Eight().given(pieces[:count])
        torch.testing.assert_close(scales, wanted_scales)
        assert torch.equal(values[2].float(), torch.cat([piece[2] for piece in pieces[:count]]))
        assert torch.equal(values[2].float(), wanted[2].float())
        assert values[0, sum((20, 12)[: count - 1]) + count - 1].float() == 448


def test_norms_and_gates_of_8_bits(gpu: ModuleType) -> None:
    """The kernels that round on the way give what the plain ones give, rounded."""
    from vip_llava.training.frozen import eight_gpu

    x, more, slope = (random(T, WIDTH, seed=at).float() for at in range(3))
    weight, eight = random(WIDTH).float(), Eight()
    total, normed = eight_gpu.add_norm(x, more, weight, EPS)
    torch.testing.assert_close(total, x + more)
    torch.testing.assert_close(eight_gpu.add_norm(x, None, weight, EPS)[0], x)
    pairs = [
        (normed, eight.add_norm(x, more, weight, EPS)[1]),
        (eight_gpu.gate(x, more), eight.gate(x, more)),
        (eight_gpu.gate_backward(slope, x, more), eight.gate_backward(slope, x, more)),
    ]
    for found, wanted in pairs:
        assert found[0].shape == wanted[0].shape
        torch.testing.assert_close(found[1], wanted[1])
        mine, other = (values.float() * scales for values, scales in (found, wanted))
        # The interpreter rounds some numbers another way.
        assert float((mine - other).norm() / other.norm()) < 0.1
