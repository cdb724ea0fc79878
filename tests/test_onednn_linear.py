"""Linear layers by oneDNN: the same values and gradients as torch's own, and only where they are wanted."""

import pytest
import torch
import torch.nn.functional as F
from fairseq.modules import MultiheadAttention
from torch import nn

from fairseq_star import onednn_linear as module
from fairseq_star.onednn_linear import onednn_is_faster, onednn_linear
from test_criterion import batch_of, build

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this torch has no oneDNN",
)


@pytest.fixture
def products(monkeypatch) -> list:
    """The shapes that oneDNN multiplied."""
    seen, product = [], module.product
    monkeypatch.setattr(module, "product", lambda *args: (seen.append(args[0].shape), product(*args))[1])
    return seen


def results(x, weight, bias, incoming):
    y = F.linear(x, weight, bias)
    wanted = [tensor for tensor in (x, weight, bias) if tensor is not None]
    return [y.detach(), *torch.autograd.grad(y, wanted, incoming)]


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 2, 5), (131, 3, 24), (1, 24), (24,)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_values_and_gradients(shape, biased, transposed, products):
    torch.manual_seed(0)
    x, incoming = torch.randn(shape), torch.randn(*shape[:-1], 10)
    if transposed and len(shape) == 3:
        x, incoming = x.transpose(0, 1), incoming.transpose(0, 1)
    tensors = [x, torch.randn(10, shape[-1]), torch.randn(10) if biased else None]
    tensors = [None if tensor is None else tensor.requires_grad_() for tensor in tensors]
    exact = results(*(None if t is None else t.detach().double().requires_grad_() for t in tensors), incoming.double())
    with onednn_linear():
        found = results(*tensors, incoming)
    assert len(products) == 3
    for ours, expected in zip(found, exact, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_frozen_layer_costs_no_gradient(products):
    layer = nn.Linear(4, 3).requires_grad_(False)
    with onednn_linear():
        layer(torch.randn(2, 4, requires_grad=True)).sum().backward()
        layer(torch.randn(2, 4))
    assert len(products) == 3  # forward and the input's gradient, forward


def test_attention_finds_it_too(products):
    attention = MultiheadAttention(32, 4, self_attention=True)
    x = torch.randn(10, 2, 32)
    expected, _ = attention(x, x, x, need_weights=False)
    with onednn_linear():
        found, _ = attention(x, x, x, need_weights=False)
    assert len(products) == 4
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_what_it_leaves_to_torch(products, monkeypatch):
    layer, x = nn.Linear(4, 3), torch.randn(5, 4)
    with onednn_linear():
        layer.double()(x.double())
        layer.bfloat16()(x.bfloat16())
        layer.float()(x[:0])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
        layer(x)
    assert not products


def test_torch_has_its_own_back_after_an_error():
    own = F.linear

    def fail():
        with onednn_linear():
            assert F.linear is not own
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert F.linear is own


@pytest.mark.parametrize(("wanted", "compiled"), [(True, False), (True, True), (False, False)])
def test_a_training_step_takes_it_on_the_processors_it_is_for(
    wanted, compiled, corpus, teacher_path, products, monkeypatch
):
    class Optimizer:
        def backward(self, loss):
            loss.backward()

    def gradient(faster: bool):
        monkeypatch.setattr(module, "onednn_is_faster", lambda: faster)
        task, student, criterion = build(corpus, teacher_path)
        task.cfg.compile = compiled
        loss, _, _ = task.train_step(batch_of(task, [0, 3]), student, criterion, Optimizer(), 0)
        return loss.item(), torch.cat([p.grad.flatten() for p in student.parameters()])

    expected_loss, expected = gradient(False)
    assert not products
    loss, found = gradient(wanted)
    assert bool(products) == (wanted and not compiled)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_the_choice_is_the_processors_alone(monkeypatch):
    choose = onednn_is_faster.__wrapped__
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    for name, expected in [("vendor_id : AuthenticAMD", True), ("vendor_id : GenuineIntel", False), ("", False)]:
        monkeypatch.setattr(module, "_processor", lambda name=name: name)
        assert choose() == expected
    monkeypatch.setattr(module, "_processor", lambda: "vendor_id : AuthenticAMD")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not choose()
