"""Shapes of students: check that one can be sliced from a teacher, find the largest one within a budget.

A budget is spent (measured in ``docs/slicing.md``) first on a width d of the teacher's D, with at least
:data:`LEAST_UNITS` (d/D)^2 of the teacher's feed-forward units; then on convolutions, with sqrt(d/D) of the teacher's
channels if the budget allows and at least d/D, the last two, which cost few operations, with all of them; the rest on
feed-forward units.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

import numpy as np

from fairseq_star.encoder.config import EncoderConfig
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
"""Fields of :class:`EncoderConfig` that are equal in teacher and sliced student -> the student's options."""
AT_MOST = {
    "embed_dim": "model.encoder_embed_dim",
    "ffn_embed_dim": "model.encoder_ffn_embed_dim",
    "num_layers": "model.encoder_layers",
}
LEAST_UNITS = 0.75
FRONT_ENDS = 9  # shares of channels that are tried
MULTIPLE = 8  # divides convolutions' channels and feed-forward units


def check_fits(teacher: EncoderConfig, student: EncoderConfig) -> None:
    """Check that a student can be sliced from a teacher.

    Raises:
        StarError: it is larger somewhere, or of another kind; the message names the option.
    """

    def require(fits: bool, option: str, value: object, wanted: str) -> None:
        if not fits:
            raise StarError(
                f"model.init=sliced: {option}={value} must be {wanted}: a sliced student is its teacher with fewer "
                "channels"
            )

    for one in (teacher, student):
        one.check_uniform("model.init=sliced")
    for name, option in ALIKE.items():
        wanted, value = getattr(teacher, name), getattr(student, name)
        require(value == wanted, option, value, f"the teacher's {wanted}")
    wanted, value = teacher.extractor_mode, student.extractor_mode
    same_kind = len({"default" if mode == RUNNING else mode for mode in (wanted, value)}) == 1
    require(same_kind, "model.extractor_mode", value, f"the teacher's {wanted}")
    for name, option in AT_MOST.items():
        most, value = getattr(teacher, name), getattr(student, name)
        require(value <= most, option, value, f"at most the teacher's {most}")
    option, layers, teacher_layers = "model.conv_feature_layers", student.conv_layers, teacher.conv_layers
    spelled, teacher_spelled = (str([tuple(layer) for layer in one]) for one in (layers, teacher_layers))
    kernels, teacher_kernels = ([layer._replace(channels=0) for layer in one] for one in (layers, teacher_layers))
    require(kernels == teacher_kernels, option, spelled, f"of the teacher's kernels and strides, {teacher_spelled}")
    narrow = all(layer.channels <= most.channels for layer, most in zip(layers, teacher_layers, strict=True))
    require(narrow, option, spelled, f"no wider than the teacher's {teacher_spelled}")
    if teacher.projection and not student.projection:
        raise StarError(
            f"model.init=sliced: the last of model.conv_feature_layers has model.encoder_embed_dim={student.embed_dim} "
            "channels, so that no projection follows, as one does in the teacher; give it another number of channels"
        )
    groups, width = student.conv_pos_groups, teacher.embed_dim
    require(width % groups == 0, "model.conv_pos_groups", groups, f"a divisor of the teacher's {width}")


def student_shape(
    teacher: EncoderConfig,
    *,
    target_params: float | None = None,
    target_macs: float | None = None,
    num_layers: int | None = None,
    options: Sequence[str] = ("model.target_params", "model.target_macs"),
) -> EncoderConfig:
    """Return the largest student of a teacher within a budget: the widest, then the most feed-forward units.

    Args:
        teacher: determines kernels, heads and kind of norms.
        target_params: parameters at most.
        target_macs: multiply-accumulates at most, over SUPERB's 32 utterances (HuBERT Base: 1669e9).
        num_layers: the teacher's when None.
        options: names of the two budgets in messages.

    Raises:
        StarError: no budget, one as large as the teacher, or one too small for any width.
    """
    teacher.check_uniform(" and ".join(options))
    budgets = zip(options, (target_params, target_macs), (count_parameters, superb_macs), strict=True)
    given = [(option, value, count) for option, value, count in budgets if value is not None]
    if not given:
        raise StarError(f"{' or '.join(options)}: give one, such as {options[0]}=22.3e6")

    def fits(config: EncoderConfig) -> bool:
        return all(count(config) <= value for _, value, count in given)

    named = " and ".join(f"{option}={value:g}" for option, value, _ in given)
    plain = replace(as_student(teacher), num_layers=num_layers or teacher.num_layers)
    if fits(plain):
        raise StarError(f"{named}: the teacher is no larger than that; give less")
    step = math.lcm(teacher.num_heads, teacher.conv_pos_groups)
    for width in range(teacher.embed_dim - step, 0, -step):
        share = width / teacher.embed_dim
        front_ends = np.linspace(share**0.5, share, FRONT_ENDS)
        shape = next(filter(fits, (_of_width(plain, width, float(channels)) for channels in front_ends)), None)
        if shape is not None:
            sizes = range(shape.ffn_embed_dim, teacher.ffn_embed_dim + 1, MULTIPLE)
            return list(takewhile(fits, (replace(shape, ffn_embed_dim=size) for size in sizes)))[-1]
    raise StarError(f"{named}: even the narrowest student of this teacher is larger; give more, or fewer layers")


def as_student(teacher: EncoderConfig) -> EncoderConfig:
    """Return a teacher's shape with a student's parts: one positional convolution, no relative positions."""
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
    """Return a shape as ``model`` options; those of a streaming student leave its kind of first norm alone."""
    settings = shape.fairseq_settings()
    if streaming:
        settings.pop("extractor_mode")
    return settings


def _of_width(teacher: EncoderConfig, width: int, share: float) -> EncoderConfig:
    """Return a student's shape of a width, its convolutions with ``share`` of the teacher's channels."""
    units = LEAST_UNITS * teacher.ffn_embed_dim * (width / teacher.embed_dim) ** 2
    layers = teacher.conv_layers
    if teacher.projection:
        shares = ([share] * (len(layers) - 3) + [(1 + share) / 2, 1.0, 1.0])[-len(layers) :]
    else:
        shares = [share] * len(layers)
    channels = [_round(layer.channels * one, layer.channels) for layer, one in zip(layers, shares, strict=True)]
    if not teacher.projection:  # the last convolutions' channels are the stream's
        channels = [
            width if layer.channels == teacher.embed_dim else one for layer, one in zip(layers, channels, strict=True)
        ]
    elif channels[-1] == width < teacher.embed_dim:  # else no projection would follow
        channels[-1] = max(1, width - MULTIPLE if width > MULTIPLE else width // 2)
    return replace(
        teacher,
        embed_dim=width,
        ffn_embed_dim=_round(units, teacher.ffn_embed_dim),
        conv_layers=[layer._replace(channels=one) for layer, one in zip(layers, channels, strict=True)],
    )


def _round(value: float, at_most: int) -> int:
    return min(at_most, max(MULTIPLE, MULTIPLE * round(value / MULTIPLE)))


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
