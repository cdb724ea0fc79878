"""Transformer layer: attention with narrower heads, fewer feed-forward units.

Each part is fitted on the student's own activations before it, so that it compensates in part for the errors of the
parts before. Shapes: T frames, D and d widths of teacher and student, H heads, F and f feed-forward units.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_star.encoder.attention import attention
from fairseq_star.slicing.method import Method
from fairseq_star.slicing.moments import Fit, Moments, fit_norm, low_rank, roots
from fairseq_star.slicing.selection import most_explaining, strongest_by_group
from fairseq_star.slicing.stream import Stream


@dataclass
class LayerStates:
    """Activations of a layer of the teacher for one utterance: T x D each, ``hidden`` T x F."""

    residual: Tensor  # the layer's input
    inputs: Tensor  # of attention: the same, after the norm of a pre-norm layer
    attended: Tensor  # sum after attention, before the norm of a post-norm layer
    middle: Tensor  # residual of the feed-forward part
    feed_forward_inputs: Tensor
    hidden: Tensor  # after the activation
    summed: Tensor  # sum after the feed-forward part, before the norm of a post-norm layer
    output: Tensor


def run_layer(layer: nn.Module, x: Tensor, pre_norm: bool, position_bias: Tensor | None = None) -> LayerStates:
    """Run a layer of a teacher on ``x`` (T x D), with the ``position_bias`` of its encoder."""
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
    """Slices a layer of the student from one of the teacher."""

    teacher: nn.Module
    student: nn.Module
    stream: Stream
    num_heads: int  # of both
    pre_norm: bool  # both of them
    method: Method

    def slice(self, states: Sequence[LayerStates], last: Sequence[LayerStates], own: Sequence[Tensor]) -> list[Tensor]:
        """Set the student's layer and return its output for each utterance, T x d.

        Args:
            states: activations of the teacher's layer.
            last: activations of the teacher's layer whose output is the target: the same layer, or a later one that the
                student's layer stands for too.
            own: the student's input to the layer, T x d.
        """
        middle = self._attention(states, own)
        sums = self._feed_forward(states, last, middle)
        return (
            sums if self.pre_norm else self._normed(self.student.final_layer_norm, [one.output for one in last], sums)
        )

    def _attention(self, states: Sequence[LayerStates], own: Sequence[Tensor]) -> list[Tensor]:
        """Set attention and its norm; return the student's ``middle``, T x d."""
        module, norm = self.student.self_attn, self.student.self_attn_layer_norm
        teacher_inputs = [one.inputs for one in states]
        inputs = self._normed(norm, teacher_inputs, own) if self.pre_norm else list(own)
        prior = self._slice_heads(Moments.of(inputs, teacher_inputs, self.method.products))
        contexts = [attention(*module.project(b[:, None]), None)[0].transpose(0, 1).flatten(1) for b in inputs]
        targets = [self._target(one.attended, one.residual, b) for one, b in zip(states, own, strict=True)]
        self._regress(module.out_proj, contexts, targets, prior)
        sums = [b + module.out_proj(context) for b, context in zip(own, contexts, strict=True)]
        return sums if self.pre_norm else self._normed(norm, [one.middle for one in states], sums)

    def _slice_heads(self, moments: Moments) -> Tensor:
        """Set the projections of queries, keys and values; return the output's weight (d x d) that goes with them.

        With B~ the map from the student's inputs (a 1 appended) to the teacher's, two matrices of each head are cut to
        the rank that the student's head has, optimally for the student's inputs: the bilinear form (W_q B~)^T (W_k B)
        of its logits and the linear map S^T W_o W_v B of its values. A constant added to all keys changes no softmax,
        and a constant added to the values is one of the output: both are left out.
        """
        module, stream, ridge = self.student.self_attn, self.stream, self.method.ridge
        fit = moments.fit(ridge, stream.to_teacher())
        width, teacher_width = moments.num_inputs, len(fit.bias)
        head_dim, teacher_head_dim = width // self.num_heads, teacher_width // self.num_heads
        (query, query_bias), (key, _), (value, _), (output, _) = projections(self.teacher.self_attn)
        mean = moments.mean[:width, None]
        extended = torch.cat([moments.second[:width, :width], mean], 1)
        extended = torch.cat([extended, torch.cat([mean.T, mean.new_ones(1, 1)], 1)])
        root, inverse = roots(moments.covariance[:width, :width], ridge / 10)
        query_root, query_inverse = roots(extended, ridge / 10)
        affine = torch.cat([fit.weight, fit.bias[:, None]], 1)  # D x d+1
        outputs = []
        for head in range(self.num_heads):
            whole = slice(head * teacher_head_dim, (head + 1) * teacher_head_dim)
            own = slice(head * head_dim, (head + 1) * head_dim)
            queries = query[whole] @ affine
            queries[:, -1] += query_bias[whole]
            keys = key[whole] @ fit.weight * math.sqrt(head_dim / teacher_head_dim)
            left, right = low_rank(query_root @ queries.T, root @ keys.T, head_dim)
            projected = (query_inverse @ left).T  # head_dim x d+1
            _set_rows(module.q_proj, own, projected[:, :-1], projected[:, -1])
            _set_rows(module.k_proj, own, (inverse @ right).T)
            values = value[whole] @ fit.weight
            left, right = low_rank(stream.rows_of(output[:, whole]), root @ values.T, head_dim)
            _set_rows(module.v_proj, own, (inverse @ right).T)
            outputs.append(left)
        return torch.cat(outputs, dim=1)

    def _feed_forward(
        self, states: Sequence[LayerStates], last: Sequence[LayerStates], middle: Sequence[Tensor]
    ) -> list[Tensor]:
        """Set the feed-forward part and a pre-norm layer's norm before it; return the student's sum after it, T x d."""
        fc1, fc2, student = self.teacher.fc1, self.teacher.fc2, self.student
        teacher_inputs = [one.feed_forward_inputs for one in states]
        inputs = self._normed(student.final_layer_norm, teacher_inputs, middle) if self.pre_norm else list(middle)
        fit = Moments.of(inputs, teacher_inputs, self.method.products).fit(self.method.ridge, self.stream.to_teacher())
        # The teacher's units as functions of the student's inputs: weight F x d.
        all_units = Fit(fc1.weight.double() @ fit.weight, fc1.weight.double() @ fit.bias + fc1.bias.double())
        targets = [self._target(to.summed, one.middle, b) for to, one, b in zip(last, states, middle, strict=True)]
        units = self._choose_units(states, inputs, targets, all_units)
        Fit(all_units.weight[units], all_units.bias[units]).copy_to(student.fc1)
        hidden = [student.activation_fn(student.fc1(b)) for b in inputs]
        # Without the units that balanced it, a unit's output weight is no use as a prior.
        prior = self.stream.rows_of(fc2.weight.double()) if len(units) == len(all_units.bias) else None
        self._regress(student.fc2, hidden, targets, prior)
        return [b + student.fc2(h) for b, h in zip(middle, hidden, strict=True)]

    def _choose_units(
        self, states: Sequence[LayerStates], inputs: Sequence[Tensor], targets: Sequence[Tensor], all_units: Fit
    ) -> Tensor:
        """Return the indices of the feed-forward units that the student gets."""
        count, num_units = self.student.fc1.out_features, len(all_units.bias)
        if count == num_units:
            return torch.arange(count)
        if not self.method.greedy:
            energy = sum(one.hidden.double().square().sum(0) for one in states)
            written = self.stream.rows_of(self.teacher.fc2.weight).double().square().sum(0)
            return strongest_by_group(energy * written, count)
        step = max(1, sum(map(len, inputs)) // self.method.unit_rows)
        weight, bias = (one.to(inputs[0].dtype) for one in all_units)
        moments = Moments(num_units, targets[0].size(1), dtype=torch.float32)
        for b, target in zip(inputs, targets, strict=True):
            moments.add(self.student.activation_fn(F.linear(b[::step], weight, bias)), target[::step])
        covariance = moments.covariance.float()[:num_units]
        return most_explaining(covariance[:, :num_units], covariance[:, num_units:], count)

    def _normed(self, norm: nn.LayerNorm, targets: Sequence[Tensor], own: Sequence[Tensor]) -> list[Tensor]:
        """Fit a norm of the student to the teacher's output at the same place, and apply it."""
        fit_norm(norm, [(self.stream.to_student(a), b) for a, b in zip(targets, own, strict=True)])
        return [norm(b) for b in own]

    def _target(self, total: Tensor, residual: Tensor, own_residual: Tensor) -> Tensor:
        """Return the target of a sub-layer: the teacher's sum minus the residual."""
        return self.stream.to_student(total) - (
            own_residual if self.method.correct else self.stream.to_student(residual)
        )

    def _regress(
        self, linear: nn.Linear, inputs: Sequence[Tensor], targets: Sequence[Tensor], prior: Tensor | None
    ) -> None:
        Moments.of(inputs, targets, self.method.products).fit(self.method.ridge, prior).copy_to(linear)


def projections(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Return weight and bias, in float64, of the projections of queries, keys, values and of the output."""
    parts = module.q_proj, module.k_proj, module.v_proj, module.out_proj
    return [(part.weight.double(), part.bias.double()) for part in parts]


def _set_rows(linear: nn.Linear, rows: slice, weight: Tensor, bias: Tensor | float = 0.0) -> None:
    linear.weight[rows] = weight.to(linear.weight.dtype)
    linear.bias[rows] = bias.to(linear.bias.dtype) if isinstance(bias, Tensor) else bias
