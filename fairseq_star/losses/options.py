"""Options of ``criterion=star_tgm``: terms, their weights, layers and frames."""

from dataclasses import dataclass, field
from typing import List, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from fairseq_star.errors import StarError
from fairseq_star.losses.layer_plan import CONVENTIONS
from fairseq_star.losses.selection import ALL, WHICH
from fairseq_star.losses.tgm.distances import DISTANCES


@dataclass
class StarTGMConfig(FairseqDataclass):
    """Options of ``criterion=star_tgm``. A term whose weights are 0 is never computed."""

    layerwise_weight: float = field(default=1.0, metadata={"help": "weight of the layer-wise TGM loss"})
    intra_layer_weight: float = field(default=1.0, metadata={"help": "weight of the intra-layer TGM loss"})
    avg_attn_weight: float = field(
        default=0.0, metadata={"help": "weight of the attention map loss over all layers; 0: no map is formed"}
    )
    last_attn_weight: float = field(
        default=0.0, metadata={"help": "weight of the attention map loss of the last layer; 0: no map is formed"}
    )
    layer_convention: ChoiceEnum(CONVENTIONS) = field(
        default="paper",
        metadata={
            "help": "paper: layer-wise over layers 1..L, pairs from the first layer's input on; reimplementation: the "
            "encoder's input before the positional convolution counts as a layer and begins the pairs"
        },
    )
    distance: ChoiceEnum(list(DISTANCES)) = field(
        default="mse", metadata={"help": "distance between temporal Gram matrices"}
    )
    tgm_frames: ChoiceEnum(WHICH) = field(
        default=ALL,
        metadata={"help": "frames whose relations are compared: all, those masked by task.mask_prob, or the others"},
    )
    count_padding: bool = field(
        default=False,
        metadata={"help": "take means over padded frames too, as the re-implementation does; off: exact for any batch"},
    )
    teacher_layers: Optional[List[int]] = field(
        default=None,
        metadata={"help": "teacher layers (1-based) the student's layers learn from; default: all, or evenly spaced"},
    )
    unit_weight: float = field(
        default=0.0, metadata={"help": "weight of the cross-entropy of the teacher's units at masked frames"}
    )
    unit_unmasked_weight: float = field(default=0.0, metadata={"help": "weight of the same at unmasked frames"})
    units: Optional[List[str]] = field(
        default=None,
        metadata={"help": "what to predict: 'head' (the teacher's own predictions) or files of fairseq-star units"},
    )
    unit_temperature: float = field(
        default=1.0, metadata={"help": "of units=[head]: the teacher's logits are divided by it"}
    )
    unit_dim: int = field(default=256, metadata={"help": "width in which the student's units are compared"})
    unit_student_layers: Optional[List[int]] = field(
        default=None,
        metadata={"help": "student layers (1-based) that predict, one for each of units; default: the last"},
    )
    frame_mse_weight: float = field(
        default=0.0,
        metadata={"help": "weight of the squared distance of frames to the teacher's, through linear heads"},
    )
    frame_l1_weight: float = field(default=0.0, metadata={"help": "weight of the absolute distance likewise"})
    frame_cosine_weight: float = field(default=0.0, metadata={"help": "weight of -log sigmoid of the cosine likewise"})
    frame_masked_weight: float = field(default=1.0, metadata={"help": "of masked frames in these three"})
    frame_unmasked_weight: float = field(default=1.0, metadata={"help": "of unmasked frames in these three"})
    frame_layers: Optional[List[int]] = field(
        default=None,
        metadata={"help": "teacher layers (1-based) whose frames are predicted; default: those of teacher_layers"},
    )
    frame_student_layers: Optional[List[int]] = field(
        default=None,
        metadata={"help": "student layers (1-based) that predict them, one each; default: those matched to them"},
    )


def check_layers(option: str, layers: List[int], most: int, count: int) -> List[int]:
    """Return ``layers`` as plain numbers.

    Raises:
        StarError: there is none or not ``count``, or one is not in 1 .. ``most``.
    """
    if not layers or len(layers) != count or not all(1 <= layer <= most for layer in layers):
        raise StarError(f"criterion.{option}={list(layers)} must name {max(count, 1)} of the layers 1 .. {most}")
    return list(layers)
