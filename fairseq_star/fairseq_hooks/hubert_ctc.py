"""fairseq's ``hubert_ctc``, made buildable, with a one-line error for a wrong pretrained model.

``HubertEncoder`` reads ``cfg.autoregressive``, which ``HubertCtcConfig`` lacks, so that no ``hubert_ctc`` can be
built or loaded (facebookresearch/fairseq#4916, open; 0.12.3 of fairseq-fixed has it too). Where the option is missing,
the registered config is replaced by one with it. ``model.w2v_path`` is checked before fairseq reads it; nothing else of
the model changes.
"""

import shlex
from dataclasses import dataclass, field

from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.models.hubert import hubert_asr
from fairseq.models.hubert.hubert_asr import HubertCtcConfig

from fairseq_star.checkpoint import read_checkpoint
from fairseq_star.errors import StarError, exit_on_star_error
from fairseq_star.formats import student
from fairseq_star.formats.config import config_of, sections


@dataclass
class CompleteHubertCtcConfig(HubertCtcConfig):
    """fairseq's own config and the missing option."""

    autoregressive: bool = field(default=False, metadata={"help": "must stay false: a CTC model has no decoder"})


if "autoregressive" not in HubertCtcConfig.__dataclass_fields__:
    MODEL_DATACLASS_REGISTRY["hubert_ctc"] = CompleteHubertCtcConfig


class CheckedHubertEncoder(hubert_asr.HubertEncoder):
    """fairseq's own, on a checkpoint that was checked."""

    def __init__(self, cfg: hubert_asr.HubertAsrConfig, task):
        if cfg.w2v_args is None:  # there in a fine-tuned checkpoint, which is then all that is read
            with exit_on_star_error():
                check_pretrained(cfg.w2v_path, normalize=cfg.normalize)
        super().__init__(cfg, task)


hubert_asr.HubertEncoder = CheckedHubertEncoder


def check_pretrained(path: str, *, normalize: bool) -> None:
    """Check ``model.w2v_path``.

    Args:
        path: of a HuBERT pretrained by fairseq, or of a student written by ``fairseq-star export --to fairseq``.
        normalize: whether the fine-tuning's audio has zero mean and unit variance.

    Raises:
        StarError: it is missing, damaged or another model, or was trained on audio of another normalization.
    """
    state, name = read_checkpoint(path, "model.w2v_path"), f"model.w2v_path: {path}"
    if student.recognises(state):
        raise StarError(
            f"{name} is a distillation run's own checkpoint; export it with `fairseq-star export {shlex.quote(path)} "
            "--to fairseq --out student_fairseq.pt` and give that file"
        )
    model, task = sections(config_of(state))
    if model.get("_name") != "hubert" or not isinstance(state.get("model"), dict):
        raise StarError(
            f"{name} is no pretrained HuBERT of fairseq's (its model: {str(model.get('_name'))[:60]!a}); give one, as "
            "fairseq-star export --to fairseq writes it"
        )
    if bool(task.get("normalize")) != normalize:
        trained = str(not normalize).lower()
        raise StarError(f"{name} was trained with normalize={trained}; set task.normalize={trained}")
