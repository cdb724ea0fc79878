"""superb.yaml, and a look at the corpora before anything starts."""

import json

import numpy as np
import pytest
import soundfile

from fairseq_star.errors import StarError
from fairseq_star.superb import corpora, preparing
from fairseq_star.superb.settings import settings


def wav(path, sample_rate=16_000, num_samples=1600):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(num_samples, np.float32), sample_rate)


def described(tmp_path, text):
    (tmp_path / "superb.yaml").write_text(text)
    return corpora.read_description(tmp_path / "superb.yaml")


@pytest.fixture
def speech_commands(tmp_path):
    for path in ("train/yes/a.wav", "train/_background_noise_/n.wav", "test/yes/b.wav"):
        wav(tmp_path / "sc" / path)
    return tmp_path / "sc"


def faults(name, description):
    return list(corpora.corpus_faults(name, description))


def test_a_whole_corpus_has_no_fault(tmp_path, speech_commands):
    description = described(tmp_path, "corpora: {speech_commands: sc}\nsizes: any\n")
    assert faults("speech_commands", description) == []
    assert corpora.count_files("speech_commands", description) == {"train": 1, "test": 1}


def test_the_archives_own_names_and_parts_elsewhere_do(tmp_path, speech_commands):
    (speech_commands / "train").rename(speech_commands / "speech_commands_v0.01")
    (speech_commands / "test").rename(tmp_path / "elsewhere")
    text = "corpora: {speech_commands: {'': sc, test: elsewhere}}\nsizes: any\n"
    assert faults("speech_commands", described(tmp_path, text)) == []


def test_what_is_missing_is_told_with_its_home(tmp_path, speech_commands):
    description = described(tmp_path, "corpora: {speech_commands: sc, snips: nowhere}\n")
    [missing] = faults("voxceleb1", description)
    assert "voxceleb1 is not in superb.yaml; get VoxCeleb1 from: robots.ox.ac.uk" in missing
    [missing] = faults("snips", description)
    assert f"snips: {tmp_path / 'nowhere' / 'train'} is not there and 4 more; get Audio SNIPS from:" in missing
    counted = faults("speech_commands", description)
    assert "has 1 files, published were 64,721" in counted[0]


@pytest.mark.parametrize(("sample_rate", "content", "told"), [(8000, None, "8000"), (16_000, b"RIFFnothing", "b.wav")])
def test_one_file_of_each_part_is_read(tmp_path, speech_commands, sample_rate, content, told):
    wav(speech_commands / "test" / "yes" / "b.wav", sample_rate)
    if content:
        (speech_commands / "test" / "yes" / "b.wav").write_bytes(content)
    [fault] = faults("speech_commands", described(tmp_path, "corpora: {speech_commands: sc}\nsizes: any\n"))
    assert told in fault


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("corpora: [", "is no YAML"),
        ("sizes: any", "has no 'corpora'"),
        ("corpora: {libri: x}", "corpora.libri is not known; these are: librispeech"),
        ("corpora: {snips: 1}", "corpora.snips must be a folder"),
        ("corpora: {snips: {train: x}}", "corpora.snips.train: must be one folder, as s3prl reads it"),
        ("corpora: {librimix: {eval: x}}", "librimix.eval: must be a folder, or one for each of train, dev, test"),
        ("corpora: {}\nsizes: some", "sizes must be 'any' or 'published'"),
        ("corpora: {}\nsettings: {lr: 1}", "settings.lr is not known"),
        ("corpora: {}\nother: 1", "other is not known"),
    ],
)
def test_a_mistake_in_superb_yaml_is_told(tmp_path, text, told):
    with pytest.raises(StarError) as caught:
        described(tmp_path, text)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_are_flat_and_numbers_numbers(tmp_path):
    text = "corpora: {}\nsettings: {asr: {optimizer: {lr: 1e-4}, runner.total_steps: 3}, all: {specaug: null}}"
    assert described(tmp_path, text).settings == {
        "asr": {"optimizer.lr": 1e-4, "runner.total_steps": 3}, "all": {"specaug": None},
    }  # fmt: skip


def fill_in(task, variant, description, tmp_path, own=()):
    config = settings(task, convention="s3prl", own=dict(own))
    return preparing.fill_in(
        task, variant, config, description, lists=tmp_path / "lists", package=tmp_path / "package"
    )["downstream_expert"]  # fmt: skip


def test_lists_for_asr_are_as_s3prls_script_writes_them(tmp_path):
    for name, length in (("1-1-0000", 1600), ("1-1-0001", 3200)):
        wav(tmp_path / "ls" / "train-clean-100" / "1" / "1" / f"{name}.flac", num_samples=length)
    for part in ("dev-clean", "test-clean"):
        wav(tmp_path / "ls" / part / "2" / "1" / "2-1-0000.flac")
    datarc = fill_in("asr", "", described(tmp_path, "corpora: {librispeech: ls}"), tmp_path)["datarc"]
    assert datarc["libri_root"] == str(tmp_path / "ls")
    assert (tmp_path / "lists" / "len_for_bucket" / "train-clean-100.csv").read_text().splitlines() == [
        ",file_path,length,label",
        "0,train-clean-100/1/1/1-1-0001.flac,3200,",
        "1,train-clean-100/1/1/1-1-0000.flac,1600,",
    ]


def test_lists_for_enhancement_keep_two_speakers_for_dev(tmp_path):
    for kind in ("clean", "noisy"):
        for name in ("p225_001", "p226_001", "p287_001"):
            wav(tmp_path / "vb" / f"{kind}_trainset_28spk_wav_16k" / f"{name}.wav")
        wav(tmp_path / "vb" / f"{kind}_testset_wav_16k" / "p232_001.wav")
    loader = fill_in("se", "", described(tmp_path, "corpora: {voicebank: vb}"), tmp_path)["loaderrc"]
    listed = {
        part: [
            line.split()[0] for line in (tmp_path / "lists/voicebank" / part / "noisy/wav.scp").read_text().splitlines()
        ]
        for part in ("train", "dev", "test")
    }
    assert listed == {"train": ["p225_001"], "dev": ["p226_001", "p287_001"], "test": ["p232_001"]}
    assert loader["dev_dir"] == str(tmp_path / "lists" / "voicebank" / "dev")


def test_lists_for_emotions_leave_the_tested_section_out(tmp_path):
    for session in range(1, 6):
        base = tmp_path / "ie" / f"Session{session}"
        lines = []
        for number, emotion in enumerate(("neu", "exc", "fru", "sad")):
            name = f"Ses0{session}F_impro01_F{number:03d}"
            wav(base / "sentences" / "wav" / f"Ses0{session}F_impro01" / f"{name}.wav")
            lines.append(f"[6.2 - 8.2]\t{name}\t{emotion}\t[2.5, 2.5, 2.5]\nC-E2:\tNeutral;\t()\n")
        (base / "dialog" / "EmoEvaluation").mkdir(parents=True)
        (base / "dialog" / "EmoEvaluation" / "a.txt").write_text("% header\n\n" + "".join(lines))
    datarc = fill_in("er", "fold2", described(tmp_path, "corpora: {iemocap: ie}"), tmp_path)["datarc"]
    assert datarc["test_fold"] == "fold2"
    lists = tmp_path / "lists" / "iemocap" / "Session2"
    test, train = (json.loads((lists / f"{part}_meta_data.json").read_text()) for part in ("test", "train"))
    assert [one["label"] for one in test["meta_data"]] == ["neu", "hap", "sad"]
    assert test["meta_data"][0] == {
        "path": "Session2/sentences/wav/Ses02F_impro01/Ses02F_impro01_F000.wav", "label": "neu", "speaker": "Ses02F",
    }  # fmt: skip
    assert len(train["meta_data"]) == 12
    assert not any("Session2" in one["path"] for one in train["meta_data"])


def test_what_the_user_names_stays(tmp_path):
    own = {"downstream_expert.datarc.meta_data": "/mine.txt", "downstream_expert.datarc.file_path": "/other"}
    datarc = fill_in("sid", "", described(tmp_path, "corpora: {voxceleb1: vc}"), tmp_path, own)["datarc"]
    assert datarc["meta_data"] == "/mine.txt"
    assert datarc["file_path"] == "/other"
