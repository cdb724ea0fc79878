"""``superb.yaml`` (the place of each corpus), and a check of each corpus before anything is trained on it.

corpora:
  librispeech: /data/LibriSpeech
  speech_commands: {train: /data/speech_commands_v0.01, test: /data/speech_commands_test_set_v0.01}
sizes: any            # corpora of other than the published numbers of files
settings:             # changes of s3prl's settings, by task; "all" for every task
  asr: {optimizer.lr: 1.0e-4}
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fairseq_star.audio.file import probe_audio
from fairseq_star.errors import StarError
from fairseq_star.manifest import SAMPLE_RATE
from fairseq_star.runtime.names import SUPERB_TASKS
from fairseq_star.superb.settings import flat

ALL = "all"
LIST = "wav.scp"  # Kaldi's, in place of a folder of audio
SAMPLED = 100  # files


@dataclass(frozen=True)
class Part:
    """Folder of a corpus."""

    folder: str
    pattern: str  # of its audio files
    published: int | None = None  # number of files


@dataclass(frozen=True)
class Corpus:
    """Corpus as s3prl reads it."""

    title: str
    home: str  # its source
    parts: tuple[Part, ...]
    files: tuple[str, ...] = ()  # required besides the audio
    sample_rate: int = SAMPLE_RATE


_KALDI = tuple(f"{part}/{name}" for part in ("train", "dev", "test")
               for name in (LIST, "segments", "utt2spk", "spk2utt", "reco2dur"))  # fmt: skip
_LIBRIMIX_HOME = "made from LibriSpeech by s3prl's fork of LibriMix: docs/superb.md of s3prl, section SD"
CORPORA = {
    "librispeech": Corpus(
        "LibriSpeech", "openslr.org/12",
        (Part("train-clean-100", "*/*/*.flac", 28_539), Part("dev-clean", "*/*/*.flac", 2703),
         Part("test-clean", "*/*/*.flac", 2620)),
    ),
    "speech_commands": Corpus(
        "Speech Commands v0.01",
        "download.tensorflow.org/data, speech_commands_v0.01 and speech_commands_test_set_v0.01",
        (Part("train", "[!_]*/*.wav", 64_721), Part("test", "*/*.wav", 3081)), ("train/_background_noise_",),
    ),
    "quesst14": Corpus(
        "QUESST 2014", "speech.fit.vutbr.cz/files/quesst14Database.tgz", (Part("Audio", "*.wav"),),
        ("scoring/language_key_utterances.lst", "scoring/language_key_dev.lst", "scoring/language_key_eval.lst"), 8000,
    ),
    "voxceleb1": Corpus(
        "VoxCeleb1", "robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html",
        (Part("dev/wav", "id*/*/*.wav", 148_642), Part("test/wav", "id*/*/*.wav", 4874)),
    ),
    "librimix": Corpus(
        "Libri2Mix, diarization", _LIBRIMIX_HOME,
        tuple(Part(part, LIST) for part in ("train", "dev", "test")),
        (*_KALDI, "test/rttm"),
    ),
    "fluent_speech_commands": Corpus(
        "Fluent Speech Commands", "fluent.ai, Fluent Speech Commands",
        (Part("wavs/speakers", "*/*.wav", 30_043),),
        ("data/train_data.csv", "data/valid_data.csv", "data/test_data.csv"),
    ),
    "snips": Corpus(
        "Audio SNIPS", "made by s3prl's preprocess/snips_prepare_data.sh, or the archive in s3prl's docs/superb.md",
        (Part("train", "*.wav"), Part("valid", "*.wav"), Part("test", "*.wav")), ("all.iob.snips.txt", "slots.txt"),
    ),
    "iemocap": Corpus(
        "IEMOCAP", "sail.usc.edu/iemocap, on request",
        tuple(Part(f"Session{number}/sentences/wav", "*/*.wav") for number in range(1, 6)),
        tuple(f"Session{number}/dialog/EmoEvaluation" for number in range(1, 6)),
    ),
    "voicebank": Corpus(
        "VoiceBank-DEMAND at 16 kHz", "datashare.ed.ac.uk/handle/10283/2791, resampled as s3prl's docs/superb.md says",
        tuple(Part(f"{kind}_{part}_wav_16k", "*.wav", count) for kind in ("clean", "noisy")
              for part, count in (("trainset_28spk", 11_572), ("testset", 824))),
    ),
}  # fmt: skip
# Corpora whose parts s3prl reads from a folder each, not below one root.
IN_PARTS = ("speech_commands", "librimix", "voicebank")
# Other names of folders, as archives unpack to.
ALIASES = {"train": ("speech_commands_v0.01",), "test": ("speech_commands_test_set_v0.01",)}


@dataclass(frozen=True)
class Description:
    """Content of a ``superb.yaml``."""

    places: dict[str, dict[str, Path]]  # corpus -> folder of each part, and "": its root
    any_size: bool = False
    settings: dict[str, dict[str, object]] = field(default_factory=dict)  # task -> dotted path -> value

    def folder(self, corpus: str) -> Path:
        return self.places[corpus][""]

    def part(self, corpus: str, name: str) -> Path:
        """Return the folder of a part: the one in the file, or by its name or an alias below the root."""
        places = self.places[corpus]
        if name in places:
            return places[name]
        aliases = (places[""] / alias for alias in ALIASES.get(name, ()))
        return next((folder for folder in aliases if folder.is_dir()), places[""] / name)


def read_description(path: Path) -> Description:
    """Read a ``superb.yaml``.

    Raises:
        StarError: missing, no YAML, or with an unknown name.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.create(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise StarError(f"--corpora {path}: cannot be read ({error.strerror}); name the superb.yaml") from error
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise StarError(f"{path}: is no YAML ({str(error).splitlines()[0]}); correct it") from error
    if not isinstance(content, dict) or not isinstance(content.get("corpora"), dict):
        raise StarError(f"{path}: has no 'corpora', a folder for each name; write 'corpora: {{librispeech: FOLDER}}'")
    _known(path, "", content, ("corpora", "sizes", "settings"))
    _known(path, "corpora.", content["corpora"], tuple(CORPORA))
    if content.get("sizes", "published") not in ("any", "published"):
        raise StarError(f"{path}: sizes must be 'any' or 'published', not {content['sizes']!r}")
    settings = content.get("settings") or {}
    _known(path, "settings.", settings, (ALL, *SUPERB_TASKS))
    return Description(
        places={name: _places(path, name, value) for name, value in content["corpora"].items()},
        any_size=content.get("sizes") == "any",
        settings={task: dict(flat(changes or {})) for task, changes in settings.items()},
    )


def _known(path: Path, where: str, content: object, names: tuple[str, ...]) -> None:
    for name in content if isinstance(content, Mapping) else [f"{content!r}"]:
        if name not in names:
            raise StarError(f"{path}: {where}{name} is not known; these are: {', '.join(names)}")


def _places(path: Path, name: str, value: object) -> dict[str, Path]:
    places = value if isinstance(value, dict) else {"": value}
    if not all(isinstance(place, str) for place in places.values()):
        raise StarError(f"{path}: corpora.{name} must be a folder, or a folder for each part; correct it")
    parts = [Path(part.folder).parts[0] for part in CORPORA[name].parts] if name in IN_PARTS else []
    for part in places:
        if part and part not in parts:
            where = f"a folder, or one for each of {', '.join(parts)}" if parts else "one folder, as s3prl reads it"
            raise StarError(f"{path}: corpora.{name}.{part}: must be {where}; correct it")
    base = path.parent.absolute()
    folders = {part: Path(os.path.normpath(base / Path(place).expanduser())) for part, place in places.items()}
    return {"": next(iter(folders.values())).parent, **folders}


def corpus_faults(name: str, description: Description) -> Iterator[str]:
    """Yield a sentence on each fault of a corpus: missing files and their source, counts, an unreadable file."""
    corpus = CORPORA[name]
    source = f"get {corpus.title} from: {corpus.home}"
    if name not in description.places:
        yield f"{name} is not in superb.yaml; {source}"
        return
    missing = [str(folder) for folder in _needed(name, description) if not folder.exists()]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        yield f"{name}: {missing[0]} is not there{others}; {source}"
        return
    for part in corpus.parts:
        folder = description.part(name, part.folder)
        if part.pattern == LIST:
            yield from _kaldi_faults(name, folder)
            continue
        files = sorted(folder.glob(part.pattern))
        if not files:
            yield f"{name}: {folder} has no {part.pattern}; unpack {corpus.title} again"
            continue
        if part.published not in (None, len(files)) and not description.any_size:
            yield (
                f"{name}: {folder} has {len(files):,} files, published were {part.published:,}; unpack it again, "
                "or set 'sizes: any' in superb.yaml for a corpus of your own"
            )
        yield from _unreadable(files[len(files) // 2], corpus.sample_rate)


def _needed(name: str, description: Description) -> Iterator[Path]:
    corpus = CORPORA[name]
    for path in (*(part.folder for part in corpus.parts), *corpus.files):
        first, *rest = Path(path).parts
        yield description.part(name, first).joinpath(*rest)


def _kaldi_faults(name: str, folder: Path) -> Iterator[str]:
    places = _listed(folder)
    if not places:
        yield f"{name}: {folder / LIST} lists nothing; prepare it again"
    elif not places[0].endswith("|"):  # "|" ends a command, which only s3prl runs
        yield from _unreadable(Path(places[len(places) // 2]), SAMPLE_RATE)


def _listed(folder: Path) -> list[str]:
    lines = (folder / LIST).read_text(encoding="utf-8").splitlines()
    return [line.split(maxsplit=1)[-1] for line in lines if line.strip()]


def _unreadable(path: Path, sample_rate: int) -> Iterator[str]:
    try:
        probe_audio(path, sample_rate)
    except StarError as error:
        yield str(error)


def audio_seconds(name: str, description: Description) -> float:
    """Estimate a corpus's audio from the durations of :data:`SAMPLED` files of each part; exact for Kaldi lists.

    Raises:
        StarError: a file cannot be read.
    """
    corpus, total = CORPORA[name], 0.0
    for part in corpus.parts:
        folder = description.part(name, part.folder)
        if part.pattern == LIST:
            lines = (folder / "reco2dur").read_text(encoding="utf-8").splitlines()
            total += sum(float(line.split()[1]) for line in lines if line.strip())
            continue
        files = sorted(folder.glob(part.pattern))
        chosen = files[:: max(1, len(files) // SAMPLED)]
        samples = [probe_audio(file, corpus.sample_rate, read_end=False) for file in chosen]
        total += len(files) * sum(samples) / (len(samples) * corpus.sample_rate)
    return total


def count_files(name: str, description: Description) -> dict[str, int]:
    """Count the files in each part of a corpus, or the lines of its list."""
    folders = {part: description.part(name, part.folder) for part in CORPORA[name].parts}
    return {
        part.folder: len(_listed(folder) if part.pattern == LIST else list(folder.glob(part.pattern)))
        for part, folder in folders.items()
    }
