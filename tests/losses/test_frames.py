"""Frame losses: the written-out reference, the heads of a run, and the settings of published methods."""

import pytest
import torch

from fairseq_star.losses.frames import frame_loss, naive_frame_loss
from fairseq_star.losses.selection import MASKED, UNMASKED, Selection
from tests.support.steps import batch_of, build

LENGTHS = [9, 6, 1]
HIDDEN = [torch.arange(n).remainder(3).eq(1).numpy() for n in LENGTHS]
WEIGHTS = [
    {"mse": 1.0, "l1": 0.0, "cosine": 0.0, "masked": 1.0, "unmasked": 1.0},
    {"mse": 0.0, "l1": 1.0, "cosine": 1.0, "masked": 1.0, "unmasked": 0.0},
    {"mse": 0.3, "l1": 2.0, "cosine": 0.5, "masked": 0.7, "unmasked": 0.2},
]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_frame_losses_are_the_written_out_reference(weights):
    generator = torch.Generator().manual_seed(0)
    teacher, given = (torch.randn(3, 9, 5, generator=generator) for _ in range(2))
    selections = {region: Selection.of(region, LENGTHS, HIDDEN) for region in (MASKED, UNMASKED)}
    distances = {name: weights[name] for name in ("mse", "l1", "cosine")}
    regions = {region: weights[region] for region in (MASKED, UNMASKED)}
    loss = frame_loss([(teacher, given, torch.nn.Identity())], selections, distances=distances, regions=regions)
    assert loss.item() == pytest.approx(naive_frame_loss(teacher, given, HIDDEN, **weights), rel=1e-6)
    teacher[0, 9:], teacher[1, 6:] = float("nan"), float("nan")  # padding is not read
    again = frame_loss([(teacher, given, torch.nn.Identity())], selections, distances=distances, regions=regions)
    assert torch.equal(loss, again)


def test_distilhuberts_heads(corpus, teacher_path):
    """Three teacher layers predicted from the student's last one."""
    options = {
        "layerwise_weight": 0.0, "intra_layer_weight": 0.0, "frame_l1_weight": 1.0, "frame_cosine_weight": 1.0,
        "frame_layers": [1, 2, 3], "frame_student_layers": [1, 1, 1],
    }  # fmt: skip
    task, student, criterion = build(corpus, teacher_path, options, {"encoder_layers": 1})
    batch = batch_of(task, [0, 3])
    loss, size, _ = criterion(student, batch)
    teacher = task.provider.encode(batch)
    states = student(**batch["net_input"], frames=teacher.frames)
    lengths = states.frames.frame_lengths
    expected = sum(
        naive_frame_loss(
            teacher.hidden_states[layer], criterion.heads[layer - 1](states.hidden_states[1]),
            [[False] * n for n in lengths], mse=0, l1=1, cosine=1, masked=1, unmasked=1,
        )
        for layer in (1, 2, 3)
    ) / 3  # fmt: skip
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert size == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"frame_mse_weight": 1.0, "frame_layers": [4]}, r"criterion.frame_layers=\[4\] must name 1 of the layers"),
        ({"frame_mse_weight": 1.0, "frame_layers": []}, r"criterion.frame_layers=\[\] must name 1 of the layers"),
        ({"frame_mse_weight": 1.0, "frame_student_layers": [1]}, "criterion.frame_student_layers"),
        ({"frame_mse_weight": -1.0}, "criterion.frame_mse_weight=-1.0 must be a number from 0 on"),
        ({"frame_l1_weight": 1.0, "frame_masked_weight": 0.0, "frame_unmasked_weight": 0.0}, "are both 0; raise one"),
    ],
)
def test_options_that_cannot_be_end_in_one_line(corpus, teacher_path, options, told):
    with pytest.raises(SystemExit, match=told):
        build(corpus, teacher_path, options)
