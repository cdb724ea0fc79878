"""The benchmark of a device: agreement, joined speech, its tables, and its command on tiny students."""

import pytest
import soundfile
import torch

from benchmarks import device, device_result
from benchmarks.device_measures import agreement, speech
from tests.support import tiny


def test_agreement_is_each_layers_mean_and_the_worst_frame():
    frames = torch.eye(4)
    turned = frames.clone()
    turned[1] = frames[2]
    assert agreement([frames], [frames]) == {"layers": [1.0], "worst": 1.0}
    assert agreement([frames, turned], [frames, frames]) == {"layers": [1.0, 0.75], "worst": 0.0}


def test_speech_is_a_manifests_files_joined(tmp_path):
    manifest = tiny.write_tsv(tmp_path / "t.tsv", tiny.write_audio(tmp_path / "audio", [0.5, 0.25]))
    audio = speech(manifest, 1.0)
    first, _ = soundfile.read(tmp_path / "audio" / "utt000.wav", dtype="float32")
    assert len(audio) == 16_000
    assert torch.equal(audio[:8_000], torch.from_numpy(first))
    assert torch.equal(audio[12_000:], audio[:4_000])
    assert len(speech(None, 2.0)) == 32_000


def test_what_was_refused_has_its_reason(tmp_path):
    told = {"phones": 0.5, "interval": (0.4, 0.6)}
    about = {"weights": "float32", "MB": 4.0, "parameters": 1000, "layers": [1.0, 1.0], "worst": 1.0, **told}
    refused = {"weights": "int4", "MB": None, "parameters": 1000, "refused": "differs by 2.0e-02"}
    small = about | {"weights": "int8", "MB": 1.0, "difference": -0.01, "difference's interval": (-0.02, 0.01)}
    common = {"weights": "int8", "threads": 1, "last layer": 0.99, "worst": 0.9}
    whole = {**common, "seconds": 2.0, "real-time factor": 0.1, "faster": 1.5}
    live = {**common, **told, "chunk_frames": 4, "look-ahead ms": 85.0, "real-time factor": 0.2, "p50 ms": 3.0}
    live |= {"p95 ms": 4.0, "MB a stream": 5.5}
    peaks = [{"weights": "int8", "seconds": 2.0, "MiB": 10.0}]
    result = {"files": [about, small, refused], "whole": [whole], "live files": [small], "live": [live], "peaks": peaks}
    lines = device_result.tables(result)
    phones = "50.0% (40.0% to 60.0%) | -1.0 (-2.0 to +1.0)"
    assert f"| int8 | 1,000 | 1.0 | 4.00x | 1.0000 | 1.0000 | 1.0000 | {phones} |" in lines
    assert "| 2 s | 1 | int8 | 0.1000 | 1.50x | 10 | 0.9900 | 0.9000 |" in lines
    assert "* int4: refused (differs by 2.0e-02)" in lines
    device_result.draw(result, tmp_path / "device.png")
    assert (tmp_path / "device.png").stat().st_size > 5_000


@pytest.mark.slow
def test_each_way_has_a_row(capsys):
    device.main(["--quick"])
    shown = capsys.readouterr().out
    for weights in ("float32", "int8"):
        assert f"| 2 s | 1 | {weights} | " in shown
        assert f"| 80 ms | {weights} | " in shown
