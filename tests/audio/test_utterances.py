"""The key of an utterance: one for all of its names, and no two utterances' copies under one name."""

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fairseq_star.audio.utterances import AUDIO_EXTENSIONS, copy_name, is_copy, original_name, place_of, utterance_key
from manifests.copies import Source, copy_path

PART = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0\n\r\t"), min_size=1, max_size=30).filter(
    lambda part: part not in (".", "..") and part == part.strip()
)
PATH = st.lists(PART, min_size=1, max_size=4).map("/".join)
EXTENSION = st.sampled_from(["", *sorted(f".{name}" for name in AUDIO_EXTENSIONS), ".FLAC", ".Wav"])
FORM = st.sampled_from(["NFC", "NFD"])


@given(PATH, EXTENSION, EXTENSION, FORM, FORM, st.integers(0, 2**40))
def test_all_names_of_an_utterance_give_one_key(path, extension, other, form, other_form, place):
    folder, _, name = path.rpartition("/")
    copied = copy_name(unicodedata.normalize(form, name) + extension, f"/somewhere/{place}")
    key = utterance_key(path)
    for one in (path + extension, path + other, unicodedata.normalize(other_form, path) + extension,
                f"{folder}/{copied}", f"./{path}", path.replace("/", "//"), path.replace("/", "\\")):  # fmt: skip
        assert utterance_key(one) == key
    assert utterance_key(f"/corpus/x/../{path}") == ("corpus", *key)
    assert utterance_key("/".join(key)) == key
    assert is_copy(copied)
    assert original_name(copied) == original_name(unicodedata.normalize("NFC", name) + extension)


@given(PART, PART)
def test_other_names_have_other_keys(one, other):
    assume(unicodedata.normalize("NFC", one) != unicodedata.normalize("NFC", other))
    assume(not any(name.lower().endswith(f".{end}") for name in (one, other) for end in AUDIO_EXTENSIONS))
    assume("16k-" not in one + other)
    assert utterance_key(one) != utterance_key(other)


def test_a_dot_is_no_extension_by_itself():
    assert utterance_key("rec.1") != utterance_key("rec.2")
    assert utterance_key("rec.1.wav") == ("rec.1",)
    assert utterance_key("a/..") == utterance_key("/") == ()


def folded(path: Path) -> str:
    """As a file system sees a name that ignores case and Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", str(path)).casefold())


SOURCE = st.tuples(st.sampled_from(["/a", "/b", "/a/all.zip:30", "/b/all.zip:30"]), PATH, EXTENSION)


@given(st.lists(SOURCE, min_size=2, max_size=6, unique=True), st.booleans())
def test_distinct_sources_never_share_a_copy(sources, upper):
    targets = set()
    taken = set()
    for base, path, extension in sources:
        for name in {path + extension, (path + extension).upper() if upper else path + extension}:
            where = f"{base}/{name}"
            taken.add(where)
            targets.add(folded(copy_path(Path("/copies"), Source(where, 0, [0, 0], where), name)))
    assert len(targets) == len(taken)


@pytest.mark.parametrize("letter", ["a", "ä", "語", "😀"])
def test_the_longest_names_get_a_copy_that_claims_no_name(tmp_path, letter):
    name = letter * (251 // len(letter.encode())) + ".wav"
    copies = {copy_name(name, place) for place in ("/x/1", "/x/2")}
    assert len(copies) == 2
    for copy in copies:
        (tmp_path / copy).touch()
        assert is_copy(copy)
        assert utterance_key(copy) not in (utterance_key(name), utterance_key(copy.partition("~")[0]))
    assert len(os.listdir(tmp_path)) == 2


def test_a_place_is_the_same_however_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "store" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("store/b")
    monkeypatch.chdir(tmp_path / "a")
    place = str(tmp_path / "x.wav")
    assert {place_of(path) for path in ("../x.wav", f"{tmp_path}/a/../x.wav", f"{tmp_path}/./x.wav", place)} == {place}
    assert place_of("../link/../x.wav") == str(tmp_path / "store" / "x.wav")
    assert place_of("../nowhere/../x.zip:1:2") == str(tmp_path / "x.zip:1:2")
