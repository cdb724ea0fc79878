"""Quantization-aware layers: onnxruntime's own grids, a gradient as if nothing were rounded, and no trace in what is
saved."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fairseq_star.deploy.targets import load_target
from fairseq_star.encoder.fake_quant import BLOCK, FakeQuantLinear, in_8_bits, on_grid
from fairseq_star.errors import StarError
from fairseq_star.formats import export, load_student
from fairseq_star.models.starhubert import StarHubertConfig, StarHubertModel
from tests.support import convert_cases, tiny
from tests.support.runs import hydra_arguments, run
from tests.support.steps import batch_of, build, gradient, relative_difference


def stored(path) -> list[torch.Tensor]:
    """The weights (out x in) of a quantized file's linear layers, as it computes with them."""
    graph = onnx.load(path).graph
    values = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            packed, scales = values[node.input[1]], values[node.input[2]]
            size = {one.name: one.i for one in node.attribute}
            halves = np.stack([packed & 15, packed >> 4], -1).reshape(size["N"], -1, BLOCK).astype(np.float32) - 8
            weight = (halves * scales.reshape(size["N"], -1, 1)).reshape(size["N"], -1)[:, : size["K"]]
            found.append(torch.from_numpy(weight))
        elif node.op_type == "MatMulInteger":
            scale = next(name for name in values if name == node.input[1].replace("_quantized", "_scale"))
            found.append(torch.from_numpy((values[node.input[1]] * values[scale]).T.astype(np.float32)))
    return found


@pytest.mark.parametrize(("option", "bits"), [("int8", 8), ("int4", 4)])
def test_the_grid_is_the_exported_files(tmp_path, option, bits):
    student = convert_cases.student(tmp_path, "starhubert_s")
    load_target("onnx")(**{option: True}).write(student, tmp_path / "student.onnx")
    weights = stored(tmp_path / "student.onnx")
    linear = [module.weight.detach() for module in student.model.modules() if isinstance(module, nn.Linear)]
    assert len(weights) == len(linear) > 10
    for expected in (on_grid(weight, bits) for weight in linear):
        differing = [(one - expected).abs() > 1e-6 for one in weights if one.shape == expected.shape]
        assert min(float(one.float().mean()) for one in differing) < 1e-4  # in the middle of two steps


@given(st.integers(1, 70), st.integers(1, 5), st.sampled_from([8, 4]), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_rounding_stays_within_half_a_step_and_has_no_nan(width, channels, bits, seed):
    weight = torch.randn(channels, width, generator=torch.Generator().manual_seed(seed))
    weight[0] = 0  # a dead channel
    off = (on_grid(weight, bits) - weight).abs()
    assert torch.isfinite(off).all()
    greatest = weight.abs().amax(1, keepdim=True)
    # In 4 bits what lies opposite to the greatest is cut at 7 of 8 steps.
    assert (off <= greatest * (0.5 / 127 if bits == 8 else 1 / 8) + 1e-6).all()
    x = in_8_bits(weight * 3 + 1)
    span = (weight * 3 + 1).amax(1).clamp(min=0) - (weight * 3 + 1).amin(1).clamp(max=0)
    assert ((x - weight * 3 - 1).abs() <= span[:, None] / 255 + 1e-5).all()


def test_the_gradient_goes_through():
    """As of the plain layer at the rounded values."""
    torch.manual_seed(0)
    layer = FakeQuantLinear(8, 6, bits=4)
    x = torch.randn(5, 8, requires_grad=True)
    out = layer(x)
    out.backward(wanted := torch.randn_like(out))
    kept = dict(layer.named_parameters())["weight"]
    weight, given = on_grid(kept.detach(), 4), in_8_bits(x.detach())
    assert torch.allclose(out, given @ weight.T + layer.bias, atol=1e-6)
    assert torch.allclose(x.grad, wanted @ weight, atol=1e-6)
    assert torch.allclose(kept.grad, wanted.T @ given, atol=1e-6)
    assert not torch.equal(kept, weight)
    assert torch.equal(layer.state_dict()["weight"], kept)


@pytest.mark.parametrize("chunks", [{}, {"chunk_frames": [4, 0], "extractor_mode": "running_norm"}])
def test_every_linear_layer_of_a_student_is_rounded_and_only_when_asked(chunks):
    def student(**more) -> StarHubertModel:
        torch.manual_seed(0)
        return StarHubertModel(
            StarHubertConfig(**tiny.STUDENT, **tiny.NO_DROPOUT, padded_group_norm=False, **chunks, **more)
        ).eval()

    plain, rounded = student(), student(weight_bits=4)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), rounded.state_dict().values(), strict=True)
    )
    assert list(plain.state_dict()) == list(rounded.state_dict())
    source = torch.randn(2, 8000)
    with torch.no_grad():
        for module in plain.modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(on_grid(module.weight, 4))
        by_weights, all_rounded = plain(source).hidden_states[-1], rounded(source).hidden_states[-1]
    apart = relative_difference(all_rounded, by_weights)
    assert 1e-5 < apart < 0.05, "inputs are rounded too"


@pytest.mark.parametrize("bits", [8, 4])
def test_padding_changes_nothing(corpus, teacher_path, bits):
    task, student, criterion = build(corpus, teacher_path, model={"weight_bits": bits})
    loss, flat = gradient(student, criterion, batch_of(task, range(3)))
    padded, other = gradient(student, criterion, batch_of(task, range(3), extra=5_000))
    assert padded == pytest.approx(loss, rel=1e-4)
    assert relative_difference(other, flat) < 0.02  # a number near the middle of two steps falls to either side
    apart, parted = gradient(student, criterion, *(batch_of(task, [number]) for number in range(3)))
    assert apart == pytest.approx(loss, rel=1e-4)
    assert relative_difference(parted, flat) < 0.02


def test_a_finished_student_goes_on_with_few_bits(corpus, teacher_path, tmp_path):
    first, then = tmp_path / "first", tmp_path / "then"
    assert run(hydra_arguments(corpus, teacher_path, first)).returncode == 0
    more = [f"checkpoint.finetune_from_model={first / 'checkpoint_last.pt'}", "model.weight_bits=4"]
    done = run(hydra_arguments(corpus, teacher_path, then, *more))
    assert done.returncode == 0, done.stderr
    student = load_student(str(then / "checkpoint_last.pt"), "test")
    assert export(student, load_target("onnx")(int4=True), tmp_path / "int4.onnx").alone < 0.01


def test_what_cannot_be_is_one_line(corpus, teacher_path):
    with pytest.raises(StarError, match=r"model\.weight_bits=5 must be 8 or 4"):
        StarHubertModel(StarHubertConfig(weight_bits=5))
    with pytest.raises(SystemExit, match=r"task\.compile=true cannot compile model\.weight_bits"):
        build(corpus, teacher_path, model={"weight_bits": 8}, compile=True)
