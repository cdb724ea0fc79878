"""Teachers by their HuggingFace id, ``owner/name`` or ``owner/name@revision``: found in the cache or fetched there.

``huggingface_hub`` (extra ``hf``) does it, by its own settings: ``HF_HOME``, ``HF_HUB_OFFLINE``, ``HF_ENDPOINT``,
``HF_TOKEN``. Only what a teacher is read from is fetched: configs, and weights in one format; never code.
"""

import logging
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from fairseq_star.errors import StarError
from fairseq_star.formats.hf_folder import CONFIG, PREPROCESSOR, PROCESSOR, WEIGHT_FILES, teacher_files

logger = logging.getLogger(__name__)

AUDIO_FORMATS = (PREPROCESSOR, PROCESSOR)
# As the hub has them; anything else is a path: deeper, absolute or relative ones, and names of weight files.
_ID = re.compile(
    r"(?![^@]*(--|\.\.))(?!\S+\.(?i:pt|pth|th|ckpt|bin|safetensors|onnx|json|yaml|zip|tar|gz)$)"
    r"(?P<repo>[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)(@(?P<revision>\w[\w./+-]*))?",
    re.ASCII,
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
PATIENCE = timedelta(hours=12)  # of the workers that wait for a download; torch's own is 10 minutes


@dataclass(frozen=True)
class Located:
    """Where a teacher is."""

    name: str  # as the user gave it; an id as owner/name@commit, which names the same files for ever
    path: str  # its file or folder on this machine


def locate(name: str, option: str) -> Located:
    """Where on this machine the teacher ``name`` is: itself if it is a path, fetched first if it is an id.

    What exists as a file or folder is a path. What does not exist and cannot be an id is given back as it is.

    Args:
        name: a path, or ``owner/name``, with ``@`` and a branch, tag or commit of it; the branch ``main`` when not.
        option: what the user calls it, for messages.

    Raises:
        StarError: no such model or revision, no right to it, no teacher in it, or it cannot be fetched.
    """
    found = _parsed(name)
    if found is None:
        return Located(name, name)
    folder = _fetch(name, found["repo"], found["revision"] or "main", option)
    return Located(f"{found['repo']}@{os.path.basename(folder)}", folder)


def locate_together(name: str, option: str) -> Located:
    """:func:`locate` for all workers of a run, with one commit for all: whatever worker 0 finds for its ``name``.

    One worker of each machine fetches and the others wait for it; where it fails, all fail.

    Raises:
        StarError: as ``locate``, or ``name`` exists for some of the workers alone.
    """
    # By its form alone, so that all workers go the same way; a path needs no talk between them.
    if not (dist.is_available() and dist.is_initialized()) or _ID.fullmatch(os.fspath(name)) is None:
        return locate(name, option)
    group = dist.new_group(timeout=PATIENCE)

    def told_by_all(own: object) -> list:
        told = [None] * dist.get_world_size()
        dist.all_gather_object(told, own, group=group)
        return told

    try:
        machines, is_path = zip(*told_by_all((platform.node(), os.path.exists(name))), strict=True)
        if len(set(is_path)) > 1:
            raise StarError(f"{option}: {name} is there for some workers only; put it on every machine, or give its "
                            "whole path")  # fmt: skip
        rank = dist.get_rank()
        my_turn = 0 if rank == 0 else 1 if machines.index(machines[rank]) == rank else 2
        located = None
        for turn in range(3):
            fault = None
            if turn == my_turn:
                try:
                    located = locate(name, option)
                except StarError as error:
                    fault = str(error)
            names, faults = zip(*told_by_all((located and located.name, fault)), strict=True)
            if fault := next(filter(None, faults), None):
                raise StarError(fault)
            name = names[0]
        return located
    finally:
        dist.destroy_process_group(group)


def follow_run(name: str, kept: str | None) -> str:
    """``name``, or ``kept`` where that is a commit of the same model and ``name`` says none: its branch may have moved
    since."""
    asked, had = _ID.fullmatch(os.fspath(name)), _ID.fullmatch(kept or "")
    if not (asked and had) or asked["repo"] != had["repo"] or had["revision"] is None:
        return name
    logger.log(
        logging.WARNING if asked["revision"] else logging.INFO,
        f"teacher: {kept}, as in the run's checkpoint, wherever {name} points by now",
    )
    return kept


def names_moving(name: str) -> bool:
    """Whether ``name`` is an id, not a path, of what may change: a branch or tag, not a commit."""
    found = _parsed(name)
    return found is not None and not _COMMIT.fullmatch(found["revision"] or "main")


def is_id(name: str) -> bool:
    """Whether ``name`` is an id, not a path."""
    return _parsed(name) is not None


def _parsed(name: str) -> re.Match | None:
    return None if os.path.exists(name) else _ID.fullmatch(os.fspath(name))


def _fetch(name: str, repo: str, revision: str, option: str) -> str:
    """The folder of a revision in the client's cache, named by its commit; what it lacks is fetched."""
    try:
        from huggingface_hub import HfApi, constants, snapshot_download
    except ImportError as error:
        raise StarError(
            f"{option}: {name} is no file or folder here; to fetch it from HuggingFace, pip install 'fairseq-star[hf]'"
        ) from error
    try:
        folder = _cached(repo, revision, option) if _COMMIT.fullmatch(revision) else None
        # Whoever cached it may have had no use for its audio format, so one that lacks it is looked up again.
        if folder and any(os.path.isfile(os.path.join(folder, name)) for name in AUDIO_FORMATS):
            return folder
        info = HfApi().model_info(repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        wanted = _wanted([file.rfilename for file in info.siblings or ()], f"{option}: {repo}")
        folder = snapshot_download(repo, revision=revision, allow_patterns=wanted)
        for name in wanted:  # if the network fails within, it gives what there is
            os.stat(os.path.join(folder, name))
        return folder
    except StarError:
        raise
    except Exception as error:  # of the HTTP libraries and file systems beneath, which differ from version to version
        fault, is_final = _fault(error, name, repo, revision)
        if is_final or not (folder := _cached(repo, revision, option)):
            raise StarError(f"{option}: {fault}") from error
        logger.warning(f"{option}: taking {os.path.basename(folder)} of {repo} from the cache ({_reason(error)})")
        return folder


def _cached(repo: str, revision: str, option: str) -> str | None:
    """The folder of a revision in the cache, if it holds config and weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import LocalEntryNotFoundError

    try:
        # One file is asked for: some versions refuse a folder that does not hold all that is asked for.
        folder = snapshot_download(repo, revision=revision, allow_patterns=CONFIG, local_files_only=True)
        return folder if os.path.join(folder, CONFIG) in teacher_files(folder, option) else None
    except (LocalEntryNotFoundError, StarError):
        return None


def _wanted(names: Sequence[str], title: str) -> list[str]:
    """Of a repository's files those to fetch: of several formats of the weights the one that would be read."""
    if CONFIG not in names:
        raise StarError(f"{title} has no {CONFIG}; give the id of a transformers model, or download the checkpoint "
                        "that you want and give its path")  # fmt: skip
    weights = next((name for name in WEIGHT_FILES if name in names), None)
    if weights is None:
        raise StarError(f"{title} has neither {WEIGHT_FILES[0]} nor {WEIGHT_FILES[2]}; give the id of a model that has")
    stem, suffix, *index = weights.split(".")
    part = re.compile(rf"{stem}-\d+-of-\d+\.{suffix}")
    parts = [name for name in names if index and part.fullmatch(name)]
    return [CONFIG, *(name for name in AUDIO_FORMATS if name in names), weights, *parts]


def _fault(error: Exception, name: str, repo: str, revision: str) -> tuple[str, bool]:
    """What went wrong and how to mend it, and whether it holds for what is in the cache already too."""
    from huggingface_hub import constants, utils

    nowhere = f"{name} is no file or folder here, and"
    if isinstance(error, utils.GatedRepoError):
        return (
            f"access to {repo} is restricted; ask for it on {constants.ENDPOINT}/{repo}, then set HF_TOKEN or log in "
            "with `hf auth login`",
            True,
        )
    if isinstance(error, utils.RepositoryNotFoundError):
        return (
            f"{nowhere} there is no model {repo} on {constants.ENDPOINT}, or none that you may see; correct the path "
            "or the id, or set HF_TOKEN if it is private",
            True,
        )
    if isinstance(error, utils.RevisionNotFoundError):
        return f"{repo} has no revision {revision}; name a branch, a tag or a whole commit hash of it after the @", True
    if isinstance(error, utils.HFValidationError):
        return f"{nowhere} {repo} cannot be a HuggingFace id ({_reason(error)}); correct it", True
    if isinstance(error, utils.OfflineModeIsEnabled):
        return (
            f"{nowhere} {repo} at {revision} is not, or not wholly, in HuggingFace's cache ({constants.HF_HUB_CACHE}), "
            "which alone HF_HUB_OFFLINE allows; unset that once, or give a path",
            False,
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"{constants.ENDPOINT} refuses {repo} ({_reason(error)}); renew HF_TOKEN, or unset it", True
    if getattr(error, "errno", None) and not isinstance(error, (ConnectionError, TimeoutError, FileNotFoundError)):
        return (
            f"{repo} cannot be written to HuggingFace's cache {constants.HF_HUB_CACHE} ({_reason(error)}); make room "
            "there, or set HF_HUB_CACHE to another folder",
            True,
        )
    return (
        f"{nowhere} {repo} cannot be fetched from {constants.ENDPOINT} ({_reason(error)}); correct the path, or try "
        "again when the network is there",
        False,
    )


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(getattr(error, "strerror", None) or error).splitlines()]
    return f"{type(error).__name__}: {next(filter(None, lines), 'no message')}"[:200]
