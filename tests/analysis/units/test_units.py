"""Units end to end and in parts: the sample survives an interruption, clusters are found, quality is what it says."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq_star.analysis.probe.labels import Utterance
from fairseq_star.analysis.units import kmeans, run
from fairseq_star.analysis.units.kmeans import quality
from fairseq_star.analysis.units.run import FrameSample, choose, utterances_of
from fairseq_star.cli import main
from fairseq_star.criterions.star_tgm import StarTGMConfig, StarTGMCriterion
from fairseq_star.errors import StarError
from fairseq_star.formats import load_teacher
from fairseq_star.losses.centroids import read_centroids
from tests.support.steps import batch_of, build


def blobs(count: int, width: int = 5, clusters: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((clusters, width)) * 20
    numbers = rng.integers(clusters, size=count)
    return (centres[numbers] + rng.standard_normal((count, width))).astype(np.float32), numbers


def test_clusters_that_are_there_are_found():
    frames, numbers = blobs(30_000)
    found, history = kmeans.fit(frames, 8, seed=0)  # more than there are: k-means++ alone may miss one
    assigned, distances = kmeans.assign(frames, found)
    measured = quality(assigned, distances, float(frames.var(0).sum()), 8, numbers.astype(str).tolist())
    assert measured.phone_purity > 0.999
    assert measured.relative_inertia < 0.02
    assert history[-1] <= history[0] + 1e-6


def test_the_nearest_centroid_is_the_nearest():
    frames, _ = blobs(200)
    centroids = frames[:7]
    numbers, distances = kmeans.assign(frames, centroids)
    apart = ((frames[:, None].astype(np.float64) - centroids[None]) ** 2).sum(-1)
    assert np.array_equal(numbers, apart.argmin(1))
    assert np.allclose(distances, apart.min(1), atol=1e-6)


def test_fewer_frames_than_clusters_are_told():
    with pytest.raises(StarError, match="--clusters 9: there are 5 frames only"):
        kmeans.fit(np.zeros((5, 2), np.float32), 9, 0)


def test_quality_by_hand():
    """Two phones, three clusters: a a a b | b | a, the fourth cluster empty."""
    numbers, phones = np.array([0, 0, 0, 0, 1, 2]), list("aaabba")
    measured = quality(numbers, np.full(6, 2.0), 8.0, 4, phones)
    assert measured.phone_purity == pytest.approx(5 / 6)
    assert measured.cluster_purity == pytest.approx((3 + 1) / 6)
    assert (measured.used, measured.relative_inertia) == (3, 0.25)
    told = 1 - (4 / 6) * (0.25 * 2 + 0.75 * np.log2(4 / 3)) / (-(2 / 3) * np.log2(2 / 3) - (1 / 3) * np.log2(1 / 3))
    assert measured.phone_information == pytest.approx(told)


def test_a_sample_goes_on_where_it_was_broken_off(tmp_path, monkeypatch):
    monkeypatch.setattr("fairseq_star.analysis.units.run.SAVE_EVERY", 2)
    utterances = [Utterance(f"{number}.wav", 400, (), "") for number in range(5)]
    asked = []

    def states_of(utterance: Utterance) -> torch.Tensor:
        asked.append(utterance.path)
        if utterance.path == "3.wav" and asked.count("3.wav") == 1:
            raise KeyboardInterrupt
        return torch.full((2, 3), float(utterance.path[0]))

    sample = FrameSample(tmp_path / "frames", {"layer": 1}, 3)
    with pytest.raises(KeyboardInterrupt):
        sample.fill(utterances, states_of)
    frames = sample.fill(utterances, states_of)
    assert frames.shape == (10, 3)
    assert np.array_equal(frames[:, 0], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    assert asked.count("0.wav") == asked.count("1.wav") == 1
    assert FrameSample(tmp_path / "frames", {"layer": 2}, 3)._progress() == (0, 0)
    del frames
    sample.remove()
    assert not (tmp_path / "frames").exists()


def test_utterances_are_drawn_until_there_are_enough_frames():
    utterances = [Utterance(str(number), 10 * (number + 1), (), "") for number in range(20)]
    chosen = choose(utterances, lambda n: n // 10, 30, seed=3)
    counts = [utterances[number].num_samples // 10 for number in chosen]
    assert sum(counts) >= 30 > sum(counts[:-1])
    assert len(choose(utterances, lambda n: n // 10, 10**9, seed=3)) == 20


def test_the_command_writes_what_a_run_learns_from(corpus, teacher_path, tmp_path, capsys):
    count = load_teacher(teacher_path).geometry.num_frames
    sizes = [int(line.split("\t")[1]) for line in (corpus / "valid.tsv").read_text().splitlines()[1:]]
    phones = corpus / "valid.phn"
    phones.write_text("\n".join(" ".join("ab"[frame % 2] for frame in range(count(n))) for n in sizes) + "\n")
    try:
        out = tmp_path / "units.npz"
        main(["units", str(teacher_path), str(corpus), "--layer", "2", "--clusters", "6", "--out", str(out),
              "--frames", "200", "--json"])  # fmt: skip
    finally:
        phones.unlink()
    told = json.loads(capsys.readouterr().out)
    assert told["clusters"] == 6
    assert 0.5 <= told["phone_purity"] <= 1
    written = read_centroids(str(out), "test")
    assert written.vectors.shape == (6, 24)
    assert written.about["frames"] >= 200
    assert not list(tmp_path.glob("*.frames"))
    task, student, _ = build(corpus, teacher_path)
    cfg = StarTGMConfig(unit_unmasked_weight=1.0, units=[str(out)], unit_dim=8)
    loss, _, logged = StarTGMCriterion(task, cfg)(student, batch_of(task, [0, 3]))
    loss.backward()
    assert logged["units_unmasked"] > 0


def test_phones_stay_with_their_utterances_where_one_is_too_short(corpus, teacher_path, tmp_path):
    root, *entries = (corpus / "valid.tsv").read_text().splitlines()
    (tmp_path / "valid.tsv").write_text("\n".join([root, entries[0], "short.wav\t50", entries[1]]) + "\n")
    teacher = load_teacher(teacher_path)
    sizes = [teacher.geometry.num_frames(int(line.split("\t")[1])) for line in entries[:2]]
    first, second = ("a",) * sizes[0], ("b",) * sizes[1]
    (tmp_path / "valid.phn").write_text(f"{' '.join(first)}\nx\n{' '.join(second)}\n")
    found = utterances_of(str(tmp_path), "valid", teacher, phones=True)
    assert [one.labels for one in found] == [first, second]
    (tmp_path / "valid.phn").write_text("a a a\n")
    assert not any(one.labels for one in utterances_of(str(tmp_path), "valid", load_teacher(teacher_path), phones=True))


@given(st.data())
def test_phones_that_do_not_fit_are_left_out_and_counted(data):
    """In any number of lines; those that fit are measured."""
    frames = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=8))
    off = [data.draw(st.sampled_from([0, 0, 1, -1, 7])) for _ in frames]
    lines = [
        " ".join("ab"[place % 2] for place in range(count + more)) for count, more in zip(frames, off, strict=True)
    ]
    wrong = [place for place, more in enumerate(off) if more]
    logged = []
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.logger, "warning", logged.append)
        path = Path(folder) / "valid.phn"
        path.write_text("\n".join(lines) + "\n")
        labels = run._read_phones(path, frames)
    assert [len(line) for line in labels] == [0 if more else count for count, more in zip(frames, off, strict=True)]
    assert len(logged) == bool(wrong)
    if wrong:
        assert f"valid.phn:{wrong[0] + 1}: " in logged[0]
        assert f"in {len(wrong)} of {len(frames)} lines" in logged[0]
    utterances = [Utterance("", 400, line, "") for line in labels]
    sizes = iter(frames)
    measured = run.measure(np.zeros((2, 3), np.float32), utterances, lambda _: torch.zeros(next(sizes), 3))
    assert (measured.phone_purity is None) == (len(wrong) == len(frames))
    assert measured.frames == sum(frames)


def test_a_line_too_few_and_a_file_that_is_no_text_are_reported(tmp_path, caplog):
    path = tmp_path / "valid.phn"
    path.write_text("a a\n")
    assert run._read_phones(path, [2, 3]) == [(), ()]
    path.write_bytes(b"\xff\xfe a\n")
    assert run._read_phones(path, [2]) == [()]
    assert "1 lines, but the manifest next to it has 2 utterances" in caplog.text
    assert "cannot be read as text" in caplog.text


def test_a_nan_in_the_audio_is_named_before_the_work(corpus, teacher_path, tmp_path):
    for name in ("train", "valid"):
        shutil.copy(corpus / f"{name}.tsv", tmp_path)
    root, first, *_ = (tmp_path / "valid.tsv").read_text().splitlines()
    samples, rate = soundfile.read(Path(root) / first.split("\t")[0], dtype="float32")
    samples[7] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, rate, subtype="FLOAT")
    (tmp_path / "valid.tsv").write_text(f"{tmp_path}\nnan.wav\t{len(samples)}\n")
    arguments = ["units", str(teacher_path), str(tmp_path), "--layer", "1", "--clusters", "4", "--frames", "100"]
    with pytest.raises(SystemExit, match=r"nan\.wav: holds samples that are NaN or infinite"):
        main([*arguments, "--out", str(tmp_path / "u.npz")])
    assert not (tmp_path / "u.npz.frames").exists()
    with pytest.raises(SystemExit, match=r"nan\.wav: holds samples that are NaN or infinite"):
        main([*arguments, "--out", str(tmp_path / "u.npz"), "--split", "valid", "--test-split", "train"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--layer", "4"], "--layer 4: the teacher has layers 0"),
        (["--layer", "1", "--split", "other"], "other.tsv: cannot read the manifest"),
        (["--layer", "1", "--clusters", "1"], "--clusters 1 must be 2 or more"),
    ],
)
def test_what_cannot_be_ends_in_one_line(corpus, teacher_path, tmp_path, options, told):
    out = ["--out", str(tmp_path / "units.npz")]
    with pytest.raises(SystemExit, match=told):
        main(["units", str(teacher_path), str(corpus), "--clusters", "5", *out, *options])
    assert not list(tmp_path.iterdir())
