"""Slicing as a whole: a student's first weights from its teacher and a few utterances.

The order is that of the encoder, and each step is computed with the student's own activations up to it: convolutions
and projection (``front_end.py``), residual channels and their scale (``stream.py``), positional convolution
(``positions.py``), then layer by layer attention, feed-forward part and norms (``layers.py``, ``norms.py``). Padding
never enters: utterances are processed alone. Formulas and sources: ``docs/slicing.md``.

Shapes: T frames, D and d widths of teacher and student, L layers.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from fairseq_star.encoder.frames import Frames
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.encoder.modules import SpeechEncoder
from fairseq_star.slicing.front_end import Pairs, slice_front_end
from fairseq_star.slicing.layers import LayerSlicer, LayerStates, run_layer
from fairseq_star.slicing.method import DEFAULT, Method
from fairseq_star.slicing.norms import fit_norm
from fairseq_star.slicing.positions import slice_positions
from fairseq_star.slicing.report import SlicingReport
from fairseq_star.slicing.shapes import check_fits
from fairseq_star.slicing.stream import Stream, choose_stream, gram_scales


@torch.no_grad()
def slice_student(
    teacher: FrozenEncoder,
    student: SpeechEncoder,
    sources: Sequence[Tensor],
    *,
    layers: Sequence[int],
    method: Method = DEFAULT,
) -> SlicingReport:
    """Give a student first weights sliced out of its teacher, in place.

    Args:
        teacher: of any family.
        student: narrower or as wide, with the teacher's convolution kernels, heads and kind of norms. A streaming one
            is fitted as it processes whole utterances.
        sources: audio of each utterance, 1-D, as the teacher takes it (normalized if the teacher's is).
        layers: the teacher layer (1-based) that each student layer learns from, rising.
        method: what is computed.

    Returns:
        What was sliced, what was not, and how much of the teacher's variance each state of the student leaves
        unexplained on ``sources``.

    Raises:
        StarError: a student that cannot be sliced out of this teacher.
    """
    check_fits(teacher.config, student.config)
    begun = time.perf_counter()
    training, chunk_frames = student.training, student.chunk_frames
    student.eval()
    student.chunk_frames = 0
    try:
        slicer = _Slicer(teacher.model, student, method)
        slicer.run(sources, layers)
    finally:
        student.chunk_frames = chunk_frames
        student.train(training)
    return SlicingReport(
        utterances=len(sources),
        seconds_of_audio=sum(map(len, sources)) / teacher.sample_rate,
        layers=list(slicer.taken),
        unexplained=slicer.unexplained,
        at_zero=slicer.at_zero,
        left_out=["relative position bias"] if teacher.config.relative_position else [],
        scale=(float(slicer.stream.scale.min()), float(slicer.stream.scale.max())),
        wall_seconds=time.perf_counter() - begun,
    )


class _Slicer:
    def __init__(self, teacher: SpeechEncoder, student: SpeechEncoder, method: Method):
        self.teacher, self.student, self.method = teacher, student, method
        self.unexplained: list[float] = []  # at each of the L+1 states
        self.at_zero: list[str] = []
        self.taken: list[int] = []  # teacher layers that were sliced
        self.stream: Stream

    def run(self, sources: Sequence[Tensor], layers: Sequence[int]) -> None:
        teacher, student, method = self.teacher, self.student, self.method
        self.stream = self._choose_stream(sources, layers)
        # A post-norm encoder's first norm brings the scales in; in a pre-norm one features have them already.
        entry = self.stream if teacher.encoder.layer_norm_first else self.stream.unscaled()
        features = slice_front_end(teacher, student, sources, entry, method)
        states, at_zero = slice_positions(teacher, student, features, entry, self.stream, method.ridge)
        self.at_zero += [at_zero] if at_zero else []
        states = self._scaled(states, student.encoder.layer_norm)
        self._count(states)
        first = 1
        pairs = list(zip(student.encoder.layers, layers, strict=True))
        for own, last in tqdm(pairs, "slicing", unit="layer", leave=False, disable=None):
            states = self._layer(own, range(first, last + 1), states)
            states = self._scaled(states, own.final_layer_norm)
            self._count(states)
            first = last + 1
        if teacher.encoder.layer_norm_first:
            norm, their_norm = student.encoder.layer_norm, teacher.encoder.layer_norm
            fit_norm(norm, [(self.stream.of(their_norm(a)), b) for a, b in states])

    def _choose_stream(self, sources: Sequence[Tensor], layers: Sequence[int]) -> Stream:
        teacher, config = self.teacher, self.student.config
        numbers, states = [0, *layers], []
        for source in sources[: self.method.first_utterances]:
            frames = Frames.of(teacher.geometry, [len(source)], source[None])
            found = teacher.encode(source[None], frames, last_layer=layers[-1], **self._whole(teacher)).hidden_states
            states.append([found[number][0] for number in numbers])
        return choose_stream(states, config.embed_dim, config.conv_pos_groups, scaled=self.method.scale)

    @staticmethod
    def _whole(encoder: SpeechEncoder) -> dict[str, int]:
        return {"chunk_frames": 0} if encoder.config.chunk_frames else {}

    def _layer(self, own: torch.nn.Module, numbers: range, states: Pairs) -> Pairs:
        """Slice the best of the teacher's layers ``numbers`` (1-based), whose last one's output the student's shall be.

        Of several the one is taken that leaves least unexplained.
        """
        pre_norm = self.teacher.encoder.layer_norm_first
        by_layer: list[list[LayerStates]] = []
        inputs = [a for a, _ in states]
        for number in numbers:
            layer = self.teacher.encoder.layers[number - 1]
            found = [run_layer(layer, x, pre_norm, self.teacher.position_bias(len(x))) for x in inputs]
            by_layer.append(found)
            inputs = [one.output for one in found]
        student_inputs = [b for _, b in states]
        best: tuple[float, int, dict[str, Tensor], Pairs] | None = None
        for number, found in zip(numbers, by_layer, strict=True):
            slicer = LayerSlicer(
                self.teacher.encoder.layers[number - 1], own, self.stream, self.student.config.num_heads, pre_norm,
                self.method,
            )  # fmt: skip
            outputs = slicer.slice(found, by_layer[-1], student_inputs)
            pairs = list(zip(inputs, outputs, strict=True))
            left = self._left(pairs)
            if best is None or left < best[0]:
                weights = {key: value.clone() for key, value in own.state_dict().items()} if len(numbers) > 1 else {}
                best = left, number, weights, pairs
        _, number, weights, pairs = best
        if weights:
            own.load_state_dict(weights)
        self.taken.append(number)
        return pairs

    def _scaled(self, states: Pairs, norm: torch.nn.LayerNorm) -> Pairs:
        """Scale the channels of a post-norm encoder's state, by the norm that gives it, to the teacher's Gram matrices.

        What regression gives has less variance than what it is fitted to, and the channels left out are missing: both
        are made up for.
        """
        if self.teacher.encoder.layer_norm_first or not self.method.scale:
            return states
        scale = gram_scales(states)
        norm.weight.mul_(scale)
        norm.bias.mul_(scale)
        self.stream = self.stream.scaled(scale)
        return [(a, b * scale) for a, b in states]

    def _count(self, states: Pairs) -> None:
        self.unexplained.append(self._left(states))

    def _left(self, states: Pairs) -> float:
        """Share of the variance of the teacher's kept channels that the student's states leave unexplained."""
        wanted = [self.stream.of(a).double() for a, _ in states]
        mean = torch.cat(wanted).mean(0)
        left = sum((x - b).square().sum() for x, (_, b) in zip(wanted, states, strict=True))
        return float(left / sum((x - mean).square().sum() for x in wanted).clamp(min=1e-30))
