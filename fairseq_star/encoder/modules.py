"""The one encoder, wav2vec 2.0's under fairseq's names, for teachers of every family and the student.

HuBERT, wav2vec 2.0, data2vec-audio, WavLM and ``starhubert`` differ in a few switches, all of them decided when the
encoder is built. The forward pass, :meth:`SpeechEncoder.run`, is written once, for training, for a step of a stream
and for exported programs; the frames that a frame depends on are its argument (``attention.Context``). It differs from
fairseq's own ``forward`` in what it returns: every layer's states, attention maps on request, one frame padding mask,
and nothing past the last layer wanted.

Shapes: B utterances, T frames, S frames within the layers (T but for chunks), D embedding dimension, L layers.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from fairseq.modules import LayerNorm
from torch import Tensor, nn

from fairseq_star.encoder.attention import Context, Whole
from fairseq_star.encoder.chunks import Chunks
from fairseq_star.encoder.config import DROPOUTS, EncoderConfig
from fairseq_star.encoder.fake_quant import linear
from fairseq_star.encoder.frames import Frames
from fairseq_star.encoder.front_end import FeatureExtractor
from fairseq_star.encoder.running_norm import SILENT, Past
from fairseq_star.encoder.transformer import Transformer
from fairseq_star.errors import StarError

NO_DROPOUT = dict.fromkeys(DROPOUTS, 0.0)


@dataclass
class Encoding:
    """An encoder's output for a batch."""

    frames: Frames
    # B x T x D, the input of the positional convolution; None where it was not requested of a cache.
    projected_features: Tensor | None
    hidden_states: Sequence[Tensor]  # L+1 of B x T x D: the first layer's input, then each layer's output
    attention_maps: dict[int, Tensor] = field(default_factory=dict)  # layer (1-based) -> B x T x T, mean over heads


@dataclass
class Pass:
    """The result of :meth:`SpeechEncoder.run`."""

    features: Tensor  # B x T x D, the input of the positional convolution
    hidden_states: list[Tensor]  # L+1 of B x T x D: the first layer's input, then each layer's output
    attention_maps: dict[int, Tensor]  # layer (1-based) -> B x T x T, mean over heads


class SpeechEncoder(nn.Module):
    """An encoder of ``config``, no more: no quantizer, no head, and a mask embedding only after :meth:`learn_mask`.

    Args:
        config: its shape.
        dropouts: one for each of :data:`~fairseq_star.encoder.config.DROPOUTS`.
        checkpoint_activations: recompute activations in backward to save memory.
        valid_statistics: features at an utterance's valid frames are those of the utterance alone: statistics of the
            first group norm over valid samples only, padding kept zero between data2vec's positional convolutions.
            Off: as the families' own libraries compute them, dependent on the batch.
        weight_bits: 8 or 4: weights and inputs of linear layers are rounded as in a quantized file (``fake_quant.py``).
        fused_positions: the positional convolution's weight is one tensor, for inference; see :meth:`for_inference`.
    """

    def __init__(
        self,
        config: EncoderConfig,
        *,
        dropouts: Mapping[str, float] = NO_DROPOUT,
        checkpoint_activations: bool = False,
        valid_statistics: bool = True,
        weight_bits: int | None = None,
        fused_positions: bool = False,
    ):
        super().__init__()
        channels = config.conv_layers[-1].channels
        self.config, self.geometry, self.valid_statistics = config, config.geometry, valid_statistics
        # In this order: a run's first weights are rebuilt from its seed.
        self.feature_extractor = FeatureExtractor(config)
        self.layer_norm = LayerNorm(channels, config.layer_norm_eps) if config.input_norm else nn.Identity()
        self.post_extract_proj = linear(channels, config.embed_dim, weight_bits) if config.projection else None
        self.dropout_input = nn.Dropout(dropouts["dropout_input"])
        self.encoder = Transformer(
            config,
            dropouts,
            bits=weight_bits,
            recompute=checkpoint_activations,
            valid=valid_statistics,
            fused=fused_positions,
        )
        self.register_parameter("mask_emb", None)
        self.chunk_frames = config.chunk_frames[0] if config.chunk_frames else 0  # of a chunk; 0: all at once

    def for_inference(self) -> "SpeechEncoder":
        """Return an encoder of the same weights, in eval mode, that cannot be trained: they are shared, not copied.

        The positional convolution's weight is computed once, from its direction and magnitude.
        """
        weights = {key: value for key, value in self.state_dict().items() if key != "mask_emb"}
        if self.config.pos_conv_depth == 1 and "encoder.pos_conv.0.weight_g" in weights:
            del weights["encoder.pos_conv.0.weight_g"], weights["encoder.pos_conv.0.weight_v"]
            weights["encoder.pos_conv.0.weight"] = self.encoder.pos_conv[0].weight.detach()
        with torch.device("meta"):
            encoder = SpeechEncoder(self.config, valid_statistics=self.valid_statistics, fused_positions=True)
        encoder.load_state_dict(weights, assign=True)
        return encoder.eval().requires_grad_(False)

    def learn_mask(self) -> None:
        """Add the mask embedding (D), which replaces masked frames, drawn as by fairseq's HuBERT."""
        self.mask_emb = nn.Parameter(torch.empty(self.config.embed_dim).uniform_())

    def use_chunks(self, chunk_frames: int) -> None:
        """Process audio in chunks of ``chunk_frames`` from now on; 0: whole utterances at once.

        Raises:
            StarError: a number below 0, or an encoder that processes whole utterances only.
        """
        if not self.config.chunk_frames:
            raise StarError(
                "this encoder processes whole utterances only; a student of model.chunk_frames processes them in chunks"
            )
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
            mask_indices: B x T, True = masked: these frames' features become the mask embedding, as by HuBERT's
                ``apply_mask``.
            mask_channels: B x D, True = zeroed in all frames of the utterance, likewise.
            chunk_frames: of a streaming encoder, frames of a chunk, 0 for the whole utterance at once; None: the
                attribute ``chunk_frames``.

        The layers' own dropouts apply in training mode. Layer drop does not: the loss needs every layer.
        """
        size = self.chunk_frames if chunk_frames is None else chunk_frames
        num_frames = self.geometry.num_frames(source.size(1))
        reach = self.config.left_context_frames, self.config.right_context_frames
        skip = bool(self.config.norm_context_frames)
        context = (
            Chunks(size, *reach, num_frames, frames.padding_mask, source.device, skip)
            if size
            else Whole(frames.padding_mask, skip)
        )
        done = self.run(
            source,
            context,
            num_samples=frames.num_samples if self.valid_statistics else None,
            last_layer=last_layer,
            attention_layers=attention_layers,
            mask_indices=mask_indices,
            mask_channels=mask_channels,
        )
        return Encoding(frames, done.features, done.hidden_states, done.attention_maps)

    def run(
        self,
        source: Tensor,
        context: Context,
        *,
        num_samples: Sequence[int] | Tensor | None = None,
        past: Past | None = None,
        last_layer: int | None = None,
        attention_layers: Collection[int] = (),
        mask_indices: Tensor | None = None,
        mask_channels: Tensor | None = None,
    ) -> Pass:
        """Run the encoder over ``source`` (B x samples): the one forward pass.

        Args:
            context: the padded frames, and the frames that a frame depends on.
            num_samples: of each utterance, that statistics of a group norm are taken over; all when None.
            past: the state of a stream's running norm.
            last_layer, attention_layers, mask_indices, mask_channels: as of :meth:`encode`.
        """
        past = Past() if past is None else past
        features = self.layer_norm(self.feature_extractor(source, num_samples, past).transpose(1, 2))  # B x T x C
        if self.post_extract_proj is not None:
            features = self.post_extract_proj(features)  # B x T x D
        if past.energy is not None:  # silence looks as padding does
            features = features.masked_fill((past.energy[:, : features.size(1)] < SILENT)[..., None], 0)
        features = self.dropout_input(features)
        if mask_indices is not None:
            features = torch.where(mask_indices[..., None], self.mask_emb.to(features.dtype), features)
        if mask_channels is not None:
            features = features.masked_fill(mask_channels[:, None], 0)
        padded = context.padded(features)
        if padded is not None:
            features = features.masked_fill(padded[..., None], 0)

        x = context.place(self.encoder.pos_conv, features)
        if not self.encoder.layer_norm_first:
            x = self.encoder.layer_norm(x)
        x = F.dropout(x, p=self.encoder.dropout, training=self.encoder.training)

        num_frames = features.size(1)
        hidden_states, attention_maps = [x[:, :num_frames]], {}
        # S x B x D, fairseq's layout within the layers, contiguous: the first projections of a view take 3 times as
        # long.
        x = x.transpose(0, 1).contiguous()
        bias = self.position_bias(num_frames)
        for number, layer in enumerate(self.encoder.layers[:last_layer], start=1):
            if number in attention_layers:
                attention_maps[number] = layer.attention_map(x, context, bias)
            x = layer(x, context, bias)
            hidden_states.append(x[:num_frames].transpose(0, 1))
        return Pass(features, hidden_states, attention_maps)

    def finished(self, states: Tensor) -> Tensor:
        """Return the last layer's ``states`` after the final norm of a pre-norm encoder; unchanged for others."""
        return self.encoder.layer_norm(states) if self.encoder.layer_norm_first else states

    def positions(self, features: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Return the positional convolution of ``features`` (B x T x D), whose padded frames are zero: B x T x D."""
        return self.encoder.pos_conv(features.transpose(1, 2), padding_mask).transpose(1, 2)

    def position_bias(self, num_frames: int) -> Tensor | None:
        """Return WavLM's bias of all layers' scores, 1 x H x T x T, formed once a batch; None for other families."""
        if self.config.relative_position is None:
            return None
        return self.encoder.layers[0].self_attn.position_bias(num_frames)

    def compile_layers(self) -> None:
        """``torch.compile`` every Transformer layer, in place, the state dict unchanged.

        All layers share one piece of compiled code for each shape, or one for all shapes once two were seen.
        """
        for layer in self.encoder.layers:
            layer.compile()
