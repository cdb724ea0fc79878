"""The first norm of a streaming student: HuBERT Base's group norm with statistics of the past.

A group norm takes each channel's mean and variance over the whole utterance, whose end a stream does not know. Here a
frame's are those of all steps of the encoder (20 ms) that ended before it, beginning with statistics of the corpus that
weigh as much as :data:`PRIOR` steps: without them the first frames, often near silence, would be raised to the level of
speech. Those of the corpus are measured once, with the first weights, as in data-dependent initialization (Salimans &
Kingma, 2016, arXiv 1602.07868). What a frame becomes depends on what came before it, never on its batch.

Where all that came before counts alike, a pause leaves next to nothing: after ten seconds of zeros speech is raised by
15 dB. :class:`RecentNorm` forgets, counts loud steps for more than quiet ones, and finds how loud each is, so that the
encoder can take silence for padding.

Shapes: B utterances, C channels, T frames of the first convolution, F of them in a step, N steps, K context.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RUNNING = "running_norm"
"""``extractor_mode`` of such an encoder."""
PRIOR = 15
"""Weight of the corpus's statistics in steps: 0.3 s."""
QUIET = 0.01
"""Energy of a step, as a share of the corpus's mean, at which it has half of a loud one's weight: -20 dB."""
SILENT = 1e-4
"""Energy of a step, likewise, below which it is silence: -40 dB."""
BLOCK_STEPS = 64
"""Steps of a whole utterance whose sums are formed at once, by a matrix of this size squared."""


@dataclass
class Past:
    """State of a stream's norm before a pass; empty for whole utterances.

    A forward pass replaces ``sums`` by those that :meth:`RunningNorm.go_on` returns; a :class:`RecentNorm` also sets
    ``energy``, that of the steps as a share of the corpus's mean (B x N).
    """

    sums: Tensor | None = None
    num_steps: Tensor | None = None
    energy: Tensor | None = None


class RunningNorm(nn.Module):
    """``(x - mean) / sqrt(variance + eps) * weight + bias``, each channel with its own, statistics of the steps before.

    ``mean`` and ``variance`` are the corpus's, buffers: saved, never trained. Computed in float32 whatever the input's
    precision.

    Args:
        num_channels: C.
        step: F.
        eps: added to the variance.
    """

    num_sums = 2
    """Sums that a stream keeps of each channel."""

    def __init__(self, num_channels: int, step: int, eps: float = 1e-5):
        super().__init__()
        self.step, self.eps = step, eps
        self.weight, self.bias = nn.Parameter(torch.ones(num_channels)), nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("mean", torch.zeros(num_channels))
        self.register_buffer("variance", torch.ones(num_channels))

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        """Normalize ``x`` (B x C x T), which begins with the utterance, or goes on from ``past``."""
        past = Past() if past is None else past
        if past.sums is not None:
            x, past.sums, past.energy = self._normalize(x, past.sums, past.num_steps)
            return x
        # Utterance by utterance: what is formed on the way is as large as this, the network's largest activation.
        found = [self._normalize_whole(one) for one in x.split(1)]
        if found[0][1] is not None:
            past.energy = torch.cat([energy for _, energy in found])
        return torch.cat([one for one, _ in found])

    def go_on(self, x: Tensor, heard: Tensor, num_steps: Tensor) -> tuple[Tensor, Tensor]:
        """Normalize ``x`` (B x C x T) of a stream.

        Args:
            heard: B x 2 x C, sums of the frames, and of their squares, of the steps before ``x``.
            num_steps: B, how many these are.

        Returns:
            What ``x`` becomes, and ``heard`` as it was before each of its steps: 1 + (T - 1) // F of B x 2 x C, in
            the first's place B x 2 x C x steps.
        """
        return self._normalize(x, heard, num_steps)[:2]

    def _normalize_whole(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Normalize an utterance (1 x C x T); return it, and the energy of its steps."""
        heard = x.new_zeros(1, self.num_sums, x.size(1), dtype=torch.float32)
        out, _, energy = self._normalize(x, heard, x.new_zeros(1, dtype=torch.float32))
        return out, energy

    def _normalize(self, x: Tensor, heard: Tensor, num_steps: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what :meth:`go_on` returns, and the energy of the steps."""
        values = x.float()
        num_before = (x.size(2) - 1) // self.step
        steps, rest = values.split([num_before * self.step, x.size(2) - num_before * self.step], dim=2)
        steps = steps.unflatten(2, (num_before, self.step))
        mean, square, heard, energy = self._statistics(steps, heard, num_steps)
        scale = self.weight.float()[:, None] * torch.rsqrt((square - mean.square()).clamp(min=0) + self.eps)
        shift = self.bias.float()[:, None] - mean * scale  # B x C x steps
        steps = (steps * scale[..., :-1, None] + shift[..., :-1, None]).flatten(2)
        out = torch.cat([steps, rest * scale[..., -1:] + shift[..., -1:]], dim=2)
        return out.type_as(x), heard, energy

    def _statistics(
        self, steps: Tensor, heard: Tensor, num_steps: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return means and mean squares before each of the ``steps`` (B x C x N x F) and after them (B x C x N + 1),
        the sums likewise, and the energy of each (B x N), if it is found."""
        sums = torch.stack([steps.sum(3), steps.square().sum(3)], dim=1)  # B x 2 x C x steps
        heard = heard[..., None] + F.pad(sums.cumsum(3), (1, 0))
        mean, variance = self.mean.float(), self.variance.float()
        prior = PRIOR * self.step * torch.stack([mean, variance + mean.square()])[..., None]  # 2 x C x 1
        number = torch.arange(steps.size(2) + 1, device=steps.device)
        count = self.step * (PRIOR + num_steps[:, None] + number)  # B x steps
        mean, square = ((heard + prior) / count[:, None, None]).unbind(1)
        return mean, square, heard, None


class RecentNorm(RunningNorm):
    r"""A :class:`RunningNorm` of what was received of late, loud steps before quiet ones.

    A step s of energy e_s, as a share of the corpus's mean, has the weight w_s = e_s / (e_s + :data:`QUIET`), or 0
    below :data:`SILENT`; no gradient passes it. With x_s the mean of its frames (or of their squares) and x_corpus
    that of the corpus, before step t

        S_t = sum over s < t of exp(-(t - 1 - s) / K) w_s x_s, and W_t and Q_t likewise of w_s and of w_s^2,
        mean_t = (S_t + p_t g_t x_corpus) / (W_t + p_t),  p_t = PRIOR (Q_t / (W_t + SILENT) + SILENT).

    Q / W is the weight of the loud ones of the steps: the corpus counts for :data:`PRIOR` of them, in a quiet recording
    too. Its squares are brought to the recording's level, by the gain g = l^(W / (W + p)) of the weighted mean l of the
    energies, from :data:`QUIET` to 1, its means by the root of that. So speech after silence, however long, finds the
    statistics that a stream begins with.

    Args:
        num_channels, step, eps: as of :class:`RunningNorm`.
        context: K, steps.
    """

    num_sums = 4  # S of the frames and of their squares, W, Q: the last two the same in all channels

    def __init__(self, num_channels: int, step: int, context: int, eps: float = 1e-5):
        super().__init__(num_channels, step, eps)
        self.context = context

    def _normalize_whole(self, x: Tensor) -> tuple[Tensor, Tensor]:
        heard, hop = x.new_zeros(1, self.num_sums, x.size(1), dtype=torch.float32), BLOCK_STEPS * self.step
        done, energies, start = [], [], 0
        while start + hop < x.size(2):
            out, sums, energy = self._normalize(x[..., start : start + hop + 1], heard, x)
            done, energies, heard = [*done, out[..., :hop]], [*energies, energy], sums[..., -1]
            start += hop
        out, _, energy = self._normalize(x[..., start:], heard, x)
        return torch.cat([*done, out], dim=2), torch.cat([*energies, energy], dim=1)

    def _statistics(self, steps: Tensor, heard: Tensor, num_steps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, variance = self.mean.float(), self.variance.float()
        prior = torch.stack([mean, variance + mean.square()])[..., None]  # 2 x C x 1
        found = torch.stack([steps.mean(3), steps.square().mean(3)], dim=1)  # B x 2 x C x N
        energy = found[:, 1].detach().sum(1) / prior[1].sum()  # B x N
        weight = torch.where(energy < SILENT, 0.0, energy / (energy + QUIET))[:, None, None].expand_as(found[:, :1])
        sums = torch.cat([found * weight, weight, weight.square()], dim=1)  # B x 4 x C x N
        step, later = (torch.arange(steps.size(2) + more, device=steps.device) for more in (0, 1))
        age = later - 1 - step[:, None]  # N x N + 1, steps from one to the next but one
        decay = torch.where(age >= 0, torch.exp(-age.clamp(min=0) / self.context), 0.0)
        heard = heard[..., None] * torch.exp(-later / self.context) + sums @ decay
        given, total, squares = heard[:, :2], heard[:, 2:3], heard[:, 3:]
        # Nothing smaller than SILENT is added: torch's ONNX exporter takes 1e-8 for zero.
        corpus = PRIOR * (squares / (total + SILENT) + SILENT)
        level = given[:, 1:].detach().sum(2, keepdim=True) / (prior[1].sum() * (total + SILENT))
        gain = level.clamp(QUIET, 1.0) ** (total / (total + corpus))
        prior = torch.cat([prior[0] * gain.sqrt(), prior[1] * gain], dim=1)
        mean, square = ((given + corpus * prior) / (total + corpus)).unbind(1)
        return mean, square, heard, energy


@torch.no_grad()
def measure_statistics(extractor: nn.Module, utterances: Iterable[Tensor]) -> int:
    """Measure mean and variance of what the first convolution gives of ``utterances`` (each 1-D), over all frames.

    Returns:
        The number of frames; with less than two everything stays as it was.
    """
    convolution, norm = extractor.conv_layers[0][0], extractor.conv_layers[0][2]
    total, squares, frames = 0.0, 0.0, 0
    for utterance in utterances:
        if len(utterance) >= convolution.kernel_size[0]:
            found = convolution(utterance[None, None].to(convolution.weight))[0].double()  # C x T
            total, squares, frames = total + found.sum(1), squares + found.square().sum(1), frames + found.size(1)
    if frames > 1:
        mean = total / frames
        norm.mean.copy_(mean)
        norm.variance.copy_((squares / frames - mean.square()).clamp(min=0))
    return frames
