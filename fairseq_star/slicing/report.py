"""Record of a slicing, for a run's log and report and for ``fairseq-star slice``."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field


@dataclass
class SlicingReport:
    """Parts and layers that were sliced, and the distance between the student's states and the teacher's.

    The loss is STaR's (layer-wise and intra-layer), mean over held-out utterances, before the first update;
    ``loss_of_zero`` is that of a student whose states are all zero.
    """

    utterances: int
    seconds_of_audio: float
    layers: list[int]  # of the teacher (1-based), one for each of the student's
    unexplained: list[float]  # share of the variance of the kept channels, at each of the L+1 states
    at_zero: list[str]  # parts that cannot be sliced and start at zero
    left_out: list[str]  # parts of the teacher that the student does not have
    scale: tuple[float, float]  # smallest and largest scale of a channel
    wall_seconds: float
    skipped: list[str] = field(default_factory=list)  # audio files that were not used, each with its reason
    loss: float | None = None
    loss_of_zero: float | None = None
    held_out: int = 0  # utterances

    def to_dict(self) -> dict:
        """Return plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "SlicingReport":
        """Return the report from the values of :meth:`to_dict`."""
        return cls(**{**values, "scale": tuple(values["scale"])})

    def lines(self) -> list[str]:
        """Return the lines of a run's log."""
        shares = ", ".join(f"{number}: {share:.1%}" for number, share in enumerate(self.unexplained))
        audio = f"{self.utterances} utterances ({self.seconds_of_audio:.0f} s of audio)"
        not_sliced = [f"{part}, which begins at zero" for part in self.at_zero]
        not_sliced += [f"{part} of the teacher, which the student does not have" for part in self.left_out]
        lines = [
            f"first weights sliced from the teacher's layers {_ranges(self.layers)} with {audio} in "
            f"{self.wall_seconds:.0f} s",
            f"unexplained variance of the kept channels, by state: {shares}",
            "sliced: convolutions, projection, positional convolution, attention, feed-forward parts and norms; "
            + (f"not sliced: {'; '.join(not_sliced)}" if not_sliced else "all of it"),
        ]
        if self.loss is not None:
            lines.append(
                f"loss before the first update: {self.loss:,.1f} on {self.held_out} utterances of the validation set "
                f"(a student of zeros: {self.loss_of_zero:,.1f})"
            )
        if self.loss is not None and self.loss > self.loss_of_zero:
            lines.append(
                f"warning: that is worse than a student of zeros; {audio} are too few or unlike the validation set: "
                "give others"
            )
        if self.skipped:
            more = f" and {len(self.skipped) - 1} more" if len(self.skipped) > 1 else ""
            lines.append(f"not used to slice: {self.skipped[0]}{more}")
        return lines


def _ranges(numbers: Sequence[int]) -> str:
    """Return ``1 to 12`` for consecutive numbers, else all of them."""
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))
