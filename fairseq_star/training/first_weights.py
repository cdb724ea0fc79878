"""A student's first weights: at random, or in parts the teacher's own, where both have the same shapes."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.encoder.modules import SpeechEncoder
from fairseq_star.errors import StarError


def copy_from_teacher(
    student: SpeechEncoder, teacher: FrozenEncoder, *, layers: Sequence[int] | None, feature_extractor: bool
) -> None:
    """Give a student parts of its teacher, as DistilHuBERT does (arXiv 2110.01900).

    Args:
        layers: teacher layers (1-based) that become the student's first, second, ... With them come the positional
            convolution (but not for a streaming student's) and the norm beside it, where their shapes agree: what the
            layers are used to.
        feature_extractor: the convolutions and the norm after them; with the projection, where its shape agrees.

    Raises:
        StarError: a layer that one of the two has not, or shapes that differ.
    """
    if layers is not None:
        count, depth = len(student.encoder.layers), teacher.num_layers
        if len(layers) > count or not all(1 <= layer <= depth for layer in layers):
            raise StarError(
                f"model.init_layers={list(layers)} must name at most {count} (model.encoder_layers) of the teacher's "
                f"layers 1 .. {depth}"
            )
        for number, layer in enumerate(layers):
            mine, theirs = student.encoder.layers[number], teacher.model.encoder.layers[layer - 1]
            _copy(mine, theirs, "model.init_layers", f"layer {layer}")
        # A streaming student's positional convolution looks back alone, a teacher's to both sides.
        for name in ("layer_norm",) if student.config.chunk_frames else ("pos_conv", "layer_norm"):
            _copy_if_alike(getattr(student.encoder, name), getattr(teacher.model.encoder, name))
    if feature_extractor:
        for name in ("feature_extractor", "layer_norm"):
            _copy(getattr(student, name), getattr(teacher.model, name), "model.init_feature_extractor", name)
        if student.post_extract_proj is not None and teacher.model.post_extract_proj is not None:
            _copy_if_alike(student.post_extract_proj, teacher.model.post_extract_proj)


def _copy(student: nn.Module, teacher: nn.Module, option: str, what: str) -> None:
    if fault := _difference(student.state_dict(), teacher.state_dict()):
        raise StarError(
            f"{option}: the teacher's {what} does not fit the student ({fault}); give the student the teacher's widths "
            "and convolutions (model.encoder_embed_dim and so on), or leave the option out"
        )
    student.load_state_dict(teacher.state_dict())


def _copy_if_alike(student: nn.Module, teacher: nn.Module) -> None:
    if not _difference(student.state_dict(), teacher.state_dict()):
        student.load_state_dict(teacher.state_dict())


def _difference(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> str | None:
    """The first weight that one of the two lacks or has in another shape."""
    for key in {**student, **teacher}:
        shapes = [tuple(weights[key].shape) if key in weights else "none" for weights in (teacher, student)]
        if shapes[0] != shapes[1]:
            return f"{key} is {shapes[0]}, and {shapes[1]} there"
    return None
