"""data2vec's stack of positional convolutions, seeing an utterance's own frames only.

One positional convolution needs its input's padded frames to be zero, and they are. In a stack the first convolution
writes into them, and the second carries that back into the valid frames: an utterance's features would depend on its
batch. Zeroing the padded frames before each convolution gives what the utterance gives alone.
"""

from torch import Tensor, nn


class ValidPositionalStack(nn.Sequential):
    """fairseq's ``pos_conv`` of depth above 1 (same children, same keys), its padding kept zero throughout."""

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Positions of ``x`` (B x D x T); ``padding_mask`` is B x T, True = padded, None when nothing is."""
        for block in self:
            x = block(x)
            if padding_mask is not None:
                x = x.masked_fill(padding_mask[:, None], 0)
        return x


def use_valid_positions(encoder: nn.Module) -> None:
    """Replace the ``pos_conv`` of a fairseq encoder of ``pos_conv_depth`` above 1, in place."""
    encoder.pos_conv = ValidPositionalStack(*encoder.pos_conv)
