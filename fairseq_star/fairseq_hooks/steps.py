"""Training and validation steps with checks: bad audio, losses that are not finite, chunk sizes, speed, SIGTERM."""

from collections.abc import Callable, Sequence

import torch
from omegaconf import DictConfig
from torch import nn

from fairseq_star.data.augment.chunks import in_drawn_chunks
from fairseq_star.data.bad_audio import BadAudio, stand_in, without_counts
from fairseq_star.data.long_recordings import out_of_memory_is_star_error
from fairseq_star.errors import exit_on_star_error
from fairseq_star.fairseq_hooks.loss_watch import LossWatch, second_look
from fairseq_star.fairseq_hooks.silent_additions import SilentAdditions
from fairseq_star.fairseq_hooks.stopping import StopRequest
from fairseq_star.fairseq_hooks.throughput import TRAINED, Throughput
from fairseq_star.losses.batch import unwrapped
from fairseq_star.teacher.provider import TeacherProvider


class Steps:
    """Runs fairseq's own steps of a task and extends their logging outputs.

    Args:
        cfg: the task's options.

    Raises:
        StarError: an option out of range.
    """

    def __init__(self, cfg: DictConfig):
        self.cfg = cfg
        self.bad_audio = BadAudio(str(cfg.on_bad_audio), cfg.max_bad_share)
        self.losses, self.throughput, self.stop = LossWatch(), Throughput(), StopRequest()
        self.silent = SilentAdditions()

    def begin_epoch(self, model: nn.Module) -> None:
        """Reset the counts; measure, once, the device's speed."""
        self.bad_audio.begin_pass()
        self.silent.begin_pass()
        weight = next(model.parameters())
        precision = torch.float16 if self.cfg.amp else weight.dtype
        self.throughput.begin(weight.device, precision, int(self.cfg.max_update or 0))

    def train(
        self,
        step: Callable[..., tuple],
        provider: TeacherProvider,
        sample: dict,
        model: nn.Module,
        criterion: nn.Module,
        optimizer,
        update_num: int,
        ignore_grad: bool,
    ) -> tuple | None:
        """Run ``step``, fairseq's ``train_step`` of the task, on a batch.

        Where fairseq passes a batch again because its update had no finite gradient, only the utterances are named.
        """
        sample = in_drawn_chunks(sample, unwrapped(model).config.chunk_frames, self.cfg.seed, update_num)
        if second_look():
            with exit_on_star_error():
                self.losses.find_utterance(update_num, sample, model, criterion, provider.encoder.geometry)
            return None  # fairseq makes no use of it

        def trained(sample: dict, counts: bool) -> tuple:
            # Without audio a worker's gradient is 0, and the others wait for it.
            result = step(sample, model, criterion, optimizer, update_num, ignore_grad or not counts)
            self.losses.remember(update_num, sample["paths"], result[0])
            self.throughput.count(unwrapped(model).config, sample["num_samples"], TRAINED)
            self.throughput.end_update(update_num)
            return result

        return self._run(trained, provider, sample, model)

    def validate(
        self, step: Callable[..., tuple], provider: TeacherProvider, sample: dict, model: nn.Module, criterion
    ) -> tuple:
        """Run ``step``, fairseq's ``valid_step`` of the task, on a batch."""
        return self._run(lambda sample, _: step(sample, model, criterion), provider, sample, model)

    def _run(
        self, step: Callable[[dict, bool], tuple], provider: TeacherProvider, sample: dict, model: nn.Module
    ) -> tuple:
        """Run ``step`` on a batch, or on a stand-in that counts nothing where no utterance of it could be read."""
        teacher = provider.encoder
        with exit_on_star_error():
            bad = self.bad_audio.report(sample)
        counts = "net_input" in sample
        if not counts:
            sample = stand_in(teacher.geometry, model, masked=bool(self.cfg.mask_prob))
        with exit_on_star_error(), out_of_memory_is_star_error(sample, teacher.sample_rate):
            loss, sample_size, log = step(sample, counts)
        self.throughput.add(provider.take_macs())
        silent = self.silent.report(sample)
        own = {
            "bad_audio": bad,
            SilentAdditions.KEY: silent,
            StopRequest.KEY: self.stop.wished,
            Throughput.KEY: self.throughput.take(),
        }
        # Every worker's has the same keys.
        return loss, sample_size if counts else 0, (log if counts else without_counts(log)) | own

    def reduce(self, logging_outputs: Sequence[dict], provider: TeacherProvider, *, training: bool) -> None:
        """Log, and act on, an update's sums over all workers.

        Raises:
            StarError: too much of the audio is bad.
        """
        frames = sum(log.get("ntokens", 0) for log in logging_outputs)
        if training:
            teacher = provider.encoder
            self.silent.reduce(logging_outputs)
            self.throughput.reduce(logging_outputs, frames * teacher.geometry.downsample_rate / teacher.sample_rate)
        self.stop.reduce(logging_outputs)
        self.bad_audio.reduce(logging_outputs)
