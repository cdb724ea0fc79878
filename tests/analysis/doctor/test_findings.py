"""What the doctor says of a run's record: each planted fault by its name and nothing else, nothing of a healthy one."""

import json
import math
import random
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_star.analysis.doctor.doctor import diagnose
from fairseq_star.analysis.doctor.record import read_record, stored_values
from fairseq_star.analysis.doctor.references import FILE, packaged
from fairseq_star.cli import main
from fairseq_star.fairseq_hooks.symptoms import BINS, binned
from tests.analysis.doctor.written import LENGTH, PEAK, cosine, loss, write_run
from tests.support import ROOT

OVERFLOW = "[2026-12-01 00:00:00,000][fairseq.trainer][INFO] - NOTE: gradient overflow detected, ignoring gradient, "
LATE = LENGTH - 150

FAULTS = {
    "loss-not-finite": {"curves": {"loss": lambda u: math.nan if u > 200 else loss(u)}},
    "loss-rises": {"curves": {"loss": lambda u: loss(u) * (1 if u < LATE else 20), "gnorm": lambda u: 3000.0}},
    "collapsed": {"curves": {"loss": lambda u: 5000.0 + u % 30, "gnorm": lambda u: 6000.0 if u < 30 else 90.0}},
    "loss-does-not-fall": {"curves": {"loss": lambda u: 5000.0 + u % 30, "gnorm": lambda u: 6000.0}},
    "gradient-grows": {"curves": {"gnorm": lambda u: 100.0 * math.exp(u / 100)}},
    "gradient-spikes": {
        "options": {"optimization": {"clip_norm": 0.0}},
        "curves": {"gnorm": lambda u: 1e6 if u == 200 else 1000.0},
    },
    "loss-scale": {"curves": {"loss_scale": lambda u: 128 * 0.5 ** (u / 20)}},
    "overflows": {
        "curves": {"loss_scale": lambda u: 4.0},
        "lines": [OVERFLOW + "setting loss scale to: 4.0"] * 50,
    },
    "lr-not-as-scheduled": {"curves": {"lr": lambda u: cosine(u, length=2000)}},
    "schedule-too-long": {
        "options": {"lr_scheduler": {"_name": "polynomial_decay", "total_num_update": 1e6, "power": 1.0}},
        "curves": {"lr": lambda u: PEAK * u / 40 if u <= 40 else PEAK * (1 - (u - 40) / (1e6 - 40))},
    },
    "schedule-too-short": {
        "options": {"lr_scheduler": {"lr_period_updates": 100.0}},
        "curves": {"lr": lambda u: cosine(u, length=100)},
    },
    "ended-early": {"last": 230},
    "validation-rises": {"valid": lambda u: 300.0 + u},
    "validation-apart": {"valid": lambda u: 4.0 * loss(u)},
    "padding": {"curves": {"padding": lambda u: 40.0}},
    "waits-for-data": {"curves": {"data_wait": lambda u: 60.0}},
    "bad-audio": {"curves": {"bad_audio": lambda u: 2.0}},
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named(name, tmp_path):
    diagnosis = diagnose(write_run(tmp_path / "run", **FAULTS[name]))
    assert [finding.name for finding in diagnosis.findings] == [name]
    [finding] = diagnosis.findings
    assert finding.sure in ("sure", "likely", "possible")
    assert not finding.sentence.endswith(".")
    assert finding.mend


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    noise=st.floats(0, 0.25),
    scale=st.floats(1e-3, 1e3),
    fall=st.floats(20, 150),
    sliced=st.booleans(),
    last=st.sampled_from([10, 50, LENGTH]),
)
def test_no_false_alarm(tmp_path_factory, seed, noise, scale, fall, sliced, last):
    """Noisy curves of any scale; a sliced student's loss begins low and rises at first. A validation is a mean over
    many more utterances than an update, and has a fifth of its noise."""
    rng = random.Random(seed)

    def healthy(update: int, noise: float = noise) -> float:
        start = 2 * (1 + 0.3 * math.sin(math.pi * min(update, 100) / 100)) if sliced else 50
        return scale * (1 + start * math.exp(-update / fall)) * math.exp(rng.gauss(0, noise))

    def validation(update: int) -> float:
        return healthy(update, noise / 5)

    options = {"model": {"init": "sliced" if sliced else "random"}, "optimization": {"max_update": last}}
    curves = {
        "loss": healthy,
        "gnorm": lambda update: 3 * healthy(update),
        "lr": lambda update: cosine(update, length=last - 40),
    }
    options["lr_scheduler"] = {"warmup_updates": 40 if last == LENGTH else 0}
    if last != LENGTH:
        curves["lr"] = lambda update: (
            PEAK * (1 + math.cos(math.pi * (update % last) / last)) / 2 * 0.1 ** (update // last)
        )
    folder = write_run(tmp_path_factory.mktemp("run"), options=options, curves=curves, last=last, valid=validation)
    assert diagnose(folder).findings == []


def test_why_a_run_died_and_what_counts_as_its_end(tmp_path):
    """The last error is quoted; updates that no line covers are not missed, those that a checkpoint lacks are."""
    told = "fairseq-star: update 231: the gradient is not finite; lower optimization.lr"
    [finding] = diagnose(write_run(tmp_path / "dead", last=230, lines=[told])).findings
    assert told in finding.sentence
    short = write_run(
        tmp_path / "short", options={"optimization": {"max_update": 407, "lr": [PEAK]}}, curves={"lr": lambda u: 0}
    )
    assert read_record(short).finished
    torch.save(
        {"cfg": read_record(short).options, "optimizer_history": [{"num_updates": 400}]}, short / "checkpoint_last.pt"
    )
    assert not read_record(short).finished


def test_like_another_run(tmp_path):
    """Behind a run that the user names, with the options that differ; not behind itself; 2 where that has no losses."""
    like = write_run(tmp_path / "like")
    slow = write_run(
        tmp_path / "slow", curves={"loss": lambda u: 2.5 * loss(u)}, options={"optimization": {"lr": [6e-5]}}
    )
    (slow / "train.log").write_text((slow / "train.log").read_text().replace("lr=", "rate="))
    diagnosis = diagnose(slow, like=[like])
    assert [finding.name for finding in diagnosis.findings] == ["behind"]
    assert "2.5 times" in diagnosis.findings[0].sentence
    assert "optimization.lr=6e-05 (there 0.002)" in diagnosis.findings[0].mend
    assert diagnose(like, like=[like]).findings == []
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", str(like), "--like", str(tmp_path / "nowhere")])
    assert stopped.value.code == 2


def test_the_packaged_curves_are_of_the_recipes():
    recipes = {reference.name: reference for reference in packaged()}
    assert set(recipes) == {"demo", "demo_sliced", "demo_long"}
    for reference in recipes.values():
        assert reference.at(max(reference.loss)) < reference.at(min(reference.loss))
        assert reference.at(max(reference.loss) + 1) is None
        assert reference.identity["teacher"]
    assert (ROOT / "fairseq_star" / "analysis" / "doctor" / FILE).stat().st_size < 10_000


def test_a_cache_of_other_settings(tmp_path):
    """Named where the teacher is the run's; a cache of another teacher in the same folder is nobody's fault."""
    record = read_record(write_run(tmp_path / "run", options={"task": {
        "teacher_cache": str(tmp_path / "cache"), "teacher_cache_dtype": "float16", "teacher_cache_compression": "none",
    }}))  # fmt: skip
    from fairseq_star.analysis.doctor.batches import check_cache

    record.teacher = "a" * 64
    stores = {
        "own": {"teacher": "a" * 64, "dtype": "float16"},
        "foreign": {"teacher": "b" * 64, "dtype": "int8", "compression": "pca", "dim": 64},
    }
    for name, about in stores.items():
        (tmp_path / "cache" / name).mkdir(parents=True)
        (tmp_path / "cache" / name / "about.json").write_text(json.dumps(about))
    assert list(check_cache(record)) == []
    (tmp_path / "cache" / "foreign" / "about.json").write_text(json.dumps({**stores["foreign"], "teacher": "a" * 64}))
    [finding] = check_cache(record)
    assert finding.name == "cache-of-other-settings"
    assert "compression pca (the run's: none)" in finding.sentence
    record.options["task"] |= {"teacher_cache_compression": "pca"}
    [finding] = check_cache(record)
    assert "own holds" in finding.sentence
    (tmp_path / "cache" / "narrow").mkdir()  # whose dim may be the one that the run chose: it states none
    (tmp_path / "cache" / "narrow" / "about.json").write_text(
        json.dumps({**stores["foreign"], "teacher": "a" * 64, "dim": 32})
    )
    [finding] = check_cache(record)
    assert "own holds" in finding.sentence


@settings(max_examples=50)
@given(st.dictionaries(st.integers(1, 10**6), st.floats(-1e6, 1e6), max_size=200))
def test_bins_keep_the_last_update_and_lie_within(curve):
    bins = binned(curve)
    assert len(bins) == min(BINS, len(curve))
    if curve:
        assert bins[-1][0] == max(curve)
        assert all(min(curve.values()) <= value <= max(curve.values()) for _, value in bins)


def test_exit_status_and_json(tmp_path, capsys):
    main(["doctor", str(write_run(tmp_path / "well"))])
    assert "no findings" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", str(write_run(tmp_path / "ill", **FAULTS["padding"])), "--json"])
    assert stopped.value.code == 1
    found = json.loads(capsys.readouterr().out)
    assert [finding["name"] for finding in found["findings"]] == ["padding"]
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "nowhere"):
        with pytest.raises(SystemExit) as stopped:
            main(["doctor", str(tmp_path / folder)])
        assert stopped.value.code == 2
        assert "doctor: " in capsys.readouterr().err


def test_the_first_answer_takes_neither_torch_nor_fairseq(tmp_path):
    folder = write_run(tmp_path / "run")
    blocked = "import sys; sys.modules.update(torch=None, fairseq=None, numpy=None)"
    program = f"{blocked}; from fairseq_star.cli import main; main(['doctor', {str(folder)!r}])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no findings" in done.stdout


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_checkpoint_runs_nothing(tmp_path):
    """Plain values are read, whatever stands beside them; sections that are none count as missing."""
    state = {
        "cfg": {"optimization": {"max_update": 7}, "task": Hostile(tmp_path / "opened"), "common": [1]},
        "model": {"weight": torch.ones(3)}, "optimizer_history": [{"num_updates": 5}], "task_state": None,
    }  # fmt: skip
    torch.save(state, tmp_path / "checkpoint_last.pt")
    record = read_record(tmp_path)
    assert not (tmp_path / "opened").exists()
    assert (record.max_update, record.num_updates, record.option("task.data", "none")) == (7, 5, "none")
    assert stored_values(tmp_path / "checkpoint_last.pt")["cfg"]["common"] == [1]
    assert [finding.name for finding in diagnose(tmp_path).findings] == ["ended-early"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no checkpoint"])
def test_a_damaged_checkpoint_is_one_line(content, tmp_path, capsys):
    folder = write_run(tmp_path / "run")
    (folder / "checkpoint_last.pt").write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", str(folder)])
    assert stopped.value.code == 2
    assert "checkpoint_last.pt is no whole checkpoint" in capsys.readouterr().err
