"""Options of ``task=star_distillation`` for the augmentation of the student's input."""

from dataclasses import dataclass, field
from typing import List, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass

SELECTIONS = ("static", "normal", "poisson")  # "uniform" fails in fairseq 0.12: numpy's Generator has no randint


@dataclass
class AugmentConfig(FairseqDataclass):
    """All off by default: the student receives the teacher's input."""

    mask_prob: float = field(
        default=0.0,
        metadata={
            "help": "share of frames masked for the student, before spans overlap (HuBERT: 0.8, of which 0.49 stay); "
            "0: none"
        },
    )
    mask_length: int = field(default=10, metadata={"help": "frames of a masked span"})
    mask_selection: ChoiceEnum(SELECTIONS) = field(
        default="static", metadata={"help": "how the lengths of masked spans are drawn"}
    )
    mask_other: float = field(
        default=0.0, metadata={"help": "second number of the distribution of lengths, such as normal's deviation"}
    )
    mask_channel_prob: float = field(
        default=0.0, metadata={"help": "share of feature channels that are zeroed for the student, likewise"}
    )
    mask_channel_length: int = field(default=10, metadata={"help": "channels of a zeroed span"})
    mask_channel_selection: ChoiceEnum(SELECTIONS) = field(
        default="static", metadata={"help": "how the lengths of zeroed spans are drawn"}
    )
    mask_channel_other: float = field(default=0.0, metadata={"help": "as mask_other, of channels"})
    noise_manifest: Optional[str] = field(
        default=None, metadata={"help": "manifest (.tsv) of noise to add to what the student receives"}
    )
    noise_prob: float = field(default=1.0, metadata={"help": "share of utterances that noise is added to"})
    noise_snr: List[float] = field(
        default_factory=lambda: [0.0, 20.0], metadata={"help": "lowest and highest speech-to-noise ratio in dB"}
    )
    reverb_manifest: Optional[str] = field(
        default=None, metadata={"help": "manifest (.tsv) of room impulse responses that the student receives through"}
    )
    reverb_prob: float = field(default=0.5, metadata={"help": "share of utterances that reverberate"})
    babble_prob: float = field(
        default=0.0, metadata={"help": "share of utterances that others of the same manifest speak into"}
    )
    babble_snr: List[float] = field(
        default_factory=lambda: [5.0, 20.0], metadata={"help": "lowest and highest ratio to all others together, dB"}
    )
    babble_utterances: List[int] = field(
        default_factory=lambda: [1, 4], metadata={"help": "fewest and most others at a time; one is an overlap"}
    )
    band_limit_prob: float = field(
        default=0.0, metadata={"help": "share of utterances whose high frequencies are cut off"}
    )
    band_limit_hz: List[float] = field(
        default_factory=lambda: [2000.0, 6000.0], metadata={"help": "lowest and highest cut-off in Hz"}
    )
    gain_prob: float = field(default=0.0, metadata={"help": "share of utterances that are made louder or softer"})
    gain_db: List[float] = field(
        default_factory=lambda: [-12.0, 6.0], metadata={"help": "lowest and highest gain in dB"}
    )
