"""Which students can be sliced out of a teacher, and how large one is that keeps to a budget.

How a budget is spent (measured in ``docs/slicing.md``): a width d of the teacher's D first, feed-forward parts of at
least :data:`LEAST_UNITS` (d/D)^2 of the teacher's units; then convolutions, of sqrt(d/D) of its channels if the budget
allows and of d/D at least, the last two, which cost few operations, of all; the rest for feed-forward units.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from fairseq_star.encoder.config import EncoderConfig
from fairseq_star.encoder.frames import ConvLayer
from fairseq_star.encoder.macs import SUPERB_UTTERANCES, macs_of_sizes
from fairseq_star.encoder.running_norm import RUNNING
from fairseq_star.errors import StarError

ALIKE = {
    "num_heads": "model.encoder_attention_heads",
    "conv_pos_groups": "model.conv_pos_groups",
    "layer_norm_first": "model.layer_norm_first",
    "activation_fn": "model.activation_fn",
    "conv_bias": "model.conv_bias",
}
"""Fields of :class:`EncoderConfig` that teacher and sliced student share -> the student's options."""
AT_MOST = {
    "embed_dim": "model.encoder_embed_dim",
    "ffn_embed_dim": "model.encoder_ffn_embed_dim",
    "num_layers": "model.encoder_layers",
}
LEAST_UNITS = 0.75
FRONT_ENDS = 9  # shares of channels that are tried
MULTIPLE = 8  # that convolutions' channels and feed-forward units are of


def check_fits(teacher: EncoderConfig, student: EncoderConfig) -> None:
    """Check that a student can be sliced out of a teacher.

    Raises:
        StarError: it is larger somewhere, or of another kind; the message names the option.
    """

    def refuse(option: str, value: object, wanted: object) -> StarError:
        return StarError(
            f"model.init=sliced: {option}={value} must be {wanted}: a sliced student is its teacher with fewer channels"
        )

    for one in (teacher, student):
        one.check_uniform("model.init=sliced")
    for name, option in ALIKE.items():
        wanted, value = getattr(teacher, name), getattr(student, name)
        if value != wanted:
            raise refuse(option, value, f"the teacher's {wanted}")
    kinds = [{RUNNING: "default"}.get(one.extractor_mode, one.extractor_mode) for one in (teacher, student)]
    if kinds[0] != kinds[1]:
        raise refuse("model.extractor_mode", student.extractor_mode, f"the teacher's {teacher.extractor_mode}")
    for name, option in AT_MOST.items():
        most, value = getattr(teacher, name), getattr(student, name)
        if value > most:
            raise refuse(option, value, f"at most the teacher's {most}")
    kernels = [[(layer.kernel, layer.stride) for layer in one.conv_layers] for one in (teacher, student)]
    if kernels[0] != kernels[1]:
        raise refuse(
            "model.conv_feature_layers", _spell(student), f"of the teacher's kernels and strides, {_spell(teacher)}"
        )
    channels = [(a.channels, b.channels) for a, b in zip(teacher.conv_layers, student.conv_layers, strict=True)]
    if any(own > theirs for theirs, own in channels):
        raise refuse("model.conv_feature_layers", _spell(student), f"no wider than the teacher's {_spell(teacher)}")
    if teacher.projection and not student.projection:
        raise StarError(
            f"model.init=sliced: the last of model.conv_feature_layers has model.encoder_embed_dim={student.embed_dim} "
            "channels, so that no projection follows, as one does in the teacher; give it another number of channels"
        )
    if teacher.embed_dim % student.conv_pos_groups:
        raise refuse(
            "model.conv_pos_groups", student.conv_pos_groups, f"a divisor of the teacher's {teacher.embed_dim}"
        )


def student_shape(
    teacher: EncoderConfig,
    *,
    target_params: float | None = None,
    target_macs: float | None = None,
    num_layers: int | None = None,
    options: Sequence[str] = ("model.target_params", "model.target_macs"),
) -> EncoderConfig:
    """Return the largest student of a teacher that keeps to a budget: the widest, then most feed-forward units.

    Args:
        teacher: whose kernels, heads and kind of norms it has.
        target_params: parameters at most.
        target_macs: multiply-accumulates at most, over SUPERB's 32 utterances (HuBERT Base: 1669e9).
        num_layers: the teacher's when None.
        options: what the user calls the two budgets, for messages.

    Raises:
        StarError: no budget, one that the teacher itself keeps to, or one so small that no width does.
    """
    teacher.check_uniform(" and ".join(options))
    budgets = zip(options, (target_params, target_macs), (count_parameters, superb_macs), strict=True)
    given = [(option, value, count) for option, value, count in budgets if value is not None]
    if not given:
        raise StarError(f"{' or '.join(options)}: give one, such as {options[0]}=22.3e6")

    def keeps(config: EncoderConfig) -> bool:
        return all(count(config) <= value for _, value, count in given)

    named = " and ".join(f"{option}={value:g}" for option, value, _ in given)
    plain = replace(as_student(teacher), num_layers=num_layers or teacher.num_layers)
    if keeps(plain):
        raise StarError(f"{named}: the teacher is no larger than that; give less")
    for width in _widths(teacher):
        share = width / teacher.embed_dim
        front_ends = np.linspace(share**0.5, share, FRONT_ENDS)
        shape = next(filter(keeps, (_of_width(plain, width, float(channels)) for channels in front_ends)), None)
        if shape is not None:
            step = MULTIPLE
            while shape.ffn_embed_dim + step <= teacher.ffn_embed_dim:
                more = replace(shape, ffn_embed_dim=shape.ffn_embed_dim + step)
                if not keeps(more):
                    break
                shape = more
            return shape
    raise StarError(f"{named}: even the narrowest student of this teacher is larger; give more, or fewer layers")


def as_student(teacher: EncoderConfig) -> EncoderConfig:
    """Return a teacher's shape as that of a student: one positional convolution, no relative positions."""
    return replace(
        teacher,
        relative_position=None,
        pos_conv_depth=1,
        input_norm=True,
        layer_norm_eps=1e-5,
        projection=teacher.conv_layers[-1].channels != teacher.embed_dim,
        chunk_frames=(),
        extractor_mode="default" if teacher.extractor_mode == RUNNING else teacher.extractor_mode,
    )


def student_settings(shape: EncoderConfig, *, streaming: bool) -> dict:
    """Return a shape as options of a student; a streaming one has a first norm of its own."""
    settings = shape.fairseq_settings()
    if streaming:
        settings.pop("extractor_mode")
    return settings


def _of_width(teacher: EncoderConfig, width: int, share: float) -> EncoderConfig:
    """The student of a width whose convolutions have ``share`` of the teacher's channels."""
    return replace(
        teacher,
        embed_dim=width,
        ffn_embed_dim=_round(
            LEAST_UNITS * teacher.ffn_embed_dim * (width / teacher.embed_dim) ** 2, teacher.ffn_embed_dim
        ),
        conv_layers=_convolutions(teacher, width, share),
    )


def _convolutions(teacher: EncoderConfig, width: int, share: float) -> list[ConvLayer]:
    layers, count = teacher.conv_layers, len(teacher.conv_layers)
    if not teacher.projection:  # the last convolutions' channels are the stream's
        return [
            layer._replace(
                channels=width
                if layer.channels == teacher.embed_dim
                else _round(layer.channels * share, layer.channels)
            )
            for layer in layers
        ]
    shares = [share] * (count - 3) + [(1 + share) / 2, 1.0, 1.0]
    found = [
        layer._replace(channels=_round(layer.channels * own, layer.channels))
        for layer, own in zip(layers, shares[-count:], strict=True)
    ]
    if found[-1].channels == width < teacher.embed_dim:  # else no projection would follow
        fewer = width - MULTIPLE if width > MULTIPLE else width // 2
        found[-1] = found[-1]._replace(channels=max(1, fewer))
    return found


def _round(value: float, at_most: int) -> int:
    return min(at_most, max(MULTIPLE, MULTIPLE * round(value / MULTIPLE)))


def _widths(teacher: EncoderConfig) -> Iterator[int]:
    """Widths that heads and groups divide, the greatest first."""
    step = math.lcm(teacher.num_heads, teacher.conv_pos_groups)
    yield from range(teacher.embed_dim - step, 0, -step)


def count_parameters(config: EncoderConfig) -> int:
    """Return the number of parameters of an encoder without relative positions, from its sizes alone."""
    width, channels, total = config.embed_dim, 1, 0
    for number, layer in enumerate(config.conv_layers):
        total += layer.channels * channels * layer.kernel + layer.channels * config.conv_bias
        if number == 0 or config.extractor_mode == "layer_norm":
            total += 2 * layer.channels
        channels = layer.channels
    total += 2 * channels + config.projection * (channels + 1) * width
    total += width * (width // config.conv_pos_groups) * config.conv_pos + config.conv_pos + width  # v, g and bias
    heads, units = sum(config.layer_heads) * config.head_width, sum(config.layer_ffn_dims)
    projections = 3 * heads * (width + 1) + heads * width
    return total + 2 * width + projections + units * (2 * width + 1) + config.num_layers * 6 * width


def superb_macs(config: EncoderConfig) -> int:
    """Return the multiply-accumulates of an encoder over SUPERB's 32 utterances."""
    return int(macs_of_sizes(config, np.array(SUPERB_UTTERANCES)).sum())


def _spell(config: EncoderConfig) -> str:
    return str([tuple(layer) for layer in config.conv_layers])
