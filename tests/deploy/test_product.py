"""docs/product.md, command by command, and the transcripts of its files in every runtime that is installed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch

from fairseq_star.deploy.targets import load_target
from fairseq_star.formats import load_tuned
from fairseq_star.manifest import read_manifest
from tests.support import ROOT
from tests.support.runs import hydra_arguments, run

pytestmark = pytest.mark.slow
pytest.importorskip("editdistance", reason="editdistance is not installed (extra [finetune])")
pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed (extra [demo])")

PAGE = (ROOT / "docs" / "product.md").read_text(encoding="utf-8")
COMMANDS = """
set -e
python() { "$PYTHON" "$@"; }
fairseq-star() { "$PYTHON" -m fairseq_star.cli "$@"; }
fairseq-hydra-train() { "$PYTHON" -c "from fairseq_cli.hydra_train import cli_main; cli_main()" "$@"; }
"""
UTTERANCES = 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What ``make demo`` leaves, smaller: a corpus and a student."""
    from manifests.demo import corpus

    folder = tmp_path_factory.mktemp("product")
    for name in ("configs", "manifests", "fairseq_star", "assets"):
        (folder / name).symlink_to(ROOT / name)
    corpus.main([str(folder / "demo" / "corpus"), "--minutes", "8", "--train-speakers", "4", "--dev-speakers", "2"])
    teacher = ROOT / "assets" / "demo_teacher" / "demo_hubert.pt"
    arguments = hydra_arguments(
        folder / "demo" / "corpus", teacher, folder / "demo" / "run", "optimization.max_update=20", config="demo"
    )
    done = run([argument for argument in arguments if not argument.startswith(("+model", "model."))])
    assert done.returncode == 0, done.stderr[-3000:]
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL):
        done = subprocess.run(
            ["bash", "-c", COMMANDS + block], cwd=folder, env=environment, text=True, capture_output=True, timeout=3_000
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        if "fairseq-star transcribe" in block:
            (folder / "transcripts").write_text(done.stdout)
        if "fairseq-star classify" in block:
            (folder / "labels").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def utterances(folder) -> list[torch.Tensor]:
    paths = []
    for split in ("valid", "train"):
        root, entries = read_manifest(folder / "demo" / "corpus" / f"{split}.tsv")
        paths += [Path(root) / entry[0] for entry in entries]
    paths = paths[:UTTERANCES]
    return [torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in paths]


def test_every_runtime_reads_what_fairseq_reads(folder, utterances):
    student = load_tuned(folder / "demo" / "ctc" / "checkpoint_best.pt", "export")
    outputs = student.reference(utterances)
    expected = [student.head.text(one) for one in outputs]
    assert len(set(expected)) > 0.5 * len(utterances)
    toolkit = load_target("onnx")()
    toolkit.head = student.head
    own = toolkit.head_outputs(folder / "demo" / "asr", utterances, padded=False)
    texts = {"onnxruntime": [student.head.text(one) for one in own]}
    texts |= toolkit.texts(folder / "demo" / "asr", utterances)
    texts |= load_target("huggingface")().texts(folder / "demo" / "asr-hf", utterances)
    # Closer calls than the rounding of another library are left out.
    clear = [number for number, one in enumerate(outputs) if student.head.margin(one) > 1e-4]
    assert len(clear) > 0.9 * len(utterances)
    for runtime, told in texts.items():
        assert [" ".join(told[number].split()) for number in clear] == [expected[number] for number in clear], runtime


def test_int8_transcripts_of_the_page(folder):
    lines = (folder / "transcripts").read_text().splitlines()
    files = sorted((folder / "demo" / "corpus" / "dev").glob("*/*/*.flac"))
    assert [line.split("\t")[0] for line in lines] == [str(file.relative_to(folder)) for file in files]


def test_int8_labels_of_the_page(folder):
    lines = [
        line.split("\t") for line in (folder / "labels").read_text().splitlines() if line.startswith("demo/corpus")
    ]
    files = sorted((folder / "demo" / "corpus" / "keyword" / "valid").glob("*/*.flac"))
    assert [file for file, _, _ in lines] == [str(file.relative_to(folder)) for file in files]
    assert {label for _, label, _ in lines} <= set(
        (folder / "demo" / "keyword-int8" / "labels.txt").read_text().split()
    )


@pytest.mark.parametrize("package", ["sherpa_onnx", "onnx_asr"])
def test_the_pages_python(folder, package):
    pytest.importorskip(package)
    [block] = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if package in block]
    speech = next((folder / "demo" / "corpus" / "dev").glob("*/*/*.flac"))
    samples, rate = soundfile.read(speech)
    for name in ("speech.flac", "speech.wav"):
        soundfile.write(folder / name, samples, rate)
    done = subprocess.run([sys.executable, "-c", block], cwd=folder, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    [line] = (folder / "transcripts").read_text().splitlines()[:1]
    assert done.stdout.strip() or not line.partition("\t")[2]
