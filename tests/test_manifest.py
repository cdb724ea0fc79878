"""The manifest format."""

import pytest
from fairseq.data.audio.hubert_dataset import load_audio
from fairseq.data.audio.raw_audio_dataset import FileAudioDataset
from hypothesis import given
from hypothesis import strategies as st

from fairseq_star.data.dataset import DistillationDataset
from fairseq_star.errors import StarError
from fairseq_star.manifest import ManifestEntry, read_manifest, write_manifest
from tests.support.audio import write_audio

CHARACTERS = st.characters(codec="utf-8", exclude_characters="\t\n\r\0")
NAMES = st.text(CHARACTERS, min_size=1).filter(lambda text: text == text.strip())


@given(st.lists(st.tuples(NAMES, st.integers(1, 2**40)), min_size=1, max_size=8), NAMES)
def test_round_trip(tmp_path_factory, entries, root):
    path = tmp_path_factory.mktemp("manifest") / "train.tsv"
    entries = [ManifestEntry(*entry) for entry in entries]
    write_manifest(path, root, entries)
    assert read_manifest(path) == (root, entries)


def test_fairseq_reads_what_is_written(tmp_path):
    names = ["a b/ünï çode.flac", "日本/x.flac", "plain.flac"]
    entries = [ManifestEntry(name, 1600 + index) for index, name in enumerate(names)]
    for name, num_samples in entries:
        write_audio(tmp_path / name, num_samples)
    write_manifest(tmp_path / "train.tsv", tmp_path, entries)

    dataset = FileAudioDataset(tmp_path / "train.tsv", sample_rate=16_000)
    assert [len(dataset[index]["source"]) for index in range(3)] == [1600, 1601, 1602]
    root, found, _, total, sizes = load_audio(tmp_path / "train.tsv", None, None)
    assert (root, found, total, sizes) == (str(tmp_path), names, 3, [1600, 1601, 1602])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/root\na.flac\t5\nb.flac 7\n", r"train\.tsv:3: expected 'path<TAB>num_samples', found 'b\.flac 7'"),
        ("/root\na.flac\t5\t6\n", r"train\.tsv:2: expected"),
        ("/root\na.flac\t5.0\n", r"train\.tsv:2: expected"),
        ("/root\na.flac\t-5\n", r"train\.tsv:2: expected"),
        ("/root\na.flac\t1_000\n", r"train\.tsv:2: expected"),
        ("/root\n\t5\n", r"train\.tsv:2: expected"),
        ("/root\na.flac\t5\n\n", r"train\.tsv:3: expected"),
        ("/root\na.flac\t0\n", r"train\.tsv:2: num_samples of 'a\.flac' is 0"),
        ("/root\n", r"train\.tsv: .* no entries"),
        ("", r"train\.tsv:1: expected the root folder"),
        ("\na.flac\t5\n", r"train\.tsv:1: expected the root folder"),
        ("a.flac\t5\nb.flac\t6\n", r"train\.tsv:1: expected the root folder"),
    ],
)
def test_wrong_manifests_are_told_by_line(tmp_path, text, expected):
    (tmp_path / "train.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(StarError, match=expected) as caught:
        read_manifest(tmp_path / "train.tsv")
    assert "\n" not in str(caught.value)


def test_missing_folder_and_binary_files(tmp_path):
    with pytest.raises(StarError, match=r"nowhere\.tsv: cannot read"):
        read_manifest(tmp_path / "nowhere.tsv")
    with pytest.raises(StarError, match="cannot read"):
        read_manifest(tmp_path)
    (tmp_path / "x.tsv").write_bytes(b"/root\n\xff\xfe\t5\n")
    with pytest.raises(StarError, match="not UTF-8"):
        read_manifest(tmp_path / "x.tsv")


def test_windows_line_ends_are_read(tmp_path):
    (tmp_path / "x.tsv").write_bytes(b"/root\r\na.flac\t5\r\n")
    assert read_manifest(tmp_path / "x.tsv") == ("/root", [("a.flac", 5)])


@given(st.lists(NAMES, min_size=1, max_size=3))
def test_a_byte_order_mark_is_no_part_of_the_root(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("manifest") / "train.tsv"
    write_manifest(path, "/root", [ManifestEntry(name, 5) for name in names])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_manifest(path) == ("/root", [(name, 5) for name in names])


def test_training_reads_a_manifest_with_a_byte_order_mark(tmp_path):
    write_audio(tmp_path / "a.wav")
    (tmp_path / "train.tsv").write_text(f"\ufeff{tmp_path}\na.wav\t1600\n", encoding="utf-8")
    dataset = DistillationDataset(
        str(tmp_path / "train.tsv"), sample_rate=16_000, normalize=False, max_sample_size=None, min_sample_size=1,
        random_crop=False, pad_to_multiple=1, seed=1,
    )  # fmt: skip
    assert len(dataset[0]["source"]) == 1600


@pytest.mark.parametrize("name", ["a\tb", "a\nb", " a", "a ", "", "\udcff"])
def test_unwritable_names_leave_the_old_manifest_whole(tmp_path, name):
    path = tmp_path / "train.tsv"
    write_manifest(path, "/root", [ManifestEntry("old", 1)])
    with pytest.raises(StarError, match=r"train\.tsv: "):
        write_manifest(path, "/root", [ManifestEntry("new", 1), ManifestEntry(name, 1)])
    assert read_manifest(path)[1] == [("old", 1)]
    assert [file.name for file in tmp_path.iterdir()] == ["train.tsv"]


def test_write_refuses_no_entries_and_no_samples(tmp_path):
    for entries in ([], [ManifestEntry("a", 0)]):
        with pytest.raises(StarError):
            write_manifest(tmp_path / "train.tsv", "/root", entries)
    assert list(tmp_path.iterdir()) == []


def test_write_makes_a_readable_file(tmp_path):
    write_manifest(tmp_path / "deep" / "train.tsv", "/root", [ManifestEntry("a", 1)])
    assert (tmp_path / "deep" / "train.tsv").stat().st_mode & 0o777 == 0o644
