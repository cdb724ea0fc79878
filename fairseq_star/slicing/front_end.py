"""Convolutions and projection with fewer channels, refitted one after the other.

The first convolution's channels are some of the teacher's, unchanged. Each later one has fewer inputs than it was
trained on, so its weight is fitted by least squares: from the student's own input patches to the teacher's output
before norm and activation, on the chosen channels.

Shapes: C channels, T' time steps of a convolution, K its taps, T frames.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from fairseq_star.encoder.modules import SpeechEncoder
from fairseq_star.encoder.running_norm import RunningNorm, measure_statistics
from fairseq_star.slicing.method import Method
from fairseq_star.slicing.moments import Moments, fit_norm
from fairseq_star.slicing.selection import most_explaining, strongest_by_group
from fairseq_star.slicing.stream import Stream

Pairs = list[tuple[Tensor, Tensor]]
"""The teacher's and the student's activation at the same place, for each utterance."""


def slice_front_end(
    teacher: SpeechEncoder, student: SpeechEncoder, sources: Sequence[Tensor], stream: Stream, method: Method
) -> Pairs:
    """Slice the convolutions, the norm after them and the projection.

    Args:
        sources: audio of each utterance, 1-D, as the encoders take it.
        stream: channels of the projected features; of the last convolution too where no projection follows.

    Returns:
        Projected features: T x D of the teacher, T x d of the student.
    """
    teacher_blocks, blocks = teacher.feature_extractor.conv_layers, student.feature_extractor.conv_layers
    first_ones, others = sources[: method.first_utterances], sources[method.first_utterances :]
    inputs: Pairs = [(source[None], source[None]) for source in first_ones]  # C x T'
    first, in_channels = 0, torch.zeros(1, dtype=torch.long)  # `inputs` are those of block `first`
    for number, (teacher_block, block) in enumerate(zip(teacher_blocks, blocks, strict=True)):
        arriving = partial(_run_blocks, inputs, teacher_blocks[first:number], blocks[first:number])
        num_channels = block[0].out_channels
        if number == len(blocks) - 1 and student.post_extract_proj is None:
            channels = stream.channels
        elif num_channels == teacher_block[0].out_channels:
            channels = torch.arange(num_channels)
        else:
            last = number == len(blocks) - 1
            reader = teacher.post_extract_proj if last else teacher_blocks[number + 1][0]
            norm = teacher.layer_norm if last else nn.Identity()
            outputs = (norm(run_block(teacher_block, a).T).T for a, _ in arriving())
            channels = choose_channels(outputs, reader, num_channels, method)
        _fit_convolution(teacher_block, block, arriving, in_channels, channels, method)
        if number == 0:
            _set_statistics(teacher, student, sources, channels)
        in_channels = channels
        if number:  # the first convolution's output is by far the largest and cheap: recomputed rather than stored
            inputs = [(run_block(teacher_block, a), run_block(block, b)) for a, b in arriving()]
            first = number + 1
    inputs += _run_blocks([(source[None], source[None]) for source in others], teacher_blocks, blocks)
    return _project(teacher, student, [(a.T, b.T) for a, b in inputs], in_channels, stream, method)


def _set_statistics(teacher: SpeechEncoder, student: SpeechEncoder, sources: Sequence[Tensor], channels: Tensor):
    """Set the statistics of a streaming student's first norm: a streaming teacher's, else measured on ``sources``."""
    teacher_norm, norm = (norm_of(model.feature_extractor.conv_layers[0]) for model in (teacher, student))
    if isinstance(norm, RunningNorm) and isinstance(teacher_norm, RunningNorm):
        norm.mean.copy_(teacher_norm.mean[channels])
        norm.variance.copy_(teacher_norm.variance[channels])
    elif isinstance(norm, RunningNorm):
        measure_statistics(student.feature_extractor, sources)


def choose_channels(outputs: Iterable[Tensor], reader: nn.Module, count: int, method: Method) -> Tensor:
    """Choose the ``count`` channels of a convolution that best predict the output of the next module.

    Args:
        outputs: the teacher's input to ``reader`` for each utterance, C x T'.
        reader: the next convolution, or the projection.
    """
    taps, stride = (1, 1) if isinstance(reader, nn.Linear) else (reader.kernel_size[0], reader.stride[0])
    weight = reader.weight.flatten(1).double()  # Q x C K
    moments = Moments(weight.size(1), dtype=torch.float32)
    for output in outputs:
        moments.add(_patches(output, taps, stride, method.rows // 4))
    covariance = moments.covariance
    if method.greedy:
        return most_explaining(covariance, covariance @ weight.T, count, width=taps)
    energy = moments.second.diagonal() * weight.square().sum(0)
    return strongest_by_group(energy.view(-1, taps).sum(1), count)


def run_block(block: nn.Module, x: Tensor) -> Tensor:
    """Return the output of a block of fairseq's feature extractor (C x T') for one utterance."""
    return block(x[None])[0]


def _run_blocks(inputs: Pairs, teacher_blocks: nn.ModuleList, blocks: nn.ModuleList) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``inputs`` after these blocks of teacher and student, one utterance at a time."""
    for a, b in inputs:
        for teacher_block, block in zip(teacher_blocks, blocks, strict=True):
            a, b = run_block(teacher_block, a), run_block(block, b)
        yield a, b


def _patches(x: Tensor, taps: int, stride: int, at_most: int) -> Tensor:
    """Return a convolution's input patches on ``x`` (C x T'), about ``at_most`` evenly spread ones: patches x (C K)."""
    patches = x.unfold(1, taps, stride)  # C x T'' x K
    return patches[:, :: _step(patches.size(1), at_most)].transpose(0, 1).flatten(1)


def _step(places: int, at_most: int) -> int:
    return max(1, places // max(1, at_most))


def _fit_convolution(
    teacher_block: nn.Module,
    block: nn.Module,
    inputs: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    in_channels: Tensor,
    channels: Tensor,
    method: Method,
) -> None:
    """Set a block of the student, whose input and output channels are ``in_channels`` and ``channels`` of the
    teacher's."""
    teacher_convolution, convolution = teacher_block[0], block[0]
    prior = teacher_convolution.weight[channels][:, in_channels]
    convolution.weight.copy_(prior)
    if convolution.bias is not None:
        convolution.bias.copy_(teacher_convolution.bias[channels])
    if len(in_channels) > 1 and method.refit:
        taps, stride = convolution.kernel_size[0], convolution.stride[0]
        moments = Moments(prior[0].numel(), len(channels), method.products)
        for a, b in inputs():
            targets = run_block(teacher_convolution, a)[channels].T
            moments.add(_patches(b, taps, stride, method.rows), targets[:: _step(len(targets), method.rows)])
        moments.fit(method.convolution_ridge, prior.flatten(1)).copy_to(convolution)
    norm, teacher_norm = norm_of(block), norm_of(teacher_block)
    if norm is not None:
        _copy_norm(norm, teacher_norm, channels)
    if isinstance(norm, nn.LayerNorm):
        pairs = (
            (teacher_norm(run_block(teacher_convolution, a).T)[:, channels], run_block(convolution, b).T)
            for a, b in inputs()
        )
        fit_norm(norm, pairs)


def norm_of(block: nn.Module) -> nn.Module | None:
    """Return the group, layer or running norm of a block; None where it has none."""
    return next((one for one in block.modules() if isinstance(one, nn.GroupNorm | nn.LayerNorm | RunningNorm)), None)


def _copy_norm(norm: nn.Module, teacher_norm: nn.Module, channels: Tensor) -> None:
    norm.weight.copy_(teacher_norm.weight[channels])
    norm.bias.copy_(teacher_norm.bias[channels])


def _project(
    teacher: SpeechEncoder, student: SpeechEncoder, features: Pairs, channels: Tensor, stream: Stream, method: Method
) -> Pairs:
    """Set the norm and the projection after the convolutions, whose ``features`` (T x C) are ``channels`` of the
    teacher's; return the projected features."""
    norm, projection, teacher_projection = student.layer_norm, student.post_extract_proj, teacher.post_extract_proj
    if isinstance(teacher.layer_norm, nn.LayerNorm):
        _copy_norm(norm, teacher.layer_norm, channels)
    project = nn.Identity() if teacher_projection is None else teacher_projection
    projected = [project(teacher.layer_norm(a)) for a, _ in features]
    targets = [stream.to_student(x) for x in projected]
    if projection is None:
        fit_norm(norm, [(t, b) for t, (_, b) in zip(targets, features, strict=True)])
        return [(x, norm(b)) for x, (_, b) in zip(projected, features, strict=True)]
    inputs = [norm(b) for _, b in features]
    prior = None if teacher_projection is None else stream.rows_of(teacher_projection.weight)[:, channels]
    Moments.of(inputs, targets, method.products).fit(method.ridge, prior).copy_to(projection)
    return [(x, projection(b)) for x, b in zip(projected, inputs, strict=True)]
