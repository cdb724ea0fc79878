"""Units: the stock model's own predictions as targets, fairseq's own loss, centroids of one teacher layer."""

import re

import numpy as np
import pytest
import torch
from fairseq.criterions.hubert_criterion import HubertCriterion
from fairseq.models.hubert.hubert import HubertConfig, HubertModel
from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig

from fairseq_star.criterions.star_tgm import StarTGMConfig, StarTGMCriterion
from fairseq_star.encoder.unit_head import UnitHead
from fairseq_star.errors import StarError
from fairseq_star.fairseq_hooks.resuming import TEACHER
from fairseq_star.formats import load_teacher
from fairseq_star.losses.centroids import Centroids, read_centroids
from fairseq_star.losses.selection import MASKED, UNMASKED, Selection
from fairseq_star.losses.units import CentroidUnits, find_units, naive_unit_loss, unit_loss
from tests.support import ROOT, tiny
from tests.support.steps import batch_of, build

SETTINGS = '{"format": "fairseq-star units 1", "layer": 1, "about": %s}'
HIDING = {"mask_prob": 0.5, "mask_length": 3}


def centroids_of(task, path, layer=2, width=24, teacher=None):
    vectors = np.random.default_rng(0).standard_normal((7, width)).astype(np.float32)
    Centroids(vectors, layer, teacher or task.state_dict()[TEACHER]).write(path)
    return str(path)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_soft_targets_are_the_stock_models_own_logits(corpus, tmp_path, pre_norm):
    path = tiny.write_teacher(tmp_path / "teacher.pt", layer_norm_first=pre_norm)
    task, _, _ = build(corpus, path)
    source = tiny.ragged([16_000])
    teacher = task.provider.encode({"net_input": {"source": source}, "num_samples": [16_000]})
    state = torch.load(path, weights_only=True)
    values = {key: value for key, value in state["cfg"]["model"].items() if key != "_name"}
    pretraining = HubertPretrainingConfig(label_rate=50.0)
    hubert = HubertModel(HubertConfig(**values), pretraining, state["task_state"]["dictionaries"])
    hubert.load_state_dict(state["model"])
    hubert.eval()
    with torch.no_grad():
        states, _ = hubert.extract_features(source, padding_mask=torch.zeros(1, 16_000, dtype=torch.bool))
        projected = hubert.final_proj(states[0])
        # The first of its logits is the target's.
        expected = torch.stack(
            [hubert.compute_nce(projected, unit.expand_as(projected), projected[None] + 1)[:, 0]
             for unit in hubert.label_embs_concat], dim=1,
        )  # fmt: skip
    logits = task.teacher.unit_logits(teacher.hidden_states[-1][0])
    assert logits.shape == (49, 9)  # five units and fairseq's four special symbols
    assert torch.allclose(logits, expected, atol=1e-4)


class _Logits:
    """What fairseq's criterion asks of a model."""

    def __init__(self, masked, unmasked):
        self.masked, self.unmasked = masked, unmasked

    def __call__(self, target_list=None, **_):
        return {}

    def get_logits(self, net_output, is_masked=True):
        return [self.masked if is_masked else self.unmasked]

    def get_targets(self, net_output, is_masked=True):
        # fairseq puts the target's logit first and says 0; here they are as the head gives them.
        return [self.masked_targets if is_masked else self.unmasked_targets]


def test_the_unit_loss_is_fairseqs_on_the_same_logits_and_targets():
    torch.manual_seed(0)
    lengths, hidden = [12], [np.arange(12) % 4 == 1]
    teacher, student = torch.randn(1, 12, 24), torch.randn(1, 12, 16)
    head, units = UnitHead(16, 7), CentroidUnits(2, torch.randn(7, 24))
    selections = {region: Selection.of(region, lengths, hidden) for region in (MASKED, UNMASKED)}
    for masked_weight, unmasked_weight in ((1.0, 0.0), (0.0, 1.0)):
        loss, _ = unit_loss(
            [(units, teacher, student, head)], selections, {MASKED: masked_weight, UNMASKED: unmasked_weight}
        )
        logits, targets = head(student[0]), units.targets(teacher[0])
        model = _Logits(*(logits[torch.from_numpy(mask)] for mask in (hidden[0], ~hidden[0])))
        model.masked_targets, model.unmasked_targets = (targets[torch.from_numpy(m)] for m in (hidden[0], ~hidden[0]))
        criterion = HubertCriterion(None, masked_weight, unmasked_weight)
        sample = {"target_list": None, "net_input": {}, "id": torch.tensor([0])}
        expected, sample_size, _ = criterion(model, sample)
        assert loss.item() == pytest.approx((expected / sample_size).item(), rel=1e-6)
        written_out = naive_unit_loss(logits, targets.tolist(), hidden[0])
        assert loss.item() == pytest.approx(written_out[0 if masked_weight else 1], rel=1e-6)


def test_units_of_centroids_are_the_nearest():
    units = CentroidUnits(2, torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0]]))
    assert units.targets(torch.tensor([[0.9, 0.2], [4.0, 4.0], [-1.0, 0.1]])).tolist() == [1, 2, 0]


def test_head_and_centroids_at_once(corpus, teacher_path, tmp_path):
    task, student, _ = build(corpus, teacher_path, **HIDING)
    units = ["head", centroids_of(task, tmp_path / "units.npz")]
    cfg = StarTGMConfig(unit_weight=1.0, unit_unmasked_weight=0.5, units=units, unit_dim=8, unit_student_layers=[3, 2])
    criterion = StarTGMCriterion(task, cfg)
    loss, _, logged = criterion(student, batch_of(task, [0, 3]))
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in criterion.parameters())
    assert {"units", "units_unmasked", "unit_accuracy", "layerwise", "masked_frames"} < set(logged)
    parts = logged["layerwise"] + logged["intra_layer"] + logged["units"] + 0.5 * logged["units_unmasked"]
    assert loss.item() == pytest.approx(parts.item(), rel=1e-5)


def test_a_teacher_of_several_sets_of_units_has_a_head_for_each():
    teacher = load_teacher(ROOT / "assets" / "demo_teacher" / "demo_hubert.pt")
    assert [len(head.label_embs) for head in teacher.unit_heads] == [54, 54]
    assert [unit.num_units for unit in find_units(["head"], teacher, None, 1.0)] == [54, 54]
    logits = [teacher.unit_logits(torch.randn(3, 256), number) for number in (0, 1)]
    assert not torch.allclose(*logits)


@pytest.mark.parametrize(
    "changes",
    [{"label_embs_concat": torch.zeros(9)}, {"final_proj.weight": torch.zeros(8, 23)}, {"final_proj.bias": None}],
)
def test_a_head_that_does_not_fit_is_none(tmp_path, changes):
    state = tiny.hubert_state()
    state["model"] |= {key: value for key, value in changes.items() if value is not None}
    for key in [key for key, value in changes.items() if value is None]:
        del state["model"][key]
    torch.save(state, tmp_path / "teacher.pt")
    assert not load_teacher(tmp_path / "teacher.pt").unit_heads


def test_a_temperature_softens_the_teachers_predictions(corpus, teacher_path):
    def entropy(temperature: float) -> float:
        task, _, criterion = build(
            corpus, teacher_path, {"unit_unmasked_weight": 1.0, "units": ["head"], "unit_temperature": temperature}
        )
        targets = criterion.terms[-1].units[0].targets(task.provider.encode(batch_of(task, [0])).hidden_states[-1][0])
        return -(targets * targets.log()).sum(-1).mean().item()

    assert entropy(0.5) < entropy(1.0) < entropy(4.0)


def test_what_cannot_be_asked_ends_in_one_line(corpus, teacher_path, tmp_path):
    task, _, _ = build(corpus, teacher_path, **HIDING)
    headless = tiny.hubert_state()
    del headless["model"]["label_embs_concat"]
    torch.save(headless, tmp_path / "headless.pt")
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04 no archive")
    digest = task.state_dict()[TEACHER]
    unmasked = {"unit_unmasked_weight": 1.0}
    cases = [
        (teacher_path, {**unmasked}, "criterion.units: name what to predict"),
        (tmp_path / "headless.pt", {**unmasked, "units": ["head"]}, "this teacher has no prediction head"),
        (teacher_path, {"unit_weight": 1.0, "units": ["head"]}, "criterion.unit_weight is about masked frames"),
        (teacher_path, {"tgm_frames": "masked"}, "criterion.tgm_frames is about masked frames"),
        (teacher_path, {**unmasked, "units": ["head"], "unit_temperature": 0.0}, "unit_temperature=0.0 must be above"),
        (teacher_path, {**unmasked, "units": [str(tmp_path / "none.npz")]}, "none.npz cannot be read"),
        (teacher_path, {**unmasked, "units": [str(tmp_path / "damaged.npz")]}, "holds no centroids, or is damaged"),
    ]
    for name, changes, told in [
        ("wide", {"width": 25}, "25 wide; this teacher has layers up to 3 of 24"),
        ("deep", {"layer": 4}, "centroids of layer 4"),
        ("other", {"teacher": "0" * 64}, "another teacher's states"),
    ]:
        path = centroids_of(task, tmp_path / f"{name}.npz", **{"teacher": digest, **changes})
        cases.append((teacher_path, {**unmasked, "units": [path]}, told))
    for teacher, options, told in cases:
        with pytest.raises(SystemExit, match=re.escape(told)):
            build(corpus, teacher, options)


@pytest.mark.parametrize(
    "write",
    [
        lambda file: np.save(file, np.ones(3)),  # one array instead of several by name
        lambda file: np.savez(file, settings=SETTINGS % "{}", centroids=np.array([["a", "b"], ["c", "d"]])),
        lambda file: np.savez(file, settings=SETTINGS % "[1]", centroids=np.ones((3, 24), np.float32)),
        lambda file: np.savez(file, settings=SETTINGS % "{}", centroids=np.full((3, 24), np.nan, np.float32)),
        lambda file: np.savez(file, settings="[]", centroids=np.ones((3, 24), np.float32)),
    ],
)
def test_files_that_are_no_centroids_end_in_one_line(tmp_path, write):
    with open(tmp_path / "odd.npz", "wb") as file:
        write(file)
    with pytest.raises(StarError, match="holds no centroids"):
        read_centroids(str(tmp_path / "odd.npz"), "criterion.units")


def test_centroids_come_back_as_they_were_written(tmp_path):
    written = Centroids(np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32), 3, "ab", {"frames": 10})
    written.write(tmp_path / "units.npz")
    read = read_centroids(str(tmp_path / "units.npz"), "criterion.units")
    assert np.array_equal(read.vectors, written.vectors)
    assert (read.layer, read.teacher, read.about) == (3, "ab", {"frames": 10})
