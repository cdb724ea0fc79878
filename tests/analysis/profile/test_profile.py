"""Parameters and multiply-accumulates of the paper's pair, by two counters; speed and memory of what can be run."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from fairseq.data.dictionary import Dictionary
from fairseq.models.hubert.hubert import HubertConfig, HubertModel
from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig
from torch.nn.functional import scaled_dot_product_attention

from fairseq_star.analysis.profile import ProfileResult, architecture, profile
from fairseq_star.cli import main
from fairseq_star.encoder.config import HUBERT_BASE
from fairseq_star.encoder.macs import SUPERB_UTTERANCES, count_macs, encoder_macs, macs_of_sizes
from fairseq_star.models.starhubert import StarHubertConfig, StarHubertModel


@pytest.fixture(scope="module")
def pair() -> ProfileResult:
    """HuBERT Base and ``starhubert``."""
    return profile(["starhubert"], speed=False)


def test_the_papers_pair(pair):
    teacher, student = pair.rows
    assert (teacher.name, student.name) == ("hubert_base", "starhubert")
    assert student.num_parameters == student.num_parameters_published == 22_308_592
    assert teacher.num_parameters_published / 1e6 == pytest.approx(94.7, abs=0.05)
    # Published: 463.5 and 1669 GMACs, which is 0.278. SUPERB's tool counts 0.2 % more for HuBERT.
    assert student.gmacs_superb == pytest.approx(463.5, abs=0.05)
    assert teacher.gmacs_superb == pytest.approx(1669, rel=3e-3)
    assert student.macs_ratio == pytest.approx(0.278, abs=0.005)
    assert teacher.macs_ratio == 1
    table = pair.to_markdown()
    assert "| starhubert | 22,308,592 | 22,308,592 | 2.061 | 463.5 | 0.278 |" in table
    assert "RTF" not in table


VARIANTS = {
    "pre-norm": {"layer_norm_first": True, "extractor_mode": "layer_norm", "conv_bias": True},
    "data2vec": {"pos_conv_depth": 5, "conv_pos": 95},
    "uneven": {"conv_pos": 31, "num_heads": 4, "projection": False, "embed_dim": 512},
}


@pytest.mark.parametrize("name", ["hubert_base", "starhubert", "starhubert_l", *VARIANTS])
def test_two_counters_agree(name):
    """torch's, of what is run, and ours, of sizes."""
    config = replace(HUBERT_BASE, num_layers=2, **VARIANTS[name]) if name in VARIANTS else architecture(name)
    lengths = [400, 719, 16_000, 163_217, SUPERB_UTTERANCES[-1]]
    assert encoder_macs(config, lengths) == macs_of_sizes(config, np.array(lengths)).tolist()


def test_wavlm_is_counted_but_for_its_gates():
    config, lengths = replace(HUBERT_BASE, num_layers=2, relative_position=(320, 800)), [16_000, 160_000]
    assert encoder_macs(config, lengths) == pytest.approx(macs_of_sizes(config, np.array(lengths)).tolist(), rel=1e-3)


def test_parameters_are_those_of_fairseqs_own_models(pair):
    dictionary = Dictionary()
    for unit in range(500):  # HuBERT Base's k-means units
        dictionary.add_symbol(str(unit))
    task = HubertPretrainingConfig(data=".", label_rate=50.0, labels=["km"])
    hubert = HubertModel(HubertConfig(label_rate=50.0, final_dim=256, untie_final_proj=True), task, [dictionary])
    student = StarHubertModel(StarHubertConfig(padded_group_norm=False))
    teacher_row, student_row = pair.rows
    assert teacher_row.num_parameters_published == sum(parameter.numel() for parameter in hubert.parameters())
    assert student_row.num_parameters == sum(parameter.numel() for parameter in student.parameters())


def test_attention_counts_on_every_device():
    """torch's fused kernel for the CPU is in no table of its counter."""
    for device in ("cpu", "meta"):
        query = torch.empty(1, 2, 50, 8, device=device)
        assert count_macs(lambda q=query: scaled_dot_product_attention(q, q, q)) == 2 * 2 * 50 * 50 * 8


def test_superbs_utterances():
    assert len(SUPERB_UTTERANCES) == 32
    assert sum(SUPERB_UTTERANCES) / 16_000 == pytest.approx(224.86)


class Program(torch.nn.Module):
    def forward(self, source: torch.Tensor) -> torch.Tensor:
        return (source[:, :, None] * torch.ones(64)).sum(1)


def test_checkpoints_and_programs_are_run(teacher_path, tmp_path, capsys):
    program = tmp_path / "program.pt"
    torch.jit.save(torch.jit.script(Program()), program)
    main(["profile", str(program), "--teacher", str(teacher_path), "--seconds", "1", "--threads", "1", "--json"])
    result = json.loads(capsys.readouterr().out)
    checkpoint, exported = result["rows"]
    assert checkpoint["family"] == "HuBERT (fairseq)"
    assert exported["family"] == "TorchScript"
    assert exported["gmacs_superb"] is None
    state = torch.load(teacher_path, weights_only=False)["model"]
    assert checkpoint["num_parameters_published"] == sum(value.numel() for value in state.values())
    assert checkpoint["num_parameters"] < checkpoint["num_parameters_published"]
    for row in (checkpoint, exported):
        assert 0 < row["real_time_factor"] < 10
    assert exported["peak_mib"] > 2  # 16,000 x 64 numbers are 3.9 MiB
    assert (result["num_threads"], result["device"]) == (1, "cpu")


def test_what_cannot_be_profiled_is_told_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"^fairseq-star: profile: there is no file or folder starhuber, and no such"):
        main(["profile", "starhuber"])
    (tmp_path / "x.pt").write_bytes(b"nothing")
    with pytest.raises(SystemExit, match="is no torch checkpoint"):
        main(["profile", str(tmp_path / "x.pt"), "--no-speed"])
    for seconds in ("nan", "inf", "-3", "0", "1e300"):
        with pytest.raises(SystemExit, match=rf"^fairseq-star: --seconds {seconds[0]}\S*: must be above 0"):
            main(["profile", "starhubert", f"--seconds={seconds}", "--no-speed"])
    onnx = tmp_path / "x.onnx"
    onnx.write_bytes(b"nothing")
    with pytest.raises(SystemExit, match=r"^fairseq-star: profile: measuring .*x\.onnx failed"):
        main(["profile", str(onnx), "--teacher", str(onnx)])
