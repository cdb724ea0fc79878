"""HuBERT Base's shape to the paper's size: slicing ends, in how long and with how much memory beyond the teacher."""

import json
import subprocess
import sys

import pytest

from tests.support import ROOT

PROGRAM = """
import json, resource, time
import torch
from fairseq_star.encoder.config import HUBERT_BASE
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.encoder.modules import SpeechEncoder
from fairseq_star.slicing.sample import SECONDS, UTTERANCES
from fairseq_star.slicing.shapes import count_parameters, student_shape, superb_macs
from fairseq_star.slicing.slicer import slice_student

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.set_num_threads(2)
torch.manual_seed(0)
teacher = FrozenEncoder(SpeechEncoder(HUBERT_BASE), sample_rate=16_000, normalize=False)
shape = student_shape(HUBERT_BASE, target_params=22.31e6, target_macs=463.5e9)
student = SpeechEncoder(shape)
samples = round(SECONDS * 16_000)
sources = [torch.randn(samples) * torch.linspace(0.01, 0.2, samples) for _ in range(UTTERANCES)]
before, begun = peak(), time.perf_counter()
report = slice_student(teacher, student, sources, layers=range(1, 13))
print(json.dumps({
    "seconds": time.perf_counter() - begun, "bytes": peak() - before, "unexplained": report.unexplained,
    "parameters": sum(one.numel() for one in student.parameters()), "macs": superb_macs(shape),
    "counted": count_parameters(shape), "width": shape.embed_dim, "units": shape.ffn_embed_dim,
    "finite": all(bool(one.isfinite().all()) for one in student.state_dict().values()),
}))
"""


@pytest.mark.slow
def test_hubert_base_is_sliced_in_minutes_and_four_gigabytes():
    """As many utterances as a run takes, each as long as it can be; random weights, whose unexplained variance says
    nothing of a trained teacher's."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{found['seconds']:.0f} s, {found['bytes'] / 1e9:.2f} GB beyond the teacher: {found}")
    assert found["bytes"] < 4e9
    assert found["parameters"] == found["counted"] <= 22.31e6
    assert found["macs"] <= 463.5e9
    assert found["finite"]
    assert all(0 <= share < 1.5 for share in found["unexplained"])
