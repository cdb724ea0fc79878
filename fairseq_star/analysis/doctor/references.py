"""Where the loss of a recipe should be by now: curves of the demo recipes, packaged, and of runs the user names."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from statistics import median

from fairseq_star.analysis.doctor.record import Record
from fairseq_star.fairseq_hooks.symptoms import FEWEST, LIKELY, POSSIBLE, Finding

FILE = "references.json"  # written by `python -m benchmarks.references`
BEHIND = 1.5  # times the reference's loss
# Options that decide how low a loss can get and on which scale it is; teacher and corpus come with them.
IDENTITY = (
    "model.encoder_layers", "model.encoder_embed_dim", "model.encoder_ffn_embed_dim", "model.encoder_attention_heads",
    "model.conv_feature_layers", "model.init", "criterion.distance", "criterion.layer_convention",
    "criterion.tgm_frames", "task.mask_prob",
)  # fmt: skip
# Options that decide how soon.
PACE = (
    "optimization.lr", "lr_scheduler.warmup_updates", "optimization.max_update", "dataset.batch_size",
    "dataset.max_tokens", "optimization.update_freq", "distributed_training.distributed_world_size",
)  # fmt: skip


@dataclass
class Reference:
    """The curve of a healthy run."""

    name: str
    identity: Mapping[str, object]
    pace: Mapping[str, object]
    loss: Mapping[int, float]  # update -> mean over utterances in training

    @classmethod
    def of(cls, name: str, record: Record) -> "Reference":
        """Take a run as a reference."""
        weights = {
            f"criterion.{key}": value
            for key, value in (record.options.get("criterion") or {}).items()
            if key.endswith("_weight") and not key.startswith(("frame_masked", "frame_unmasked")) and value
        }
        content = {"teacher": record.teacher, "utterances": record.utterances}
        identity = {option: record.option(option) for option in IDENTITY} | weights | content
        return cls(name, identity, {option: record.option(option) for option in PACE}, record.curve("loss"))

    def at(self, update: int) -> float | None:
        """Return the loss after ``update``, interpolated; None outside of what was logged."""
        steps = sorted(self.loss)
        after = next((step for step in steps if step >= update), None)
        if after is None or update < steps[0]:
            return None
        before = max(step for step in steps if step <= update)
        share = (update - before) / (after - before) if after > before else 0.0
        return math.exp((1 - share) * math.log(self.loss[before]) + share * math.log(self.loss[after]))


def packaged() -> list[Reference]:
    """Return the references that come with the package."""
    text = resources.files(__package__).joinpath(FILE).read_text(encoding="utf-8")
    return [
        Reference(name, of["identity"], of["pace"], {int(step): value for step, value in of["loss"].items()})
        for name, of in json.loads(text).items()
    ]


@dataclass
class Comparison:
    """A run's loss over a reference's at the same updates, the median over the last third of the run."""

    reference: Reference
    ratio: float
    update: int  # the last one that was compared


def compare(record: Record, like: Sequence[Reference]) -> list[Comparison]:
    """Compare a run with every reference of ``like``, and with the packaged one of its recipe, if there is one."""
    own = Reference.of("", record)
    same = [reference for reference in packaged() if reference.identity == own.identity]
    nearest = min(
        same,
        key=lambda one: abs(math.log(one.pace["optimization.max_update"] / max(record.max_update, 1))),
        default=None,
    )
    losses = {update: loss for update, loss in own.loss.items() if math.isfinite(loss) and loss > 0}
    found = []
    for reference in [*like, *([nearest] if nearest else [])]:
        # A shorter schedule is already at low learning rates where a longer one is not.
        length = reference.pace["optimization.max_update"] or math.inf
        limit = math.inf if record.max_update <= length else length / 2
        ratios = {
            update: loss / at for update, loss in losses.items() if update <= limit and (at := reference.at(update))
        }
        tail = [ratios[update] for update in sorted(ratios)[-max(3, len(ratios) // 3) :]]
        if len(tail) >= 3 and max(ratios) >= FEWEST:
            found.append(Comparison(reference, median(tail), max(ratios)))
    return found


def check_references(record: Record, comparisons: Sequence[Comparison]) -> Iterator[Finding]:
    """Judge the loss against that of other runs."""
    own = Reference.of("", record)
    for compared in comparisons:
        if compared.ratio <= BEHIND:
            continue
        reference = compared.reference
        differing = [
            f"{option}={_plain(value)} (there {_plain(reference.pace[option])})"
            for option, value in own.pace.items()
            if option in reference.pace and value != reference.pace[option]
        ]
        others = [
            f"{option}={value} (there {reference.identity[option]})"
            for option, value in own.identity.items()
            if option in reference.identity and value != reference.identity[option]
        ]
        yield Finding(
            "behind",
            f"the loss is {compared.ratio:.1f} times that of {reference.name} at the same updates (up to "
            f"{compared.update:,})",
            POSSIBLE if others else LIKELY,
            f"differing options: {', '.join(differing + others)}"
            if differing or others
            else "their options are the same: compare the training data, and look at layers and utterances with --deep",
        )


def _plain(value: object) -> object:
    return value[0] if isinstance(value, list) and len(value) == 1 else value
