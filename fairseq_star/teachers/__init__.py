"""Teachers: frozen speech encoders that give their hidden states. One file a family."""

import os

from fairseq_star.errors import StarError
from fairseq_star.teachers import (
    dphubert,
    fairseq_checkpoint,
    foreign,
    hub,
    huggingface,
    s3prl,
    starhubert,
    torchaudio,
    wavlm,
)
from fairseq_star.teachers.hf_folder import CONFIG, teacher_files
from fairseq_star.teachers.teacher import Teacher

__all__ = ["Teacher", "load_teacher", "teacher_files"]

# How a checkpoint's layout is told from its content, and what reads it; any other is fairseq's or nobody's.
LAYOUTS = (
    (wavlm.is_microsoft_wavlm, wavlm.build_teacher),
    (starhubert.is_starhubert, starhubert.build_teacher),
    (s3prl.is_s3prl, s3prl.build_teacher),
    (dphubert.is_dphubert, dphubert.build_teacher),
    (torchaudio.is_torchaudio, torchaudio.build_teacher),
)


def load_teacher(path: str, *, valid_group_norm: bool = True, option: str = "task.teacher") -> Teacher:
    """Load a teacher, its family told from the content of ``path``, never from its name.

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
        StarError: the file cannot be read, is unsafe, or is no speech model that can teach; an id cannot be fetched.
    """
    path = hub.locate(path, option).path
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
        return huggingface.build_teacher(path, option=option, valid_group_norm=valid_group_norm)
    return build_teacher(foreign.read_state(path, option), path, option=option, valid_group_norm=valid_group_norm)


def build_teacher(state: dict, path: str, *, option: str, valid_group_norm: bool = True) -> Teacher:
    """The teacher in a checkpoint that was read from ``path``; else as :func:`load_teacher`."""
    build = next((build for recognises, build in LAYOUTS if recognises(state)), None)
    if build is None:
        foreign.refuse(state, path, option)
        build = fairseq_checkpoint.build_teacher
    return build(state, name=f"{option}: {path}", valid_group_norm=valid_group_norm)
