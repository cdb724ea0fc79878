"""Which format a file is in, told from its content, and the frozen encoder in it."""

import os
from types import ModuleType

from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.errors import StarError
from fairseq_star.formats import dphubert, fairseq, foreign, hub, huggingface, microsoft, s3prl, student, torchaudio
from fairseq_star.formats.hf_folder import CONFIG

# Each has recognises(state), read_encoder(state, name=...) and dropouts(state, name). Any other file is fairseq's or
# nobody's.
FORMATS = (microsoft, student, s3prl, dphubert, torchaudio)


def load_teacher(
    path: str | os.PathLike, *, valid_group_norm: bool = True, option: str = "task.teacher"
) -> FrozenEncoder:
    """Load a teacher: a frozen encoder of any format; arguments and what is raised: :func:`load_encoder`.

    >>> import torch
    >>> from fairseq_star import load_teacher
    >>> teacher = load_teacher("assets/demo_teacher/demo_hubert.pt")
    >>> teacher.family, teacher.num_layers, teacher.embed_dim, teacher.sample_rate
    ('HuBERT (fairseq)', 6, 256, 16000)
    >>> [states] = teacher.hidden_states([torch.randn(16_000)], sample_rate=16_000)  # of one second
    >>> len(states), states[-1].shape  # layers + 1, each frames x width
    (7, torch.Size([49, 256]))
    """
    return load_encoder(path, valid_group_norm=valid_group_norm, option=option)


def load_encoder(path: str | os.PathLike, *, valid_group_norm: bool = True, option: str) -> FrozenEncoder:
    """Load the encoder in a file or folder, frozen, its format told from the content of ``path``, never from its name.

    Args:
        path: a fairseq checkpoint of HuBERT or wav2vec 2.0, pretrained or fine-tuned; a student of this project;
            a WavLM checkpoint of Microsoft's; s3prl's, torchaudio's or DPHuBERT's form of one of these; or a
            HuggingFace folder of HuBERT, wav2vec 2.0, WavLM or data2vec-audio, or its id, ``owner/name`` or
            ``owner/name@revision``, which is fetched.
        valid_group_norm: features at an utterance's valid frames are those of the utterance alone: statistics of the
            first group norm over valid samples only, padding kept zero between data2vec's positional convolutions.
            Off: as the family's own library computes them, dependent on the batch.
        option: what the user calls the path, for messages.

    Raises:
        StarError: the file cannot be read, is unsafe, or is no speech model that is known; an id cannot be fetched.
    """
    path = hub.locate(os.fspath(path), option).path
    if not os.path.exists(path):
        raise StarError(
            f"{option}: {path} is not there; correct the path to a checkpoint or HuggingFace folder, or give a "
            "HuggingFace id such as facebook/hubert-base-ls960"
        )
    if os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, CONFIG)):
            raise StarError(
                f"{option}: {path} is a folder without {CONFIG}; give a HuggingFace folder or a checkpoint file such "
                "as hubert_base_ls960.pt"
            )
        return huggingface.read_encoder(path, option=option, valid_group_norm=valid_group_norm)
    state = foreign.read_state(path, option)
    return format_of(state, path, option).read_encoder(
        state, name=f"{option}: {path}", valid_group_norm=valid_group_norm
    )


def format_of(state: dict, path: str, option: str) -> ModuleType:
    """The module of the format that a checkpoint, read from ``path``, is in.

    Raises:
        StarError: a known one that no encoder is read from.
    """
    found = recognised(state)
    if found is None:
        foreign.refuse(state, path, option)
    return found or fairseq


def recognised(state: dict) -> ModuleType | None:
    """The module of :data:`FORMATS` whose layout a checkpoint has; None for fairseq's, and for anything else."""
    return next((one for one in FORMATS if one.recognises(state)), None)
