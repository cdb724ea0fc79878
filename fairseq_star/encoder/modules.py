"""The one encoder: fairseq's wav2vec 2.0 blocks under fairseq's names, for teachers of every family and the student.

HuBERT, wav2vec 2.0, data2vec-audio, WavLM and ``starhubert`` differ in a few switches and in WavLM's attention, so the
forward pass, padding, attention maps and compilation are written once. What differs from fairseq's own ``forward`` is
what is given out: every layer's states, attention maps on request, one frame padding mask, and nothing past the last
layer asked for.

Shapes: B utterances, T frames, D embedding dimension, L layers.
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from fairseq.models.wav2vec.wav2vec2 import ConvFeatureExtractionModel, TransformerEncoder
from fairseq.modules import LayerNorm
from torch import Tensor, nn

from fairseq_star.encoder.aligned_heads import align_heads
from fairseq_star.encoder.chunks import Chunks, chunked_positions, hear_as_it_comes
from fairseq_star.encoder.config import DROPOUTS, EncoderConfig
from fairseq_star.encoder.frames import Frames
from fairseq_star.encoder.group_norm import extract_features, use_valid_group_norm
from fairseq_star.encoder.positions import use_valid_positions
from fairseq_star.encoder.running_norm import RUNNING, use_running_norm
from fairseq_star.errors import StarError

NO_DROPOUT = dict.fromkeys(DROPOUTS, 0.0)


@dataclass
class Encoding:
    """What an encoder makes of a batch."""

    frames: Frames
    # B x T x D, what enters the encoder before the positional convolution; None where a cache was not asked for it.
    projected_features: Tensor | None
    hidden_states: Sequence[Tensor]  # L+1 of B x T x D: the first layer's input, then each layer's output
    attention_maps: dict[int, Tensor] = field(default_factory=dict)  # layer (1-based) -> B x T x T, mean over heads


class SpeechEncoder(nn.Module):
    """An encoder of ``config``, no more: no quantizer, no head, and a mask embedding only after :meth:`learn_mask`.

    Args:
        config: its shape.
        dropouts: one for each of :data:`~fairseq_star.encoder.config.DROPOUTS`.
        checkpoint_activations: recompute activations in backward to save memory.
        valid_statistics: features at an utterance's valid frames are those of the utterance alone: statistics of the
            first group norm over valid samples only, padding kept zero between data2vec's positional convolutions.
            Off: as the families' own libraries compute them, dependent on the batch.
    """

    transformer: type[TransformerEncoder] = TransformerEncoder

    def __init__(
        self,
        config: EncoderConfig,
        *,
        dropouts: Mapping[str, float] = NO_DROPOUT,
        checkpoint_activations: bool = False,
        valid_statistics: bool = True,
    ):
        super().__init__()
        channels = config.conv_layers[-1].channels
        self.config, self.geometry = config, config.geometry
        # In this order: a run's first weights are rebuilt from its seed.
        running = config.extractor_mode == RUNNING  # which fairseq does not know
        self.feature_extractor = ConvFeatureExtractionModel(
            list(config.conv_layers),
            dropout=0.0,
            mode="default" if running else config.extractor_mode,
            conv_bias=config.conv_bias,
        )
        if running:
            use_running_norm(self.feature_extractor)
        self.layer_norm = LayerNorm(channels) if config.input_norm else nn.Identity()
        self.post_extract_proj = nn.Linear(channels, config.embed_dim) if config.projection else None
        self.dropout_input = nn.Dropout(dropouts["dropout_input"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # fairseq uses torch's older weight_norm
            self.encoder = self.transformer(_transformer_settings(config, dropouts, checkpoint_activations))
        self.register_parameter("mask_emb", None)
        self.chunk_frames = config.chunk_frames[0] if config.chunk_frames else 0  # of a chunk; 0: hears all at once
        if config.chunk_frames:
            hear_as_it_comes(self.encoder)
        # The extractor's norms and the positional stack's keep torch's own epsilon in every library.
        for part in (self.layer_norm, self.encoder.layer_norm, *self.encoder.layers.modules()):
            if isinstance(part, nn.LayerNorm):
                part.eps = config.layer_norm_eps
        self.positions_see_padding = valid_statistics and config.pos_conv_depth > 1
        align_heads(self.encoder)
        if valid_statistics:
            use_valid_group_norm(self.feature_extractor)
        if self.positions_see_padding:
            use_valid_positions(self.encoder)

    def learn_mask(self) -> None:
        """Give the encoder the vector (D) that stands for hidden frames, drawn as fairseq's HuBERT draws its own."""
        self.mask_emb = nn.Parameter(torch.empty(self.config.embed_dim).uniform_())

    def use_chunks(self, chunk_frames: int) -> None:
        """Hear in chunks of so many frames from now on, or with 0 whole utterances at once.

        Raises:
            StarError: a number below 0, or an encoder that hears whole utterances only.
        """
        if not self.config.chunk_frames:
            raise StarError("this encoder hears whole utterances only; a student of model.chunk_frames hears in chunks")
        if chunk_frames < 0:
            raise StarError(f"chunks of {chunk_frames} frames cannot be; give 1 or more, or 0 for all at once")
        self.chunk_frames = chunk_frames

    def encode(
        self,
        source: Tensor,
        frames: Frames,
        *,
        last_layer: int | None = None,
        attention_layers: Collection[int] = (),
        mask_indices: Tensor | None = None,
        mask_channels: Tensor | None = None,
        chunk_frames: int | None = None,
    ) -> Encoding:
        """Run the encoder over ``source`` (B x samples), its parts as fairseq's ``HubertModel.forward`` runs them.

        Args:
            frames: the batch's valid frames; padded ones are zeroed before the positional convolution, never attended
                to.
            last_layer: stop after this layer (1-based); all layers when None.
            attention_layers: layers (1-based) whose attention maps are wanted. Every other one runs through
                ``scaled_dot_product_attention`` and never forms its weights.
            mask_indices: B x T, True = hidden: these frames' features become the mask embedding, as by HuBERT's
                ``apply_mask``.
            mask_channels: B x D, True = zeroed in all frames of the utterance, likewise.
            chunk_frames: of a streaming encoder, the chunks it hears in, 0 for the whole utterance at once; None:
                those in use (attribute ``chunk_frames``).

        The layers' own dropouts apply in training mode. Layer drop does not: the loss needs every layer.
        """
        padding_mask = frames.padding_mask
        features = extract_features(self.feature_extractor, source, frames.num_samples)  # B x C x T
        features = self.layer_norm(features.transpose(1, 2))  # B x T x C
        if self.post_extract_proj is not None:
            features = self.post_extract_proj(features)  # B x T x D
        features = self.dropout_input(features)
        if mask_indices is not None:
            features = torch.where(mask_indices[..., None], self.mask_emb.to(features.dtype), features)
        if mask_channels is not None:
            features = features.masked_fill(mask_channels[:, None], 0)
        if padding_mask is not None:
            features = features.masked_fill(padding_mask[..., None], 0)

        chunks = self._chunks(features, padding_mask, self.chunk_frames if chunk_frames is None else chunk_frames)
        num_frames = features.size(1)
        if chunks is None:
            x = features + self.positions(features, padding_mask)
        else:
            x = chunks.with_copies(features) + chunked_positions(self.encoder.pos_conv, features, chunks)
        if not self.encoder.layer_norm_first:
            x = self.encoder.layer_norm(x)
        x = F.dropout(x, p=self.encoder.dropout, training=self.encoder.training)

        hidden_states, attention_maps = [x[:, :num_frames]], {}
        # T x B x D, fairseq's layout within the layers; as a mere view, the first projections take three times as long.
        x = x.transpose(0, 1).contiguous()
        shared = self.layer_arguments(num_frames)
        attended = padding_mask if chunks is None else chunks
        for number, layer in enumerate(self.encoder.layers[:last_layer], start=1):
            if number in attention_layers:
                attention_maps[number] = self.attention_map(layer, x, attended, **shared)
            x, _ = layer(x, self_attn_padding_mask=attended, need_weights=False, **shared)
            hidden_states.append(x[:num_frames].transpose(0, 1))
        return Encoding(frames, features, hidden_states, attention_maps)

    def finished(self, states: Tensor) -> Tensor:
        """The last layer's ``states`` as whoever uses them takes them: after the final norm of a pre-norm encoder."""
        return self.encoder.layer_norm(states) if self.encoder.layer_norm_first else states

    def _chunks(self, features: Tensor, padding_mask: Tensor | None, size: int) -> Chunks | None:
        """Chunks of ``size`` frames of ``features`` (B x T x D); None where all are heard at once."""
        context = self.config.left_context_frames, self.config.right_context_frames
        return Chunks(size, *context, features.size(1), padding_mask, features.device) if size else None

    def positions(self, features: Tensor, padding_mask: Tensor | None) -> Tensor:
        """What the positional convolution adds to ``features`` (B x T x D), whose padded frames are zero: B x T x D."""
        x = features.transpose(1, 2)
        x = self.encoder.pos_conv(x, padding_mask) if self.positions_see_padding else self.encoder.pos_conv(x)
        return x.transpose(1, 2)

    def layer_arguments(self, num_frames: int) -> dict[str, Tensor]:
        """What every layer takes beside its input and mask, formed once a batch: nothing."""
        return {}

    def attention_map(self, layer: nn.Module, x: Tensor, attended: Tensor | Chunks | None) -> Tensor:
        """Attention weights of ``layer`` over its input ``x`` (T x B x D), mean over heads: B x T x T, rows sum to 1.

        Without attention dropout, which belongs to the layer's output, not to the relation between frames. ``attended``
        is the padding mask (B x T, True = padded) or says how chunks attend; then ``x`` is S x B x D, and a copy's
        weight is its frame's.
        """
        attention = layer.self_attn
        if layer.layer_norm_first:
            x = layer.self_attn_layer_norm(x)
        num_frames, batch, _ = x.shape

        def heads(projected: Tensor) -> Tensor:  # T x B x D -> B x heads x T x D/heads
            return projected.view(num_frames, batch, attention.num_heads, -1).permute(1, 2, 0, 3)

        query, key = heads(attention.q_proj(x)), heads(attention.k_proj(x))
        logits = (query * attention.scaling) @ key.transpose(2, 3)  # B x heads x T x T
        if isinstance(attended, Chunks):
            logits = logits.masked_fill(~attended.visible()[:, None], float("-inf"))
        elif attended is not None:
            logits = logits.masked_fill(attended[:, None, None, :], float("-inf"))
        weights = torch.softmax(logits, dim=-1, dtype=torch.float32).mean(dim=1)
        return attended.of_frames(weights) if isinstance(attended, Chunks) else weights

    def compile_layers(self) -> None:
        """``torch.compile`` every Transformer layer, in place, the state dict unchanged.

        All layers share one piece of compiled code for each shape, or one for all shapes once two were seen.
        """
        for layer in self.encoder.layers:
            layer.compile()


def _transformer_settings(
    config: EncoderConfig, dropouts: Mapping[str, float], checkpoint_activations: bool
) -> SimpleNamespace:
    """In the form fairseq's ``TransformerEncoder`` reads."""
    return SimpleNamespace(
        **config.fairseq_settings(),
        pos_conv_depth=config.pos_conv_depth,
        relative_position=config.relative_position,
        layer_type="transformer",
        required_seq_len_multiple=1,
        checkpoint_activations=checkpoint_activations,
        encoder_layerdrop=0.0,
        **{name: value for name, value in dropouts.items() if name != "dropout_input"},
    )
