"""``fairseq-star profile``: teacher, students and exported models side by side."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from fairseq_star.analysis.profile.model_facts import model_facts
from fairseq_star.analysis.profile.speed import Speed, measure_speed
from fairseq_star.encoder.macs import SUPERB_UTTERANCES, encoder_macs
from fairseq_star.errors import StarError
from fairseq_star.formats import hub
from fairseq_star.manifest import SAMPLE_RATE
from fairseq_star.runtime.names import HUBERT_BASE

LONGEST = 86_400  # seconds of audio, far more than any model is given at once


@dataclass
class ProfileRow:
    """One model. A field is None where it cannot be told: an exported program's MACs, a speed not asked for."""

    name: str  # as the user named it; a HuggingFace id with its commit
    family: str
    num_parameters: int | None  # of the encoder
    num_parameters_published: int | None  # with mask embedding and heads, as checkpoints hold and papers count them
    gmacs_per_second: float | None  # 1e9 MACs for a second of audio, within one utterance of ``ProfileResult.seconds``
    gmacs_superb: float | None  # 1e9 MACs, sum over SUPERB's 32 utterances
    macs_ratio: float | None  # SUPERB's MACs relative to the teacher's
    real_time_factor: float | None  # seconds of computing for a second of audio, one utterance at a time
    peak_mib: float | None  # MiB that a forward pass takes beyond the loaded model


@dataclass
class ProfileResult:
    """What :func:`profile` found; the teacher's row comes first."""

    rows: list[ProfileRow]
    seconds: float  # length of the utterance for MACs per second, speed and memory
    num_threads: int | None  # threads of the speed measurement; None = speed not measured
    device: str | None

    def to_markdown(self) -> str:
        """A table in Markdown, and a line on how it was made."""
        head = ["model", "parameters", "as published", f"GMACs/s ({self.seconds:g} s)", "GMACs, SUPERB", "of teacher"]
        head += ["RTF", "peak MiB"] if self.num_threads else []
        lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
        for row in self.rows:
            cells = [
                row.name,
                _text(row.num_parameters, ",d"),
                _text(row.num_parameters_published, ",d"),
                _text(row.gmacs_per_second, ".3f"),
                _text(row.gmacs_superb, ".1f"),
                _text(row.macs_ratio, ".3f"),
            ]
            cells += [_text(row.real_time_factor, ".4f"), _text(row.peak_mib, ".0f")] if self.num_threads else []
            lines.append("| " + " | ".join(cells) + " |")
        note = (
            "\nGMACs, SUPERB: sum over 32 utterances of LibriSpeech test-clean (224.86 s), attention included. "
            "As published: with mask embedding and pretraining heads."
        )
        if self.num_threads:
            threads = f"{self.num_threads} thread" + ("s" if self.num_threads > 1 else "")
            note += (
                f" RTF (computing time / audio time) and peak memory beyond the loaded model: one utterance of "
                f"{self.seconds:g} s, {self.device}, {threads}, median."
            )
        return "\n".join([*lines, note])

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        return asdict(self)


def profile(
    models: Sequence[str],
    *,
    teacher: str = HUBERT_BASE,
    seconds: float = 10.0,
    speed: bool = True,
    device: str = "cpu",
    num_threads: int | None = None,
    rounds: int = 5,
) -> ProfileResult:
    """Count and measure models.

    Args:
        models: each the name of an architecture (``starhubert``, ``starhubert_s``, ... or ``hubert_base``), a
            checkpoint, HuggingFace folder or id that ``task.teacher`` would take, or an exported TorchScript or ONNX
            file.
        teacher: likewise; what ratios refer to.
        seconds: length of the one utterance for MACs a second, speed and memory.
        speed: measure real-time factor and peak memory too, each in a fresh process (seconds each).
        device: ``cpu`` or ``cuda``, for the speed.
        num_threads: for the speed; torch's own choice when None.
        rounds: timed runs, of which the median is given.

    Raises:
        StarError: no such architecture or file, or one that cannot be loaded; ``seconds`` that cannot be.
    """
    if not 0 < seconds <= LONGEST:
        raise StarError(f"--seconds {seconds:g}: must be above 0 and at most {LONGEST:,}, a day; correct it")
    teacher, *models = (hub.locate(name, "profile").name for name in (teacher, *models))
    names = [teacher, *(name for name in models if name != teacher)]
    loaded = [model_facts(name) for name in names]
    rows, speeds = [], []
    for name, facts in zip(names, loaded, strict=True):
        per_second = superb = None
        if facts.config is not None:
            per_second = encoder_macs(facts.config, [round(seconds * SAMPLE_RATE)])[0] / seconds / 1e9
            superb = sum(encoder_macs(facts.config, SUPERB_UTTERANCES)) / 1e9
        if speed:
            speeds.append(measure_speed(name, seconds, device, num_threads, rounds))
        found = speeds[-1] if speed else Speed(None, None, None)
        reference = rows[0].gmacs_superb if rows else superb
        rows.append(
            ProfileRow(
                name=name,
                family=facts.family,
                num_parameters=facts.num_parameters,
                num_parameters_published=facts.num_parameters_published,
                gmacs_per_second=per_second,
                gmacs_superb=superb,
                macs_ratio=superb / reference if superb and reference else None,
                real_time_factor=found.real_time_factor,
                peak_mib=found.peak_mib,
            )
        )
    return ProfileResult(rows, seconds, speeds[0].num_threads if speeds else None, device if speed else None)


def _text(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
