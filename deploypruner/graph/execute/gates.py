"""Explicit gates: one number per channel that everything through which the channel leaves is multiplied by."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from deploypruner.graph.dependency import Graph


def gated(graph: Graph, weights: Mapping[str, Tensor], gates: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters with gates in them, for `torch.func.functional_call`; differentiable in both.

    A gate multiplies the rows of the weight and the entries of the biases of the layers `last_affines` names, so the
    channel leaves them multiplied by it. Where groups overlap (heads and their columns) the gates multiply.

    Args:
        graph: The traced model.
        weights: Parameter name -> tensor.
        gates: Group id -> `[C]`; groups it does not name have none.

    Returns:
        Only the parameters that change.
    """
    scales: dict[str, Tensor] = {}
    affines = {}
    for group_id, gate in gates.items():
        group = graph.group(group_id)
        for affine in graph.last_affines(group):
            member = next(m for m in group.members if (m.parameter, m.axis) == (affine.weight, affine.axis))
            index = torch.as_tensor(member.index, device=gate.device)
            size = weights[affine.weight].shape[affine.axis]
            scale = gate.new_ones(size).index_copy(0, index.reshape(-1), gate.repeat_interleave(index.shape[1]))
            scales[affine.weight] = scales[affine.weight] * scale if affine.weight in scales else scale
            affines[affine.weight] = affine
    found = {}
    for name, scale in scales.items():
        weight = weights[name]
        rows = [1] * weight.ndim
        rows[affines[name].axis] = -1
        found[name] = weight * scale.reshape(rows)
        for bias in affines[name].biases:
            found[bias] = weights[bias] * scale
    return found
