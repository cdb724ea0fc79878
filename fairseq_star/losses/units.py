"""Units: discrete targets of frames, computed from the teacher's states during training; no label files.

Two kinds, of which several may be predicted at once:

* ``head``: the teacher's own prediction, as a distribution p over its K units (softmax of its logits, which are first
  divided by ``unit_temperature``); of each of its sets of units, if it was pretrained on several.
* a file of ``fairseq-star units``: the nearest of K centroids of a teacher layer's states, u = argmin_k |x_t - c_k|
  (DiceHuBERT, arXiv 2507.02911).

The student's head (:class:`fairseq_star.encoder.unit_head.UnitHead`) gives logits; the loss is the cross-entropy
-sum_k p_k log softmax(logits)_k, or -log softmax(logits)_u: HuBERT's objective (``criterions/hubert_criterion`` in
fairseq), but as a mean over the utterance's masked frames (and, times its own weight, over the unmasked ones) instead
of a sum over all frames of a batch.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.encoder.unit_head import UnitHead
from fairseq_star.errors import StarError
from fairseq_star.losses.batch import DistillationBatch
from fairseq_star.losses.centroids import read_centroids
from fairseq_star.losses.options import StarTGMConfig, check_layers
from fairseq_star.losses.selection import MASKED, UNMASKED, Selection
from fairseq_star.losses.term import Pair, Term

HEAD = "head"
UNITS = "units"  # in a run's task state: their digests
LOGGED = {MASKED: "units", UNMASKED: "units_unmasked"}


@dataclass(frozen=True)
class HeadUnits:
    """One of the teacher's own heads over its last layer."""

    teacher: FrozenEncoder
    number: int
    temperature: float

    @property
    def layer(self) -> int:
        """Return the teacher layer whose states it reads."""
        return self.teacher.num_layers

    @property
    def digest(self) -> str:
        """What identifies them; the teacher's content is known elsewhere."""
        return HEAD

    @property
    def num_units(self) -> int:
        """Return K."""
        return len(self.teacher.unit_heads[self.number].label_embs)

    def targets(self, states: Tensor) -> Tensor:
        """Return distributions (N x K) of the states (N x D) of :attr:`layer`."""
        return torch.softmax(self.teacher.unit_logits(states, self.number) / self.temperature, dim=-1)


@dataclass(frozen=True)
class CentroidUnits:
    """The nearest centroid of a layer's states."""

    layer: int
    centroids: Tensor  # K x D
    name: str = ""  # of their file
    about: dict = field(default_factory=dict)  # how they were fitted
    _on_device: dict = field(default_factory=dict, repr=False)  # one copy a device: a step must not wait for another

    @property
    def digest(self) -> str:
        """What identifies them, wherever their file is."""
        return hashlib.sha256(self.centroids.numpy().tobytes()).hexdigest()[:16]

    @property
    def num_units(self) -> int:
        """Return K."""
        return len(self.centroids)

    def targets(self, states: Tensor) -> Tensor:
        """Return the numbers (N) of the centroids nearest to ``states`` (N x D)."""
        if states.device not in self._on_device:
            self._on_device[states.device] = self.centroids.to(states.device)
        centroids = self._on_device[states.device]
        with torch.autocast(states.device.type, enabled=False):
            return (centroids.square().sum(-1) - 2 * states.float() @ centroids.T).argmin(-1)

    def relative_inertia(self, states: Sequence[Tensor]) -> tuple[float, int]:
        """Return the mean squared distance of states (n x D each) to their centroids, as a share of the states'
        variance, and how many centroids are the nearest of any."""
        frames = torch.cat([one.float() for one in states])
        units = self.targets(frames)
        distance = (frames - self.centroids.to(frames)[units]).square().sum(-1).mean()
        variance = (frames - frames.mean(0)).square().sum(-1).mean()
        return float(distance / variance.clamp_min(1e-20)), len(units.unique())


Units = HeadUnits | CentroidUnits


def find_units(names: Sequence[str], teacher: FrozenEncoder, digest: str | None, temperature: float) -> list[Units]:
    """Build the units that ``criterion.units`` names.

    Args:
        digest: of the teacher's files, as centroids record it.

    Raises:
        StarError: the teacher has no head, or centroids are of another teacher, layer or width.
    """
    if not 0 < temperature < float("inf"):
        raise StarError(f"criterion.unit_temperature={temperature} must be above 0")
    found: list[Units] = []
    for name in names:
        if name == HEAD:
            if not teacher.unit_heads:
                raise StarError(
                    "criterion.units=[head]: this teacher has no prediction head (fairseq's final_proj and "
                    "label_embs_concat); give a pretrained fairseq HuBERT, or name a file of fairseq-star units"
                )
            found += [HeadUnits(teacher, number, temperature) for number in range(len(teacher.unit_heads))]
            continue
        centroids = read_centroids(name, "criterion.units")
        holds = f"criterion.units: {name} holds centroids of"
        if centroids.vectors.shape[1] != teacher.embed_dim or not 0 <= centroids.layer <= teacher.num_layers:
            raise StarError(
                f"{holds} layer {centroids.layer}, {centroids.vectors.shape[1]} wide; this teacher has layers up to "
                f"{teacher.num_layers} of {teacher.embed_dim}: make them with fairseq-star units of this teacher"
            )
        if digest is not None and centroids.teacher != digest:
            raise StarError(f"{holds} another teacher's states; make them with fairseq-star units of task.teacher")
        found.append(CentroidUnits(centroids.layer, torch.from_numpy(centroids.vectors), name, centroids.about))
    return found


class UnitPrediction(Term):
    """The cross-entropy of the teacher's units, each set of them through a head of its own."""

    weights = ("unit_weight", "unit_unmasked_weight")
    meanings = {  # noqa: RUF012
        "units": "which of the teacher’s units each masked moment is (cross-entropy)",
        "units_unmasked": "which of the teacher’s units each unmasked moment is (cross-entropy)",
        "unit_accuracy": "share of moments whose unit is right; the one curve here that should rise",
    }
    heads_name = "unit_heads"

    def __init__(self, cfg: StarTGMConfig, pair: Pair):
        if cfg.unit_weight:
            pair.check_masked("unit_weight")
        if not cfg.units:
            raise StarError("criterion.units: name what to predict, 'head' or files of fairseq-star units")
        if cfg.unit_dim < 1:
            raise StarError(f"criterion.unit_dim={cfg.unit_dim} must be 1 or more")
        self.units = find_units(list(cfg.units), pair.teacher, pair.teacher_digest, cfg.unit_temperature)
        layers = [pair.student_layers] * len(self.units)
        if cfg.unit_student_layers is not None:
            layers = cfg.unit_student_layers
        self.student_states = check_layers("unit_student_layers", layers, pair.student_layers, len(self.units))
        self.teacher_states = [unit.layer for unit in self.units]
        self.heads = nn.ModuleList(UnitHead(pair.student_dim, unit.num_units, cfg.unit_dim) for unit in self.units)
        self.regions = {MASKED: cfg.unit_weight, UNMASKED: cfg.unit_unmasked_weight}
        self.names = [LOGGED[region] for region, weight in self.regions.items() if weight]

    def __call__(self, batch: DistillationBatch) -> Tensor:
        pairs = [
            (unit, batch.teacher.hidden_states[unit.layer], batch.final_state(number), head)
            for unit, number, head in zip(self.units, self.student_states, self.heads, strict=True)
        ]
        loss, logged = unit_loss(pairs, batch.regions, self.regions)
        batch.log.update(logged)
        return loss


def unit_loss(
    pairs: Sequence[tuple[Units, Tensor, Tensor, UnitHead]],
    selections: Mapping[str, Selection],
    regions: Mapping[str, float],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum the unit losses of all utterances, a mean over the sets of units.

    Args:
        pairs: for each set of units the teacher's states, the student's (B x T x D each) and the student's head.
        selections: of the frames, by region: ``masked`` and ``unmasked``.
        regions: weight of each region; one of weight 0 is not computed.

    Returns:
        A scalar in float32; and for the log, detached, the sums over utterances of ``units`` and ``units_unmasked``,
        unweighted, and of ``unit_accuracy``, the share of frames where the likeliest unit is the target's.
    """
    total = torch.zeros((), device=pairs[0][2].device)
    logged: dict[str, Tensor] = {}
    for region, name in LOGGED.items():
        if not regions[region]:
            continue
        selection, loss, right = selections[region], total.new_zeros(()), total.new_zeros(())
        for units, teacher, student, head in pairs:
            with torch.no_grad():
                targets = units.targets(selection.take(teacher))
            logits = head(selection.take(student))
            loss = loss + selection.sum_of_means(F.cross_entropy(logits, targets, reduction="none"))
            likeliest = targets if targets.ndim == 1 else targets.argmax(-1)
            right = right + selection.sum_of_means((logits.detach().argmax(-1) == likeliest).float())
        logged[name] = loss.detach() / len(pairs)
        logged.setdefault("unit_accuracy", right / len(pairs))
        total = total + regions[region] * loss / len(pairs)
    return total, logged


def naive_unit_loss(logits: Tensor, units: Sequence[int], masked: Sequence[bool]) -> tuple[float, float]:
    """Compute one utterance's mean cross-entropy over masked and over unmasked frames: the reference of tests.

    Args:
        logits: n x K.
        units: the target of each frame.
    """
    sums, counts = [0.0, 0.0], [0, 0]
    for frame, (unit, is_masked) in enumerate(zip(units, masked, strict=True)):
        row = logits[frame].double()
        sums[not is_masked] += float(torch.log(torch.exp(row).sum()) - row[unit])
        counts[not is_masked] += 1
    return tuple(total / count if count else 0.0 for total, count in zip(sums, counts, strict=True))
