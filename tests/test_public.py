"""What users import and type: examples in docstrings, ``docs/from-python.md``, and help that is told at once."""

import doctest
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import fairseq_star
from fairseq_star import cli, load_student, load_teacher, tgm_loss
from fairseq_star.analysis.probe.labels import TASKS
from fairseq_star.analysis.untrained import untrained
from fairseq_star.deploy.streaming import Streams
from fairseq_star.deploy.targets import load_target
from fairseq_star.encoder.config import DROPOUTS
from fairseq_star.errors import StarError
from fairseq_star.formats.student import ARCHITECTURES, student_config, student_of, write_student
from fairseq_star.runtime import names

ROOT = Path(fairseq_star.__file__).resolve().parents[1]
TEACHER = Path("assets/demo_teacher/demo_hubert.pt")
SIZES = {
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 32,
    "encoder_layers": 3,
    "encoder_attention_heads": 2,
    "conv_feature_layers": "[(8,10,5)] + [(8,3,2)]*4 + [(D,2,2)]*2",
    "conv_pos": 16,
    "conv_pos_groups": 4,
}
ENTRY = "import sys; from fairseq_star.cli import main; sys.argv[0] = 'fairseq-star'; main()"


def write(path: Path, *, normalize: bool = False, **settings: object) -> Path:
    """A student of random weights."""
    config = student_config({"_name": "starhubert", **SIZES, **settings}, "test")
    encoder = untrained(config, seed=1, normalize=normalize)
    write_student(student_of(encoder, dropouts=dict.fromkeys(DROPOUTS, 0.0), name="starhubert", origin=""), path)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder: a clone's assets, a student, a recording, and what a finished run leaves."""
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    write(tmp_path / "student.pt")
    write(tmp_path / "stream.pt", extractor_mode="running_norm", chunk_frames=[4])
    noise = np.random.default_rng(0).standard_normal(16_000) * 0.1
    soundfile.write(tmp_path / "speech.flac", noise, 16_000)
    run = tmp_path / "demo" / "run"
    run.mkdir(parents=True)
    (tmp_path / "demo" / "valid.tsv").write_text(f"{tmp_path}\nspeech.flac\t16000\n")
    state = torch.load(write(run / "checkpoint_best.pt", encoder_layers=6), weights_only=True)
    state["cfg"] |= {
        "common": {"seed": 2},
        "dataset": {"max_tokens_valid": None, "batch_size_valid": 2},
        "criterion": {"_name": "star_tgm"},
    }
    state["cfg"]["task"] |= {"data": str(tmp_path / "demo"), "teacher": str(ROOT / TEACHER)}
    state["criterion"] = {}
    torch.save(state, run / "checkpoint_best.pt")
    (run / "train.log").write_text(
        '[2026-11-25 08:00:00,000][train_inner][INFO] - {"epoch": 1, "loss": "9.5", "num_updates": "10"}\n'
        '[2026-11-25 08:00:01,000][valid][INFO] - {"epoch": 1, "valid_loss": "8.5", "valid_num_updates": "10"}\n'
    )
    (run / "probe.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("public", [load_teacher, load_student, tgm_loss, Streams], ids=lambda public: public.__name__)
def test_examples_in_docstrings_are_true(folder, public):
    [example] = doctest.DocTestFinder(recurse=False).find(public, globs={})
    assert len(example.examples) > 2
    told = []
    assert doctest.DocTestRunner().run(example, out=told.append).failed == 0, "".join(told)


def test_every_block_of_the_page_runs(folder):
    text = (ROOT / "docs" / "from-python.md").read_text()
    blocks, scope = re.findall(r"```python\n(.+?)```", text, re.DOTALL), {}
    assert len(blocks) == text.count("```") // 2 == 8
    for block in blocks:
        exec(block, scope)
    assert [len(scope[name]) for name in ("states", "shorter", "of_teacher", "of_baseline")] == [7, 7, 7, 7]
    assert scope["states"][-1].shape == (49, 16)
    assert scope["shorter"][-1].shape == (24, 16)
    assert scope["encoding"].frames.frame_lengths == [49, 24]
    gradient = scope["learner"].encoder.layers[0].fc1.weight.grad
    assert gradient.isfinite().all()
    assert gradient.any()
    assert scope["losses"].train["loss"] == {10: 9.5}
    assert scope["losses"].valid["loss"] == {10: 8.5}
    assert max(scope["exported"].alone, scope["exported"].batched) < 1e-5
    assert scope["measured"].after["loss"] != scope["measured"].before["loss"]
    assert scope["features"].shape == (2, 49, 16)


@pytest.mark.parametrize(
    "settings", [{}, {"extractor_mode": "layer_norm", "layer_norm_first": True}], ids=["post", "pre"]
)
@pytest.mark.parametrize("normalize", [False, True])
def test_hidden_states_are_those_of_each_utterance_alone(tmp_path, settings, normalize):
    """Whatever else is given, in whatever type, as the encoder hears it; teacher and student are one encoder."""
    path = write(tmp_path / "student.pt", normalize=normalize, **settings)
    student, teacher = load_student(path), load_teacher(path)
    audio = [5 * torch.randn(number) + 1 for number in (16_000, 400, 7_777)]
    together = student.hidden_states(audio, 16_000)
    mixed = teacher.hidden_states([audio[0].numpy(), audio[1].double(), audio[2].double().numpy()], 16_000)
    for number, source in enumerate(audio):
        heard = (source - source.mean()) / (source.var(correction=0) + 1e-5).sqrt() if normalize else source
        expected = list(student.model(heard[None]).hidden_states)
        if settings:
            expected[-1] = student.model.encoder.layer_norm(expected[-1])
        [alone] = student.hidden_states([source], 16_000)
        for states in (together[number], mixed[number], alone):
            for state, wanted in zip(states, expected, strict=True):
                torch.testing.assert_close(state, wanted[0], atol=1e-5, rtol=1e-4)
    assert student.hidden_states([], 16_000) == []


@pytest.mark.parametrize(
    ("audio", "sample_rate", "told"),
    [
        ([torch.zeros(16_000)], 8_000, "has 8000 Hz and this encoder takes 16000 Hz; resample it"),
        ([torch.zeros(16_000, dtype=torch.int16)], 16_000, r"audio\[0\] has shape \(16000,\) and type torch.int16"),
        ([torch.zeros(16_000), torch.zeros(2, 16_000)], 16_000, r"audio\[1\] has shape \(2, 16000\)"),
        (torch.zeros(16_000), 16_000, r"audio\[0\] has shape \(\)"),  # not in a list
        (["speech.flac"], 16_000, r"audio\[0\] has shape \(\) and type <U11"),
        ([None], 16_000, r"audio\[0\] has shape \(\) and type object"),
        ([np.zeros(16_000, np.int16)], 16_000, r"audio\[0\] has shape \(16000,\) and type int16"),
        ([torch.zeros(399)], 16_000, r"audio\[0\] has 399 samples, fewer than the 400 of one frame"),
    ],
)
def test_audio_of_another_form_is_refused(tmp_path, audio, sample_rate, told):
    path = write(tmp_path / "student.pt")
    for encoder in (load_student(path), load_teacher(path)):
        with pytest.raises(StarError, match=told):
            encoder.hidden_states(audio, sample_rate)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [">f4", "<f4", "f8", "longdouble"])
def test_any_array_of_floating_point_numbers_is_heard(tmp_path, kind):
    student = load_student(write(tmp_path / "student.pt"))
    samples = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    given = samples[::-1].astype(kind)[::-1]  # runs backwards through memory
    given.flags.writeable = False
    [expected], [got] = (student.hidden_states([audio], 16_000) for audio in (torch.from_numpy(samples), given))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_what_is_no_student_is_told_in_the_words_of_python(tmp_path):
    with pytest.raises(StarError, match=r"^load_student: .*missing.pt is not there"):
        load_student(tmp_path / "missing.pt")
    with pytest.raises(StarError, match=r"^load_student: .* holds no student of this project"):
        load_student(ROOT / TEACHER)


def help_texts() -> list[list[str]]:
    return [["--help"], *([command, "--help"] for command in cli.COMMANDS), ["export", "student.pt", "--to", "nowhere"]]


@pytest.mark.parametrize("arguments", help_texts(), ids=" ".join)
def test_help_and_mistyped_options_wait_for_no_library(arguments):
    """Neither torch nor fairseq nor what they bring: by what is imported, as times depend on the machine."""
    watched = (
        "import atexit, sys; heavy = 'torch', 'fairseq', 'numpy', 'omegaconf', 'hydra', 'soundfile', 'yaml';"
        "atexit.register(lambda: print('imported', [name for name in heavy if name in sys.modules]));"
    )
    done = subprocess.run([sys.executable, "-c", watched + ENTRY, *arguments], cwd=ROOT, text=True, capture_output=True)
    assert done.stdout.splitlines()[-1] == "imported []", done.stdout + done.stderr
    assert (done.returncode, "usage: fairseq-star" in done.stdout) == (
        (0, True) if "--help" in arguments else (2, False)
    )


def test_a_command_registers_what_it_needs(folder):
    """In a process where ``import fairseq_star`` did not: the command line's own."""
    done = subprocess.run(
        [sys.executable, "-c", ENTRY, "evaluate", "demo/run/checkpoint_best.pt"],
        cwd=folder, text=True, capture_output=True, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "mean over 1 utterances" in done.stdout


def test_output_that_nobody_reads_on_is_no_traceback():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", ENTRY, "teacher", str(ROOT / TEACHER)],
        cwd=ROOT, text=True, stdout=writing, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    os.close(writing)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_an_interrupt_is_one_line():
    command = "import fairseq_star.cli as cli, fairseq_star.cli.teacher as it, os, signal\n"
    command += (
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where pytest runs in the background
    )
    command += "it.run = lambda arguments: os.kill(os.getpid(), signal.SIGINT)\ncli.main(['teacher', 'x'])"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 130
    assert done.stderr.split() == ["fairseq-star:", "interrupted"]


def test_the_command_is_installed_and_the_package_says_that_it_is_typed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"fairseq-star": "fairseq_star.cli:main"}
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["fairseq_star"]
    assert (ROOT / "fairseq_star" / "py.typed").is_file()
    version = project["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    assert version == "fairseq_star.runtime.version.__version__"
    assert re.fullmatch(r"\d+\.\d+\.\d+", fairseq_star.__version__)
    assert set(fairseq_star.__all__) <= set(dir(fairseq_star))


ASK = """
from argparse import Namespace
from fairseq import utils
from fairseq.models import MODEL_REGISTRY
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from fairseq.tasks import TASK_REGISTRY
utils.import_user_module(Namespace(user_dir="fairseq_star"))
print("star_distillation" in TASK_REGISTRY, "star_tgm" in CRITERION_DATACLASS_REGISTRY, "starhubert" in MODEL_REGISTRY)
"""


@pytest.mark.parametrize(
    ("before", "registered"),
    [
        ("", True),
        ("import fairseq_star; fairseq_star.register(); fairseq_star.register()", True),
        (f"import fairseq_star; fairseq_star.load_teacher({str(TEACHER)!r})", True),
        # fairseq passes over a user dir that is imported already; docs/from-python.md says what to call.
        ("import fairseq_star, fairseq_star.losses.tgm", False),
    ],
)
def test_the_user_dir_registers_everything(before, registered):
    done = subprocess.run([sys.executable, "-c", before + ASK], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == 3 * [str(registered)]


def test_importing_the_package_imports_and_registers_nothing():
    program = "import sys, fairseq_star; print([one for one in ('torch', 'fairseq', 'numpy') if one in sys.modules]);"
    program += "import fairseq_star.losses; print('fairseq' in sys.modules);"
    program += "fairseq_star.tgm_loss; print('fairseq' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True)
    assert done.stdout.split("\n") == ["[]", "False", "False", ""], done.stderr


def test_names_are_those_that_are_registered():
    assert tuple(ARCHITECTURES) == names.ARCHITECTURES
    assert TASKS == names.PROBE_TASKS
    assert names.TARGET_OPTIONS.keys() <= set(names.TARGETS)
    for target in names.TARGETS:
        options = names.TARGET_OPTIONS.get(target, {})
        taken = inspect.signature(load_target(target, check=False)).parameters
        assert {name: settings["default"] for name, settings in options.items()} == {
            name: parameter.default for name, parameter in taken.items()
        }
