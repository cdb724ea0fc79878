"""Stored features of an upstream: equal to what would be computed, whatever the batch, and never wrong ones."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairseq_star.errors import StarError
from fairseq_star.superb import experiment, parsing
from fairseq_star.superb.programs import features
from fairseq_star.superb.programs.features import FeatureStore, StoredUpstream

MB = 2**20


class Upstream(torch.nn.Module):
    """Frames of a batch, which depend on its padding as those of a group norm do."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale, self.calls = scale, []

    def get_downsample_rates(self, key):
        return 320

    def forward(self, wavs):
        self.calls.append([len(wav) for wav in wavs])
        padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
        frames = padded.unfold(1, 400, 320) * self.scale
        frames = frames / (padded.square().mean(1)[:, None, None].sqrt() + 1e-3)
        return {"hidden_states": [frames[..., :8], frames[..., 8:16]]}


def wavs_of(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, generator=generator) for length in lengths]


def equal(ours, theirs):
    return all(
        torch.equal(one, other) for one, other in zip(ours["hidden_states"], theirs["hidden_states"], strict=True)
    )


def stored(upstream, store, identity="one"):
    return StoredUpstream(upstream, identity, store).eval()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(300, 5000), min_size=1, max_size=5), limit=st.sampled_from([0, 2_000, 10 * MB]))
def test_what_is_read_is_what_would_be_computed_whatever_the_limit(lengths, limit, tmp_path_factory):
    store = FeatureStore(tmp_path_factory.mktemp("store"), limit)
    own, reference = stored(Upstream(), store), stored(Upstream(), FeatureStore(Path("none"), 0))
    wavs = wavs_of(*lengths)
    for batch in (wavs, wavs[::-1], wavs[:1], wavs):
        found = own(batch)
        assert equal(found, reference(batch))
        for row, wav in enumerate(batch):  # as if it were alone
            alone = reference([wav])["hidden_states"][1][0]
            assert torch.equal(found["hidden_states"][1][row, : len(alone)], alone)
            assert torch.equal(
                found["hidden_states"][1][row, len(alone) :],
                alone[-1:].expand(found["hidden_states"][1].shape[1] - len(alone), -1),
            )
    assert not Path("none").exists()


def test_an_utterance_is_computed_once_by_any_process(tmp_path):
    first, later = Upstream(), Upstream()
    wavs = wavs_of(2000, 3000)
    stored(first, FeatureStore(tmp_path, MB))([*wavs, wavs[0]])
    stored(later, FeatureStore(tmp_path, MB))(wavs)
    assert first.calls == [[2000], [3000]]
    assert later.calls == []


@pytest.mark.parametrize("change", ["upstream", "a sample", "length"])
def test_features_of_something_else_are_not_taken(tmp_path, change):
    (wav,) = wavs_of(2000)
    stored(Upstream(), FeatureStore(tmp_path, MB))([wav])
    own, identity = Upstream(2.0), "one"
    if change == "upstream":
        identity = "another"
    elif change == "a sample":
        wav = wav.clone()
        wav[7] += 1e-6 + wav[7].abs() * 1e-6
    else:
        wav = torch.nn.functional.pad(wav, (0, 1))
    assert equal(
        stored(own, FeatureStore(tmp_path, MB), identity)([wav]), stored(own, FeatureStore(tmp_path, 0))([wav])
    )
    assert len(own.calls) == 2


def test_the_checkpoint_is_part_of_the_identity(tmp_path):
    file = tmp_path / "student.pt"
    identities = []
    for content in (b"1", b"2"):
        file.write_bytes(content)
        made = features._upstream(
            "hubert_local", lambda ckpt, **_: Upstream(), FeatureStore(tmp_path, 0), ckpt=str(file)
        )
        identities.append(made.identity)
    assert identities[0] != identities[1]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_computed_again(data, tmp_path_factory, capfd):
    folder = tmp_path_factory.mktemp("store")
    wavs = wavs_of(2000)
    expected = stored(Upstream(), FeatureStore(folder, MB))(wavs)
    (path,) = folder.glob("*/*")
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    own = Upstream()
    assert equal(stored(own, FeatureStore(folder, MB))(wavs), expected)
    assert len(own.calls) == 1
    assert "damaged" in capfd.readouterr().err
    assert equal(stored(Upstream(), FeatureStore(folder, MB))(wavs), expected)


def test_values_beyond_float16_are_stored_exactly(tmp_path):
    (wav,) = wavs_of(2000)
    own = stored(Upstream(1e6), FeatureStore(tmp_path, MB))
    exact = Upstream(1e6)([wav])
    for _ in range(2):
        assert equal(own([wav]), exact)


def test_a_store_keeps_its_limit_and_what_is_in_use(tmp_path):
    array = np.zeros(1000, np.float16)
    size = len(array.tobytes()) + 128 + features.CHECKSUM_BYTES
    limit = 10 * size
    old = FeatureStore(tmp_path, limit)
    for number in range(10):
        old.put(f"{number:040}", array)
    assert old.counts["stored"] == 10
    for number, path in enumerate(sorted(tmp_path.glob("*/*"))):  # used in this order, before the next process
        os.utime(path, (time.time() - 100 + number,) * 2)
    new = FeatureStore(tmp_path, limit)
    assert new.get(f"{0:040}") is not None
    for number in range(10, 30):
        new.put(f"{number:040}", array)
    names = {int(path.name) for path in tmp_path.glob("*/*")}
    assert names == {0, *range(10, 19)}, "the least recently used ones make room, those in use stay"
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= limit
    assert new.full


def test_two_processes_exceed_the_limit_by_a_sixteenth_at_most(tmp_path):
    array = np.zeros(1000, np.float16)
    limit = 100_000
    stores = [FeatureStore(tmp_path, limit), FeatureStore(tmp_path, limit)]
    for number in range(200):
        stores[number % 2].put(f"{number:040}", array)
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= limit * (1 + features.SLACK) + 3000


def test_only_what_is_computed_twice_is_stored_where_crops_are_drawn(tmp_path):
    own = Upstream()
    store = FeatureStore(tmp_path, MB, only_repeated=True)
    upstream = stored(own, store)
    crops, whole = wavs_of(2000, 2000, 2000, seed=1), wavs_of(3000)
    for crop in crops:
        upstream([crop, *whole])
    assert store.counts == {"computed": 5, "stored": 1, "read": 1}
    assert len(list(tmp_path.glob("*/*"))) == 1


def test_crops_that_never_come_again_take_no_memory_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "MOST_SEEN", 100)
    store, array = FeatureStore(tmp_path, MB, only_repeated=True), np.zeros(8, np.float16)
    for number in range(1000):
        store.put(f"{number:040}", array)
        assert len(store._seen) <= 100
    assert store.counts == {"computed": 1000}
    store.put(f"{999:040}", array)
    assert store.counts["stored"] == 1


def test_a_full_disk_is_reported_once_and_leaves_nothing_behind(tmp_path, monkeypatch, capfd):
    store = FeatureStore(tmp_path, MB)
    monkeypatch.setattr(features.os, "replace", full)
    wavs = wavs_of(2000, 3000)
    for _ in range(2):
        assert equal(stored(Upstream(), store)(wavs), stored(Upstream(), FeatureStore(tmp_path, 0))(wavs))
    assert capfd.readouterr().err.count("No space left") == 1
    assert [path for path in tmp_path.glob("*/*") if path.is_file()] == []


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_files_of_killed_processes_are_removed(tmp_path):
    (tmp_path / "ab").mkdir()
    abandoned, fresh = tmp_path / "ab" / ".abcd.1", tmp_path / "ab" / ".abce.2"
    for path in (abandoned, fresh):
        path.write_bytes(b"part")
    os.utime(abandoned, (time.time() - 2 * features.ABANDONED,) * 2)
    FeatureStore(tmp_path, MB)
    assert not abandoned.exists()
    assert fresh.exists()


def test_an_upstream_that_is_trained_is_not_stored(tmp_path):
    own = Upstream()
    upstream = StoredUpstream(own, "one", FeatureStore(tmp_path, MB)).train()
    upstream(wavs_of(2000, 3000))
    assert own.calls == [[2000, 3000]]
    assert not list(tmp_path.glob("*/*"))


def test_s3prl_trains_on_stored_features(tmp_path):
    """``launch.py`` replaces s3prl's upstreams in its own process, without an edit of s3prl."""
    pytest.importorskip("s3prl")
    program = f"""
import runpy, sys, torch
launch = runpy.run_path({str(Path(features.__file__).with_name("launch.py"))!r})
launch["stand_in"]()
rest = launch["store_features"](["--features", {str(tmp_path)!r}, "1000000", "-m", "train", "-f"])
assert rest == ["-m", "train", "-f"], rest
from s3prl import hub
from s3prl.upstream.interfaces import Featurizer
torch.manual_seed(0)
upstream = hub.fbank(ckpt=None, model_config=None, refresh=False)
featurizer = Featurizer(upstream, upstream_device="cpu")
wavs = [torch.randn(16000), torch.randn(12000)]
found = [featurizer(wavs, upstream(wavs)) for _ in range(2)]
assert all(torch.equal(one, other) for one, other in zip(*found)), "read is not computed"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert parsing.features(done.stderr) == {"read": 2, "computed": 3, "stored": 3, "removed": 0}


@pytest.mark.parametrize("size", [-1.0, float("nan"), float("inf")])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(StarError, match="--store-features"):
        experiment.Features.of(Path("out"), size)
