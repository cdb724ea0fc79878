"""How batches are filled: little padding on LibriSpeech's lengths, nobody left out, the same after resuming."""

import numpy as np
import pytest

from fairseq_star.criterions.star_tgm import StarTGMCriterion
from tests.support.steps import dataset_of

# Seconds at these shares of the utterances: 251 utterances of LibriSpeech's train-clean-100, one a speaker, the excerpt
# this project is developed with. Their mean is 12.5 s; that of all 281,241 training utterances (960.9 h) is 12.3 s.
SHARES = [0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1]
SECONDS = [1.64, 2.14, 3.74, 5.26, 9.85, 12.26, 13.32, 14.1, 14.42, 14.83, 15.32, 15.82, 16.3, 16.77, 17.19]
RATE = 16_000


@pytest.fixture(scope="module")
def librispeech_like(tmp_path_factory):
    """A manifest of 28,539 utterances, as many as train-clean-100 has; no audio."""
    seconds = np.interp(np.random.default_rng(0).random(28_539), SHARES, SECONDS)
    lines = ["/nowhere", *(f"{number}.flac\t{int(RATE * length)}" for number, length in enumerate(seconds))]
    path = tmp_path_factory.mktemp("lengths") / "train.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("limits", "options", "at_most"),
    [
        ({"max_sentences": 12}, {}, 0.005),
        ({"max_sentences": 18}, {}, 0.005),
        ({"max_tokens": 200 * RATE}, {}, 0.005),
        ({"max_tokens": 200 * RATE}, {"max_sample_size": 10 * RATE}, 0.005),
        ({"max_tokens": 200 * RATE}, {"pad_to_multiple": RATE}, 0.05),
        ({"max_sentences": 12}, {"pad_to_multiple": RATE}, 0.05),
    ],
)
def test_padding_on_librispeechs_lengths(limits, options, at_most, librispeech_like):
    dataset = dataset_of(librispeech_like, **options)
    batches = dataset.batch_by_size(dataset.ordered_indices(), required_batch_size_multiple=8, **limits)
    assert sorted(index for batch in batches for index in batch) == list(range(28_539)), "each exactly once"
    longest = [max(dataset.size(index) for index in batch) for batch in batches]
    widths = [length + -length % dataset.pad_to_multiple for length in longest]
    held = sum(len(batch) * width for batch, width in zip(batches, widths, strict=True))
    valid = sum(dataset.size(index) for batch in batches for index in batch)
    assert 0 <= 1 - valid / held < at_most
    if "max_tokens" in limits:
        assert max(len(batch) * length for batch, length in zip(batches, longest, strict=True)) <= limits["max_tokens"]
        sizes = [len(batch) for batch in batches]
        assert max(sizes) > 2 * min(sizes[:-1]) or "max_sample_size" in options, "short utterances, larger batches"


def test_the_same_batches_after_resuming(librispeech_like):
    """fairseq seeds the order with the epoch in which a process began."""
    first, resumed = dataset_of(librispeech_like), dataset_of(librispeech_like)
    np.random.seed(1)
    expected = first.ordered_indices()
    np.random.seed(2)
    assert np.array_equal(resumed.ordered_indices(), expected)
    assert not np.array_equal(dataset_of(librispeech_like, seed=2).ordered_indices(), expected)


def test_padding_is_logged_over_all_workers_and_accumulated_batches():
    from fairseq.logging import metrics

    logs = [{"ntokens": 90, "batch_frames": 100, "sample_size": 2}, {"ntokens": 60, "batch_frames": 60}]
    with metrics.aggregate(new_root=True) as meters:
        StarTGMCriterion.reduce_metrics(logs)
    assert meters.get_smoothed_values()["padding"] == pytest.approx(100 * 10 / 160, abs=0.01)


def test_the_share_logged_is_the_batchs(corpus, teacher_path):
    from tests.support.steps import batch_of, build

    task, student, criterion = build(corpus, teacher_path)
    _, _, log = criterion(student, batch_of(task, [0, 7], extra=3200))
    frames = task.teacher.geometry.num_frames
    lengths = [frames(int(task.dataset("train").sizes[index])) for index in (0, 7)]
    assert log["ntokens"] == sum(lengths)
    assert log["batch_frames"] == 2 * frames(int(max(task.dataset("train").sizes[[0, 7]])) + 3200)
