"""Slicing as a whole: initial weights of a student from its teacher and a few utterances.

The order is that of the encoder, and each step uses the student's own activations up to it: convolutions and projection
(``front_end.py``), residual channels and their scales (``stream.py``), positional convolution (``positions.py``), then
layer by layer attention, feed-forward part and norms (``layers.py``). Utterances are processed one at a time, without
padding. Formulas and sources: ``docs/slicing.md``.

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
from fairseq_star.slicing.moments import fit_norm
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
    """Set a student's initial weights, sliced from its teacher, in place.

    Args:
        teacher: of any family.
        student: at most as wide, with the teacher's convolution kernels, heads and kind of norms. A streaming one is
            fitted on whole utterances.
        sources: audio of each utterance, 1-D, as the teacher takes it (normalized if the teacher's is).
        layers: the teacher layer (1-based) that each student layer learns from, rising.
        method: other steps or constants, for benchmarks.

    Returns:
        The parts sliced and not sliced, and the share of the teacher's variance that each state of the student leaves
        unexplained on ``sources``.

    Raises:
        StarError: the student cannot be sliced from this teacher.
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
        layers=list(slicer.layers),
        unexplained=slicer.unexplained,
        at_zero=slicer.at_zero,
        left_out=["relative position bias"] if teacher.config.relative_position else [],
        scale=(float(slicer.stream.scale.min()), float(slicer.stream.scale.max())),
        wall_seconds=time.perf_counter() - begun,
    )


class _Slicer:
    def __init__(self, teacher: SpeechEncoder, student: SpeechEncoder, method: Method):
        self.teacher, self.student, self.method = teacher, student, method
        self.pre_norm: bool = teacher.encoder.layer_norm_first
        self.unexplained: list[float] = []  # at each of the L+1 states
        self.at_zero: list[str] = []
        self.layers: list[int] = []  # of the teacher, sliced
        self.stream: Stream

    def run(self, sources: Sequence[Tensor], layers: Sequence[int]) -> None:
        teacher, student, method = self.teacher, self.student, self.method
        self.stream = self._choose_stream(sources, layers)
        # A post-norm encoder's first norm applies the scales; a pre-norm one's features have them already.
        entry = self.stream if self.pre_norm else self.stream.unscaled()
        features = slice_front_end(teacher, student, sources, entry, method)
        states, at_zero = slice_positions(teacher, student, features, entry, self.stream, method.ridge)
        self.at_zero += [at_zero] if at_zero else []
        states = self._scaled(states, student.encoder.layer_norm)
        first = 1
        pairs = list(zip(student.encoder.layers, layers, strict=True))
        for own, last in tqdm(pairs, "slicing", unit="layer", leave=False, disable=None):
            states = self._scaled(self._layer(own, range(first, last + 1), states), own.final_layer_norm)
            first = last + 1
        if self.pre_norm:
            norm, teacher_norm = student.encoder.layer_norm, teacher.encoder.layer_norm
            fit_norm(norm, [(self.stream.to_student(teacher_norm(a)), b) for a, b in states])

    def _choose_stream(self, sources: Sequence[Tensor], layers: Sequence[int]) -> Stream:
        teacher, config = self.teacher, self.student.config
        whole = {"chunk_frames": 0} if teacher.config.chunk_frames else {}
        states = []
        for source in sources[: self.method.first_utterances]:
            frames = Frames.of(teacher.geometry, [len(source)], source[None])
            hidden_states = teacher.encode(source[None], frames, last_layer=layers[-1], **whole).hidden_states
            states.append([hidden_states[number][0] for number in (0, *layers)])
        return choose_stream(states, config.embed_dim, config.conv_pos_groups, scaled=self.method.scale)

    def _layer(self, own: torch.nn.Module, numbers: range, states: Pairs) -> Pairs:
        """Slice a layer of the student that stands for the teacher's layers ``numbers`` (1-based).

        Its target is the output of the last of them; it is sliced from the one that leaves least unexplained.
        """
        layers = [self.teacher.encoder.layers[number - 1] for number in numbers]
        by_layer: list[list[LayerStates]] = []
        inputs, student_inputs = [a for a, _ in states], [b for _, b in states]
        for layer in layers:
            by_layer.append([run_layer(layer, x, self.pre_norm, self.teacher.position_bias(len(x))) for x in inputs])
            inputs = [one.output for one in by_layer[-1]]
        best: tuple[float, int, dict[str, Tensor], Pairs] | None = None
        for number, layer, layer_states in zip(numbers, layers, by_layer, strict=True):
            slicer = LayerSlicer(layer, own, self.stream, self.student.config.num_heads, self.pre_norm, self.method)
            outputs = slicer.slice(layer_states, by_layer[-1], student_inputs)
            pairs = list(zip(inputs, outputs, strict=True))
            left = self._left(pairs)
            if best is None or left < best[0]:
                weights = {key: value.clone() for key, value in own.state_dict().items()} if len(numbers) > 1 else {}
                best = left, number, weights, pairs
        _, number, weights, pairs = best
        if weights:
            own.load_state_dict(weights)
        self.layers.append(number)
        return pairs

    def _scaled(self, states: Pairs, norm: torch.nn.LayerNorm) -> Pairs:
        """Scale the channels of a post-norm encoder's state, in the norm before it, to match the teacher's Gram
        matrices; append the state's share to ``unexplained``.

        The scales compensate for two losses: a regression's output has less variance than its target, and the left-out
        channels are missing.
        """
        if not self.pre_norm and self.method.scale:
            scale = gram_scales(states)
            norm.weight.mul_(scale)
            norm.bias.mul_(scale)
            self.stream = self.stream.scaled(scale)
            states = [(a, b * scale) for a, b in states]
        self.unexplained.append(self._left(states))
        return states

    def _left(self, states: Pairs) -> float:
        """Return the share of the variance of the teacher's chosen channels that the student's states do not
        explain."""
        targets = [self.stream.to_student(a).double() for a, _ in states]
        mean = torch.cat(targets).mean(0)
        left = sum((x - b).square().sum() for x, (_, b) in zip(targets, states, strict=True))
        return float(left / sum((x - mean).square().sum() for x in targets).clamp(min=1e-30))
