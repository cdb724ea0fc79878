"""Values that no change of structure may change: first weights by seed, losses, hidden states, layouts of exports.

    rm tests/support/golden.json; python -m pytest tests/test_golden.py     # writes it anew, for a change that is meant

A tensor is kept as its norm and a projection of it, to which no two elements contribute alike: a few numbers tell
whether elements changed or changed places. Numbers differ by rounding between versions of torch and processors.
"""

import hashlib
import math
from pathlib import Path

import torch
from torch import Tensor

from fairseq_star.analysis.untrained import untrained
from fairseq_star.deploy.targets import load_target
from fairseq_star.formats import Student, export, load_teacher
from fairseq_star.formats.student import ARCHITECTURES
from fairseq_star.formats.target import check_sources, student_states
from fairseq_star.losses.tgm import tgm_loss
from fairseq_star.losses.tgm.naive import loop_tgm_loss
from fairseq_star.models.starhubert import StarHubertConfig, StarHubertModel
from tests.support import convert_cases, tgm_cases, tiny

FILE = Path(__file__).with_name("golden.json")


def sketch(value: Tensor) -> list[float]:
    """Norm and projection of a tensor."""
    flat = value.detach().double().flatten()
    return [flat.norm().item(), (flat * torch.arange(1.0, len(flat) + 1, dtype=torch.float64).cos()).sum().item()]


def first_weights() -> dict[str, list[float]]:
    """Of each architecture, and of tiny students with all that an architecture leaves out; by top-level module."""
    models = {name: {} for name in ARCHITECTURES}
    models |= {name: settings for name, (_, _, settings) in convert_cases.CASES.items() if name not in ARCHITECTURES}
    values = {}
    for name, settings in models.items():
        config = ARCHITECTURES.get(name, StarHubertConfig)(**settings, padded_group_norm=False)
        torch.manual_seed(1337)
        model = StarHubertModel(config)
        for part, module in [*model.named_children(), *model.encoder.named_children()]:
            if weights := [weight.flatten() for weight in module.state_dict().values()]:
                values[f"{name} {part}"] = sketch(torch.cat(weights))
    return values


def losses() -> dict[str, list[float]]:
    """The loss function, its value and gradient, for each form and distance; and of the reference written in loops."""
    values = {}
    references = [("reference", distance, "each") for distance in ("mse", "l1", "kl")]
    for form, distance, path in [*tgm_cases.CASES, *references]:
        teacher, student = tgm_cases.make_states(9)
        if form == "reference":
            loss = loop_tgm_loss(teacher, student, [9, 6], distance=distance)
        else:
            with tgm_cases.computed(path):
                loss = tgm_loss(teacher, student, [9, 6], form=form, distance=distance).total
        values[f"{form} {distance} {path}"] = sketch(loss)
        values[f"{form} {distance} {path} gradient"] = sketch(
            tgm_cases.gradients(loss, torch.ones(2, dtype=torch.float64), student)
        )
    return values


def hidden_states(student: Student) -> list[float]:
    """Of a student, over the ragged utterances of every export's own check."""
    states = student_states(student, check_sources())
    return sketch(torch.cat([state.flatten() for utterance in states for state in utterance]))


def layout(path: Path) -> str:
    """Digest of names and shapes of all weights in an exported file or folder."""
    if path.is_dir():
        from safetensors.torch import load_file

        weights = load_file(path / "model.safetensors")
    else:
        state = torch.load(path, weights_only=False)
        weights = state.get("model_weight") or state.get("state_dict") or state["model"]
    lines = sorted(f"{key} {tuple(value.shape)}" for key, value in weights.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def students(folder: Path) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Hidden states of students, and the layout of their exports; the four architectures differ in width alone."""
    states, layouts = {}, {}
    for case in ("starhubert", "projection", "pre_norm"):
        student = convert_cases.student(folder, case)
        states[case] = hidden_states(student)
        states[f"{case} untrained"] = hidden_states_of(untrained(student.config, normalize=student.normalize))
        for name in ("s3prl", "fairseq", "huggingface", "torchaudio") if case not in ARCHITECTURES else ():
            out = export(student, load_target(name)(), folder / f"{case}.{name}").path
            layouts[f"{case} {name}"] = layout(out)
    return states, layouts


def hidden_states_of(teacher) -> list[float]:
    """Of a teacher, over a ragged padded batch."""
    sources = check_sources()
    batch = torch.nn.utils.rnn.pad_sequence(sources, batch_first=True)
    encoding = teacher(batch, [len(source) for source in sources])
    valid = torch.ones_like(encoding.hidden_states[0][..., 0], dtype=torch.bool)
    if encoding.frames.padding_mask is not None:
        valid = ~encoding.frames.padding_mask
    return sketch(torch.cat([state[valid].flatten() for state in encoding.hidden_states]))


def teachers(folder: Path) -> dict[str, list[float]]:
    """Hidden states of tiny HuBERTs, post-norm and pre-norm."""
    large = {"extractor_mode": "layer_norm", "layer_norm_first": True, "conv_bias": True}
    values = {}
    for name, settings in {"base": {}, "large": large}.items():
        path = tiny.write_teacher(folder / f"{name}.pt", **settings)
        for valid in (True, False):
            values[f"{name} valid={valid}"] = hidden_states_of(load_teacher(str(path), valid_group_norm=valid))
    return values


def measure(folder: Path) -> dict:
    """All of them but the losses of training, with ``folder`` for files."""
    states, layouts = students(folder)
    return {
        "first weights": first_weights(),
        "losses": losses(),
        "student states": states,
        "teacher states": teachers(folder),
        "layouts": layouts,
    }


def differences(found: dict, kept: dict, tolerance: float = 1e-5) -> list[str]:
    """What of ``found`` is not as ``kept`` has it: numbers by more than ``tolerance`` of the norm, or names."""
    wrong = []
    for kind in sorted(found.keys() | kept.keys()):
        ours, theirs = found.get(kind, {}), kept.get(kind, {})
        for name in sorted(ours.keys() | theirs.keys()):
            a, b = ours.get(name), theirs.get(name)
            numbers = isinstance(a, list) and isinstance(b, list)
            same = numbers and all(math.isclose(x, y, abs_tol=tolerance * b[0]) for x, y in zip(a, b, strict=True))
            if a != b and not same:
                wrong.append(f"{kind}, {name}: {a} instead of {b}")
    return wrong
