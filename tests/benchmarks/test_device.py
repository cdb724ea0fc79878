"""The benchmark of a device: agreement, joined speech, and its command on tiny students."""

import pytest
import soundfile
import torch

from benchmarks import device
from tests.support import tiny


def test_agreement_is_the_mean_and_the_worst_frame():
    frames = torch.eye(4)
    turned = frames.clone()
    turned[1] = frames[2]
    assert device.agreement(frames, frames) == "1.0000, worst 1.0000"
    assert device.agreement(turned, frames) == "0.7500, worst 0.0000"


def test_speech_is_a_manifests_files_joined(tmp_path):
    manifest = tiny.write_tsv(tmp_path / "t.tsv", tiny.write_audio(tmp_path / "audio", [0.5, 0.25]))
    audio = device.speech(manifest, 1.0)
    first, _ = soundfile.read(tmp_path / "audio" / "utt000.wav", dtype="float32")
    assert len(audio) == 16_000
    assert torch.equal(audio[:8_000], torch.from_numpy(first))
    assert torch.equal(audio[12_000:], audio[:4_000])
    assert len(device.speech(None, 2.0)) == 32_000


@pytest.mark.slow
def test_each_way_has_a_row(capsys):
    device.main(["--quick"])
    shown = capsys.readouterr().out
    for student in ("whole utterances", "live, 80 ms"):
        for precision in ("float32", "int8"):
            assert shown.count(f"| {student} | {precision} | ") == 1
    assert "1.0000, worst 1.0000" in shown
