"""A layer's attention and feed-forward part, against what their definitions give, written out in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fairseq_star.slicing.layers import LayerSlicer, projections, run_layer
from fairseq_star.slicing.method import DEFAULT
from fairseq_star.slicing.moments import Moments
from fairseq_star.slicing.stream import choose_stream
from tests.support import slicing_cases as cases
from tests.support.slicing_cases import as_array, regressed, selected_forward

HEADS, WIDTH, OWN_WIDTH, UNITS, OWN_UNITS = 2, 24, 16, 20, 9
IN_FULL = replace(DEFAULT, products=torch.float64)
KINDS = {"post-norm": False, "pre-norm": True}


class Layer:
    """A teacher's layer with its states of a few utterances, and a student's narrower one with its inputs."""

    def __init__(self, pre_norm: bool, own_width: int = OWN_WIDTH, own_units: int = OWN_UNITS):
        self.pre_norm = pre_norm
        settings = {"layer_norm_first": pre_norm, "num_layers": 1}
        self.theirs = cases.base(depth=1, ffn_embed_dim=UNITS, layer_norm_first=pre_norm).model.encoder.layers[0]
        for parameter in self.theirs.parameters():  # far from the first weights: logits and units that say something
            parameter.data.mul_(2)
        shape = replace(cases.config(**settings), embed_dim=own_width, ffn_embed_dim=own_units)
        self.own = cases.drawn(shape).encoder.layers[0]
        generator = torch.Generator().manual_seed(1)
        mix = torch.randn(WIDTH, WIDTH, generator=generator) / 4
        inputs = [torch.randn(frames, WIDTH, generator=generator) @ mix + 0.3 for frames in (40, 25, 61)]
        self.states = [run_layer(self.theirs, x, pre_norm) for x in inputs]
        self.stream = choose_stream([[one.residual, one.output] for one in self.states], own_width, 4, scaled=True)
        # The student's are not quite the teacher's.
        self.inputs = [
            self.stream.to_student(x) + 0.05 * torch.randn(len(x), own_width, generator=generator) for x in inputs
        ]

    def slicer(self, **method: object) -> LayerSlicer:
        return LayerSlicer(self.theirs, self.own, self.stream, HEADS, self.pre_norm, replace(IN_FULL, **method))

    @torch.no_grad()
    def slice(self, **method: object) -> list[torch.Tensor]:
        return self.slicer(**method).slice(self.states, self.states, self.inputs)


def test_a_teachers_layer_is_run_as_its_encoder_runs_it():
    for settings in ({}, {"layer_norm_first": True}):
        teacher, [source] = cases.base(**settings), cases.audio(1)
        states = teacher(source[None], [len(source)]).hidden_states
        for number, layer in enumerate(teacher.model.encoder.layers):
            with torch.no_grad():
                found = run_layer(layer, states[number][0], bool(settings), teacher.model.position_bias(0))
            assert torch.allclose(found.output, states[number + 1][0], atol=1e-5)
            assert torch.equal(found.residual, states[number][0])


def test_so_is_one_of_wavlm(tmp_path):
    pytest.importorskip("transformers", reason="transformers writes it")
    teacher, [source] = cases.teacher(tmp_path, "wavlm"), cases.audio(1)
    states = teacher(source[None], [len(source)]).hidden_states
    shared = teacher.model.position_bias(states[0].size(1))
    with torch.no_grad():
        found = run_layer(teacher.model.encoder.layers[0], states[0][0], False, shared)
    assert torch.allclose(found.output, states[1][0], atol=1e-5)
    heads = projections(teacher.model.encoder.layers[0].self_attn)
    assert [tuple(weight.shape) for weight, _ in heads] == [(24, 24)] * 4
    assert [tuple(bias.shape) for _, bias in heads] == [(24,)] * 4


def heads_of(layer: Layer, ridge: float):
    """Inputs of both, the teacher's filled in from the student's, and the student's weights as ``_slice_heads`` gives
    them; all frames of all utterances below one another."""
    slicer = layer.slicer(ridge=ridge)
    wanted = as_array([one.inputs for one in layer.states])
    norm = layer.own.self_attn_layer_norm
    with torch.no_grad():
        given = slicer._normed(norm, [one.inputs for one in layer.states], layer.inputs) if layer.pre_norm else (
            layer.inputs)  # fmt: skip
        moments = Moments(given[0].size(1), WIDTH)
        for one, b in zip(layer.states, given, strict=True):
            moments.add(b, one.inputs)
        prior = slicer._slice_heads(moments)
    given = as_array(given)
    weight, bias = regressed(given, wanted, ridge, layer.stream.to_teacher().numpy())
    return given, given @ weight.T + bias, weight, prior.numpy()


def centred(logits: np.ndarray) -> np.ndarray:
    """Without what is the same for all keys of a query, of which a softmax knows nothing."""
    return logits - logits.mean(1, keepdims=True)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_the_best_of_their_rank(kind):
    """Over all pairs of frames; the teacher's logits are those of its inputs as the student's predict them."""
    layer = Layer(KINDS[kind])
    given, filled, _, _ = heads_of(layer, 0.0)
    (query, query_bias), (key, key_bias), _, _ = (
        [part.numpy() for part in pair] for pair in projections(layer.theirs.self_attn)
    )
    own, size, own_size = layer.own.self_attn, WIDTH // HEADS, OWN_WIDTH // HEADS
    for head in range(HEADS):
        theirs, mine = slice(head * size, (head + 1) * size), slice(head * own_size, (head + 1) * own_size)
        logits = (filled @ query[theirs].T + query_bias[theirs]) @ (filled @ key[theirs].T + key_bias[theirs]).T
        logits = centred(logits / np.sqrt(size))
        q = given @ as_array(own.q_proj.weight[mine]).T + as_array(own.q_proj.bias[mine])
        k = given @ as_array(own.k_proj.weight[mine]).T + as_array(own.k_proj.bias[mine])
        found = centred(q @ k.T / np.sqrt(own_size))
        values = np.linalg.svd(logits, compute_uv=False)
        least = np.sqrt(np.square(values[own_size:]).sum())
        assert least > 1e-3 * values[0], "else any rank would do"
        assert np.linalg.norm(logits - found) == pytest.approx(least, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_the_best_of_their_rank(kind):
    layer = Layer(KINDS[kind])
    given, _, weight, prior = heads_of(layer, 0.0)
    _, _, (value, _), (output, _) = ([part.numpy() for part in pair] for pair in projections(layer.theirs.self_attn))
    kept, scale = layer.stream.channels.numpy(), layer.stream.scale.double().numpy()
    own, size, own_size = layer.own.self_attn, WIDTH // HEADS, OWN_WIDTH // HEADS
    moved = given - given.mean(0)
    for head in range(HEADS):
        theirs, mine = slice(head * size, (head + 1) * size), slice(head * own_size, (head + 1) * own_size)
        wanted = moved @ weight.T @ value[theirs].T @ (scale[:, None] * output[kept][:, theirs]).T
        found = moved @ as_array(own.v_proj.weight[mine]).T @ prior[:, mine].T
        values = np.linalg.svd(wanted, compute_uv=False)
        least = np.sqrt(np.square(values[own_size:]).sum())
        assert least > 1e-3 * values[0]
        assert np.linalg.norm(wanted - found) == pytest.approx(least, rel=1e-4)
    assert own.v_proj.bias.abs().max() == own.k_proj.bias.abs().max() == 0


def test_at_full_rank_logits_and_values_are_the_teachers():
    layer = Layer(False, own_width=WIDTH)
    layer.inputs = [layer.stream.to_student(one.residual) for one in layer.states]
    given, filled, _, prior = heads_of(layer, 0.0)
    assert np.allclose(filled, as_array([one.inputs for one in layer.states]), atol=1e-5)
    heads = [[part.numpy() for part in pair] for pair in projections(layer.theirs.self_attn)]
    (query, query_bias), (key, key_bias), (value, _), (output, _) = heads
    own, size = layer.own.self_attn, WIDTH // HEADS
    scale = layer.stream.scale.double().numpy()
    for head in range(HEADS):
        mine = slice(head * size, (head + 1) * size)
        logits = (filled @ query[mine].T + query_bias[mine]) @ (filled @ key[mine].T + key_bias[mine]).T
        q = given @ as_array(own.q_proj.weight[mine]).T + as_array(own.q_proj.bias[mine])
        k = given @ as_array(own.k_proj.weight[mine]).T
        assert np.allclose(centred(q @ k.T), centred(logits), atol=1e-3 * logits.std())
        moved = given - given.mean(0)
        found = moved @ as_array(own.v_proj.weight[mine]).T @ prior[:, mine].T
        wanted = (filled - filled.mean(0)) @ value[mine].T @ (scale[:, None] * output[:, mine]).T
        assert np.allclose(found, wanted, atol=1e-4 * wanted.std())


def gelu(x: np.ndarray) -> np.ndarray:
    from math import erf

    return x * (1 + np.vectorize(erf)(x / np.sqrt(2))) / 2


def attended(layer: Layer, given: np.ndarray) -> np.ndarray:
    """Contexts of one utterance, query by query."""
    own, size = layer.own.self_attn, layer.own.self_attn.q_proj.out_features // HEADS
    q, k, v = (given @ as_array(p.weight).T + as_array(p.bias) for p in (own.q_proj, own.k_proj, own.v_proj))
    contexts = np.zeros_like(q)
    for head in range(HEADS):
        mine = slice(head * size, (head + 1) * size)
        for frame in range(len(given)):
            logits = k[:, mine] @ q[frame, mine] / np.sqrt(size)
            weights = np.exp(logits - logits.max())
            contexts[frame, mine] = weights / weights.sum() @ v[:, mine]
    return contexts


def normed(norm: torch.nn.LayerNorm, x: np.ndarray) -> np.ndarray:
    moved = x - x.mean(1, keepdims=True)
    normalized = moved / np.sqrt(np.square(moved).mean(1, keepdims=True) + norm.eps)
    return normalized * as_array(norm.weight) + as_array(norm.bias)


def line_of(norm: torch.nn.LayerNorm, given: np.ndarray, target: np.ndarray) -> None:
    """The norm's scale and shift are a straight line's through each channel."""
    moved = given - given.mean(1, keepdims=True)
    normalized = moved / np.sqrt(np.square(moved).mean(1, keepdims=True) + norm.eps)
    for channel in range(given.shape[1]):
        scale, shift = np.polyfit(normalized[:, channel], target[:, channel], 1)
        assert norm.weight[channel].item() == pytest.approx(scale, rel=1e-3, abs=1e-4)
        assert norm.bias[channel].item() == pytest.approx(shift, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_layer_step_by_step(kind, correct):
    """Every step is recomputed from the student's own activations before it, all fits by explicit least squares."""
    layer, ridge = Layer(KINDS[kind]), 0.05
    _, _, _, prior = heads_of(layer, ridge)
    outputs = layer.slice(ridge=ridge, correct=correct)
    own, states, stream = layer.own, layer.states, layer.stream
    residuals = [as_array(b) for b in layer.inputs]

    def there(name: str, mine: list[np.ndarray]) -> np.ndarray:
        return np.vstack(mine) if correct else as_array([stream.to_student(getattr(one, name)) for one in states])

    inputs = residuals
    if layer.pre_norm:
        line_of(
            own.self_attn_layer_norm, np.vstack(residuals), as_array([stream.to_student(one.inputs) for one in states])
        )
        inputs = [normed(own.self_attn_layer_norm, b) for b in residuals]
    contexts = [attended(layer, b) for b in inputs]
    target = as_array([stream.to_student(one.attended) for one in states]) - there("residual", residuals)
    weight, bias = regressed(np.vstack(contexts), target, ridge, prior)
    project = own.self_attn.out_proj
    assert np.allclose(as_array(project.weight), weight, atol=2e-4 * np.abs(weight).max())
    assert np.allclose(as_array(project.bias), bias, atol=1e-4 * np.abs(bias).max())

    sums = [b + c @ as_array(project.weight).T + as_array(project.bias)
            for b, c in zip(residuals, contexts, strict=True)]  # fmt: skip
    if layer.pre_norm:
        middle = sums
        wanted = as_array([stream.to_student(one.feed_forward_inputs) for one in states])
        line_of(own.final_layer_norm, np.vstack(sums), wanted)
        feed = [normed(own.final_layer_norm, b) for b in sums]
    else:
        line_of(own.self_attn_layer_norm, np.vstack(sums), as_array([stream.to_student(one.middle) for one in states]))
        middle = [normed(own.self_attn_layer_norm, b) for b in sums]
        feed = middle

    # Units: of all of the teacher's, on the student's inputs, those that explain most together.
    filled, shift = regressed(
        np.vstack(feed), as_array([one.feed_forward_inputs for one in states]), ridge, stream.to_teacher().numpy()
    )
    reading = as_array(layer.theirs.fc1.weight) @ filled
    offset = as_array(layer.theirs.fc1.weight) @ shift + as_array(layer.theirs.fc1.bias)
    target = as_array([stream.to_student(one.summed) for one in states]) - there("middle", middle)
    units = selected_forward(gelu(np.vstack(feed) @ reading.T + offset), target, OWN_UNITS)
    assert np.allclose(as_array(own.fc1.weight), reading[units], atol=1e-4)
    assert np.allclose(as_array(own.fc1.bias), offset[units], atol=1e-4)
    hidden = gelu(np.vstack(feed) @ as_array(own.fc1.weight).T + as_array(own.fc1.bias))
    weight, bias = regressed(hidden, target, ridge)
    assert np.allclose(as_array(own.fc2.weight), weight, atol=1e-3 * np.abs(weight).max())
    assert np.allclose(as_array(own.fc2.bias), bias, atol=1e-3 * np.abs(bias).max())

    expected = np.vstack(middle) + hidden @ as_array(own.fc2.weight).T + as_array(own.fc2.bias)
    if not layer.pre_norm:
        line_of(own.final_layer_norm, expected, as_array([stream.to_student(one.output) for one in states]))
        expected = normed(own.final_layer_norm, expected)
    assert np.allclose(as_array(outputs), expected, atol=1e-4)
    # The layer as its encoder runs it gives the same.
    with torch.no_grad():
        again = [run_layer(own, b, layer.pre_norm).output for b in layer.inputs]
    assert np.allclose(as_array(again), expected, atol=1e-4)


def test_all_units_kept_are_the_teachers_and_pulled_to_what_it_writes():
    """A ridge without bounds makes the output's weights the teacher's, kept channels alone."""
    layer = Layer(False, own_units=UNITS)
    layer.slice(ridge=1e9)
    wanted = layer.stream.rows_of(layer.theirs.fc2.weight.double())
    assert torch.allclose(layer.own.fc2.weight.double(), wanted, atol=1e-4)


def test_fewer_units_are_not_pulled_to_what_they_wrote():
    layer = Layer(False)
    layer.slice(ridge=1e9)
    assert layer.own.fc2.weight.abs().max() < 1e-4


def test_units_by_energy():
    """What a unit writes to the kept channels, on average over all frames, each alone."""
    layer = Layer(False)
    layer.slice(greedy=False)
    hidden = as_array([one.hidden for one in layer.states])
    written = as_array(layer.stream.rows_of(layer.theirs.fc2.weight))
    energy = [np.square(np.outer(hidden[:, unit], written[:, unit])).sum() for unit in range(UNITS)]
    strongest = sorted(np.argsort(energy)[-OWN_UNITS:])
    feed = as_array([one.feed_forward_inputs for one in layer.states])
    theirs = as_array(layer.theirs.fc1.weight)
    # The row of each kept unit is nearest to the teacher's row that it comes of, in what it gives.
    own_given = (
        as_array([run_layer(layer.own, b, False).feed_forward_inputs for b in layer.inputs])
        @ as_array(layer.own.fc1.weight).T
    )
    for place, unit in enumerate(strongest):
        likeness = [abs(np.corrcoef(own_given[:, place], feed @ row)[0, 1]) for row in theirs]
        assert int(np.argmax(likeness)) == unit


def test_units_are_chosen_on_some_of_many_frames():
    """At most about ``unit_rows`` frames are looked at, evenly spread over all utterances."""
    layer, seen = Layer(False), []
    add = Moments.add

    def counting(self, inputs, targets=None):
        if inputs.size(1) == UNITS:
            seen.append(len(inputs))
        add(self, inputs, targets)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Moments, "add", counting)
        layer.slice(unit_rows=30)
    assert seen == [10, 7, 16], "every fourth of 40, 25 and 61"


def test_the_output_of_a_later_layer_is_what_the_sum_is_fitted_to():
    """Where a layer stands for two, its feed-forward part makes up for the second one too."""
    layer = Layer(False)
    later = [run_layer(cases.base(seed=3, depth=1, ffn_embed_dim=UNITS).model.encoder.layers[0], one.output, False)
             for one in layer.states]  # fmt: skip
    with torch.no_grad():
        alone = layer.slice()
        both = layer.slicer().slice(layer.states, later, layer.inputs)
    wanted = as_array([layer.stream.to_student(one.output) for one in later])

    def error(outputs: list[torch.Tensor]) -> float:
        return float(np.square(as_array(outputs) - wanted).sum())

    assert error(both) < error(alone)
