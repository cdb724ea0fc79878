"""A student's first weights: random, copied from the teacher or sliced out of it, and first norms' statistics."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from fairseq.tasks import FairseqTask
from omegaconf import DictConfig, OmegaConf, open_dict
from soundfile import SoundFileError
from torch import Tensor, nn

from fairseq_star.audio.file import open_audio
from fairseq_star.encoder.config import EncoderConfig
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.encoder.modules import SpeechEncoder
from fairseq_star.encoder.running_norm import RUNNING, measure_statistics
from fairseq_star.errors import StarError
from fairseq_star.fairseq_hooks.sliced import Beginning, begin_sliced
from fairseq_star.formats.student import TEACHER
from fairseq_star.losses.layer_plan import match_layers
from fairseq_star.manifest import read_manifest
from fairseq_star.models.starhubert import StarHubertModel
from fairseq_star.runtime.host import bound_primitive_cache
from fairseq_star.slicing.shapes import count_parameters, student_settings, student_shape, superb_macs

logger = logging.getLogger(__name__)
MEASURED = 64
"""Utterances that the statistics of a streaming student's first norm are measured on."""


def size_student(cfg: DictConfig, teacher: EncoderConfig) -> None:
    """Replace a student's sizes by the largest ones within ``target_params`` and ``target_macs``, where given.

    Args:
        cfg: the run's ``model`` options, changed in place, so that checkpoints have the sizes.
        teacher: whose kernels, heads and kind of norms the student gets.

    Raises:
        StarError: a budget that no sizes meet.
    """
    budget = {name: cfg.get(name) for name in ("target_params", "target_macs") if cfg.get(name) is not None}
    if not budget:
        return
    shape = student_shape(teacher, num_layers=cfg.encoder_layers, **budget)
    with open_dict(cfg):
        for name, value in student_settings(shape, streaming=bool(cfg.get("chunk_frames"))).items():
            cfg[name] = value
    logger.info(
        f"student of at most {' and '.join(f'{name}={value:g}' for name, value in budget.items())}: width "
        f"{shape.embed_dim}, {shape.ffn_embed_dim} feed-forward units, convolutions of "
        f"{[layer.channels for layer in shape.conv_layers]} channels; {count_parameters(shape):,} parameters, "
        f"{superb_macs(shape) / 1e9:,.1f} GMACs"
    )


def begin_student(task: FairseqTask, student: StarHubertModel, teacher: FrozenEncoder) -> None:
    """Set a randomly initialized student's first weights by its options.

    Args:
        task: its config says where the manifests are, and the run's folder.
        student: just built.
        teacher: of the run.

    Raises:
        StarError: parts of the teacher that do not fit, a manifest that is none.
    """
    cfg, options = task.cfg, student.cfg
    if str(options.get("init", "random")) == "sliced":
        chosen = OmegaConf.select(cfg, "teacher_layers", throw_on_resolution_failure=False)
        subsets = OmegaConf.select(cfg, "valid_subset", throw_on_resolution_failure=False)
        begin_sliced(
            student,
            teacher,
            Beginning(
                digest=task.state_dict()[TEACHER],
                train=Path(cfg.data, f"{cfg.train_subset}.tsv"),
                valid=Path(cfg.data, f"{subsets.split(',')[0]}.tsv") if subsets else None,
                layers=match_layers(teacher.num_layers, len(student.encoder.layers), chosen),
                seed=cfg.seed,
                folder=task.first_weights_folder,
                keep=OmegaConf.select(cfg, "save_dir", throw_on_resolution_failure=False)
                is not None,  # else none goes on
            ),
        )
        return
    copy_from_teacher(
        student, teacher, layers=options.get("init_layers"), feature_extractor=options.get("init_feature_extractor")
    )
    if student.config.extractor_mode == RUNNING:
        train = os.path.join(cfg.data, f"{cfg.train_subset}.tsv")
        begin_first_norm(student, train, max_sample_size=cfg.max_sample_size, seed=cfg.seed)


def copy_from_teacher(
    student: SpeechEncoder, teacher: FrozenEncoder, *, layers: Sequence[int] | None, feature_extractor: bool
) -> None:
    """Give a student parts of its teacher, as DistilHuBERT does (arXiv 2110.01900).

    Args:
        layers: teacher layers (1-based) that become the student's first, second, ... With them come the positional
            convolution and its norm, the layers' usual input, where their shapes agree.
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
        for name in ("pos_conv", "layer_norm"):
            _copy_if_alike(getattr(student.encoder, name), getattr(teacher.model.encoder, name))
    if feature_extractor:
        for name in ("feature_extractor", "layer_norm"):
            _copy(getattr(student, name), getattr(teacher.model, name), "model.init_feature_extractor", name)
        if student.post_extract_proj is not None and teacher.model.post_extract_proj is not None:
            _copy_if_alike(student.post_extract_proj, teacher.model.post_extract_proj)


def begin_first_norm(student: SpeechEncoder, manifest: str, *, max_sample_size: int | None, seed: int) -> None:
    """Measure the statistics of a streaming student's first norm with its first weights.

    Args:
        manifest: of the training set. Where it is missing, as where a finished run is evaluated elsewhere, nothing is
            measured: a checkpoint brings its own statistics.
        max_sample_size: first samples of an utterance that are used; all when None.
        seed: chooses the utterances, the same on all workers and again where a run resumes.

    Raises:
        StarError: a manifest that is none.
    """
    if os.path.isfile(manifest):
        bound_primitive_cache()  # the process's first convolutions may be these
        root, entries = read_manifest(manifest)
        chosen = np.random.default_rng(seed).permutation(len(entries))[:MEASURED]
        paths = [os.path.join(root, entries[number].path) for number in chosen]
        frames = measure_statistics(student.feature_extractor, _readable(paths, max_sample_size or -1))
        logger.info(f"first norm: statistics of {frames:,} frames of {len(paths)} utterances")


def _readable(paths: Sequence[str], num_samples: int) -> Iterator[Tensor]:
    """Yield the audio of mono files that can be read and is finite; a run's own checks report the others.

    A single nan would stay in the student's statistics for good.
    """
    for path in paths:
        try:
            with open_audio(path) as audio:
                samples = audio.read(num_samples, dtype="float32", always_2d=True)
        except (StarError, SoundFileError):
            continue
        if np.isfinite(samples).all():
            yield torch.from_numpy(samples[:, 0])


def _copy(student: nn.Module, teacher: nn.Module, option: str, what: str) -> None:
    # Statistics that only a streaming student has are measured afterwards.
    theirs = {**dict(student.named_buffers()), **teacher.state_dict()}
    if fault := _difference(student.state_dict(), theirs):
        raise StarError(
            f"{option}: the teacher's {what} does not fit the student ({fault}); give the student the teacher's widths "
            "and convolutions (model.encoder_embed_dim and so on), or leave the option out"
        )
    student.load_state_dict(theirs)


def _copy_if_alike(student: nn.Module, teacher: nn.Module) -> None:
    if not _difference(student.state_dict(), teacher.state_dict()):
        student.load_state_dict(teacher.state_dict())


def _difference(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> str | None:
    """Return the first weight that one of the two lacks or has in another shape."""
    for key in {**student, **teacher}:
        shapes = [tuple(weights[key].shape) if key in weights else "none" for weights in (teacher, student)]
        if shapes[0] != shapes[1]:
            return f"{key} is {shapes[0]}, and {shapes[1]} there"
    return None
