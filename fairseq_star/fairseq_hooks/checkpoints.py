"""A run's checkpoints: written whole or not at all, and a damaged last one is replaced by the one before.

fairseq asks a task nothing about its checkpoints, so this module takes the place of four of its functions, in
``fairseq.checkpoint_utils`` alone; of those that write, only from the moment a ``star_distillation`` run looks for its
checkpoint.
"""

import contextlib
import functools
import glob
import logging
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from fairseq import checkpoint_utils
from omegaconf import DictConfig, OmegaConf

from fairseq_star.checkpoint import num_updates, read_checkpoint
from fairseq_star.errors import StarError, exit_on_star_error
from fairseq_star.fairseq_hooks.carried import report_carried
from fairseq_star.fairseq_hooks.preflight import LAST, Start, check_options, check_save_dir, starting_point
from fairseq_star.fairseq_hooks.resuming import PARTS, check_start, mismatch_is_star_error
from fairseq_star.fairseq_hooks.run_lock import lock_run_folder
from fairseq_star.fairseq_hooks.shared_memory import check_shared_memory
from fairseq_star.fairseq_hooks.stopping import end_loading_at_exit, stop_on_request
from fairseq_star.formats import hub
from fairseq_star.runtime.files import replacing
from fairseq_star.runtime.host import settle_on_host
from fairseq_star.runtime.job import free_disk
from fairseq_star.runtime.signals import handle_signals_on_a_stack_of_their_own
from fairseq_star.runtime.workers import rank_and_world_size

logger = logging.getLogger(__name__)

WAITS = (5, 20, 60)  # seconds between attempts on a disk that refuses; well below the 10 min other workers wait


def guard_runs(task_class: type) -> None:
    """Guard the runs of a task: safe saving, checks of options and checkpoint before loading, orderly exit.

    Only training calls ``fairseq.checkpoint_utils.load_checkpoint``: once, after trainer and task are built and before
    training data is read. For other tasks, such as fine-tuning, only the checkpoint's options are checked.
    """
    load = checkpoint_utils.load_checkpoint

    @functools.wraps(load)
    def load_checkpoint(cfg, trainer, **passthrough_args):
        handle_signals_on_a_stack_of_their_own()  # these three for fine-tuning as well
        end_loading_at_exit()
        ours = isinstance(trainer.task, task_class)
        settle_on_host(keep_memory=ours and not trainer.task.cfg.release_memory)
        with exit_on_star_error():
            if ours:
                check_options(trainer.cfg, trainer.get_criterion(), on_gpu=trainer.cuda or trainer.tpu)
            start = _on_first_rank(trainer, lambda: _find_start(cfg, trainer, ours))
        if not ours:
            return load(cfg, trainer, **passthrough_args)
        if not trainer.is_fsdp:
            save_safely()
        trainer.get_criterion().weights_alone = start is not None and start.weights_alone
        trainer.cfg.task.teacher = trainer.task.cfg.teacher  # with the commit of a HuggingFace id, into checkpoints
        stop_on_request(trainer.task.steps.stop)
        with exit_on_star_error(), mismatch_is_star_error(start):
            loaded = load(cfg, trainer, **passthrough_args)
        finished = trainer.get_num_updates()
        if trainer.cfg.optimization.max_update and finished >= trainer.cfg.optimization.max_update:
            # fairseq would make one more update each time, which a queue that starts jobs again does not want.
            logger.info(
                f"the run is finished: optimization.max_update={trainer.cfg.optimization.max_update} is reached"
            )
            raise SystemExit(0)
        with exit_on_star_error():
            check_shared_memory(trainer, loaded[1])
            report_carried(trainer, *loaded)
        return loaded

    @functools.wraps(checkpoint_utils.verify_checkpoint_directory)
    def verify_checkpoint_directory(save_dir: str) -> None:
        with exit_on_star_error():
            check_save_dir(save_dir)

    checkpoint_utils.verify_checkpoint_directory = verify_checkpoint_directory
    checkpoint_utils.load_checkpoint = load_checkpoint


def _find_start(cfg: DictConfig, trainer, ours: bool) -> Start | None:
    start = starting_point(cfg, trainer.checkpoint_suffix)
    if ours and not cfg.no_save:
        lock_run_folder(cfg.save_dir)
    if ours and not trainer.is_fsdp:  # whose checkpoints are in pieces
        check_checkpoint(cfg.save_dir, cfg.restore_file, trainer.checkpoint_suffix)
        if start is not None:
            check_start(start, trainer)
    return start


def _on_first_rank(trainer, find: Callable[[], Start | None]) -> Start | None:
    """Return or raise on all workers what ``find`` does on the first: it may move files that the others would read, and
    a worker that ended alone would leave the others waiting."""
    found = [None, None]
    if trainer.data_parallel_rank == 0:
        try:
            found[0] = find()
        except StarError as error:
            found[1] = str(error)
    if dist.is_available() and dist.is_initialized():
        dist.broadcast_object_list(found)
    if found[1] is not None:
        raise StarError(found[1])
    return found[0]


def check_checkpoint(save_dir: str, restore_file: str, suffix: str = "") -> None:
    """Check that the checkpoint a run will start from is whole; replace a damaged last one by the newest whole one.

    Half-written files of a run that was killed while it saved are removed.

    Raises:
        StarError: it is damaged and there is no other, or it was named by ``checkpoint.restore_file``.
    """
    folder = glob.escape(save_dir)
    for unfinished in glob.glob(os.path.join(folder, f"checkpoint*{suffix}.pt.tmp")):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
    if restore_file != LAST:
        if os.path.isfile(restore_file):
            read_checkpoint(restore_file, "checkpoint.restore_file")
        return
    last = os.path.join(save_dir, f"checkpoint_last{suffix}.pt")
    if not os.path.isfile(last) or (fault := _fault(last)) is None:
        return
    others = glob.glob(os.path.join(folder, f"checkpoint*{suffix}.pt"))
    for other in sorted(set(others) - {last}, key=os.path.getmtime, reverse=True):
        if _fault(other) is None:
            updates = num_updates(read_checkpoint(other, "checkpoint"))
            os.replace(last, f"{last}.damaged")
            copy_atomically(other, last)
            logger.error(
                f"{fault}; it was renamed to {os.path.basename(last)}.damaged, and the run goes on from "
                f"{os.path.basename(other)} at update {updates:,}"
            )
            return
    raise StarError(f"{fault}; {save_dir} holds no other whole checkpoint: restore it, or remove it to begin anew")


def _fault(path: str) -> str | None:
    try:
        state = read_checkpoint(path, "checkpoint")
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()  # torch itself does not compare the checksums it writes
    except StarError as error:
        return str(error).partition("; ")[0]
    except zipfile.BadZipFile:  # torch's format of before 1.6, without checksums
        wrong = None
    if wrong:
        return f"checkpoint: {path} is damaged (the checksum of {wrong} is wrong)"
    return None if state.keys() >= PARTS and state["optimizer_history"] else f"checkpoint: {path} lacks parts of a run"


def kept_teacher(save_dir: str, restore_file: str) -> str | None:
    """Return ``task.teacher`` of the checkpoint that a run would start from; None where there is no whole one."""
    paths = [restore_file]
    if restore_file == LAST:
        others = glob.glob(os.path.join(glob.escape(save_dir), "checkpoint*.pt"))  # of which one stands in for it
        paths = [os.path.join(save_dir, restore_file), *sorted(others, key=os.path.getmtime, reverse=True)]
    for path in paths:
        try:
            cfg = OmegaConf.create(read_checkpoint(path, "checkpoint").get("cfg") or {})
        except StarError:
            continue
        return OmegaConf.select(cfg, "task.teacher")
    return None


def run_teacher(cfg: DictConfig) -> str:
    """Return ``task.teacher``; of a HuggingFace id with the commit that the run in ``save_dir`` began with, if any.

    Args:
        cfg: the task's options.

    Raises:
        StarError: none is given.
    """
    name = cfg.teacher
    if not name:
        raise StarError("task.teacher: give the teacher's checkpoint, such as task.teacher=hubert_base_ls960.pt")
    if rank_and_world_size()[0] == 0 and hub.names_moving(name) and cfg.save_dir:
        return hub.follow_run(name, kept_teacher(cfg.save_dir, cfg.restore_file))
    return name


def save_safely() -> None:
    """Make fairseq write checkpoints to a temporary file first, and wait for a full disk."""
    persistent_save, paths = checkpoint_utils.torch_persistent_save, checkpoint_utils.PathManager

    @functools.wraps(persistent_save)
    def torch_persistent_save(obj, filename, async_write: bool = False):
        if async_write or paths.path_requires_pathmanager(filename):
            return persistent_save(obj, filename, async_write)
        return save_atomically(obj, filename)

    class SafePathManager(paths):
        @staticmethod
        def copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
            if any(paths.path_requires_pathmanager(path) for path in (src_path, dst_path)):
                return paths.copy(src_path, dst_path, overwrite)
            with exit_on_star_error():
                return copy_atomically(src_path, dst_path)

    checkpoint_utils.torch_persistent_save = torch_persistent_save
    checkpoint_utils.PathManager = SafePathManager


def save_atomically(state: dict, path: str) -> None:
    """Save a checkpoint; the previous file stays until the new one is whole.

    Ends the program in one line when the disk goes on refusing.
    """
    with exit_on_star_error():
        _write(path, lambda temporary: torch.save(state, temporary))


def copy_atomically(source: str, path: str) -> bool:
    """Copy a checkpoint likewise.

    Raises:
        StarError: the disk goes on refusing.
    """
    _write(path, lambda temporary: shutil.copyfile(source, temporary))
    return True


def _write(path: str, write: Callable[[Path], object]) -> None:
    """Call ``write`` for ``path``, and again after a wait where the disk is full."""
    for wait in (*WAITS, None):
        try:
            # fairseq's own name for it, by which the leftover of a killed run is found.
            with replacing(path, temporary=f"{path}.tmp", sync=True) as temporary:
                write(temporary)
            return
        except (OSError, RuntimeError) as error:  # the latter is what torch makes of a full disk
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            free = free_disk(os.path.dirname(path) or ".")
            failure = f"{path} cannot be written ({reason}; {free / 1e9:,.2f} GB are free there)"
            if wait is None:
                raise StarError(
                    f"{failure}; what was saved before is whole: make room and give the same command again"
                ) from error
            logger.error(f"{failure}; trying again in {wait} s: make room")
            time.sleep(wait)
