"""The probe: head, intervals and features against what they should be, and the whole on tones."""

import json

import numpy as np
import pytest
import torch
from scipy import stats

from fairseq_star.analysis.probe import run_probe
from fairseq_star.analysis.probe.features import EncoderFeatures, FeatureStore, SpectralFeatures, read_samples
from fairseq_star.analysis.probe.head import WeightedSumHead, train_head
from fairseq_star.analysis.probe.labels import read_task
from fairseq_star.analysis.probe.result import Bootstrap, interval
from fairseq_star.analysis.untrained import untrained
from fairseq_star.cli import main
from fairseq_star.encoder.frames import FrameGeometry
from fairseq_star.errors import StarError
from fairseq_star.formats import load_teacher
from manifests.demo import teacher_targets as demo_teacher_targets
from tests.support import convert_cases, labelled

GEOMETRY = FrameGeometry(receptive_field=400, downsample_rate=320)
FEATURES = ["FBANK", "MFCC", "FBANK, not normalized", "random init", "student", "teacher"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return labelled.write_labelled(tmp_path_factory.mktemp("labelled") / "corpus", train=30, valid=20)


@pytest.fixture
def short_heads(monkeypatch) -> None:
    """A sixth of the steps: enough for tones, where it is not about the heads."""
    monkeypatch.setattr("fairseq_star.analysis.probe.head.STEPS", 100)
    monkeypatch.setattr("fairseq_star.analysis.probe.head.EVALUATED_AT", (25, 50, 100))


def items(count: int, informative: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """N x 3 x 8 features of very different scales; one layer alone tells the four classes."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(4, (count,), generator=generator)
    features = torch.randn(count, 3, 8, generator=generator)
    features[:, informative, :4] += 4 * torch.eye(4)[classes]
    return features * 100 + 500, classes


def test_the_head_finds_the_layer_that_knows():
    train, dev, test = (items(count, 1, seed) for seed, count in enumerate((3000, 300, 1000)))
    trained = train_head(train, dev, test, num_classes=4, seed=0)
    assert trained.correct.float().mean() > 0.9
    assert trained.layer_weights.argmax() == 1
    assert trained.layer_weights[1] > 0.6
    assert trained.layer_weights.sum().item() == pytest.approx(1)


def test_a_class_that_training_lacks_is_never_right():
    train, dev, (features, classes) = (items(count, 0, seed) for seed, count in enumerate((500, 100, 100)))
    unknown = torch.full_like(classes, -1)
    assert not train_head(train, dev, (features, unknown), 4, seed=0).correct.any()


def test_mean_and_deviation_are_those_of_the_weighted_sum():
    features, _ = items(400, 1, 0)
    features = features * torch.tensor([1.0, 10.0, 0.1])[:, None]
    head = WeightedSumHead(features, 4)
    with torch.no_grad():
        head.layer_logits.copy_(torch.tensor([0.5, -1.0, 2.0]))
        head.linear.weight.copy_(torch.eye(4, 8))
        weights = head.layer_logits.softmax(0)
        summed = sum(weight * features[:, layer] for layer, weight in enumerate(weights))
        expected = (summed - summed.mean(0)) / summed.std(0, correction=0)
        torch.testing.assert_close(head(features), expected[:, :4], rtol=1e-3, atol=1e-3)


def test_intervals_resample_clusters_and_seeds():
    rng = np.random.default_rng(0)
    clusters = [str(number // 10) for number in range(400)]
    bootstrap = Bootstrap(clusters, num_seeds=1)
    independent = rng.random((1, 400)) < 0.7
    low, high = interval(bootstrap.draws(independent))
    expected = stats.binom.interval(0.95, 400, independent.mean())
    assert (low, high) == pytest.approx(np.array(expected) / 400, abs=0.03)

    together = np.repeat(rng.random((1, 40)) < 0.7, 10, axis=1)  # all of a cluster right, or none
    wide = interval(bootstrap.draws(together))
    assert wide[1] - wide[0] > 2 * (high - low)

    seeds = np.stack([np.ones(400, bool), np.zeros(400, bool)])
    assert interval(Bootstrap(clusters, 2).draws(seeds)) == (0, 1)

    # Against the definition: draw by draw, by hand, for uneven clusters.
    uneven = Bootstrap(["a"] * 3 + ["b"], 1)
    correct = np.array([[1, 0, 1, 0]], dtype=bool)
    possible = {(2 * a + 0 * b) / (3 * a + b) for a, b in ((2, 0), (1, 1), (0, 2))}
    assert set(np.round(uneven.draws(correct), 9)) == {round(value, 9) for value in possible}


@pytest.mark.parametrize("kind", ["FBANK", "MFCC"])
def test_spectra_are_in_step_with_the_frames(corpus, kind):
    data = read_task(corpus, "phone", GEOMETRY)
    extract = SpectralFeatures(kind, GEOMETRY)
    for one in data.test:
        features, mean = extract(read_samples(one))
        assert features.shape == (len(one.labels), 1, 240 if kind == "FBANK" else 39)
        static = features[:, 0, : features.size(2) // 3]
        assert torch.equal(mean, torch.zeros(1, features.size(2)))
        torch.testing.assert_close(features.mean(0), mean, atol=1e-4, rtol=0)
        raw, raw_mean = SpectralFeatures(kind, GEOMETRY, normalize=False)(read_samples(one))
        # The mean of the bands, over all windows rather than every other: much the same, beside how they vary.
        bands = raw[:, 0, : static.size(1)]
        assert ((raw_mean[0] - bands.mean(0)).abs() < 0.3 * bands.std(0)).all()
        centred = raw - raw.mean(0)
        torch.testing.assert_close(centred / centred.std(0, correction=0).clamp_min(1e-5), features)
        # Where the labels say that another tone begins, the frames differ most.
        jumps = (static[1:] - static[:-1]).norm(dim=1).topk(4).indices + 1
        changes = [t for t in range(1, len(one.labels)) if one.labels[t] != one.labels[t - 1]]
        assert all((jumps - change).abs().min() <= 1 for change in changes)


def test_mfcc_are_those_the_demo_teacher_was_made_with(corpus):
    one = read_task(corpus, "phone", GEOMETRY).test[0]
    features, _ = SpectralFeatures("MFCC", GEOMETRY)(read_samples(one))
    np.testing.assert_allclose(features[:, 0].numpy(), demo_teacher_targets.mfcc_features(one.path), atol=1e-4)


def test_the_store_keeps_every_layer_of_every_frame(corpus, teacher_path):
    encoder = load_teacher(str(teacher_path))
    phone, speaker = read_task(corpus, "phone", GEOMETRY), read_task(corpus, "speaker", GEOMETRY)
    store = FeatureStore(EncoderFeatures(encoder, "cpu"), [phone, speaker], "test")
    chosen = [phone.test[3], phone.test[0]]
    frames, classes = store.inputs(phone, chosen)
    means, speakers = store.inputs(speaker, speaker.test)
    store.close()
    states = [
        torch.cat(encoder(read_samples(one)[None], [one.num_samples]).hidden_states).transpose(0, 1) for one in chosen
    ]
    torch.testing.assert_close(frames.float(), torch.cat(states), atol=2e-3, rtol=1e-3)
    assert [phone.classes[number] for number in classes] == [*chosen[0].labels, *chosen[1].labels]
    assert means.shape == (len(speaker.test), 4, 24)
    assert [speaker.classes[number] for number in speakers] == [one.labels[0] for one in speaker.test]


def test_random_weights_are_another_encoder_of_the_same_shape(teacher_path):
    encoder = load_teacher(str(teacher_path))
    state = torch.get_rng_state()
    first, again, other = (untrained(encoder.config, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    source = torch.randn(1, 4000)
    last = [model(source, [4000]).hidden_states[-1] for model in (encoder, first, again, other)]
    assert last[0].shape == last[1].shape
    assert torch.equal(last[1], last[2])
    assert not torch.allclose(last[1], last[3])
    assert not torch.allclose(last[0], last[1])


def test_a_streaming_student_is_probed_in_the_chunks_asked_for(corpus, tmp_path, short_heads):
    student = convert_cases.streaming_student(tmp_path)
    options = {"teacher": None, "data": corpus, "seeds": [0], "tasks": ["phone"]}
    asked = {size: run_probe(student.origin, **options, chunk_frames=size) for size in (1, 0)}
    assert [result.settings["chunk_frames"] for result in asked.values()] == [1, 0]
    for name in ("random init", "student"):
        weights = [result.row("phone", name).layer_weights for result in asked.values()]
        assert weights[0] != weights[1], name
    plain = convert_cases.tiny_student(tmp_path)
    with pytest.raises(StarError, match="this encoder processes whole utterances only"):
        run_probe(plain.origin, **options, chunk_frames=4)


def test_a_model_against_itself(corpus, teacher_path, tmp_path, short_heads):
    """Student and teacher are one file: no difference, all of the margin; and FBANK knows tones."""
    result = run_probe(str(teacher_path), teacher=str(teacher_path), data=corpus, seeds=[0], tasks=["phone", "speaker"])
    assert result.num_classes == {"phone": 3, "speaker": 5}
    assert result.num_clusters == {"phone": 2, "speaker": 5}
    assert result.row("phone", "FBANK").accuracy > 0.9
    # Of 10 utterances, five speakers: a constant knows one of them, whatever the head makes of it.
    assert result.row("speaker", "FBANK").accuracy == pytest.approx(0.2)
    assert result.row("speaker", "FBANK, not normalized").accuracy > 0.4
    for task in result.num_classes:
        student, teacher = result.row(task, "student"), result.row(task, "teacher")
        assert student.seed_accuracies == teacher.seed_accuracies
        assert student.low <= student.accuracy <= student.high
        assert sum(student.layer_weights) == pytest.approx(1)
        (same,) = (one for one in result.comparisons if (one.task, one.other) == (task, "teacher"))
        assert (same.difference, same.low, same.high) == (0, 0, 0)
    random_init = result.row("phone", "random init")
    assert random_init.layer_weights != result.row("phone", "student").layer_weights
    if "phone" in result.margin_kept:
        assert result.margin_kept["phone"][0] == pytest.approx(1)

    table = result.to_markdown()
    for name in FEATURES:
        assert f"\n| {name} | " in table
    picture = result.plot_layer_weights(tmp_path / "weights.png")
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_the_command_takes_teacher_and_data_from_the_run(corpus, train, tmp_path, capsys, short_heads):
    done = train("optimization.max_update=1", data=corpus)
    assert done.returncode == 0, done.stderr
    checkpoint = tmp_path / "run" / "checkpoint_last.pt"
    main(["probe", str(checkpoint), "--tasks", "phone", "--seeds", "0", "--max-utterances", "6", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert [row["features"] for row in result["rows"]] == FEATURES
    assert [len(row["layer_weights"]) for row in result["rows"]] == [1, 1, 1, 4, 4, 4]
