"""Teachers by their HuggingFace id, ``owner/name`` or ``owner/name@revision``: cached, or downloaded first.

``huggingface_hub`` (extra ``hf``) downloads by its own settings: ``HF_HOME``, ``HF_HUB_OFFLINE``, ``HF_ENDPOINT``,
``HF_TOKEN``. Only the files that a teacher is read from are downloaded: configs, and weights in one format; never code.
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
# The form of the hub's ids; anything else is a path: deeper, absolute or relative ones, and names of weight files.
_ID = re.compile(
    r"(?![^@]*(--|\.\.))(?!\S+\.(?i:pt|pth|th|ckpt|bin|safetensors|onnx|json|yaml|zip|tar|gz)$)"
    r"(?P<repo>[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)(@(?P<revision>\w[\w./+-]*))?",
    re.ASCII,
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
WORKER_TIMEOUT = timedelta(hours=12)  # for workers that wait for a download; torch's own is 10 minutes


@dataclass(frozen=True)
class Located:
    """A teacher's name and its place on this machine."""

    name: str  # the path as given; an id as owner/name@commit, which always names the same files
    path: str  # its file or folder


def locate(name: str, option: str) -> Located:
    """Return where on this machine the teacher ``name`` is: itself if it is a path, downloaded first if it is an id.

    The name of an existing file or folder is a path. One that does not exist and cannot be an id is returned as it is.

    Args:
        name: a path, or ``owner/name``, with ``@`` and a branch, tag or commit of it; else the branch ``main``.
        option: the option that names it, for messages.

    Raises:
        StarError: no such model or revision, no right to it, no teacher in it, or it cannot be downloaded.
    """
    parsed = _parsed(name)
    if parsed is None:
        return Located(name, name)
    folder = _fetch(name, parsed["repo"], parsed["revision"] or "main", option)
    return Located(f"{parsed['repo']}@{os.path.basename(folder)}", folder)


def locate_together(name: str, option: str) -> Located:
    """Locate a teacher for all workers of a run, at one commit: the one that worker 0 gets for its ``name``.

    One worker of each machine downloads and the others wait for it; where it fails, all fail.

    Raises:
        StarError: as ``locate``, or ``name`` exists for some of the workers alone.
    """
    # By its form alone, so that all workers take the same branch; a path needs no communication.
    if not (dist.is_available() and dist.is_initialized()) or _ID.fullmatch(os.fspath(name)) is None:
        return locate(name, option)
    group = dist.new_group(timeout=WORKER_TIMEOUT)

    def gather(own: object) -> list:
        gathered = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, own, group=group)
        return gathered

    try:
        machines, is_path = zip(*gather((platform.node(), os.path.exists(name))), strict=True)
        if len(set(is_path)) > 1:
            raise StarError(
                f"{option}: {name} exists for some workers only; put it on every machine, or give its whole path"
            )
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
            names, faults = zip(*gather((located and located.name, fault)), strict=True)
            if fault := next(filter(None, faults), None):
                raise StarError(fault)
            name = names[0]
        return located
    finally:
        dist.destroy_process_group(group)


def follow_run(name: str, recorded: str | None) -> str:
    """Return ``recorded`` where it is a commit of the model ``name``, else ``name``.

    The run's checkpoint recorded it, and the branch in ``name`` may have moved since.
    """
    wanted, had = _ID.fullmatch(os.fspath(name)), _ID.fullmatch(recorded or "")
    if not (wanted and had) or wanted["repo"] != had["repo"] or had["revision"] is None:
        return name
    logger.log(
        logging.WARNING if wanted["revision"] else logging.INFO,
        f"teacher: {recorded}, as in the run's checkpoint, wherever {name} points by now",
    )
    return recorded


def names_moving(name: str) -> bool:
    """Return whether ``name`` is an id, not a path, and names a branch or tag, which may move, not a commit."""
    parsed = _parsed(name)
    return parsed is not None and not _COMMIT.fullmatch(parsed["revision"] or "main")


def is_id(name: str) -> bool:
    """Return whether ``name`` is an id, not a path."""
    return _parsed(name) is not None


def _parsed(name: str) -> re.Match | None:
    return None if os.path.exists(name) else _ID.fullmatch(os.fspath(name))


def _fetch(name: str, repo: str, revision: str, option: str) -> str:
    """Return the folder of a revision in the client's cache, named by its commit; missing files are downloaded."""
    try:
        from huggingface_hub import HfApi, constants, snapshot_download
    except ImportError as error:
        raise StarError(
            f"{option}: {name} is no file or folder here; to get it from HuggingFace, pip install 'fairseq-star[hf]'"
        ) from error
    try:
        folder = _cached(repo, revision, option) if _COMMIT.fullmatch(revision) else None
        # Other programs may have cached it without its audio format; then it is looked up again.
        if folder and any(os.path.isfile(os.path.join(folder, name)) for name in AUDIO_FORMATS):
            return folder
        info = HfApi().model_info(repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        wanted = _wanted([file.rfilename for file in info.siblings or ()], f"{option}: {repo}")
        folder = snapshot_download(repo, revision=revision, allow_patterns=wanted)
        for name in wanted:  # if the network fails meanwhile, the folder is incomplete
            os.stat(os.path.join(folder, name))
        return folder
    except StarError:
        raise
    except Exception as error:  # of HTTP libraries and file systems, which differ between versions
        fault, is_final = _fault(error, name, repo, revision)
        if is_final or not (folder := _cached(repo, revision, option)):
            raise StarError(f"{option}: {fault}") from error
        logger.warning(f"{option}: taking {os.path.basename(folder)} of {repo} from the cache ({_reason(error)})")
        return folder


def _cached(repo: str, revision: str, option: str) -> str | None:
    """Return the folder of a revision in the cache, if config and weights are in it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import LocalEntryNotFoundError

    try:
        # One file only: some versions refuse a folder that lacks any of the files requested.
        folder = snapshot_download(repo, revision=revision, allow_patterns=CONFIG, local_files_only=True)
        return folder if os.path.join(folder, CONFIG) in teacher_files(folder, option) else None
    except (LocalEntryNotFoundError, StarError):
        return None


def _wanted(names: Sequence[str], title: str) -> list[str]:
    """Return those of a repository's files to download: configs, and the format of the weights that would be read."""
    if CONFIG not in names:
        raise StarError(f"{title} has no {CONFIG}; give the id of a transformers model or the path of a checkpoint")
    weights = next((name for name in WEIGHT_FILES if name in names), None)
    if weights is None:
        raise StarError(f"{title} has neither {WEIGHT_FILES[0]} nor {WEIGHT_FILES[2]}; give the id of a model that has")
    stem, suffix, *index = weights.split(".")
    part = re.compile(rf"{stem}-\d+-of-\d+\.{suffix}")
    parts = [name for name in names if index and part.fullmatch(name)]
    return [CONFIG, *(name for name in AUDIO_FORMATS if name in names), weights, *parts]


def _fault(error: Exception, name: str, repo: str, revision: str) -> tuple[str, bool]:
    """Return the fault and what to do about it, and whether a copy in the cache must not be used either."""
    from huggingface_hub import constants, utils

    nowhere, server, cache = f"{name} is no file or folder here, and", constants.ENDPOINT, constants.HF_HUB_CACHE
    known = {  # a class before those it inherits from -> the fault, whether it is final
        utils.GatedRepoError: (
            f"access to {repo} is restricted; ask for it on {server}/{repo}, then set HF_TOKEN or log in with `hf auth "
            "login`",
            True,
        ),
        utils.RepositoryNotFoundError: (
            f"{nowhere} there is no model {repo} on {server}, or none that you may see; correct the path or the id, or "
            "set HF_TOKEN if it is private",
            True,
        ),
        utils.RevisionNotFoundError: (
            f"{repo} has no revision {revision}; name a branch, a tag or a whole commit hash of it after the @",
            True,
        ),
        utils.HFValidationError: (f"{nowhere} {repo} cannot be a HuggingFace id ({_reason(error)}); correct it", True),
        utils.OfflineModeIsEnabled: (
            f"{nowhere} {repo} at {revision} is not, or not wholly, in HuggingFace's cache ({cache}), which alone "
            "HF_HUB_OFFLINE allows; unset that once, or give a path",
            False,
        ),
    }
    for kind, fault in known.items():
        if isinstance(error, kind):
            return fault
    if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
        return f"{server} refuses {repo} ({_reason(error)}); renew HF_TOKEN, or unset it", True
    if getattr(error, "errno", None) and not isinstance(error, (ConnectionError, TimeoutError, FileNotFoundError)):
        return (
            f"{repo} cannot be written to HuggingFace's cache {cache} ({_reason(error)}); make room there, or set "
            "HF_HUB_CACHE to another folder",
            True,
        )
    return (
        f"{nowhere} {repo} cannot be downloaded from {server} ({_reason(error)}); correct the path, or try again when "
        "the network is there",
        False,
    )


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(getattr(error, "strerror", None) or error).splitlines()]
    return f"{type(error).__name__}: {next(filter(None, lines), 'no message')}"[:200]
