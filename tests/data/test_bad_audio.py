"""Audio that turns out bad after the start's check: named, counted, left out or the end of the run; never replaced."""

import numpy as np
import pytest
import soundfile
import torch

from fairseq_star.data.bad_audio import BadAudio
from fairseq_star.errors import StarError
from fairseq_star.fairseq_hooks.loss_watch import LossWatch
from tests.support import tiny
from tests.support.steps import batch_of, build, gradient


class Plain:
    """As much of fairseq's optimizer as ``train_step`` needs."""

    backward = staticmethod(torch.Tensor.backward)


def cut_short(path):
    """A WAV file whose header promises more than is there; libsndfile reads it without a word."""
    path.write_bytes(path.read_bytes()[:-2000])


def written_anew(**other):
    def spoil(path):
        audio = np.full((soundfile.info(path).frames, other.get("channels", 1)), other.get("value", 0.1))
        soundfile.write(path, audio, other.get("rate", 16_000), subtype="FLOAT")

    return spoil


SPOILT = {
    "missing": (lambda path: path.unlink(), "no such file"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "no audio": (lambda path: path.write_bytes(b"RIFF" + bytes(500)), "cannot be read as audio"),
    "cut short": (cut_short, "samples but the manifest says"),
    "stereo": (written_anew(channels=2), "2 channels"),
    "8 kHz": (written_anew(rate=8000), "8000 Hz"),
    "NaN": (written_anew(value=np.nan), "NaN or infinite"),
    "infinite": (written_anew(value=np.inf), "NaN or infinite"),
}


@pytest.fixture
def own_corpus(tmp_path):
    return tiny.write_corpus(tmp_path / "corpus", train=6, valid=2)


def audio(corpus, number: int, split: str = "train"):
    return corpus / "audio" / split / f"utt{number:03d}.wav"


@pytest.mark.parametrize("case", SPOILT)
def test_a_bad_utterance_is_named_and_its_batch_is_as_without_it(case, own_corpus, teacher_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # fairseq's between attempts
    task, student, criterion = build(own_corpus, teacher_path, on_bad_audio="skip")
    without = gradient(student, criterion, batch_of(task, [0, 2]))
    spoil, told = SPOILT[case]
    spoil(audio(own_corpus, 1))
    batch = batch_of(task, [0, 1, 2])
    assert batch["id"].tolist() == [0, 2]
    [problem] = batch["bad_audio"]
    assert problem.startswith(str(audio(own_corpus, 1)))
    assert told in problem
    assert "\n" not in problem
    loss, got = gradient(student, criterion, batch)
    assert loss == without[0]
    assert torch.equal(got, without[1])


def test_policies(own_corpus, teacher_path):
    audio(own_corpus, 1).write_bytes(b"")
    stopping, *_ = build(own_corpus, teacher_path)
    assert str(stopping.cfg.on_bad_audio) == "error"
    skipping = BadAudio("skip", 0.5)
    problems = ["a.wav: is empty"]
    assert skipping.report({"bad_audio": list(problems)}) == 1
    with pytest.raises(StarError, match=r"a\.wav: is empty.*task\.on_bad_audio=skip"):
        stopping.steps.bad_audio.report({"bad_audio": list(problems)})
    for share in (-0.1, 1.1):
        with pytest.raises(StarError, match=r"task\.max_bad_share"):
            BadAudio("skip", share)


def test_the_share_is_of_all_workers_and_of_this_pass():
    bad = BadAudio("skip", 0.25)
    bad.set_split_size(8)
    two_workers = [{"bad_audio": 1, "nsentences": 3}, {"bad_audio": 1, "nsentences": 3}]
    bad.reduce(two_workers)  # 2 of 8: just allowed
    bad.begin_pass()
    bad.reduce(two_workers)
    with pytest.raises(StarError, match="3 of 9 utterances"):
        bad.reduce([{"bad_audio": 1, "nsentences": 0}])


@pytest.mark.parametrize("how", ["nothing to do", "all bad"])
def test_a_worker_without_utterances_takes_part_and_counts_nothing(how, own_corpus, teacher_path, monkeypatch):
    """An empty batch is what fairseq gives a worker when batches run out; a cache must not see the stand-in either."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    task, student, criterion = build(
        own_corpus, teacher_path, on_bad_audio="skip", teacher_cache=str(own_corpus / "cache")
    )
    usual = task.valid_step(batch_of(task, [0]), student, criterion)[2]
    stored = sorted((own_corpus / "cache").rglob("*.states"))
    audio(own_corpus, 1).write_bytes(b"")
    train = task.dataset("train")
    batch = train.collater([train[1]] if how == "all bad" else [])
    assert batch, "fairseq would take an empty dict for its dummy batch"
    loss, sample_size, log = task.train_step(dict(batch), student, criterion, Plain, 0)
    assert (loss.item(), sample_size) == (0, 0)
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in student.parameters())
    assert log.keys() == usual.keys(), "fairseq sums the values of all workers by their order"
    bad = int(how == "all bad")
    assert {name: float(value) for name, value in log.items()} == dict.fromkeys(log, 0.0) | {"bad_audio": bad}
    _, sample_size, log = task.valid_step(dict(batch), student, criterion)
    assert (sample_size, log["nsentences"], log["bad_audio"]) == (0, 0, bad)
    assert sorted((own_corpus / "cache").rglob("*.states")) == stored


WORKERS = ["task.skip_audio_check=true", "dataset.num_workers=2", "optimization.max_update=3"]


@pytest.fixture
def spoilt_corpus(tmp_path):
    """Two of twelve utterances bad, one of them alone in its batch of the longest."""
    corpus = tiny.write_corpus(tmp_path / "corpus", train=12, valid=2)
    cut_short(audio(corpus, 3))
    audio(corpus, 7).unlink()
    return corpus


def test_skipping_with_data_workers(train, spoilt_corpus):
    finished = train(*WORKERS, "task.on_bad_audio=skip", "task.max_bad_share=0.2", data=spoilt_corpus)
    assert finished.returncode == 0, finished.stderr
    for number in (3, 7):
        assert finished.stdout.count(f"bad audio, skipped: {audio(spoilt_corpus, number)}") == 1
    assert "Traceback" not in finished.stdout + finished.stderr
    updates = [line for line in finished.stdout.splitlines() if "train_inner" in line]
    assert sum(float(line.split("bsz=")[1].split(",")[0]) for line in updates) == 10
    assert "padding=" in updates[0]
    assert updates[-1].split("bad_audio=")[1].split(",")[0] in ("0", "1", "2")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "(or go on without such files: task.on_bad_audio=skip)"),
        (["task.on_bad_audio=skip"], "bad, more than task.max_bad_share=0.01 allows"),
    ],
)
def test_the_run_ends_in_one_line_also_when_a_data_worker_finds_it(options, told, train, spoilt_corpus):
    finished = train(*WORKERS, *options, data=spoilt_corpus)
    assert finished.returncode == 1
    assert told in finished.stderr.strip().splitlines()[-1]
    assert finished.stderr.strip().splitlines()[-1].startswith("fairseq-star: ")
    assert "Traceback" not in finished.stdout + finished.stderr


def test_a_loss_that_is_not_finite_is_named_with_its_utterance(train, own_corpus):
    """Samples so large that a square overflows: finite audio, and NaN from the first group norm on."""
    written_anew(value=1e30)(audio(own_corpus, 4))
    finished = train("optimization.max_update=5", "optimization.update_freq=[2]", data=own_corpus)
    assert finished.returncode == 1
    assert f"the loss is not finite for {audio(own_corpus, 4)}\n" in finished.stdout
    last = finished.stderr.strip().splitlines()[-1]
    assert last.startswith("fairseq-star: update ")
    assert "named above" in last


def test_losses_are_looked_at_together(caplog, monkeypatch):
    monkeypatch.setattr("fairseq_star.fairseq_hooks.loss_watch.EVERY", 3)
    watch = LossWatch()
    looks = []
    monkeypatch.setattr(torch, "stack", lambda losses, stack=torch.stack: looks.append(len(losses)) or stack(losses))
    for update, loss in enumerate([1.0, float("nan"), 2.0, float("inf")]):
        watch.remember(update, [f"utt{update}.wav"], torch.tensor(loss))
    assert looks == [3]
    assert [record.message for record in caplog.records] == ["update 1: the loss is nan in the batch of utt1.wav"]
    watch.check()
    assert caplog.records[-1].message == "update 3: the loss is inf in the batch of utt3.wav"
