"""What a fine-tuned student has beside its encoder: a head, which computes a task's outputs of the hidden states.

A head is a module that travels with its :class:`~fairseq_star.formats.student.Student`: exported programs compute its
outputs in place of the hidden states, and its labels are written next to them. The table of heads, by the name of
fairseq's model that is fine-tuned with one, is ``finetuned.HEADS``.

Shapes: B utterances, T frames of the longest one, n_b valid frames of utterance b, D width, L layers.
"""

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Sequence

from torch import Tensor, nn

METADATA = "fairseq_star.head"
"""The key under which an exported program's file describes its head, as JSON."""
FRAME_LENGTHS = "frame_lengths"


class Head(nn.Module):
    """A head, frozen."""

    kind: ClassVar[str]  # its name in an exported program's metadata
    title: ClassVar[str]  # its outputs, for people
    outputs: ClassVar[dict[str, dict[int, str]]]  # names of what it returns -> names of the axes that vary

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of an exported program's outputs: the head's, and the numbers of frames."""
        return (*self.outputs, FRAME_LENGTHS)

    @abstractmethod
    def forward(self, states: Sequence[Tensor], frame_lengths: Tensor) -> tuple[Tensor, ...]:
        """Return the head's outputs for a batch.

        Args:
            states: L+1 of B x T x D: the first layer's input, then each layer's output, the last one after the
                encoder's final norm.
            frame_lengths: B, int64, the frames of each utterance that are valid.
        """

    @abstractmethod
    def split(self, outputs: Sequence[Tensor], frame_lengths: Tensor) -> list[list[Tensor]]:
        """Split a batch's outputs by utterance, valid frames only."""

    @abstractmethod
    def text(self, outputs: Sequence[Tensor]) -> str:
        """Return what a person reads of one utterance's outputs, as :meth:`split` returns them."""

    @abstractmethod
    def margin(self, outputs: Sequence[Tensor]) -> float:
        """Return by how much one utterance's outputs may change before its :meth:`text` can: 0 for a tie."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """Return all that :meth:`text` needs, as JSON can hold it."""

    @abstractmethod
    def write_labels(self, folder: Path) -> None:
        """Write the head's labels into the folder of an export."""

    def metadata(self, inputs: Sequence[str], *, sample_rate: int, downsample_rate: int) -> dict[str, str]:
        """Return the description of this head that a program's file carries.

        Args:
            inputs: names of the program's inputs.
            sample_rate: of its audio, Hz.
            downsample_rate: samples a frame.
        """
        rates = {"sample_rate": sample_rate, "downsample_rate": downsample_rate}
        about = {"kind": self.kind, "inputs": list(inputs), **rates, "labels": self.about()}
        return {METADATA: json.dumps(about, ensure_ascii=False)}
