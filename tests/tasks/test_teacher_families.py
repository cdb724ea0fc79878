"""A short real distillation from every family of teachers: ``fairseq-hydra-train`` on demo speech, then ``evaluate``.

The embedded teacher is trained; the others have random weights, of which thirty updates teach mostly what all frames
share. So these runs prove the way from file to loss, not the quality of students: each loss must fall well below that
of the untrained student and that of a student of zeros, to which shrinking alone would lead.
"""

import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Sequence

import pytest
import soundfile
import torch

from fairseq_star import cli
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.formats import load_teacher
from fairseq_star.manifest import read_manifest
from tests.support import ROOT, runs, tiny_teachers

pytestmark = pytest.mark.slow

EMBEDDED = ROOT / "assets" / "demo_teacher" / "demo_hubert.pt"
LARGE, HF_LARGE = tiny_teachers.FAIRSEQ_LARGE, tiny_teachers.HF_LARGE
# name -> (what makes it, its options); two layers of 24 where the options do not say more
MADE = {
    "hubert": (tiny_teachers.hubert, {}),
    "hubert args": (tiny_teachers.hubert, {"old": True}),
    "hubert large": (tiny_teachers.hubert, {"normalize": True, **LARGE}),
    "hubert of twice the depth": (tiny_teachers.hubert, {"encoder_layers": 4}),
    "hubert_ctc": (tiny_teachers.fine_tuned, {"kind": "hubert"}),
    "wav2vec2": (tiny_teachers.wav2vec2, {}),
    "wav2vec_ctc": (tiny_teachers.fine_tuned, {"kind": "wav2vec2"}),
    "wavlm": (tiny_teachers.microsoft_wavlm, {}),
    "wavlm large": (tiny_teachers.microsoft_wavlm, {"normalize": True, "large": True}),
    "hf hubert": (tiny_teachers.huggingface, {"kind": "hubert"}),
    "hf wav2vec2": (tiny_teachers.huggingface, {"kind": "wav2vec2"}),
    "hf wavlm": (tiny_teachers.huggingface, {"kind": "wavlm"}),
    "hf data2vec": (tiny_teachers.huggingface, {"kind": "data2vec"}),
}
# Options of a run beyond those of all of them; the embedded teacher has six layers, and more to learn.
OPTIONS = {
    "hubert of twice the depth": ["criterion.teacher_layers=[1,4]"],
    "the embedded teacher": [
        "model.encoder_layers=3", "model.encoder_embed_dim=64", "optimization.lr=[0.005]", "optimization.max_update=60",
    ],
}  # fmt: skip
# The first layer's input and the teacher's layers that are matched, where it is not each one.
STATES = {"hubert of twice the depth": (0, 1, 4), "the embedded teacher": (0, 2, 4, 6)}


class Distilled(NamedTuple):
    """A finished run."""

    teacher: Path
    checkpoint: Path
    valid_loss: float  # as the trainer logged it at the end


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    """A minute of the demo corpus."""
    pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed (extra [demo])")
    corpus = tmp_path_factory.mktemp("speech") / "corpus"
    script = ROOT / "manifests" / "demo" / "corpus.py"
    size = ["--minutes", "1.2", "--train-speakers", "3", "--dev-speakers", "1"]
    made = runs.run([sys.executable, str(script), str(corpus), *size])
    assert made.returncode == 0, made.stderr
    return corpus


@pytest.fixture(scope="module")
def distil(speech, tmp_path_factory):
    """Distil a teacher as the README says, once; a tiny student, thirty updates where ``OPTIONS`` does not say more."""
    done = {}

    def distil(name: str) -> Distilled:
        if name not in done:
            folder = tmp_path_factory.mktemp("run")
            if name == "a student":
                teacher = distil("hubert").checkpoint
            elif name == "the embedded teacher":
                teacher = EMBEDDED
            else:
                if name.startswith(("hf", "wavlm")):
                    pytest.importorskip("transformers", reason="it makes these teachers")
                function, options = MADE[name]
                torch.manual_seed(0)
                teacher = function(folder / "teacher", **options).path
            arguments = [
                sys.executable, "-c", runs.TRAIN, "--config-dir", "configs", "--config-name", "demo",
                "common.user_dir=fairseq_star", f"task.data={speech}", f"task.teacher={teacher}",
                f"checkpoint.save_dir={folder}", "common.tensorboard_logdir=null", "dataset.num_workers=0",
                "model.encoder_layers=2", "model.encoder_embed_dim=32", "model.encoder_ffn_embed_dim=64",
                "task.max_sample_size=32000", "optimization.max_update=30", "lr_scheduler.warmup_updates=3",
                "optimization.lr=[0.03]",
            ]  # fmt: skip
            for option in OPTIONS.get(name, []):
                arguments = [part for part in arguments if part.partition("=")[0] != option.partition("=")[0]]
                arguments.append(option)
            finished = runs.run(arguments)
            assert finished.returncode == 0, finished.stderr
            assert "Traceback" not in finished.stdout + finished.stderr
            [loss] = re.findall(r"valid on 'valid' subset \| loss ([\d.]+)", finished.stdout)
            done[name] = Distilled(teacher, folder / "checkpoint_best.pt", float(loss))
        return done[name]

    return distil


@pytest.mark.parametrize("name", [*MADE, "a student", "the embedded teacher"])
def test_the_loss_on_unseen_speakers_falls(name, distil, speech, capsys):
    run = distil(name)
    capsys.readouterr()
    cli.main(["evaluate", str(run.checkpoint)])
    told = capsys.readouterr().out
    before, after = map(float, re.search(r"^loss +([\d.]+) +([\d.]+)", told, re.MULTILINE).groups())
    zeros = loss_of_zeros(load_teacher(str(run.teacher)), speech, STATES.get(name, (0, 1, 2)))
    with capsys.disabled():
        print(f"\n{name}: valid loss {before:.2f} before, {after:.2f} after; {zeros:.2f} of zeros")
    assert after == pytest.approx(run.valid_loss, rel=1e-3)
    assert after < 0.8 * before
    assert after < 0.8 * zeros


def loss_of_zeros(teacher: FrozenEncoder, corpus: Path, numbers: Sequence[int]) -> float:
    """Mean over ``valid.tsv`` of what a student of zeros is told: the mean squares of the teacher's Gram matrices.

    Args:
        numbers: the teacher's hidden states that are matched, 0 for the first layer's input.
    """
    root, entries = read_manifest(corpus / "valid.tsv")
    losses = []
    for entry in entries:
        source = torch.from_numpy(soundfile.read(Path(root) / entry.path, dtype="float32")[0])[None]
        if teacher.normalize:
            source = torch.nn.functional.layer_norm(source, source.shape)
        encoding = teacher(source, [source.size(1)])
        states = [encoding.hidden_states[number][0].double() for number in numbers]
        pairs = [(state, state) for state in states[1:]] + list(pairwise(states))
        losses.append(sum((a @ b.T).square().mean().item() for a, b in pairs) / (len(states) - 1))
    return sum(losses) / len(losses)
