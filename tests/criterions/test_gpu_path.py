"""A step on a GPU, traced without one: nothing waits for the device, nothing of the host is computed with.

``tests/support/fake_gpu.py`` says what that means. Gradients are asked for, so that the loss forms its own; autograd's
engine alone is left out, which does not start without a GPU. Neither are compiled layers, whose compiler does not take
such tensors, nor torch's choice among its kernels of attention, which asks the device.
"""

from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from fairseq.optim import AMPOptimizer

from fairseq_star.encoder.config import HUBERT_BASE
from fairseq_star.encoder.frames import Frames
from fairseq_star.encoder.modules import SpeechEncoder
from fairseq_star.fairseq_hooks.resuming import TEACHER
from fairseq_star.losses.centroids import Centroids
from fairseq_star.losses.layer_plan import PAPER, compared_states
from fairseq_star.losses.tgm import linalg, loss, tgm_loss
from fairseq_star.models.starhubert import StarHubertConfig, StarHubertModel
from fairseq_star.teacher.cache.read_ahead import STORED
from tests.support.fake_gpu import HotPath, batch_on_gpu, gpu, on_gpu
from tests.support.flops import FlopsByPrecision
from tests.support.steps import batch_of, build

AMP = "amp"
PRECISIONS = [torch.float32, torch.bfloat16, torch.float16, AMP]
RELATIONS_OFF = {"layerwise_weight": 0.0, "intra_layer_weight": 0.0}
HIDING = {"mask_prob": 0.5, "mask_length": 2}
STREAMING = {
    "extractor_mode": "running_norm", "chunk_frames": [4], "left_context_frames": 7, "right_context_frames": 2,
    "encoder_attention_heads": 4,
}  # fmt: skip
OBJECTIVES = {
    "STaR": ({}, {}),
    "reimplementation": ({"layer_convention": "reimplementation", "count_padding": True}, {}),
    "l1": ({"distance": "l1"}, {}),
    "kl": ({"distance": "kl"}, {}),
    "attention": ({"avg_attn_weight": 1.0, "last_attn_weight": 1.0}, {}),
    "frames": ({"frame_mse_weight": 1.0, "frame_l1_weight": 1.0, "frame_cosine_weight": 1.0}, HIDING),
    "head units": ({**RELATIONS_OFF, "unit_weight": 1.0, "unit_unmasked_weight": 1.0, "units": ["head"]}, HIDING),
    "centroids": ({"unit_unmasked_weight": 1.0, "units": ["FILE"]}, {}),
    "hidden relations": ({"tgm_frames": "masked"}, HIDING),
    "fairseq's group norm": ({}, {"padded_group_norm": True}),
    "streaming": ({"avg_attn_weight": 1.0}, {"model": STREAMING}),
}


@pytest.fixture(scope="module")
def centroids(corpus, teacher_path, tmp_path_factory):
    task, _, _ = build(corpus, teacher_path)
    path = tmp_path_factory.mktemp("units") / "units.npz"
    Centroids(np.random.default_rng(0).standard_normal((5, 24)), 2, task.state_dict()[TEACHER]).write(path)
    return path


@pytest.fixture
def built(corpus, teacher_path, centroids):
    """Task, student and criterion of one of OBJECTIVES."""

    def built(name: str, **more):
        criterion, options = OBJECTIVES[name]
        criterion = {k: [str(centroids)] if v == ["FILE"] else v for k, v in criterion.items()}
        return build(corpus, teacher_path, criterion, **options, **more)

    return built


def number_type(precision) -> torch.dtype:
    return torch.float32 if precision == AMP else precision


def autocast(precision) -> torch.autocast:
    return torch.autocast("cuda", enabled=precision == AMP, dtype=torch.float16)


def place(precision, *modules) -> None:
    for module in modules:
        on_gpu(module, number_type(precision))


def long_batch(batch: dict, ragged: bool) -> dict:
    """The batch with utterances of 16 s, where the D x D form is the cheaper one."""
    seconds = (16, 9) if ragged else (16, 16)
    num_samples = [16_000 * number for number in seconds]
    inputs = batch["net_input"] | {"source": torch.zeros(2, max(num_samples))}
    return {"net_input": inputs, "num_samples": num_samples, "paths": batch["paths"]}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_term_waits_for_the_device(built, name):
    task, student, criterion = built(name)
    batches = [batch_of(task, indices) for indices in ([0, 3], [7, 7])]  # ragged, and not
    for precision in PRECISIONS if name == "STaR" else (AMP,) if name == "frames" else (torch.float16,):
        with gpu(), autocast(precision):
            place(precision, student, task.teacher, criterion)
            placed = [batch_on_gpu(batch, number_type(precision)) for batch in batches]
            criterion(student, placed[0])  # what is brought to the device once stays there
            for batch in placed:
                with HotPath():
                    total, _, logged = criterion(student, batch)
                assert total.is_cuda
                assert total.requires_grad
                assert total.dtype == torch.float32
                assert all(value.is_cuda for value in logged.values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("ragged", [True, False])
def test_nor_do_long_utterances(built, ragged):
    """Long enough for the D x D form of the loss."""
    task, student, criterion = built("STaR")
    batch = long_batch(batch_of(task, [0, 3]), ragged)
    for precision in (torch.float32, torch.float16):
        with gpu(), autocast(precision):
            place(precision, student, task.teacher)
            placed = batch_on_gpu(batch, number_type(precision))
            with HotPath(), mock.patch.object(loss, "tiled_terms", side_effect=AssertionError("the other form")):
                assert criterion(student, placed)[0].requires_grad


@pytest.mark.parametrize("precision", PRECISIONS[:2])
@pytest.mark.parametrize("options", [{"teacher_cache_compression": "int8"}, {"teacher_cache_compression": "pca"}])
@pytest.mark.parametrize("name", ["STaR", "frames"])
def test_nor_does_a_hit_of_the_compressed_cache(built, tmp_path, precision, options, name, without_onednn):
    task, student, criterion = built(name, teacher_cache=str(tmp_path), **options)
    for _ in ("filled", "read"):
        batch = batch_of(task, [0, 3])
        batch["net_input"]["source"] = batch["net_input"]["source"].to(precision)
        task.provider.encode(batch, states=criterion.teacher_states, last_layer=criterion.teacher_states[-1])
    assert batch[STORED]["found"] == [True, True]
    with gpu():
        place(precision, student, criterion)  # the teacher stays where it is: it is not asked
        batch = batch_on_gpu(batch, precision)
        criterion(student, batch)  # brings the basis to the device
        with HotPath():
            total, _, _ = criterion(student, batch)
        assert total.is_cuda


class Optimizer:
    """All that a task's train_step asks of an optimizer, but for autograd's engine."""

    def backward(self, loss: torch.Tensor) -> None:
        assert loss.requires_grad


class MixedOptimizer(Optimizer, AMPOptimizer):
    def __init__(self):
        pass


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nor_do_the_tasks_own_steps(built, precision):
    task, student, criterion = built("STaR")
    optimizer = MixedOptimizer() if precision == AMP else Optimizer()
    batch = batch_of(task, [0, 3])
    with gpu():
        place(precision, student, task.teacher)
        batch = batch_on_gpu(batch, number_type(precision))
        with HotPath():
            assert task.train_step(batch, student, criterion, optimizer, 0)[0].is_cuda
            student.eval()
            assert task.valid_step(batch, student, criterion)[0].is_cuda


@pytest.mark.parametrize("dtype", PRECISIONS[:3])
def test_nor_does_the_gradient_on_its_way_back(dtype):
    """``backward`` of the loss by itself, as the engine calls it."""
    with gpu():
        gradient, scale, incoming = (torch.empty(shape, device="cuda") for shape in [(2, 9, 4), (2,), (2,)])
        context = SimpleNamespace(saved_tensors=(gradient, scale), dtype=dtype)
        with HotPath():
            passed_on, given, *_ = loss._Attach.backward.__wrapped__(context, incoming)
        assert passed_on is incoming
        assert (given.device.type, given.dtype, given.shape) == ("cuda", dtype, gradient.shape)


# --------------------------------------------------------------------------------------- whom the multiplications ask


def test_half_precision_leaves_next_to_nothing_of_the_loss_to_float32s_units():
    """HuBERT Base's and ``starhubert``'s own sizes, 16 s. The gradient's products were in float32 once: more than a
    third of the loss's operations, on units that are a fifteenth as fast."""
    num_samples = [256_000, 200_000, 256_000]
    seconds = sum(num_samples) / 16_000
    dtype = torch.bfloat16
    with gpu():
        teacher = SpeechEncoder(HUBERT_BASE).eval().requires_grad_(False)
        student = StarHubertModel(StarHubertConfig(padded_group_norm=False)).eval()
        place(dtype, teacher, student)
        source = torch.empty(3, 256_000, dtype=dtype, device="cuda")
        frames = Frames.of(teacher.geometry, num_samples, source)
        with HotPath(), FlopsByPrecision() as encoders:
            states = [compared_states(model.encode(source, frames), PAPER) for model in (teacher, student)]
        assert 8.5 < encoders.flops[dtype] / 2e9 / seconds < 10, "GMACs a second of audio, all but attention"
        found = {}
        for units in (True, False):
            with mock.patch.object(linalg, "_has_half_units", lambda like, units=units: units):
                with HotPath(), FlopsByPrecision() as loss_alone:
                    tgm_loss(*states, frames.frame_lengths)
                found[units] = loss_alone
        assert found[True].share(torch.float32) < 1e-3
        assert found[False].share(torch.float32) == 1.0
        assert 1 < found[True].flops[dtype] / 2e9 / seconds < 2, "two products in place of one float32 product"


# ------------------------------------------------------------------------------------------- a test of these tests


def host_tensor(state):
    return torch.ones(state.size(-1)) * state


MISTAKES = {
    "item": lambda state: state.sum().item() * state,
    "bool of a tensor": lambda state: state if state.sum() > 0 else -state,
    "tolist": lambda state: state * state.sum(-1).sum(-1).tolist()[0],
    "nonzero": lambda state: state * state.nonzero().size(0),
    "boolean index": lambda state: state[state > 0],
    "boolean assignment": lambda state: state.detach().clone().index_put_((state > 0,), state.new_zeros(())),
    "masked_select": lambda state: state.masked_select(state > 0),
    "unique": lambda state: state.unique(),
    "repeat_interleave": lambda state: state.repeat_interleave(torch.ones(2, dtype=torch.long, device="cuda"), dim=0),
    "equal": lambda state: state * torch.equal(state, state),
    "copy to the host": lambda state: state.cpu().to("cuda", non_blocking=True),
    "numbers of the host": lambda state: state + torch.tensor([1.0], device="cuda"),
    "copy that waits": lambda state: state + torch.ones(state.size(-1)).to(state.device),
    "tensor of the host": host_tensor,
    "index of the host": lambda state: state[:, torch.arange(3)],
    "host into device": lambda state: state.detach().clone().copy_(torch.ones(state.shape)),
}


@pytest.fixture(scope="module")
def one_step(corpus, teacher_path):
    task, student, criterion = build(corpus, teacher_path)
    return task, student, criterion, batch_of(task, [0, 3])


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_hot_path_is_found(one_step, mistake):
    task, student, criterion, batch = one_step

    def term(batch):
        return MISTAKES[mistake](batch.student.hidden_states[1]).sum()

    with gpu(), mock.patch.object(criterion, "terms", [term]):  # of a step that passes the tests above
        place(torch.float32, student, task.teacher)
        batch = batch_on_gpu(batch, torch.float32)
        with HotPath(), pytest.raises((AssertionError, RuntimeError), match=r"host|device|waits"):
            criterion(student, batch)


RIGHT = {
    "scalar of the host": lambda state: state * torch.tensor(2.0),
    "copy that does not wait": lambda state: state + torch.ones(state.size(-1)).to(state.device, non_blocking=True),
    "index of the device": lambda state: state[:, torch.arange(3, device=state.device)],
    "mask": lambda state: state.masked_fill(state > 0, 0.0),
    "told repeat_interleave": lambda state: state.repeat_interleave(
        torch.ones(2, dtype=torch.long, device="cuda"), dim=0, output_size=2
    ),
}


@pytest.mark.parametrize("way", RIGHT)
def test_what_does_not_wait_is_let_pass(way):
    with gpu():
        state = torch.empty(2, 9, 4, device="cuda")
        with HotPath():
            assert RIGHT[way](state).is_cuda
