"""The benchmark of exports: every way whose library is there runs, and tells by how much it differs."""

import torch

from benchmarks import deploy, models
from fairseq_star.formats import load_student


def test_every_way_to_the_hidden_states_runs(tmp_path):
    student = load_student(str(models.write_student(tmp_path / "student.pt", **models.QUICK_STUDENT)))
    source = 0.1 * torch.randn(1, 8_000, generator=torch.manual_seed(0))
    options = deploy.parse(["--quick"])
    ways = {"teacher": deploy.teacher_way(tmp_path, source, options), **deploy.ways(student, tmp_path, source)}
    assert {"teacher", "student, fairseq", "torchaudio", "TorchScript", "TorchScript, int8"} <= ways.keys()
    with torch.no_grad():
        for way in ways.values():
            way.run()
            assert way.num_bytes > 0
