"""A HuggingFace folder read with care: JSON of limited size, safetensors, or ``weights_only`` pickles; never code.

Nothing but the files' own names is followed: an index that points out of its folder is refused. Needs ``safetensors``
(extra ``hf``) where the weights are of that kind; transformers is not needed.
"""

import json
import os
import struct
from typing import Any

from torch import Tensor

from fairseq_star.errors import StarError
from fairseq_star.formats.checkpoint import read_checkpoint

CONFIG = "config.json"
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"  # either may hold the audio format
# In transformers' own order.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
MAX_JSON_BYTES = 16 * 2**20  # an index of the largest models is well under 1 MB


def teacher_files(path: str, option: str = "task.teacher") -> list[str]:
    """Every file that a teacher consists of: ``path`` itself, or a folder's configs and weights, in a fixed order.

    Whoever must tell two teachers apart (the teacher cache) has to look at all of them.

    Raises:
        StarError: a folder without weights, or with an index that cannot be read.
    """
    if not os.path.isdir(path):
        return [path]
    names = [name for name in (CONFIG, PREPROCESSOR, PROCESSOR) if os.path.isfile(os.path.join(path, name))]
    return [os.path.join(path, name) for name in names] + weight_files(path, option)


def weight_files(folder: str, option: str) -> list[str]:
    """The files of a folder's weights; those of an index in alphabetical order.

    Raises:
        StarError: none are there, the index is unsound, or a file it names is missing.
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
        suffix = name.split(".")[1]
        for shard in sorted(set(shards.values())):
            if os.path.basename(shard) != shard or not shard.endswith("." + suffix):
                raise StarError(
                    f"{option}: {path} names {shard[:80]!a}, which is no {suffix} file of that folder; refused"
                )
            if not os.path.isfile(os.path.join(folder, shard)):
                raise StarError(f"{option}: {folder} lacks {shard!a}, a part of its weights; download it again")
        return [os.path.join(folder, shard) for shard in sorted(set(shards.values()))]
    raise StarError(
        f"{option}: {folder} has a {CONFIG} but no weights; put {WEIGHT_FILES[0]} or {WEIGHT_FILES[2]} there"
    )


def read_weights(folder: str, option: str) -> dict[str, Tensor]:
    """All weights of a folder under HuggingFace's names, on the CPU.

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
    """A JSON object from a file.

    Raises:
        StarError: not there, too large, no JSON, or JSON but no object.
    """
    try:
        if os.path.getsize(path) > MAX_JSON_BYTES:
            raise StarError(f"{option}: {path} is too large to be a {os.path.basename(path)}; download it again")
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except FileNotFoundError as error:
        raise StarError(f"{option}: {path} is not there; download it again") from error
    except (ValueError, RecursionError, OSError) as error:
        if isinstance(error, StarError):
            raise
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
        raise StarError(f"{option}: {path} is damaged, no sound safetensors file; download it again") from error


def _check_whole(path: str, option: str) -> None:
    """Tell a half-downloaded file from one that never was safetensors: its header says how long it must be."""
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
            return  # safetensors' own reader finds it unsound
    if size < whole:
        raise StarError(f"{option}: {path} is truncated ({size:,} bytes of {whole:,}); download it again")
