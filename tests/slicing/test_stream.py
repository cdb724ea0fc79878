"""The residual stream's channels and scales, against T x T Gram matrices written out."""

import pytest
import torch

from fairseq_star.slicing.stream import SCALES, Stream, choose_stream, gram_scales


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pairs_of(seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Utterances of several lengths; what is left out of X is in part a map of what is kept."""
    mix, pairs = drawn(4, 7, seed=seed), []
    for number, frames in enumerate((6, 9, 14)):
        x = drawn(frames, 4, seed=seed + number + 1) @ mix + 0.2 * drawn(frames, 7, seed=seed + number + 10)
        pairs.append((x, x[:, [0, 2, 3, 6]] + 0.1 * drawn(frames, 4, seed=seed + number + 20)))
    return pairs


def distance(pairs: list[tuple[torch.Tensor, torch.Tensor]], squares: torch.Tensor) -> torch.Tensor:
    """``sum 1/T^2 ||X X^T - sum_c w_c y_c y_c^T||_F^2``, as it reads."""
    total = torch.zeros((), dtype=torch.float64)
    for x, y in pairs:
        x, y = x.double(), y.double()
        gram = sum(squares[c] * torch.outer(y[:, c], y[:, c]) for c in range(y.size(1)))
        total = total + (x @ x.T - gram).square().sum() / len(x) ** 2
    return total


@pytest.mark.parametrize("seed", range(4))
def test_scales_make_gram_matrices_nearest(seed):
    """The same as least squares over the T^2 entries of all utterances, where no bound is met."""
    pairs = pairs_of(seed)
    columns, wanted = [], []
    for x, y in pairs:
        x, y = x.double(), y.double()
        columns.append(torch.stack([torch.outer(c, c).flatten() for c in y.T], dim=1) / len(x))
        wanted.append((x @ x.T).flatten() / len(x))
    expected = torch.linalg.lstsq(torch.cat(columns), torch.cat(wanted)[:, None]).solution[:, 0]
    found = gram_scales(pairs).double()
    low, high = SCALES
    inside = (expected > low**2) & (expected < high**2)
    assert inside.any()
    if inside.all():
        assert torch.allclose(found.square(), expected, rtol=1e-3, atol=1e-4)
        best = distance(pairs, found.square())
        for channel in range(4):
            for step in (-0.05, 0.05):
                moved = found.square().clone()
                moved[channel] += step
                assert distance(pairs, moved) > best
    assert torch.allclose(found, expected.clamp(low**2, high**2).sqrt(), rtol=1e-3, atol=1e-4)


def test_at_least_one_example_meets_no_bound():
    scales = torch.stack([gram_scales(pairs_of(seed)) for seed in range(4)])
    assert ((scales > SCALES[0]) & (scales < SCALES[1])).all(dim=1).any()


def test_scales_have_bounds_and_nothing_gives_ones():
    x = drawn(20, 3)
    assert torch.allclose(gram_scales([(x, x)]), torch.ones(3), atol=1e-5)
    assert torch.allclose(gram_scales([(x, x / 1000)]), torch.full((3,), SCALES[1]))
    assert torch.allclose(gram_scales([(x / 1000, x)]), torch.full((3,), SCALES[0]))
    assert torch.equal(gram_scales([(x, torch.zeros(20, 2))]), torch.ones(2))


def test_channels_are_the_strongest_of_each_group_with_each_layer_its_own_unit():
    """A loud layer does not decide alone: in the first state channel 0 is loud, in the second, a thousand times
    stronger, channel 1; of the second group 2 and 3 are alike."""
    states = [
        [drawn(10, 4, seed=n) * torch.tensor([3.0, 1, 1, 1.2]),
         drawn(10, 4, seed=n + 9) * torch.tensor([1.0, 1.5, 1, 1.2]) * 1000]
        for n in range(3)
    ]  # fmt: skip
    stream = choose_stream(states, width=2, groups=2, scaled=False)
    energy = torch.zeros(4, dtype=torch.float64)
    for number in (0, 1):
        rows = torch.cat([utterance[number] for utterance in states]).double()
        energy += rows.square().sum(0) / rows.square().sum()
    expected = [int(energy[:2].argmax()), 2 + int(energy[2:].argmax())]
    assert stream.channels.tolist() == expected == [0, 3]
    assert torch.equal(stream.scale, torch.ones(2))
    assert stream.num_channels == 4
    loud = torch.cat([utterance[1] for utterance in states])
    assert loud[:, 1].norm() > loud[:, 0].norm(), "by plain energy it would be channel 1"
    scaled = choose_stream(states, width=2, groups=2, scaled=True)
    pairs = [(state, state[:, [0, 3]]) for utterance in states for state in utterance]
    assert torch.equal(scaled.scale, gram_scales(pairs))
    assert not torch.equal(scaled.scale, stream.scale)


def test_a_stream_reads_and_writes_the_kept_channels():
    stream = Stream(torch.tensor([1, 3]), torch.tensor([2.0, 0.5]), 4)
    states = drawn(3, 5, 4)
    assert torch.equal(stream.to_student(states), torch.stack([2 * states[..., 1], 0.5 * states[..., 3]], dim=-1))
    weight, bias = drawn(4, 6).double(), drawn(4)
    assert torch.equal(stream.rows_of(weight), torch.stack([2 * weight[1], 0.5 * weight[3]]))
    assert torch.equal(stream.rows_of(bias), torch.stack([2 * bias[1], 0.5 * bias[3]]))
    # What the student has of a state, back in its place: the kept channels as they were, zeros elsewhere.
    back = stream.to_student(states).double() @ stream.to_teacher().T
    assert torch.allclose(back[..., [1, 3]], states[..., [1, 3]].double())
    assert back[..., [0, 2]].abs().max() == 0
    twice = stream.scaled(torch.tensor([3.0, 4.0]))
    assert twice.scale.tolist() == [6, 2]
    assert twice.unscaled().scale.tolist() == [1, 1]
    assert stream.scale.tolist() == [2, 0.5]
