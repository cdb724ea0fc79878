"""A Transformer layer: attention of narrower heads, fewer feed-forward units.

Everything is computed with the student's own activations so far, so that an error is seen, and partly made up for, by
what comes after it. Shapes: T frames, D and d widths of teacher and student, H heads, F and f feed-forward units.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_star.encoder.attention import attention
from fairseq_star.slicing.method import Method
from fairseq_star.slicing.moments import Fit, Moments, low_rank, roots
from fairseq_star.slicing.norms import fit_norm
from fairseq_star.slicing.selection import most_explaining, strongest_by_group
from fairseq_star.slicing.stream import Stream


@dataclass
class LayerStates:
    """What a teacher's layer computes of one utterance: T x D each, ``hidden`` T x F."""

    residual: Tensor  # the layer's input
    inputs: Tensor  # of attention: the same, after the norm of a pre-norm layer
    attended: Tensor  # the sum after attention, before the norm of a post-norm layer
    middle: Tensor  # the residual of the feed-forward part
    feed_forward_inputs: Tensor
    hidden: Tensor  # after the activation
    summed: Tensor  # the sum after the feed-forward part, before the norm of a post-norm layer
    output: Tensor


def run_layer(layer: nn.Module, x: Tensor, pre_norm: bool, position_bias: Tensor | None = None) -> LayerStates:
    """Run a layer of a teacher over ``x`` (T x D); ``position_bias`` is its encoder's."""
    inputs = layer.self_attn_layer_norm(x) if pre_norm else x
    attended = x + layer.self_attn(inputs[:, None], None, position_bias)[:, 0]
    middle = attended if pre_norm else layer.self_attn_layer_norm(attended)
    feed_forward_inputs = layer.final_layer_norm(attended) if pre_norm else middle
    hidden = layer.activation_fn(layer.fc1(feed_forward_inputs))
    summed = middle + layer.fc2(hidden)
    output = summed if pre_norm else layer.final_layer_norm(summed)
    return LayerStates(x, inputs, attended, middle, feed_forward_inputs, hidden, summed, output)


@dataclass
class LayerSlicer:
    """Slices one layer of the teacher into one of the student."""

    theirs: nn.Module
    own: nn.Module
    stream: Stream
    num_heads: int  # of both
    pre_norm: bool  # whether both are
    method: Method

    def slice(self, states: Sequence[LayerStates], last: Sequence[LayerStates], own: Sequence[Tensor]) -> list[Tensor]:
        """Set the student's layer and return its output for each utterance, T x d.

        Args:
            states: of the teacher's layer.
            last: of the teacher's layer whose output the student's shall be: the same one, or a later one that the
                student's layer stands for too.
            own: the student's input to the layer, T x d.
        """
        middle = self._attention(states, own)
        sums = self._feed_forward(states, last, middle)
        if self.pre_norm:
            return sums
        norm = self.own.final_layer_norm
        fit_norm(norm, [(self.stream.of(one.output), b) for one, b in zip(last, sums, strict=True)])
        return [norm(b) for b in sums]

    def _attention(self, states: Sequence[LayerStates], own: Sequence[Tensor]) -> list[Tensor]:
        """Set attention and the norm of a post-norm layer after it; the student's ``middle``, T x d."""
        module, norm = self.own.self_attn, self.own.self_attn_layer_norm
        inputs = self._normed(norm, [one.inputs for one in states], own) if self.pre_norm else list(own)
        moments = Moments(inputs[0].size(1), states[0].inputs.size(1), self.method.products)
        for one, b in zip(states, inputs, strict=True):
            moments.add(b, one.inputs)
        prior = self._slice_heads(moments)
        contexts = [attention(*module.project(b[:, None]), None)[0].transpose(0, 1).flatten(1) for b in inputs]
        targets = [self._missing(one.attended, one.residual, b) for one, b in zip(states, own, strict=True)]
        _regress(module.out_proj, contexts, targets, self.method, prior)
        sums = [b + module.out_proj(context) for b, context in zip(own, contexts, strict=True)]
        if self.pre_norm:
            return sums
        fit_norm(norm, [(self.stream.of(one.middle), b) for one, b in zip(states, sums, strict=True)])
        return [norm(b) for b in sums]

    def _slice_heads(self, moments: Moments) -> Tensor:
        """Set the projections of queries, keys and values; the output's weight (d x d) that goes with them.

        Of each head, with B~ the map from the student's inputs (a 1 appended) to the teacher's: the bilinear form
        (W_q B~)^T (W_k B) of its logits and the linear map S^T W_o W_v B of its values are cut to the rank that the
        student's head has, the best one for the student's inputs. A constant added to all keys changes no softmax, and
        a constant of the values is one of the output: both are left out of the forms.
        """
        module, stream, ridge = self.own.self_attn, self.stream, self.method.ridge
        filled = moments.fit(ridge, stream.placing())
        width, wide = moments.num_inputs, len(filled.bias)
        head_dim, their_head_dim = width // self.num_heads, wide // self.num_heads
        (query, query_bias), (key, _), (value, _), (output, _) = projections(self.theirs.self_attn)
        covariance, mean = moments.covariance[:width, :width], moments.mean[:width, None]
        one = mean.new_ones(1, 1)
        extended = torch.cat([torch.cat([moments.second[:width, :width], mean], 1), torch.cat([mean.T, one], 1)])
        root, inverse = roots(covariance, ridge / 10)
        query_root, query_inverse = roots(extended, ridge / 10)
        rest = torch.cat([filled.weight, filled.bias[:, None]], 1)  # D x d+1
        outputs = []
        for head in range(self.num_heads):
            theirs = slice(head * their_head_dim, (head + 1) * their_head_dim)
            queries = query[theirs] @ rest
            queries[:, -1] += query_bias[theirs]
            keys = key[theirs] @ filled.weight * math.sqrt(head_dim / their_head_dim)
            left, right = low_rank(query_root @ queries.T, root @ keys.T, head_dim)
            own = slice(head * head_dim, (head + 1) * head_dim)
            projected = (query_inverse @ left).T  # head_dim x d+1
            _put(module.q_proj, own, projected[:, :-1], projected[:, -1])
            _put(module.k_proj, own, (inverse @ right).T)
            values = value[theirs] @ filled.weight
            left, right = low_rank(stream.writing(output[:, theirs]), root @ values.T, head_dim)
            _put(module.v_proj, own, (inverse @ right).T)
            outputs.append(left)
        return torch.cat(outputs, dim=1)

    def _feed_forward(
        self, states: Sequence[LayerStates], last: Sequence[LayerStates], middle: Sequence[Tensor]
    ) -> list[Tensor]:
        """Set the feed-forward part; the student's sum after it, T x d."""
        theirs, own, method = self.theirs, self.own, self.method
        wanted = [one.feed_forward_inputs for one in states]
        inputs = self._normed(own.final_layer_norm, wanted, middle) if self.pre_norm else list(middle)
        moments = Moments(inputs[0].size(1), wanted[0].size(1), method.products)
        for a, b in zip(wanted, inputs, strict=True):
            moments.add(b, a)
        filled = moments.fit(method.ridge, self.stream.placing())
        reading = theirs.fc1.weight.double() @ filled.weight  # F x d
        bias = theirs.fc1.weight.double() @ filled.bias + theirs.fc1.bias.double()
        targets = [self._missing(to.summed, one.middle, b) for to, one, b in zip(last, states, middle, strict=True)]
        units = self._choose_units(states, inputs, targets, Fit(reading, bias))
        own.fc1.weight.copy_(reading[units])
        own.fc1.bias.copy_(bias[units])
        hidden = [own.activation_fn(own.fc1(b)) for b in inputs]
        # Taken out of a sum that its left-out units balanced, what a unit writes is no use as a prior.
        prior = self.stream.writing(theirs.fc2.weight.double()) if len(units) == len(reading) else None
        _regress(own.fc2, hidden, targets, method, prior)
        return [b + own.fc2(h) for b, h in zip(middle, hidden, strict=True)]

    def _choose_units(
        self, states: Sequence[LayerStates], inputs: Sequence[Tensor], targets: Sequence[Tensor], reading: Fit
    ) -> Tensor:
        """Numbers of the feed-forward units that the student keeps, ``reading`` being all of them on its inputs."""
        count = self.own.fc1.out_features
        if count == len(reading.weight):
            return torch.arange(count)
        if not self.method.greedy:
            energy = sum(one.hidden.double().square().sum(0) for one in states)
            return strongest_by_group(
                energy * self.stream.writing(self.theirs.fc2.weight).double().square().sum(0), count
            )
        step = max(1, sum(map(len, inputs)) // self.method.unit_rows)
        weight, bias = reading.weight.to(inputs[0].dtype), reading.bias.to(inputs[0].dtype)
        moments = Moments(len(bias), targets[0].size(1), dtype=torch.float32)
        for b, target in zip(inputs, targets, strict=True):
            moments.add(self.own.activation_fn(F.linear(b[::step], weight, bias)), target[::step])
        covariance = moments.covariance.float()
        return most_explaining(covariance[: len(bias), : len(bias)], covariance[: len(bias), len(bias) :], count)

    def _normed(self, norm: nn.LayerNorm, wanted: Sequence[Tensor], own: Sequence[Tensor]) -> list[Tensor]:
        """Fit a pre-norm layer's norm to what the teacher's gives, and apply it."""
        fit_norm(norm, [(self.stream.of(a), b) for a, b in zip(wanted, own, strict=True)])
        return [norm(b) for b in own]

    def _missing(self, total: Tensor, residual: Tensor, own_residual: Tensor) -> Tensor:
        """What a sub-layer shall add: the teacher's sum less what is there, the student's own residual."""
        there = own_residual if self.method.correct else self.stream.of(residual)
        return self.stream.of(total) - there


def projections(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Return weight and bias, in float64, of the projections of queries, keys, values and of the output."""
    parts = module.q_proj, module.k_proj, module.v_proj, module.out_proj
    return [(part.weight.double(), part.bias.double()) for part in parts]


def _put(linear: nn.Linear, rows: slice, weight: Tensor, bias: Tensor | None = None) -> None:
    linear.weight[rows] = weight.to(linear.weight.dtype)
    linear.bias[rows] = 0 if bias is None else bias.to(linear.bias.dtype)


def _regress(
    linear: nn.Linear, inputs: Sequence[Tensor], targets: Sequence[Tensor], method: Method, prior: Tensor | None
) -> None:
    moments = Moments(inputs[0].size(1), targets[0].size(1), method.products)
    for given, target in zip(inputs, targets, strict=True):
        moments.add(given, target)
    fitted = moments.fit(method.ridge, prior)
    linear.weight.copy_(fitted.weight)
    linear.bias.copy_(fitted.bias)
