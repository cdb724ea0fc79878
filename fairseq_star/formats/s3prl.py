"""s3prl's converted files: ``task_cfg``, ``model_cfg`` and ``model_weight`` of a fairseq checkpoint under other names.

s3prl makes them of HuBERT and wav2vec 2.0 checkpoints, often under the checkpoint's own name. A written one is for
``-u wav2vec2_local -k FILE``, or ``S3PRLUpstream("wav2vec2_local", FILE)``; it contains plain values and tensors alone,
so that torch's ``weights_only`` accepts it. s3prl's wav2vec 2.0 has the student's modules under the student's names.
Its ``hubert_local`` would fit too, but makes its padding mask of whole chunks of samples and so differs at the last
frame of padded utterances.

Source: s3prl, ``upstream/{hubert,wav2vec2}/convert.py``, ``upstream/wav2vec2/{expert,wav2vec2_model}.py``.
"""

import shlex
from pathlib import Path
from typing import ClassVar, Mapping, Sequence

import torch
from torch import Tensor

from fairseq_star.encoder.config import HUBERT_BASE
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.errors import StarError
from fairseq_star.formats import fairseq
from fairseq_star.formats.student import Student, model_values
from fairseq_star.formats.target import Target, in_batches, valid_frames
from fairseq_star.manifest import SAMPLE_RATE
from fairseq_star.runtime.torchaudio_import import import_torchaudio

# Samples a frame; s3prl assumes it, and 16 kHz.
DOWNSAMPLE_RATE = HUBERT_BASE.geometry.downsample_rate
FINAL_DIM = 1  # of a projection that serves wav2vec 2.0's pretraining only
KEYS = ("task_cfg", "model_cfg", "model_weight")
DICTIONARIES = "dictionaries_symbols"  # in HuBERT's files alone


def recognises(state: Mapping) -> bool:
    """Return whether a checkpoint has s3prl's converted layout."""
    return all(isinstance(state.get(key), dict) for key in KEYS)


def _as_fairseq(state: Mapping) -> dict:
    """Return the fairseq checkpoint that ``state`` was made of, as far as s3prl preserves it."""
    task, model, weights = (state[key] for key in KEYS)
    registered = model.get("_name") or ("hubert" if DICTIONARIES in state else "wav2vec2")
    return {"cfg": {"model": {**model, "_name": registered}, "task": task}, "model": weights}


def read_encoder(state: Mapping, *, name: str, valid_group_norm: bool = True) -> FrozenEncoder:
    """Return the encoder in a file of s3prl's, frozen; raises as :func:`fairseq.read_encoder`."""
    encoder = fairseq.read_encoder(_as_fairseq(state), name=name, valid_group_norm=valid_group_norm)
    encoder.family = encoder.family.replace("(fairseq)", "(s3prl)")
    return encoder


def dropouts(state: Mapping, name: str) -> dict[str, float]:
    """Return the dropouts of a file's config, as :func:`config.dropouts` does."""
    return fairseq.dropouts(_as_fairseq(state), name)


class S3prl(Target):
    """A file for the s3prl upstream ``wav2vec2_local``, which returns the L+1 hidden states of the student.

    With ``feature_selection=fairseq_layers`` s3prl returns the L layers' outputs alone.
    """

    title = "s3prl file"
    requires: ClassVar = {"s3prl": "pip install 'fairseq-star[s3prl]'"}

    def write(self, student: Student, path: Path) -> None:
        _check_rates(student)
        width, channels = student.config.embed_dim, student.config.conv_layers[-1].channels
        model = {
            "_name": "wav2vec2",
            **model_values(student.config, student.dropouts),
            "final_dim": FINAL_DIM,
            "required_seq_len_multiple": 1,
        }
        weights = {
            **student.weights(),
            "mask_emb": student.mask_or_zeros(),
            # s3prl loads strictly; no feature depends on these.
            "project_q.weight": torch.zeros(FINAL_DIM, channels),
            "project_q.bias": torch.zeros(FINAL_DIM),
            "final_proj.weight": torch.zeros(FINAL_DIM, width),
            "final_proj.bias": torch.zeros(FINAL_DIM),
        }
        task = {"sample_rate": student.sample_rate, "normalize": student.normalize}
        torch.save({"task_cfg": task, "model_cfg": model, "model_weight": weights}, path)

    @torch.no_grad()
    def hidden_states(self, path: Path, sources: Sequence[Tensor], *, padded: bool) -> list[list[Tensor]]:
        import_torchaudio()  # which s3prl imports by itself
        # Not s3prl.hub, which imports every upstream there is.
        from s3prl.upstream.wav2vec2.hubconf import wav2vec2_local

        upstream = wav2vec2_local(ckpt=str(path)).eval()
        utterances = []
        for batch in in_batches(sources, padded):
            states = upstream(batch)["hidden_states"]
            lengths = upstream.model._get_feat_extract_output_lengths(torch.tensor([len(wav) for wav in batch]))
            utterances += valid_frames(states, lengths)
        return utterances

    def next_step(self, path: Path) -> str:
        file = shlex.quote(str(path.resolve()))
        return (
            "in the folder s3prl/s3prl of a clone, with a SUPERB task such as speech_commands:\n"
            f"  python run_downstream.py -m train -n NAME -u wav2vec2_local -k {file} -d speech_commands"
        )


def _check_rates(student: Student) -> None:
    """Refuse what s3prl would silently misread: it assumes 320 samples of 16 kHz a frame, whatever the model."""
    rates = (student.sample_rate, student.model.geometry.downsample_rate)
    if rates != (SAMPLE_RATE, DOWNSAMPLE_RATE):
        raise StarError(
            f"export: s3prl takes audio of {SAMPLE_RATE} Hz and {DOWNSAMPLE_RATE} samples a frame for granted; "
            f"this student has {rates[0]} Hz and {rates[1]}"
        )
