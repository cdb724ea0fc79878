"""A corpus's paths in s3prl's configuration, and lists that s3prl's own scripts would make.

The lists lie in the sweep's folder, so that corpora are not changed and two sweeps do not share lists.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from fairseq_star.audio.file import probe_audio
from fairseq_star.audio.threads import map_in_threads
from fairseq_star.errors import StarError
from fairseq_star.manifest import write_lines
from fairseq_star.superb.corpora import Description
from fairseq_star.superb.settings import RECIPES, flat, put

VOICEBANK_DEV = ("p226", "p287")  # s3prl's: enhancement_stft/scripts/Voicebank/data_prepare.py
IEMOCAP_LABELS = {"neu": 0, "hap": 1, "ang": 2, "sad": 3}
Paths = dict[str, object]


def fill_in(task: str, variant: str, config: dict, description: Description, *, lists: Path, package: Path) -> dict:
    """Set the paths of the task's corpus in ``config``, and make the lists that s3prl needs in ``lists``.

    Paths of the user's settings win.

    Args:
        package: s3prl's package, whose own lists are used where it has them.

    Raises:
        StarError: the corpus lacks the files of a list.
    """
    known = dict(flat(config))
    for path, value in _PATHS[task](description, lists, package).items():
        full = f"downstream_expert.{path}"
        if full not in known or known[full] == dict(flat(RECIPES[task])).get(full):
            put(config, full, value, f"{task}.{full}")
    if variant:
        config["downstream_expert"]["datarc"]["test_fold"] = variant
    return config


def needed_files(config: dict, package: Path) -> Iterator[Path]:
    """Yield files and folders that s3prl reads by its configuration; relative ones are s3prl's own."""
    for path, value in flat(config):
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str) and ("/" in one or path.endswith(("_file", "_path", "meta_data"))):
                yield package / one


def _librispeech_lengths(root: Path, folder: Path, splits: tuple[str, ...]) -> None:
    """Write lists of all utterances, longest first, as s3prl's ``preprocess/generate_len_for_bucket.py``."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        if (folder / f"{split}.csv").exists():
            continue
        lengths = []
        for path, length in map_in_threads(partial(probe_audio, read_end=False), (root / split).rglob("*.flac")):
            if isinstance(length, StarError):
                raise length
            lengths.append((length, path.relative_to(root)))
        rows = [f"{number},{path},{length},\n" for number, (length, path) in enumerate(sorted(lengths, reverse=True))]
        write_lines(folder / f"{split}.csv", [",file_path,length,label\n", *rows])


def _asr(description: Description, lists: Path, package: Path) -> Paths:
    root, folder = description.folder("librispeech"), lists / "len_for_bucket"
    _librispeech_lengths(root, folder, ("train-clean-100", "dev-clean", "test-clean"))
    return {"datarc.libri_root": str(root), "datarc.bucket_file": str(folder)}


def _se(description: Description, lists: Path, package: Path) -> Paths:
    """Write Kaldi lists as s3prl's ``enhancement_stft/scripts/Voicebank/data_prepare.py``."""
    for part in ("train", "dev", "test"):
        for kind in ("clean", "noisy"):
            source = "testset" if part == "test" else "trainset_28spk"
            files = sorted(description.part("voicebank", f"{kind}_{source}_wav_16k").glob("*.wav"))
            kept = [f for f in files if part == "test" or f.stem.startswith(VOICEBANK_DEV) == (part == "dev")]
            if not kept:
                raise StarError(f"voicebank: no file of {part} ({kind}; dev is {' and '.join(VOICEBANK_DEV)})")
            folder = lists / "voicebank" / part / kind
            folder.mkdir(parents=True, exist_ok=True)
            write_lines(folder / "wav.scp", [f"{path.stem} {path}\n" for path in kept])
    return {f"loaderrc.{part}_dir": str(lists / "voicebank" / part) for part in ("train", "dev", "test")}


def _er(description: Description, lists: Path, package: Path) -> Paths:
    """Use the lists of utterances and emotions in s3prl's clone, or write them as its ``IEMOCAP_preprocess.py``."""
    root, folder = description.folder("iemocap"), lists / "iemocap"
    if (package / "downstream" / "emotion" / "meta_data").is_dir():
        return {"datarc.root": str(root)}
    sessions = {number: _emotions(root, number) for number in range(1, 6)}
    for number, own in sessions.items():
        if not own:
            raise StarError(f"iemocap: {root / f'Session{number}'} has no utterance of {', '.join(IEMOCAP_LABELS)}")
    for number, own in sessions.items():
        rest = [one for other, those in sessions.items() if other != number for one in those]
        (folder / f"Session{number}").mkdir(parents=True, exist_ok=True)
        for part, those in (("train", rest), ("test", own)):
            text = json.dumps({"labels": IEMOCAP_LABELS, "meta_data": those})
            write_lines(folder / f"Session{number}" / f"{part}_meta_data.json", [text])
    return {"datarc.root": str(root), "datarc.meta_data": str(folder)}


def _emotions(root: Path, session: int) -> list[dict]:
    """Utterances of a session with one of the four emotions; excited counts as happy."""
    base = root / f"Session{session}"
    wavs = {path.stem: path for path in sorted((base / "sentences" / "wav").rglob("*.wav"))}
    found = []
    for file in sorted((base / "dialog" / "EmoEvaluation").glob("*.txt")):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            fields = [part for part in line.split("\t") if part]
            if not line.startswith("[") or len(fields) < 3 or fields[1] not in wavs:
                continue
            label = fields[2].replace("exc", "hap")
            if label in IEMOCAP_LABELS:
                path = wavs[fields[1]]
                found.append({"path": str(path.relative_to(root)), "label": label, "speaker": path.stem.split("_")[0]})
    return found


def _ks(description: Description, lists: Path, package: Path) -> Paths:
    part = {"root": "train", "test_root": "test"}
    return {f"datarc.speech_commands_{key}": str(description.part("speech_commands", of)) for key, of in part.items()}


def _sd(description: Description, lists: Path, package: Path) -> Paths:
    return {f"loaderrc.{part}_dir": str(description.part("librimix", part)) for part in ("train", "dev", "test")}


def _sf(description: Description, lists: Path, package: Path) -> Paths:
    root = description.folder("snips")
    return {"corpus.path": str(root), "text.slots_file": str(root / "slots.txt")}


def _root(corpus: str, path: str) -> Callable[[Description, Path, Path], Paths]:
    return lambda description, lists, package: {path: str(description.folder(corpus))}


_PATHS: dict[str, Callable[[Description, Path, Path], Paths]] = {
    "pr": _root("librispeech", "corpus.path"),
    "asr": _asr,
    "ks": _ks,
    "qbe": _root("quesst14", "datarc.dataset_root"),
    "sid": _root("voxceleb1", "datarc.file_path"),
    "asv": _root("voxceleb1", "datarc.file_path"),
    "sd": _sd,
    "ic": _root("fluent_speech_commands", "datarc.file_path"),
    "sf": _sf,
    "er": _er,
    "se": _se,
}
