"""Temporal Gram matrices of teacher and student as images in TensorBoard, drawn during a run."""

import os

import torch
from fairseq.criterions import FairseqCriterion
from fairseq.logging import metrics
from torch import nn

from fairseq_star.data.augment.student import teacher_source
from fairseq_star.errors import StarError
from fairseq_star.manifest import SAMPLE_RATE
from fairseq_star.plots.heatmaps import draw_map
from fairseq_star.plots.matrices import MAX_SECONDS, LayerMaps, UtteranceMaps, choose_layers, tgm
from fairseq_star.plots.style import DPI, LIGHT, require_matplotlib, themed
from fairseq_star.teacher.provider import TeacherProvider

SHOWN = ("teacher", "student", "difference")


class TensorboardMaps:
    """Writer of heat maps of one utterance, the manifest's longest, in every n-th validation.

    Draws the student's first, middle and last layer and the teacher layers matched with them, as
    ``tgm_layer03/student`` and so on in ``{logdir}/tgm_maps``, on the first of several workers alone. Costs a forward
    pass of teacher and student on at most 8 s of clean audio and about a second of drawing; training is unaffected, no
    random number is drawn.

    Args:
        every: n, counted from the first validation; 0: never.
        logdir: ``common.tensorboard_logdir``.

    Raises:
        StarError: ``every`` is negative, there is no ``logdir``, or TensorBoard or matplotlib is missing.
    """

    def __init__(self, every: int, logdir: str | None):
        self.every, self.validations, self.writer = every, 0, None
        self.due = False
        if every < 0:
            raise StarError(f"task.log_tgm_maps={every} must be 0 or more")
        if not every:
            return
        if not logdir:
            raise StarError("task.log_tgm_maps needs a folder for its images: set common.tensorboard_logdir")
        require_matplotlib()
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise StarError("task.log_tgm_maps needs TensorBoard: pip install 'fairseq-star[report]'") from error
        self.logdir = os.path.join(logdir, "tgm_maps")

    def begin_validation(self, model: nn.Module) -> None:
        """Note that a validation begins; ``model`` is the student, not wrapped for DDP."""
        self.model = model
        first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        self.due = bool(self.every) and self.validations % self.every == 0 and first
        self.validations += 1

    @torch.no_grad()
    def draw(self, provider: TeacherProvider, criterion: FairseqCriterion, sample: dict) -> None:
        """Draw the first batch of a validation, if maps are due; call it for every batch, the student in eval mode.

        Args:
            provider: of the teacher's states.
            criterion: names the matched layers (``teacher_layers``).
            sample: a batch of :class:`fairseq_star.data.dataset.DistillationDataset`.
        """
        if not self.due:
            return
        self.due = False
        longest = int(MAX_SECONDS * SAMPLE_RATE)
        source = teacher_source(sample)[:1, : min(sample["num_samples"][0], longest)]
        teacher = provider.encode({"net_input": {"source": source}, "num_samples": [source.size(1)]})
        student = self.model(source, frames=teacher.frames)
        samples = source[0].float().cpu()

        def maps(layer: int) -> LayerMaps:
            matched = criterion.teacher_layers[layer - 1]
            states = teacher.hidden_states[matched][0], student.hidden_states[layer][0]
            return LayerMaps(layer, matched, *(tgm(one).cpu().numpy() for one in states))

        utterance = UtteranceMaps(
            name="",
            samples=(samples / samples.abs().max().clamp_min(1e-8)).numpy(),
            geometry=provider.encoder.geometry,
            phones=[],
            transcript="",
            layers=[maps(layer) for layer in choose_layers(len(criterion.teacher_layers), None)],
        )
        self._write(utterance)

    def _write(self, utterance: UtteranceMaps) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = self.writer or SummaryWriter(self.logdir)
        # The trainer logs its number of updates; outside of training there is none.
        counted = metrics.get_meter("train", "num_updates")
        num_updates = int(counted.val) if counted is not None else 0
        with themed(LIGHT):
            for layer in utterance.layers:
                for which in SHOWN:
                    figure = draw_map(LIGHT, utterance, layer, which)
                    figure.set_dpi(DPI)
                    self.writer.add_figure(f"tgm_layer{layer.student_layer:02d}/{which}", figure, num_updates)
        self.writer.flush()
