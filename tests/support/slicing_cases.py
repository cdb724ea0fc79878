"""Teachers to slice students out of, tiny ones of every family, and the audio to do it with."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_star.encoder.config import EncoderConfig
from fairseq_star.encoder.frames import parse_conv_layers
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.encoder.modules import SpeechEncoder
from fairseq_star.encoder.running_norm import RUNNING
from fairseq_star.formats import load_teacher
from fairseq_star.slicing.measures import state_pairs
from fairseq_star.slicing.shapes import as_student
from tests.support import convert_cases, tiny, tiny_teachers

LARGE, HF_LARGE = tiny_teachers.FAIRSEQ_LARGE, tiny_teachers.HF_LARGE
STREAM = {"chunk_frames": [4, 0], "left_context_frames": 7}


def _own(path: Path, **settings: object) -> tiny_teachers.Original:
    return convert_cases.write_checkpoint(path, **{**tiny.STUDENT, **settings})


# name -> (what writes it, its options)
WHOLE = {
    "hubert": (tiny_teachers.hubert, {}),
    "hubert large": (tiny_teachers.hubert, {"normalize": True, **LARGE}),
    "hubert pre-norm alone": (tiny_teachers.hubert, {"layer_norm_first": True}),
    "hubert layer norms alone": (tiny_teachers.hubert, {"extractor_mode": "layer_norm", "conv_bias": True}),
    "wav2vec2": (tiny_teachers.wav2vec2, {}),
    "hubert_ctc": (tiny_teachers.fine_tuned, {"kind": "hubert", **LARGE}),
    "hf hubert": (tiny_teachers.huggingface, {"kind": "hubert"}),
    "hf wav2vec2 large": (tiny_teachers.huggingface, {"kind": "wav2vec2", **HF_LARGE}),
    "a student, no projection": (_own, {}),
    "a student, pre-norm": (_own, convert_cases.PRE_NORM),
    "a streaming student": (_own, {"name": "starhubert_stream", **STREAM}),
}
"""Teachers all of whose parts a plain student has."""
PARTS = {
    "wavlm": (tiny_teachers.microsoft_wavlm, {}),
    "wavlm large": (tiny_teachers.microsoft_wavlm, {"normalize": True, "large": True}),
    "hf wavlm": (tiny_teachers.huggingface, {"kind": "wavlm"}),
    "hf data2vec": (tiny_teachers.huggingface, {"kind": "data2vec"}),
    "hf hubert without norm": (tiny_teachers.huggingface, {"kind": "hubert", "feat_proj_layer_norm": False}),
}
"""Teachers with parts that a plain student lacks, or without one that it has."""


def teacher(folder: Path, name: str) -> FrozenEncoder:
    """One of the teachers above, written and loaded."""
    write, options = {**WHOLE, **PARTS}[name]
    made = write(folder / "teacher.pt", **options)
    return load_teacher(str(made if isinstance(made, Path) else made.path))


def base(seed: int = 0, depth: int = 2, **settings: object) -> FrozenEncoder:
    """A HuBERT teacher that needs no file: random weights, moved off their first values."""
    torch.manual_seed(seed)
    return FrozenEncoder(tiny_teachers.randomize(SpeechEncoder(config(num_layers=depth, **settings)), seed),
                         sample_rate=16_000, normalize=False)  # fmt: skip


def config(**settings: object) -> EncoderConfig:
    """Of a tiny HuBERT Base: seven convolutions of 16 channels, width 24, two heads."""
    sizes = {
        "conv_layers": parse_conv_layers(tiny.TEACHER_CONV), "embed_dim": 24, "ffn_embed_dim": 48,
        "num_layers": 2, "num_heads": 2, "conv_pos": 16, "conv_pos_groups": 4,
    }  # fmt: skip
    return EncoderConfig(**{**sizes, **settings})


def as_wide(teacher: FrozenEncoder) -> SpeechEncoder:
    """A student of the teacher's sizes, at random."""
    shape = as_student(teacher.config)
    if teacher.config.extractor_mode == RUNNING:
        shape = replace(shape, extractor_mode=RUNNING, chunk_frames=(4, 0), left_context_frames=7)
    return drawn(shape)


def drawn(shape: EncoderConfig, seed: int = 5) -> SpeechEncoder:
    """A student of a shape with random weights by seed."""
    torch.manual_seed(seed)
    return SpeechEncoder(shape).eval()


def audio(count: int = 8, seed: int = 0, normalize: bool = False) -> list[Tensor]:
    """Utterances of 0.5 s and more: noise that swells and fades, each at its own pace."""
    generator = torch.Generator().manual_seed(seed)
    sources = []
    for number in range(count):
        samples = torch.randn(8000 + 1500 * number, generator=generator) * 0.1
        sources.append(samples * torch.sin(torch.arange(len(samples)) * 2e-4 * (1 + number)).abs())
    return [F.layer_norm(source, source.shape) for source in sources] if normalize else sources


@torch.no_grad()
def errors(teacher: FrozenEncoder, student: SpeechEncoder, layers: list[int], sources: list[Tensor]) -> list[float]:
    """The largest difference of teacher and student at each state, relative to the state's deviation; whole
    utterances, not those of ``audio()`` unless they are given."""
    models = [teacher.model, student]
    for model in models:
        if model.config.chunk_frames:
            model.use_chunks(0)
    worst = [
        [((a - b).abs().max() / a.std()).item() for a, b in zip(*states, strict=True)]
        for states in state_pairs(*models, sources, layers)
    ]
    return [max(column) for column in zip(*worst, strict=True)]


def all_layers(teacher: FrozenEncoder) -> list[int]:
    return list(range(1, teacher.num_layers + 1))


def regressed(
    x: np.ndarray, t: np.ndarray, ridge: float = 0, prior: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias by numpy's least squares: rows of inputs and a 1, then a row for each input that pulls its
    weight to the prior's, to zero where there is none. What single precision adds to a direction without variance, as
    behind a LayerNorm, is none."""
    (rows, size), mean_variance = x.shape, x.var(0).mean()
    prior = np.zeros((t.shape[1], size)) if prior is None else prior
    pull = np.sqrt(rows * ridge * mean_variance)
    design = np.vstack([np.hstack([x, np.ones((rows, 1))]), np.hstack([pull * np.eye(size), np.zeros((size, 1))])])
    solution = np.linalg.lstsq(design, np.vstack([t, pull * prior.T]), rcond=1e-6)[0]
    return solution[:-1].T, solution[-1]


def selected_forward(x: np.ndarray, t: np.ndarray, count: int, width: int = 1) -> list[int]:
    """Forward selection as its definition reads: at each step the candidate with which, all inputs chosen so far
    beside it, the squared error of a fit made anew is least."""
    chosen: list[int] = []

    def error(candidates: list[int]) -> float:
        inputs = [candidate * width + tap for candidate in candidates for tap in range(width)]
        design = np.hstack([x[:, inputs], np.ones((len(x), 1))])
        return float(np.square(t - design @ np.linalg.lstsq(design, t, rcond=None)[0]).sum())

    for _ in range(count):
        left = [number for number in range(x.shape[1] // width) if number not in chosen]
        chosen.append(min(left, key=lambda number: error([*chosen, number])))
    return sorted(chosen)


def as_array(tensors: Tensor | list[Tensor]) -> np.ndarray:
    """One after the other, in float64."""
    whole = tensors if isinstance(tensors, Tensor) else torch.cat(list(tensors))
    return whole.detach().double().numpy()
