"""Set-up on a machine of today: what is missing is told before anything is fetched; README installs what it uses."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.support import ROOT, convert_cases, tiny

_spec = importlib.util.spec_from_file_location("check_machine", ROOT / "tools" / "check_machine.py")
check_machine = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(check_machine)

README = (ROOT / "README.md").read_text(encoding="utf-8")
INSTALLING = (ROOT / "docs" / "installing.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
Version = namedtuple("Version", "major minor micro releaselevel serial")


def blocks(language: str, text: str = README) -> list[str]:
    """README's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def test_this_machine_lacks_nothing_but_perhaps_room(tmp_path, monkeypatch):
    monkeypatch.setattr(check_machine, "GIGABYTES", {"environment": 0, "temporary": 0})
    assert check_machine.faults(str(tmp_path / "not there yet")) == []


@pytest.mark.parametrize(("version", "why"), [((3, 10), "too old"), ((3, 14), "hydra"), ((4, 0), "hydra")])
def test_another_python_is_told(monkeypatch, version, why):
    monkeypatch.setattr(sys, "version_info", Version(*version, 0, "final", 0))
    [fault] = check_machine.faults(".venv")
    assert why in fault
    assert "Python 3.11, 3.12 or 3.13" in fault


def test_python_versions_are_the_same_everywhere():
    """In the check, the package's metadata, README and the Makefile's search for an interpreter."""
    supported = [f"3.{minor}" for minor in range(check_machine.OLDEST[1], check_machine.NEWEST[1] + 1)]
    assert PROJECT["requires-python"] == f">=3.11,<3.{check_machine.NEWEST[1] + 1}"
    listed = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if "Python :: 3." in name]
    makefile = (ROOT / "Makefile").read_text()
    for version in supported:
        assert version in listed
        assert version in README
        assert f"python{version}" in makefile
    assert len(listed) == len(supported)


def test_a_missing_compiler_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "apt-get install g++" in check_machine.compiler_fault()


def test_a_compiler_that_does_not_work_is_told(monkeypatch):
    monkeypatch.setenv("CXX", "false")
    assert "does not compile" in check_machine.compiler_fault()


def test_missing_headers_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(check_machine.sysconfig, "get_path", lambda name: str(tmp_path))
    assert "python3-dev" in check_machine.compiler_fault()


def test_a_python_that_makes_no_environment_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else object())
    assert "python3-venv" in check_machine.venv_fault()


def test_a_full_disk_is_told_once_a_disk(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")(100e9, 99e9, 1e9)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    monkeypatch.setattr(check_machine.tempfile, "gettempdir", lambda: str(tmp_path))
    [fault] = check_machine.disk_faults(str(tmp_path / "deep" / "below"))
    assert f"{tmp_path}: 1.0 GB free, set-up needs {sum(check_machine.GIGABYTES.values())}" in fault


@pytest.mark.parametrize("interpreter", ["no-such-python", "false"])
def test_make_tells_in_one_line_that_a_python_does_not_run(tmp_path, interpreter):
    done = subprocess.run(
        ["make", "setup", f"VENV={tmp_path / 'venv'}", f"PYTHON={interpreter}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    [line] = [line for line in done.stderr.splitlines() if line.startswith("fairseq-star: ")]
    assert interpreter in line
    assert not (tmp_path / "venv").exists()


def test_make_finds_a_python_behind_one_that_is_a_shim(tmp_path):
    shim = tmp_path / "python3.12"
    shim.write_text("#!/bin/sh\necho 'python3.12: command not found' >&2\nexit 127\n")
    shim.chmod(0o755)
    real = tmp_path / "python3.13"
    real.symlink_to(sys.executable)
    done = subprocess.run(
        ["make", "--dry-run", "setup", f"VENV={tmp_path / 'venv'}"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin"},
    )  # fmt: skip
    chosen = re.search(r'^"(.*)" tools/check_machine.py', done.stdout, re.M)[1]
    assert subprocess.run([chosen, "-c", ""], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}).returncode == 0


@pytest.mark.parametrize(
    ("given", "torchaudio"),
    [
        ([], "2.11.0"), (["TORCH=2.6.0"], "2.6.0"), (["TORCH=2.10.0"], "2.10.0"), (["TORCH=2.14.1"], "2.11.*"),
        (["TORCH=3.0.0"], "2.11.*"), (["TORCH=2.14.1", "TORCHAUDIO=2.11.0"], "2.11.0"),
    ],
)  # fmt: skip
def test_make_takes_the_torchaudio_that_goes_with_a_torch(tmp_path, given, torchaudio):
    done = subprocess.run(
        ["make", "--dry-run", "setup", f"VENV={tmp_path / 'venv'}", *given], cwd=ROOT, capture_output=True, text=True
    )
    assert f" 'torchaudio=={torchaudio}' " in done.stdout, done.stderr


def test_the_python_snippet_runs(tmp_path, monkeypatch):
    [snippet] = blocks("python")
    monkeypatch.chdir(tmp_path)
    soundfile.write("speech.flac", 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000)
    (tmp_path / "demo" / "run").mkdir(parents=True)
    convert_cases.write_checkpoint(tmp_path / "demo/run/checkpoint_best.pt", **tiny.STUDENT)
    namespace: dict = {}
    exec(compile(snippet, "README.md", "exec"), namespace)
    assert [state.shape for state in namespace["states"]] == [(49, 16)] * 4


def test_every_extra_is_documented():
    for extra in PROJECT["optional-dependencies"]:
        assert f"`{extra}`" in INSTALLING, extra


def test_the_readme_is_short_and_its_links_and_those_of_the_docs_lead_somewhere():
    assert README.count("\n") <= 130
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), (page.name, target)
        assert page.name == "README.md" or f"({page.name})" in (ROOT / "docs" / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_by_hand_lines_install_what_the_first_screen_uses_with_the_newest_pip(tmp_path, corpus, teacher_path):
    """In a fresh environment of this Python: the lines under ``Installing``, then the commands of the first screen."""
    [lines] = [block for block in blocks("sh", INSTALLING) if "pip install torch" in block]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    environment |= {"PATH": f"{venv / 'bin'}:{environment['PATH']}", "OMP_NUM_THREADS": "1"}

    def shell(script: str) -> None:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"

    shell("pip install --quiet --upgrade pip")
    shell(lines)
    everything = ",".join(PROJECT["optional-dependencies"])
    run = tmp_path / "run"
    tiny_student = (
        "model.encoder_layers=1 model.encoder_embed_dim=16 model.encoder_ffn_embed_dim=32"
        " model.encoder_attention_heads=2 model.conv_pos=16 model.conv_pos_groups=4"
    )
    shell(
        "fairseq-hydra-train --config-dir configs --config-name starhubert_100h common.user_dir=fairseq_star"
        f" task.data={corpus} task.teacher={teacher_path} dataset.train_subset=train dataset.batch_size=4"
        f" optimization.max_update=2 lr_scheduler.warmup_updates=1 checkpoint.save_dir={run}"
        f" common.tensorboard_logdir={run}/tensorboard {tiny_student}"
    )
    shell(f"fairseq-star evaluate {run}/checkpoint_best.pt")
    shell(f"fairseq-star report {run}")
    shell(f"fairseq-star export {run}/checkpoint_best.pt --to s3prl --out {tmp_path}/student.s3prl.pt")
    shell(f"pip install --quiet -e '.[{everything}]' && pip check")
    modules = (
        "espeakng_loader, sklearn, matplotlib, tensorboard, editdistance, transformers, safetensors, huggingface_hub, "
        "onnx, onnxruntime, s3prl.hub, tensorboardX, pytest, hypothesis, psutil"
    )
    first = "from fairseq_star.runtime.torchaudio_import import import_torchaudio; import_torchaudio()"  # s3prl does
    shell(f"python -W ignore -c '{first}; import {modules}'")
    assert Path(run / "report.html").is_file()
