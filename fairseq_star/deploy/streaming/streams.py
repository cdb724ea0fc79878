"""Live streams: audio in as it arrives, in pieces of any size, frames out as soon as they are final."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from fairseq_star.deploy.streaming.step import StreamShape, StreamState, StreamStep, check_streams
from fairseq_star.encoder.frozen import SpeechModel, as_samples
from fairseq_star.errors import StarError

Step = Callable[..., Sequence[Tensor]]
"""A function with the arguments and the results of :class:`StreamStep`."""


class Streams:
    """Independent live streams through one streaming student.

    >>> import torch
    >>> from fairseq_star import load_student
    >>> from fairseq_star.deploy.streaming import Streams
    >>> student = load_student("stream.pt")
    >>> live, audio = Streams.of(student, chunk_frames=4), torch.randn(16_000)
    >>> pieces = [live.feed([piece])[0] for piece in audio.split(1_000)] + live.flush()
    >>> frames = torch.cat(pieces, dim=1)  # layers + 1, frames, width
    >>> student.use_chunks(4)
    >>> [states] = student.hidden_states([audio], 16_000)
    >>> torch.allclose(frames, torch.stack(states), atol=1e-5)
    True

    Args:
        step: a student's :class:`StreamStep`, or an export of it.
        shape: of that student.
        sample_rate: Hz, of its audio.
        chunk_frames: frames of a chunk.
        num_streams: number of streams, each of which ends and restarts independently.
        device: of the input of ``step``.

    Raises:
        StarError: a number below 1.
    """

    def __init__(
        self,
        step: Step,
        shape: StreamShape,
        *,
        sample_rate: int,
        chunk_frames: int,
        num_streams: int = 1,
        device: torch.device | str = "cpu",
    ):
        if chunk_frames < 1 or num_streams < 1:
            raise StarError(
                f"{num_streams} streams in chunks of {chunk_frames} frames cannot be; give 1 or more of each (chunks "
                "of 0 frames are whole utterances, which no stream can process)"
            )
        self.step, self.shape, self.sample_rate, self.device = step, shape, sample_rate, device
        self.chunk_frames = chunk_frames
        self._state = StreamState(*(value.to(device) for value in shape.first_state(num_streams)))
        self._pieces: list[list[Tensor]] = [[] for _ in range(num_streams)]
        self._num_samples = [0] * num_streams  # of the pieces

    @classmethod
    def of(cls, student: SpeechModel, *, chunk_frames: int | None = None, num_streams: int = 1) -> "Streams":
        """Build streams through a student; ``chunk_frames`` is its own present size of chunks when None.

        Raises:
            StarError: a student that cannot process a stream (:func:`check_streams`), or a number below 1.
        """
        check_streams(student)
        return cls(
            StreamStep(student.model),
            StreamShape.of(student.model.config),
            sample_rate=student.sample_rate,
            chunk_frames=student.model.chunk_frames if chunk_frames is None else chunk_frames,
            num_streams=num_streams,
            device=next(student.model.parameters()).device,
        )

    @property
    def look_ahead(self) -> float:
        """Return the algorithmic latency in ms: from the first sample that a frame depends on to the last one that must
        have arrived before it is returned, for the frame that waits longest."""
        return 1e3 * self.shape.window(self.chunk_frames) / self.sample_rate

    @property
    def state_bytes(self) -> int:
        """Return the bytes of a stream between two chunks: state, and at most the samples of the next window."""
        state = sum(value[0].numel() * value.element_size() for value in self._state)
        return state + self.shape.window(self.chunk_frames) * torch.float32.itemsize

    def feed(self, audio: Sequence[Tensor | np.ndarray]) -> list[Tensor]:
        """Process the next piece of each stream.

        Args:
            audio: mono, one piece for each stream, each 1-D and of floating point numbers, of any length, also 0.

        Returns:
            For each stream the frames that became final, (layers + 1) x frames x D, on the CPU: states as by
            ``hidden_states`` of a student. There may be none.

        Raises:
            StarError: audio of another form.
        """
        if len(audio) != len(self._pieces):
            raise StarError(f"{len(audio)} pieces of audio for {len(self._pieces)} streams; give one for each")
        # All before any is taken: after an error the caller may go on with these streams.
        pieces = [as_samples(piece, f"audio[{number}]").float().to(self.device) for number, piece in enumerate(audio)]
        for number, samples in enumerate(pieces):
            self._pieces[number].append(samples)
            self._num_samples[number] += len(samples)
        window = self.shape.window(self.chunk_frames)
        everyone = range(len(self._pieces))
        return self._process(lambda: [number for number in everyone if self._num_samples[number] >= window])

    def flush(self, streams: Iterable[int] | None = None) -> list[Tensor]:
        """End some streams, or all: return their last frames, as :meth:`feed` does, and reset them."""
        ending = self._numbers(streams)
        least = self.shape.receptive_field
        frames = self._process(lambda: [number for number in ending if self._num_samples[number] >= least])
        self.reset(ending)
        return [frames[number] for number in ending]

    def reset(self, streams: Iterable[int] | None = None) -> None:
        """Restart some streams, or all."""
        numbers = self._numbers(streams)
        first = self.shape.first_state(len(numbers))
        self._state.put(numbers, StreamState(*(value.to(self.device) for value in first)))
        for number in numbers:
            self._pieces[number], self._num_samples[number] = [], 0

    def _numbers(self, streams: Iterable[int] | None) -> list[int]:
        return list(range(len(self._pieces)) if streams is None else streams)

    @torch.no_grad()
    def _process(self, ready: Callable[[], list[int]]) -> list[Tensor]:
        """Process chunk by chunk as long as streams are ready for one; those that are ready run together."""
        given: list[list[Tensor]] = [[] for _ in self._pieces]
        while numbers := ready():
            windows, num_frames = zip(*map(self._next_window, numbers), strict=True)
            everyone = numbers == self._numbers(None)  # then the state need not be copied
            state = self._state if everyone else self._state.of(numbers)
            last, states, *state = self.step(torch.stack(windows), torch.tensor(num_frames, device=self.device), *state)
            if everyone:
                self._state = StreamState(*map(_alone, state))
            else:
                self._state.put(numbers, StreamState(*state))
            states = torch.cat([states[:-1], last[None]]).cpu()  # layers + 1 x streams x C x D
            for row, (number, frames) in enumerate(zip(numbers, num_frames, strict=True)):
                given[number].append(states[:, row, : min(frames, self.chunk_frames)])
        none = torch.empty(self.shape.num_layers + 1, 0, self.shape.embed_dim)
        return [torch.cat(frames, dim=1) if frames else none for frames in given]

    def _next_window(self, number: int) -> tuple[Tensor, int]:
        """Return a stream's next window, zeros past its end, and the number of its valid frames."""
        window, hop = self.shape.window(self.chunk_frames), self.chunk_frames * self.shape.downsample_rate
        samples = torch.cat(self._pieces[number])
        self._pieces[number] = [samples[hop:]]
        self._num_samples[number] = len(self._pieces[number][0])
        audio = samples[:window]
        num_frames = self.shape.geometry.num_frames(len(audio))
        return torch.nn.functional.pad(audio, (0, window - len(audio))), num_frames


def _alone(value: Tensor) -> Tensor:
    """Copy ``value`` where it is a slice, so that a stored state does not keep the whole chunk in memory."""
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()
