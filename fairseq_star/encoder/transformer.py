"""The Transformer of an encoder under the names of fairseq's: positions, layers, norm.

Shapes: B utterances, S frames within the layers, D width, H heads.
"""

from collections.abc import Mapping

import torch
from fairseq.distributed import fsdp_wrap
from fairseq.modules import LayerNorm
from fairseq.utils import get_activation_fn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fairseq_star.encoder.attention import Context, SelfAttention
from fairseq_star.encoder.config import EncoderConfig
from fairseq_star.encoder.fake_quant import linear
from fairseq_star.encoder.positions import build_positions


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward part, pre- or post-norm; fairseq's ``TransformerSentenceEncoderLayer``.

    Args:
        config: of the encoder.
        number: of the layer, from 0.
        dropouts: under fairseq's names.
        bits: of linear layers' rounded weights; None: not rounded.
        recompute: compute activations once more in backward, to save memory.
    """

    def __init__(
        self,
        config: EncoderConfig,
        number: int,
        dropouts: Mapping[str, float],
        bits: int | None = None,
        recompute: bool = False,
    ):
        super().__init__()
        width, inner, eps = config.embed_dim, config.layer_ffn_dims[number], config.layer_norm_eps
        self.layer_norm_first, self.recompute = config.layer_norm_first, recompute
        self.activation_fn = get_activation_fn(config.activation_fn)
        self.self_attn = SelfAttention(
            width,
            config.layer_heads[number],
            config.head_width,
            dropout=dropouts["attention_dropout"],
            bits=bits,
            relative_position=config.relative_position,
            has_table=config.relative_position is not None and number == 0,
        )
        self.dropout1 = nn.Dropout(dropouts["dropout"])
        self.dropout2 = nn.Dropout(dropouts["activation_dropout"])
        self.dropout3 = nn.Dropout(dropouts["dropout"])
        self.self_attn_layer_norm = LayerNorm(width, eps)
        self.fc1, self.fc2 = linear(width, inner, bits), linear(inner, width, bits)
        self.final_layer_norm = LayerNorm(width, eps)

    @torch.no_grad()
    def draw_first_weights(self) -> None:
        """Draw the weights as BERT does."""
        self.self_attn.draw_first_weights()
        for part in (self.fc1, self.fc2):
            part.weight.normal_(std=0.02)
            part.bias.zero_()

    def forward(self, x: Tensor, context: Context | None = None, position_bias: Tensor | None = None) -> Tensor:
        """Return the layer's output (S x B x D) for ``x`` (S x B x D); the other arguments as of its attention."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._run, x, context, position_bias, use_reentrant=False)
        return self._run(x, context, position_bias)

    def _run(self, x: Tensor, context: Context | None, position_bias: Tensor | None) -> Tensor:
        inputs = self.self_attn_layer_norm(x) if self.layer_norm_first else x
        x = x + self.dropout1(self.self_attn(inputs, context, position_bias))
        if self.layer_norm_first:
            return x + self._feed_forward(self.final_layer_norm(x))
        x = self.self_attn_layer_norm(x)
        return self.final_layer_norm(x + self._feed_forward(x))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout3(self.fc2(self.dropout2(self.activation_fn(self.fc1(x)))))

    def attention_map(self, x: Tensor, context: Context, position_bias: Tensor | None = None) -> Tensor:
        """Return the attention weights over the layer's input ``x`` (S x B x D), mean over heads: B x T x T.

        Rows sum to 1: without attention dropout, which belongs to the layer's output, not to the relation between
        frames.
        """
        inputs = self.self_attn_layer_norm(x) if self.layer_norm_first else x
        return self.self_attn.weights(inputs, context, position_bias)


class Transformer(nn.Module):
    """Positional convolution, layers and norm; :class:`~fairseq_star.encoder.modules.SpeechEncoder` runs them.

    Args:
        config: of the encoder.
        valid: keep padding zero throughout a positional stack.
        fused: as of :class:`~fairseq_star.encoder.positions.PositionalConvolution`.
        dropouts, bits, recompute: as of a layer.
    """

    def __init__(
        self,
        config: EncoderConfig,
        dropouts: Mapping[str, float],
        *,
        bits: int | None = None,
        recompute: bool = False,
        valid: bool = True,
        fused: bool = False,
    ):
        super().__init__()
        self.dropout, self.layer_norm_first = dropouts["dropout"], config.layer_norm_first
        self.pos_conv = build_positions(config, valid=valid, fused=fused)
        self.layers = nn.ModuleList(
            fsdp_wrap(TransformerLayer(config, number, dropouts, bits, recompute))
            for number in range(config.num_layers)
        )
        self.layer_norm = LayerNorm(config.embed_dim, config.layer_norm_eps)
        for layer in self.layers:
            layer.draw_first_weights()
