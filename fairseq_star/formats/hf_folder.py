"""The files of a HuggingFace folder: JSON of limited size, and safetensors or ``weights_only`` pickles; never code.

No links to other places are followed: an index that points out of its folder is refused. Reading safetensors needs the
package ``safetensors`` (extra ``hf``); transformers is not needed.

transformers 5 writes the audio format into ``processor_config.json``, nested under ``feature_extractor``; before, it
had a file of its own, ``preprocessor_config.json``. Where both state it, the nested one counts, as in transformers.

Source: transformers, ``feature_extraction_utils.py`` (``get_feature_extractor_dict``).
"""

import json
import logging
import os
import struct
from typing import Any

from torch import Tensor

from fairseq_star.checkpoint import read_checkpoint
from fairseq_star.errors import StarError
from fairseq_star.formats.config import Section
from fairseq_star.manifest import SAMPLE_RATE

logger = logging.getLogger(__name__)

CONFIG = "config.json"
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"  # either may state the audio format
NESTED = ("feature_extractor", "audio_processor")
# The one kind that passes waveforms on; other kinds make spectrograms, or have other defaults.
EXTRACTOR_TYPE = "Wav2Vec2FeatureExtractor"
# In transformers' own order.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
MAX_JSON_BYTES = 16 * 2**20  # an index of the largest models is well under 1 MB


def teacher_files(path: str, option: str = "task.teacher") -> list[str]:
    """Return all files that make up a teacher: ``path`` itself, or a folder's configs and weights, in a fixed order.

    Raises:
        StarError: a folder without weights, or with an index that cannot be read.
    """
    if not os.path.isdir(path):
        return [path]
    names = [name for name in (CONFIG, PREPROCESSOR, PROCESSOR) if os.path.isfile(os.path.join(path, name))]
    return [os.path.join(path, name) for name in names] + weight_files(path, option)


def weight_files(folder: str, option: str) -> list[str]:
    """Return the files of a folder's weights; those of an index in alphabetical order.

    Raises:
        StarError: there are none, the index is damaged, or a file it names is missing.
    """
    for name in WEIGHT_FILES:
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            continue
        if not name.endswith(".json"):
            return [path]
        shards = read_json(path, option).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
            raise StarError(f"{option}: {path} has no weight_map of file names; download it again")
        suffix, parts = name.split(".")[1], sorted(set(shards.values()))
        for shard in parts:
            if os.path.basename(shard) != shard or not shard.endswith("." + suffix):
                raise StarError(
                    f"{option}: {path} names {shard[:80]!a}, which is no {suffix} file of that folder; refused"
                )
            if not os.path.isfile(os.path.join(folder, shard)):
                raise StarError(f"{option}: {folder} lacks {shard!a}, a part of its weights; download it again")
        return [os.path.join(folder, shard) for shard in parts]
    raise StarError(
        f"{option}: {folder} has a {CONFIG} but no weights; put {WEIGHT_FILES[0]} or {WEIGHT_FILES[2]} there"
    )


def read_weights(folder: str, option: str) -> dict[str, Tensor]:
    """Return all weights of a folder under HuggingFace's names, on the CPU.

    Raises:
        StarError: a file is missing, truncated, damaged or unsafe, or the same weight comes twice.
    """
    weights: dict[str, Tensor] = {}
    for path in weight_files(folder, option):
        part = _read_safetensors(path, option) if path.endswith(".safetensors") else read_checkpoint(path, option)
        if twice := part.keys() & weights.keys():
            raise StarError(
                f"{option}: {path} repeats {min(map(str, twice))[:80]!a} of another part; download all parts again"
            )
        weights |= part
    return weights


def read_json(path: str, option: str) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        StarError: no such file, too large, no JSON, or JSON but no object.
    """
    try:
        if os.path.getsize(path) > MAX_JSON_BYTES:
            raise StarError(f"{option}: {path} is too large to be a {os.path.basename(path)}; download it again")
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except StarError:
        raise
    except FileNotFoundError as error:
        raise StarError(f"{option}: {path} is not there; download it again") from error
    except (ValueError, RecursionError, OSError) as error:
        raise StarError(f"{option}: {path} is no readable JSON (truncated or damaged); download it again") from error
    if not isinstance(value, dict):
        raise StarError(f"{option}: {path} holds a {type(value).__name__} where an object is needed; download it again")
    return value


def _read_safetensors(path: str, option: str) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise StarError(f"{option}: {path} needs the package safetensors; pip install 'fairseq-star[hf]'") from error
    _check_whole(path, option)
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError, RuntimeError, OSError, OverflowError, AttributeError) as error:
        raise StarError(f"{option}: {path} is damaged, no valid safetensors file; download it again") from error


def _check_whole(path: str, option: str) -> None:
    """Refuse a partly downloaded file, by the length in its header, and one that never was safetensors."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(8)
        header_size = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        begins = file.read(1)
        if not size:
            raise StarError(f"{option}: {path} is an empty file; download it again")
        if begins != b"{" or header_size > 100 * 2**20:
            kind = "a Git LFS pointer; fetch the file with git lfs pull" if head == b"version " else (
                f"no safetensors file (it begins with {head!r}); download it again"
            )  # fmt: skip
            raise StarError(f"{option}: {path} is {kind}")
        try:
            header = json.loads(begins + file.read(header_size - 1)) if header_size < size else {}
            ends = [item["data_offsets"][1] for key, item in header.items() if key != "__metadata__"]
            whole = 8 + header_size + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return  # safetensors' own reader refuses it
    if size < whole:
        raise StarError(f"{option}: {path} is truncated ({size:,} bytes of {whole:,}); download it again")


def audio_format(folder: str, option: str, *, layer_norm_extractor: bool) -> tuple[int, bool]:
    """Return the sample rate in Hz and whether audio is brought to zero mean and unit variance (``do_normalize``).

    Where the folder does not state it: 16 kHz, normalized for layer-norm extractors, whose models were all trained so,
    and not for group-norm ones, where it makes no difference, because a group norm over time removes scale and offset.

    Raises:
        StarError: a file is unreadable, a value is impossible, or the model's input is no waveform.
    """
    audio = _extractor_settings(folder, option)
    if audio is None:
        logger.warning(
            f"{folder} has no {PREPROCESSOR} and no {PROCESSOR} that states its audio format: taking {SAMPLE_RATE} Hz, "
            f"normalize={layer_norm_extractor} after its extractor's kind"
        )
        return SAMPLE_RATE, layer_norm_extractor
    kind = audio.values.get("feature_extractor_type")
    if kind not in (None, EXTRACTOR_TYPE):
        raise StarError(
            f"{audio.name}: its audio goes through a {str(kind)[:60]!a}, where a teacher's input is waveforms "
            f"({EXTRACTOR_TYPE}); take another teacher"
        )
    # The defaults of transformers' Wav2Vec2FeatureExtractor.
    return audio.whole("sampling_rate", SAMPLE_RATE, at_most=1_000_000), audio.flag("do_normalize", True)


def _extractor_settings(folder: str, option: str) -> Section | None:
    path = os.path.join(folder, PROCESSOR)
    if os.path.isfile(path):
        processor = read_json(path, option)
        nested = next((processor[key] for key in NESTED if key in processor), None)
        if isinstance(nested, dict):
            return Section(nested, f"{option}: {path}")
        if nested is not None:
            raise StarError(
                f"{option}: {path} holds a {type(nested).__name__} where its feature extractor's settings are "
                "needed; download it again"
            )
    path = os.path.join(folder, PREPROCESSOR)
    return Section(read_json(path, option), f"{option}: {path}") if os.path.isfile(path) else None
