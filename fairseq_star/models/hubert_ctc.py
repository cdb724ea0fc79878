"""fairseq's `hubert_ctc`, made buildable: its encoder reads an option that its config does not have.

`HubertEncoder` asks for `cfg.autoregressive`, which `HubertCtcConfig` lacks, so that no `hubert_ctc` can be built or
loaded (facebookresearch/fairseq#4916, open; 0.12.3 of fairseq-fixed has it too). Where the option is missing, the
registered config is replaced by one with it; nothing else of the model is touched.
"""

from dataclasses import dataclass, field

from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.models.hubert.hubert_asr import HubertCtcConfig


@dataclass
class CompleteHubertCtcConfig(HubertCtcConfig):
    """fairseq's own config and the missing option."""

    autoregressive: bool = field(default=False, metadata={"help": "must stay false: a CTC model has no decoder"})


if "autoregressive" not in HubertCtcConfig.__dataclass_fields__:
    MODEL_DATACLASS_REGISTRY["hubert_ctc"] = CompleteHubertCtcConfig
