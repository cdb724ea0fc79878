"""The convolutions and the projection: fewer channels, refitted one after the other.

The first convolution's kept channels are the teacher's own. Each later one reads fewer channels than it was trained to,
so it is fitted by least squares: from the student's own input patches to the teacher's values before norm and
activation, of the kept channels.

Shapes: C channels, T' time steps of a convolution, K its taps, T frames.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from fairseq_star.encoder.modules import SpeechEncoder
from fairseq_star.encoder.running_norm import RunningNorm, measure_statistics
from fairseq_star.slicing.method import Method
from fairseq_star.slicing.moments import Moments
from fairseq_star.slicing.norms import fit_norm
from fairseq_star.slicing.selection import most_explaining, strongest_by_group
from fairseq_star.slicing.stream import Stream

Pairs = list[tuple[Tensor, Tensor]]
"""For each utterance, what the teacher has at one place and what the student has there."""


def slice_front_end(
    teacher: SpeechEncoder, student: SpeechEncoder, sources: Sequence[Tensor], stream: Stream, method: Method
) -> Pairs:
    """Slice the convolutions, the norm after them and the projection.

    Args:
        sources: audio of each utterance, 1-D, as the encoders take it.
        stream: of the projected features; of the last convolution too where no projection follows.

    Returns:
        Projected features: T x D of the teacher, T x d of the student.
    """
    theirs, own = teacher.feature_extractor.conv_layers, student.feature_extractor.conv_layers
    first_ones, others = sources[: method.first_utterances], sources[method.first_utterances :]
    inputs: Pairs = [(source[None], source[None]) for source in first_ones]  # C x T'
    first, kept = 0, torch.zeros(1, dtype=torch.long)  # blocks since `inputs`, which have the channels `kept`
    for number, (their_block, block) in enumerate(zip(theirs, own, strict=True)):
        arriving = partial(_arriving, inputs, theirs[first:number], own[first:number])
        num_channels = block[0].out_channels
        if number == len(theirs) - 1 and student.post_extract_proj is None:
            chosen = stream.channels
        elif num_channels == their_block[0].out_channels:
            chosen = torch.arange(num_channels)
        else:
            reader = theirs[number + 1][0] if number + 1 < len(theirs) else teacher.post_extract_proj
            norm = teacher.layer_norm if number + 1 == len(theirs) else nn.Identity()
            outputs = (norm(through(their_block, a).T).T for a, _ in arriving())
            chosen = choose_channels(outputs, reader, num_channels, method)
        _fit_convolution(their_block, block, arriving, kept, chosen, method)
        if number == 0:
            _set_statistics(teacher, student, sources, chosen)
        kept = chosen
        if number:  # what the first convolution gives is the largest by far and cheap: computed again, not kept
            inputs, first = [(through(their_block, a), through(block, b)) for a, b in arriving()], number + 1
    inputs += _arriving([(source[None], source[None]) for source in others], theirs, own)
    features = [(a.T, b.T) for a, b in inputs]  # T x C
    return _project(teacher, student, features, kept, stream, method)


def _set_statistics(teacher: SpeechEncoder, student: SpeechEncoder, sources: Sequence[Tensor], chosen: Tensor) -> None:
    """Set the corpus's statistics of a streaming student's first norm: a streaming teacher's own, else measured."""
    theirs, norm = (norm_of(one.feature_extractor.conv_layers[0]) for one in (teacher, student))
    if isinstance(norm, RunningNorm) and isinstance(theirs, RunningNorm):
        norm.mean.copy_(theirs.mean[chosen])
        norm.variance.copy_(theirs.variance[chosen])
    elif isinstance(norm, RunningNorm):
        measure_statistics(student.feature_extractor, sources)


def choose_channels(outputs: Iterable[Tensor], reader: nn.Module, count: int, method: Method) -> Tensor:
    """Choose ``count`` channels of a convolution: those from which what reads them is predicted best.

    Args:
        outputs: for each utterance what the reader takes of the teacher's, C x T'.
        reader: the next convolution, or the projection.
        count: channels to keep.
        method: whether they are weighed against each other.
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


def through(block: nn.Module, x: Tensor) -> Tensor:
    """Return the output of a block of fairseq's feature extractor (C x T') for one utterance."""
    return block(x[None])[0]


def _arriving(inputs: Pairs, theirs: nn.ModuleList, own: nn.ModuleList) -> Iterator[tuple[Tensor, Tensor]]:
    """``inputs`` after these blocks of teacher and student, one utterance at a time."""
    for a, b in inputs:
        for their_block, block in zip(theirs, own, strict=True):
            a, b = through(their_block, a), through(block, b)
        yield a, b


def _patches(x: Tensor, taps: int, stride: int, at_most: int) -> Tensor:
    """What a convolution sees of ``x`` (C x T') at about ``at_most`` places, evenly spread: places x (C K)."""
    patches = x.unfold(1, taps, stride)  # C x T'' x K
    return patches[:, :: _step(patches.size(1), at_most)].transpose(0, 1).flatten(1)


def _step(places: int, at_most: int) -> int:
    return max(1, places // max(1, at_most))


def _fit_convolution(
    theirs: nn.Module,
    own: nn.Module,
    inputs: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    kept: Tensor,
    chosen: Tensor,
    method: Method,
) -> None:
    """Set a block of the student: its channels are the teacher's ``chosen``, its input's the teacher's ``kept``."""
    their_convolution, convolution = theirs[0], own[0]
    prior = their_convolution.weight[chosen][:, kept]
    convolution.weight.copy_(prior)
    if convolution.bias is not None:
        convolution.bias.copy_(their_convolution.bias[chosen])
    if len(kept) > 1 and method.refit:
        taps, stride = convolution.kernel_size[0], convolution.stride[0]
        moments = Moments(prior[0].numel(), len(chosen), method.products)
        for a, b in inputs():
            values = their_convolution(a[None])[0][chosen].T
            values = values[:: _step(len(values), method.rows)]
            moments.add(_patches(b, taps, stride, method.rows), values)
        fitted = moments.fit(method.convolution_ridge, prior.flatten(1))
        convolution.weight.copy_(fitted.weight.view_as(prior))
        if convolution.bias is not None:
            convolution.bias.copy_(fitted.bias)
    norm, their_norm = norm_of(own), norm_of(theirs)
    if norm is not None:
        norm.weight.copy_(their_norm.weight[chosen])
        norm.bias.copy_(their_norm.bias[chosen])
    if isinstance(norm, nn.LayerNorm):
        pairs = (
            (their_norm(their_convolution(a[None])[0].T)[:, chosen], convolution(b[None])[0].T) for a, b in inputs()
        )
        fit_norm(norm, pairs)


def norm_of(block: nn.Module) -> nn.Module | None:
    """Return the group, layer or running norm of a block; None where it has none."""
    return next((one for one in block.modules() if isinstance(one, nn.GroupNorm | nn.LayerNorm | RunningNorm)), None)


def _project(
    teacher: SpeechEncoder, student: SpeechEncoder, features: Pairs, kept: Tensor, stream: Stream, method: Method
) -> Pairs:
    if isinstance(teacher.layer_norm, nn.LayerNorm):
        student.layer_norm.weight.copy_(teacher.layer_norm.weight[kept])
        student.layer_norm.bias.copy_(teacher.layer_norm.bias[kept])
    project = nn.Identity() if teacher.post_extract_proj is None else teacher.post_extract_proj
    projected = [project(teacher.layer_norm(a)) for a, _ in features]
    if student.post_extract_proj is None:
        fit_norm(student.layer_norm, [(stream.of(x), b) for x, (_, b) in zip(projected, features, strict=True)])
        return [(x, student.layer_norm(b)) for x, (_, b) in zip(projected, features, strict=True)]
    pairs = [(x, student.layer_norm(b)) for x, (_, b) in zip(projected, features, strict=True)]
    moments = Moments(len(kept), len(stream.channels), method.products)
    for x, b in pairs:
        moments.add(b, stream.of(x))
    prior = None if teacher.post_extract_proj is None else stream.writing(teacher.post_extract_proj.weight)[:, kept]
    fitted = moments.fit(method.ridge, prior)
    student.post_extract_proj.weight.copy_(fitted.weight)
    student.post_extract_proj.bias.copy_(fitted.bias)
    return [(x, student.post_extract_proj(b)) for x, b in pairs]
