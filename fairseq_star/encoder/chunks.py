"""Chunked attention, by which an encoder processes audio as it arrives.

An utterance's frames are cut into chunks of C from its beginning. A frame attends to its whole chunk, to the L frames
before the chunk and to the R frames after it. If each layer looked R frames further, the look-ahead would grow with
depth; so the R frames after a chunk are copied for it, as in Emformer (Shi et al., 2021, arXiv 2010.10759): the copies
pass through all layers with the chunk, attend to the same frames, and are dropped at the end. A frame depends on no
frame later than R after its chunk, however deep the encoder is.

Shapes: B utterances, T frames, D width, H heads, N = ceil(T / C) chunks, S = T + N R frames within the layers: the
utterance's own, then chunk by chunk the copies.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_star.encoder.attention import attention, audible_frames, without_silence

# Frames whose attention is computed together, with one mask: fewer make more and smaller products, more compute more
# scores that are masked.
BLOCK_FRAMES = 64


@dataclass
class Chunks:
    """The :class:`~fairseq_star.encoder.attention.Context` of a batch in chunks; masks are formed once a batch."""

    size: int  # C
    left: int  # L
    right: int  # R
    num_frames: int  # T
    padding_mask: Tensor | None  # B x T, True = padded
    device: torch.device
    skip_silence: bool = False  # as of `Whole`
    audible: Tensor | None = field(init=False, default=None)  # B x S
    copied: Tensor = field(init=False)  # N R, the frame that each copy is of, past the last one too
    block_mask: Tensor = field(init=False)  # 1 or B x blocks x queries x keys, True where a query may attend

    def __post_init__(self):
        first = (self._arange(self.num_chunks) + 1) * self.size
        self.copied = (first[:, None] + self._arange(self.right)).flatten()
        self.block_mask = self._block_mask()

    @property
    def num_chunks(self) -> int:
        """Return N of the longest utterance."""
        return -(-self.num_frames // self.size)

    @property
    def num_copies(self) -> int:
        """Return N R."""
        return self.num_chunks * self.right

    def with_copies(self, x: Tensor) -> Tensor:
        """Return the frames within the layers, B x S x D, of ``x`` (B x T x D)."""
        return x if not self.right else torch.cat([x, x[:, self.copied.clamp(max=self.num_frames - 1)]], dim=1)

    def windows(self, x: Tensor) -> Tensor:
        """Return each chunk's own frames of ``x`` (B x T x D) and the R after it: B x N x D x C + R.

        Zeros past the end.
        """
        missing = self.num_chunks * self.size + self.right - self.num_frames
        return F.pad(x, (0, 0, 0, missing)).unfold(1, self.size + self.right, self.size)

    def within_layers(self, windows: Tensor) -> Tensor:
        """Return the frames within the layers, B x S x D, of each chunk's window, B x N x D x C + R."""
        frames, copies = windows.transpose(2, 3).split([self.size, self.right], dim=2)
        return torch.cat([frames.flatten(1, 2)[:, : self.num_frames], copies.flatten(1, 2)], dim=1)

    def visible(self) -> Tensor:
        """Return the definition: 1 or B x S x S, True where the query (second) may attend to the key (third).

        Padded frames attend to all of their window, padded or not: over no key a softmax would be nan.
        """
        frame = self._arange(self.num_frames)
        chunk = torch.cat([frame // self.size, self._arange(self.num_copies) // max(self.right, 1)])
        is_copy = self._arange(len(chunk)) >= self.num_frames
        window = self._window(chunk, chunk, torch.cat([frame, self.copied]), is_copy)
        valid = self.valid()
        mask = window & (valid[:, None, :] | ~valid[:, :, None])
        return mask if self.audible is None else without_silence(mask, self.audible[:, None])

    def place(self, pos_conv: nn.Module, features: Tensor) -> Tensor:
        """See :class:`~fairseq_star.encoder.attention.Context`."""
        return self.with_copies(features) + chunked_positions(pos_conv, features, self)

    def padded(self, features: Tensor) -> Tensor | None:
        """See :class:`~fairseq_star.encoder.attention.Context`."""
        if self.skip_silence:
            self.audible = audible_frames(self.with_copies(features))
            self.block_mask = self._block_mask()
        return self.padding_mask

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0, bias: Tensor | None = None
    ) -> Tensor:
        """Return attention's output for heads (all B x H x S x W), equal to attention under :meth:`visible`.

        Whole chunks are taken together to blocks of about :data:`BLOCK_FRAMES`; a block attends to its own frames, the
        L before it and its copies, under one mask. So the cost is linear in T. No encoder has chunks and a ``bias``.
        """
        batch, num_heads = query.shape[:2]
        mask = self.block_mask.expand(batch, -1, -1, -1).flatten(0, 1)
        blocks = (
            form(x.transpose(1, 2).flatten(2)).flatten(0, 1).unflatten(2, (num_heads, -1)).transpose(1, 2)
            for form, x in ((self._query_blocks, query), (self._key_blocks, key), (self._key_blocks, value))
        )
        out = attention(*blocks, mask, dropout).transpose(1, 2).unflatten(0, (batch, self.num_blocks))
        frames, copies = out.split([self.block, self.block_copies], dim=2)  # B x blocks x queries x H x W
        frames, copies = frames.flatten(1, 2)[:, : self.num_frames], copies.flatten(1, 2)[:, : self.num_copies]
        return torch.cat([frames, copies], dim=1).transpose(1, 2)

    def of_frames(self, weights: Tensor) -> Tensor:
        """Return attention weights between frames (B x T x T) of those within the layers (B x S x S)."""
        frames = weights[:, : self.num_frames]
        own, copies = frames.split([self.num_frames, self.num_copies], dim=2)
        return own.index_add(2, self.copied.clamp(max=self.num_frames - 1), copies)

    @property
    def block(self) -> int:
        """Return the frames of a block: whole chunks."""
        chunks = max(1, min(BLOCK_FRAMES // self.size, self.num_chunks))
        return chunks * self.size

    @property
    def block_copies(self) -> int:
        """Return the copies of a block."""
        return self.block // self.size * self.right

    @property
    def num_blocks(self) -> int:
        """Return the blocks of the longest utterance."""
        return -(-self.num_frames // self.block)

    def _block_mask(self) -> Tensor:
        """Return :meth:`visible`, block by block."""
        copies_chunk = self._arange(self.block_copies) // max(self.right, 1)
        query_chunk = torch.cat([self._arange(self.block) // self.size, copies_chunk])
        key_frame = self._arange(self.left + self.block) - self.left
        # Chunks before the block and copies have chunk numbers too; only those of copies are read.
        key_chunk = torch.cat([key_frame // self.size, copies_chunk])
        is_copy = self._arange(len(key_chunk)) >= len(key_frame)
        window = self._window(query_chunk, key_chunk, F.pad(key_frame, (0, self.block_copies)), is_copy)
        valid = self.valid()[..., None]
        keys, queries = self._key_blocks(valid).squeeze(-1), self._query_blocks(valid).squeeze(-1)
        mask = window & (keys[:, :, None, :] | ~queries[:, :, :, None])
        if self.audible is None:
            return mask
        return without_silence(mask, self._key_blocks(self.audible[..., None]).transpose(2, 3))

    def valid(self) -> Tensor:
        """Return 1 or B x S, True where a frame, or the frame that a copy is of, is the utterance's own."""
        if self.padding_mask is None:
            frames = torch.ones(1, self.num_frames, dtype=torch.bool, device=self.device)
        else:
            frames = ~self.padding_mask
        copies = frames[:, self.copied.clamp(max=self.num_frames - 1)] & (self.copied < self.num_frames)
        return torch.cat([frames, copies], dim=1)

    def _arange(self, stop: int) -> Tensor:
        return torch.arange(stop, device=self.device)

    def _window(self, query_chunk: Tensor, key_chunk: Tensor, key_frame: Tensor, is_copy: Tensor) -> Tensor:
        """Return queries x keys, True where a key is in the query's window."""
        first = query_chunk[:, None] * self.size
        own = (key_frame >= first - self.left) & (key_frame < first + self.size)
        return torch.where(is_copy, key_chunk == query_chunk[:, None], own)

    def _query_blocks(self, x: Tensor) -> Tensor:
        """Return B x blocks x queries x D of ``x`` (B x S x D): a block's frames, then its copies; zeros past the
        end."""
        frames = F.pad(x[:, : self.num_frames], (0, 0, 0, self.num_blocks * self.block - self.num_frames))
        return torch.cat([frames.unflatten(1, (self.num_blocks, self.block)), self._copy_blocks(x)], dim=2)

    def _key_blocks(self, x: Tensor) -> Tensor:
        """Return B x blocks x keys x D: the L frames before the block, its own, its copies."""
        after = self.num_blocks * self.block - self.num_frames
        frames = F.pad(x[:, : self.num_frames], (0, 0, self.left, after))
        windows = frames.unfold(1, self.left + self.block, self.block).transpose(2, 3)
        return torch.cat([windows, self._copy_blocks(x)], dim=2)

    def _copy_blocks(self, x: Tensor) -> Tensor:
        missing = self.num_blocks * self.block_copies - self.num_copies
        copies = F.pad(x[:, self.num_frames :], (0, 0, 0, missing))
        return copies.unflatten(1, (self.num_blocks, self.block_copies))


def chunked_positions(pos_conv: nn.Sequential, features: Tensor, chunks: Chunks) -> Tensor:
    """Return the output of a positional convolution that does not see past a frame's chunk, for frames within the
    layers.

    Of the K frames that it is wide, K // 2 lie before a frame; those after it count as zeros from R frames after the
    frame's chunk on, as in the dynamic chunk convolution of Li et al. (2023, arXiv 2304.09325). So one set of weights
    serves every size of chunks, and whole utterances as any other student.

    Args:
        pos_conv: fairseq's: convolution, crop to T frames, activation.
        features: B x T x D, zero where padded.
        chunks: of these frames.

    Returns:
        B x S x D.
    """
    convolution, activation = pos_conv[0], pos_conv[-1]
    weight, groups, before = convolution.weight, convolution.groups, convolution.kernel_size[0] // 2
    past = F.pad(features.transpose(1, 2), (before, 0))
    past = F.conv1d(past, weight[..., : before + 1], convolution.bias, groups=groups).transpose(1, 2)
    x = chunks.with_copies(past)
    reach = min(convolution.kernel_size[0] - before, chunks.size + chunks.right) - 1  # frames after a frame
    if reach:
        windows = chunks.windows(features)  # B x N x D x C+R
        after = F.pad(windows.flatten(0, 1)[..., 1:], (0, reach))
        after = F.conv1d(after, weight[..., before + 1 :][..., :reach], groups=groups)
        x = x + chunks.within_layers(after.unflatten(0, windows.shape[:2]))
    return activation(x)


def naive_attend(chunks: Chunks, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return :meth:`Chunks.attend` by its definition, chunk by chunk and utterance by utterance, for tests.

    Zeros where a frame, or the frame that a copy is of, is padded.
    """
    out = torch.zeros_like(query)
    for row, (q, k, v) in enumerate(zip(query, key, value, strict=True)):
        padded = None if chunks.padding_mask is None else chunks.padding_mask[row]
        num_frames = chunks.num_frames if padded is None else int((~padded).sum())
        for number in range(chunks.num_chunks):
            first, end = number * chunks.size, min((number + 1) * chunks.size, num_frames)
            copies = [
                chunks.num_frames + number * chunks.right + ahead
                for ahead in range(chunks.right)
                if (number + 1) * chunks.size + ahead < num_frames
            ]
            seen, seeing = [*range(max(0, first - chunks.left), end), *copies], [*range(first, end), *copies]
            if first < num_frames:
                out[row, :, seeing] = attention(q[None, :, seeing], k[None, :, seen], v[None, :, seen], None)[0]
    return out
