"""Labelled manifests: how they are divided, and one clear line for each way they can be wrong."""

import pytest

from fairseq_star.analysis.probe.labels import read_task
from fairseq_star.cli import main
from fairseq_star.encoder.frames import FrameGeometry
from fairseq_star.errors import StarError
from tests.support import labelled

GEOMETRY = FrameGeometry(receptive_field=400, downsample_rate=320)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return labelled.write_labelled(tmp_path_factory.mktemp("labelled") / "corpus")


@pytest.fixture
def corpus(original, tmp_path):
    """Labels to be spoiled; the audio stays where it is."""
    for path in original.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_text(path.read_text())
    return tmp_path


def speakers(part) -> set[str]:
    return {one.cluster for one in part}


def test_phones_and_keywords_are_tested_on_other_speakers(original):
    for task, label_count in (("phone", None), ("keyword", 1)):
        data = read_task(original, task, GEOMETRY)
        assert data.classes == ["a", "e", "i"]
        assert speakers(data.test) == {"s4", "s5"}
        assert speakers(data.train) | speakers(data.dev) == {"s1", "s2", "s3"}
        assert not speakers(data.train) & speakers(data.dev)
        assert len(data.utterances) == 24
        for one in data.utterances:
            assert len(one.labels) == (label_count or GEOMETRY.num_frames(one.num_samples))


def test_speakers_are_tested_on_other_utterances_of_theirs(original):
    data = read_task(original, "speaker", GEOMETRY)
    assert data.classes == ["s1", "s2", "s3", "s4", "s5"]
    for part in (data.train, data.dev, data.test):
        assert speakers(part) == set(data.classes)
    paths = [one.path for one in data.utterances]
    assert len(set(paths)) == len(paths) == 24


def test_the_division_does_not_depend_on_where_the_corpus_lies(original, tmp_path):
    import shutil

    moved = shutil.copytree(original, tmp_path / "elsewhere" / "corpus")
    for split in ("train", "valid"):
        manifest = moved / f"{split}.tsv"
        manifest.write_text(manifest.read_text().replace(str(original), str(moved)))
    here, there = (read_task(where, "speaker", GEOMETRY) for where in (original, moved))
    assert [one.path[-12:] for one in here.train] == [one.path[-12:] for one in there.train]


def test_a_folder_of_the_task_comes_first_and_a_limit_is_kept(original, corpus, tmp_path):
    (tmp_path / "keyword").mkdir()
    for split in ("train", "valid"):
        for extension in ("tsv", "keyword"):
            lines = (original / f"{split}.{extension}").read_text().splitlines()
            kept = lines[: 5 if extension == "tsv" else 4]
            (tmp_path / "keyword" / f"{split}.{extension}").write_text("\n".join(kept) + "\n")
    data = read_task(tmp_path, "keyword", GEOMETRY)
    assert (len(data.train) + len(data.dev), len(data.test)) == (4, 4)
    assert len(speakers(data.test)) == 4  # no speakers are known there: each utterance counts for itself
    assert len(read_task(corpus, "phone", GEOMETRY, limit=6).utterances) == 12
    few = read_task(corpus, "speaker", GEOMETRY, limit=6)
    assert len(few.classes) == 2  # of whole speakers, with four to six utterances each
    assert speakers(few.train) == speakers(few.test) == set(few.classes)


def spoil(path, number: int, line: str | None) -> None:
    lines = path.read_text().splitlines()
    lines[number : number + 1] = [] if line is None else [line]
    path.write_text("".join(f"{one}\n" for one in lines))


@pytest.mark.parametrize(
    ("task", "file", "number", "line", "message"),
    [
        (
            "phone",
            "train.phn",
            2,
            "a a i",
            r"train\.phn:3: 3 labels, but s3-2\.wav has 4\d frames .* label a frame",
        ),
        ("phone", "valid.phn", 1, None, r"valid\.phn: 7 lines, but the manifest next to it has 8 utterances"),
        ("keyword", "train.keyword", 4, "  ", r"train\.keyword:5: no label; write one"),
        ("keyword", "train.tsv", 1, "s1-0.wav\t300", r"train\.tsv:2: s1-0\.wav has 300 samples, less than one frame"),
    ],
)
def test_labels_that_do_not_fit(corpus, task, file, number, line, message):
    spoil(corpus / file, number, line)
    with pytest.raises(StarError, match=message):
        read_task(corpus, task, GEOMETRY)


def test_a_missing_file_an_empty_split_and_strange_labels(corpus):
    (corpus / "train.keyword").write_text("yes\n" * 16)
    with pytest.raises(StarError, match=r"keyword labels of the training part \(yes\) are all the same"):
        read_task(corpus, "keyword", GEOMETRY)
    (corpus / "train.keyword").write_text("yes\nno\n" * 8)
    with pytest.raises(StarError, match=r"\(no, yes\) have none in common with those of the valid manifest"):
        read_task(corpus, "keyword", GEOMETRY)
    (corpus / "train.keyword").unlink()
    with pytest.raises(StarError, match=r"train\.keyword: cannot read the keyword labels \(No such file"):
        read_task(corpus, "keyword", GEOMETRY)
    (corpus / "valid.tsv").write_text((corpus / "valid.tsv").read_text().splitlines()[0] + "\n")
    with pytest.raises(StarError, match=r"valid\.tsv: has a root line but no entries"):
        read_task(corpus, "phone", GEOMETRY)


def test_utterances_in_both_manifests_are_refused(corpus):
    for extension in ("tsv", "phn", "speaker"):
        (corpus / f"valid.{extension}").write_text((corpus / f"train.{extension}").read_text())
    with pytest.raises(StarError, match=r"is in both train\.tsv and valid\.tsv"):
        read_task(corpus, "phone", GEOMETRY)


def test_speakers_of_few_utterances(corpus):
    for split, count in (("train", 16), ("valid", 8)):
        (corpus / f"{split}.speaker").write_text("".join(f"{split}{number}\n" for number in range(count)))
    with pytest.raises(StarError, match="no speaker has three utterances"):
        read_task(corpus, "speaker", GEOMETRY)


def test_the_command_tells_it_in_one_line(corpus, teacher_path):
    (corpus / "train.phn").unlink()
    with pytest.raises(SystemExit, match=r"^fairseq-star: .*train\.phn: cannot read the phone labels"):
        main(["probe", str(teacher_path), "--data", str(corpus), "--tasks", "phone"])
    with pytest.raises(SystemExit, match=r"^fairseq-star: --data: name the folder"):
        main(["probe", str(teacher_path)])
