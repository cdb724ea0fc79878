"""Attention as exported files hold it, against torchaudio's with a mask of every pair; its memory in onnxruntime."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_star.analysis.profile import measure_speed
from fairseq_star.deploy import attention as deployed
from fairseq_star.deploy import onnx
from fairseq_star.deploy.attention import BLOCK, Attend, attention_by_blocks, attention_by_products
from fairseq_star.deploy.inference_module import InferenceStudent
from fairseq_star.deploy.targets import load_target
from fairseq_star.encoder.attention import attention
from fairseq_star.runtime.torchaudio_import import import_torchaudio
from tests.support import convert_cases, tiny

KINDS = (attention, attention_by_products, attention_by_blocks)


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    components = import_torchaudio().models.wav2vec2.components
    return components.SelfAttention(12, 3).eval().double()  # scores of the greatest scale leave float32 few digits


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    block=st.integers(1, 45),
    scale=st.sampled_from([0.1, 1.0, 100.0]),
)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_mask_of_keys_is_that_of_every_pair(kind, theirs, lengths, block, scale):
    longest = max(lengths)
    generator = torch.Generator().manual_seed(sum(lengths))
    x = scale * torch.randn(len(lengths), longest, 12, generator=generator, dtype=torch.float64)
    seen = (torch.arange(longest) < torch.tensor(lengths)[:, None])[:, None]
    expected, _ = theirs(x, seen[:, None].expand(-1, 1, longest, longest))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deployed, "BLOCK", block)
        got = attend(theirs, kind, x, seen)
    torch.testing.assert_close(got, expected, atol=1e-5 * scale, rtol=1e-5)


def attend(theirs, kind: Attend, x: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
    """Torchaudio's projections around ours."""
    heads = (
        projection(x).unflatten(2, (theirs.num_heads, -1)).transpose(1, 2)
        for projection in (theirs.q_proj, theirs.k_proj, theirs.v_proj)
    )
    return theirs.out_proj(kind(*heads, seen).transpose(1, 2).flatten(2))


@torch.no_grad()
def test_without_a_mask_all_are_seen(theirs):
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    torch.testing.assert_close(attend(theirs, attention, x, None), theirs(x)[0])


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return convert_cases.tiny_student(tmp_path_factory.mktemp("student"))


def test_a_file_hears_one_block_or_several_and_is_never_warned(student, tmp_path, capfd):
    path = tmp_path / "student.onnx"
    load_target("onnx")().write(student, path)
    run, _ = load_target("onnx").load(path)
    geometry = student.model.geometry
    for frames in (1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3):
        source = torch.randn(2, geometry.receptive_field + (frames - 1) * geometry.downsample_rate)
        num_samples = torch.tensor([source.size(1), max(source.size(1) // 2, 400)])
        last, states, frame_lengths = run(source, num_samples)
        expected, expected_states, expected_lengths = InferenceStudent(student)(source, num_samples)
        assert frame_lengths.tolist() == expected_lengths.tolist()
        assert frame_lengths[0] == frames
        torch.testing.assert_close(last, expected, atol=5e-5, rtol=1e-5)
        torch.testing.assert_close(states, expected_states, atol=5e-5, rtol=1e-5)
    assert "onnxruntime" not in capfd.readouterr().err  # sizes written into a loop, that this audio has not


def test_memory_does_not_grow_with_the_square_of_an_utterance(tmp_path):
    student = convert_cases.tiny_student(tmp_path, encoder_layers=1)
    weights = tiny.STUDENT["encoder_attention_heads"] * (60 * 50) ** 2 * 4 / 2**20  # MiB of all pairs of 60 s

    def peak(attend: Attend) -> float:
        onnx.write_whole(student, tmp_path / "student.onnx", attend)
        return measure_speed(str(tmp_path / "student.onnx"), 60, "cpu", 1, 1).peak_mib

    assert peak(attention_by_products) - peak(attention_by_blocks) > weights / 2
