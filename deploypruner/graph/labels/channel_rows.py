"""A group's parameters as rows of numbers, one row a channel: the only place that knows weight layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from deploypruner.graph import Graph
from deploypruner.graph.execute.module import get_state
from deploypruner.graph.labels.labelling import Affine
from deploypruner.records import ChannelEvidence, Group, Member, MemberView, Role


@dataclass(frozen=True)
class Evidence:
    """What was learnt from data, in the coordinates of parameters and groups; None where it was not collected.

    Args:
        gates: Weight name of an affine layer -> `[B, n]` gate derivatives of its n output channels (`gate_rows`).
        slopes: (parameter name, axis) -> `[2, B, n]`: weight x gradient, and its square, summed over all other axes.
        curvature: Parameter name -> diagonal of the Hessian, same shape as the parameter.
        channels: Group id -> what is known of its channels as wholes.
    """

    gates: Mapping[str, Tensor] | None = None
    slopes: Mapping[tuple[str, int], Tensor] | None = None
    curvature: Mapping[str, Tensor] | None = None
    channels: Mapping[str, ChannelEvidence] = field(default_factory=dict)

    def joined(self, other: Evidence) -> Evidence:
        """Both; what `other` has takes the place of what this one has."""
        mine = {f.name: getattr(other, f.name) or getattr(self, f.name) for f in fields(self)}
        return Evidence(**mine)


def member_views(graph: Graph, group: Group, evidence: Evidence | None = None) -> tuple[MemberView, ...]:
    """What a criterion sees of one group.

    Args:
        graph: The traced model.
        group: One of its groups.
        evidence: What was learnt from data, None for the weights alone.

    Returns:
        Views of all parameters of the group (not of running statistics), in the order of the graph.
    """
    known = evidence or Evidence()
    channels = known.channels.get(group.id, ChannelEvidence())
    last = {} if known.gates is None else {a.weight: a.axis for a in graph.last_affines(group)}
    views = []
    for member in group.members:
        parameter = get_state(graph.module, member.parameter)
        if not isinstance(parameter, torch.nn.Parameter):
            continue
        gate, slopes, curvature = None, None, None
        if known.gates is not None and last.get(member.parameter) == member.axis:
            gate = _summed(known.gates[member.parameter], member)
        if known.slopes is not None:
            slopes = _summed(known.slopes[member.parameter, member.axis], member)
        if known.curvature is not None:
            curvature = _rows(known.curvature[member.parameter].cpu(), member)
        views.append(
            MemberView(
                name=member.parameter,
                role=_role(graph, parameter, member),
                weight=_rows(parameter.detach().cpu(), member),
                gate=gate,
                slope=None if slopes is None else slopes[0],
                slope_squares=None if slopes is None else slopes[1],
                curvature=curvature,
                channels=channels,
            )
        )
    return tuple(views)


def weight_rows(graph: Graph, group: Group, weights: Mapping[str, Tensor]) -> list[Tensor]:
    """`[C, F]` rows of every layer that writes or reads the group, of all its parameters where there is none.

    Args:
        graph: The traced model.
        group: One of its groups.
        weights: Parameter name -> tensor; gradients flow to it.
    """
    found: dict[bool, list[Tensor]] = {True: [], False: []}
    for member in group.members:
        if member.parameter in weights:
            role = _role(graph, get_state(graph.module, member.parameter), member)
            found[role in ("producer", "consumer")].append(_rows(weights[member.parameter], member))
    return found[True] or found[False]


def gate_rows(affine: Affine, weights: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> Tensor:
    """Derivative of the loss with respect to a gate z = 1 on each output channel of an affine layer, `[n]`.

    The layer's output is linear in row c of its weight and entry c of its bias, so multiplying the output by z
    multiplies both: dL/dz_c = sum_f w[c, f] dL/dw[c, f] + b[c] dL/db[c]. No gate module is needed.
    """
    product = weights[affine.weight] * grads[affine.weight]
    total = product.movedim(affine.axis, 0).flatten(1).sum(1) if product.ndim > 1 else product
    for bias in affine.biases:
        total = total + weights[bias] * grads[bias]
    return total


def _rows(tensor: Tensor, member: Member) -> Tensor:
    """[C, k * F] float32: everything on the axis positions of each channel."""
    index = torch.as_tensor(member.index, device=tensor.device)
    rows = tensor.float().movedim(member.axis, 0).reshape(tensor.shape[member.axis], -1)
    return rows[index.reshape(-1)].reshape(len(index), -1)


def _summed(positions: Tensor, member: Member) -> Tensor:
    """[.., n] over positions of an axis to [.., C] over channels."""
    return positions[..., torch.as_tensor(member.index)].sum(dim=-1)


def _role(graph: Graph, parameter: Tensor, member: Member) -> Role:
    role = graph.labelling.state[id(parameter)].roles.get(member.axis, "other")
    return "shift" if role == "norm" and member.parameter not in graph.labelling.affines else role
