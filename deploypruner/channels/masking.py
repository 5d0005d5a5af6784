"""The masked form of a model without a graph: a copy with zeros in its parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploypruner.channels.proof.masked_reference import removed_slices
from deploypruner.graph import Graph
from deploypruner.graph.dependency import Keep
from deploypruner.graph.execute.float64_interpreter import Converted
from deploypruner.graph.execute.module import get_state

_Norm = nn.LayerNorm | nn.RMSNorm | nn.GroupNorm


def masked_module(graph: Graph, keep: Keep, dtype: torch.dtype) -> Converted:
    """The dense model, copied, with every removed slice of every parameter set to zero.

    torch's own layer, root-mean-square and group norms take their statistics over the kept channels; a statistic
    written out by hand cannot be recognised without a graph, and fails the proof where a plan shrinks it.

    Args:
        graph: Its `module` is copied, not changed.
        keep: Group id -> kept channels.
        dtype: float64 or float32.
    """
    masked = Converted(graph.module, dtype)
    slices = removed_slices(graph, keep)
    with torch.no_grad():
        for name, cuts in slices.items():
            parameter = get_state(masked.module, name)
            for axis, index in cuts:
                if isinstance(parameter, nn.Parameter) and name not in graph.labelling.directions:
                    parameter.index_fill_(axis, index.to(parameter.device), 0)
    for name, module in masked.module.named_modules():
        cuts = slices.get(f"{name}.weight" if name else "weight", [])
        if isinstance(module, _Norm) and cuts:
            removed = torch.cat([index for _, index in cuts])
            module.register_forward_hook(_over_kept(module, removed))
    return masked


def _over_kept(norm: _Norm, removed: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A hook that replaces the output of a norm by one whose statistics leave out the removed channels."""
    weight = norm.weight
    assert weight is not None, "a norm with removed channels has a scale"
    kept = torch.ones(len(weight), dtype=torch.bool)
    kept[removed] = False
    index = kept.nonzero()[:, 0].to(weight.device)

    def over_kept(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        channel = 1 if isinstance(norm, nn.GroupNorm) else output.ndim - 1
        x = inputs[0].index_select(channel, index)
        bias = getattr(norm, "bias", None)
        affine = (weight[index], None if bias is None else bias[index])
        if isinstance(norm, nn.GroupNorm):
            groups = int(kept.reshape(norm.num_groups, -1).any(dim=1).sum())
            y = F.group_norm(x, groups, *affine, norm.eps)
        elif isinstance(norm, nn.LayerNorm):
            y = F.layer_norm(x, [len(index)], *affine, norm.eps)
        else:
            y = F.rms_norm(x, [len(index)], affine[0], norm.eps)
        return torch.zeros_like(output).index_copy_(channel, index, y)

    return over_kept
