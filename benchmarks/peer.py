"""torch-pruning as its README uses it: magnitude importance, one step, the classifier left alone."""

from __future__ import annotations

import torch
import torch_pruning as tp
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from deploypruner.graph.inputs import Inputs, call

_IMAGENET = 1000


def prune_by_torch_pruning(model: nn.Module, inputs: Inputs, *, ratio: float) -> float:
    """Prune `model` in place by `ratio` of every group's channels.

    Returns:
        MACs after / before, counted by torch. That the model runs says nothing about what it computes.

    Raises:
        Exception: Whatever torch-pruning, or the pruned model on its inputs, raises.
    """
    before = _flops(model, inputs)
    pruner = tp.pruner.MagnitudePruner(
        model,
        inputs if isinstance(inputs, dict) or len(inputs) > 1 else inputs[0],
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=classifiers(model, inputs),
    )
    pruner.step()
    return _flops(model, inputs) / before


def classifiers(model: nn.Module, inputs: Inputs) -> list[nn.Module]:
    """Layers a user would leave alone: those of 1000 outputs, or else all whose result leaves the model as it is."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    wide: list[nn.Module] = [
        m for m in layers if (m.out_features if isinstance(m, nn.Linear) else m.out_channels) == _IMAGENET
    ]
    if wide:
        return wide
    called: list[nn.Module] = []
    hooks = [m.register_forward_hook(lambda module, *_: called.append(module)) for m in layers]
    with torch.no_grad():
        call(model, inputs)
    for hook in hooks:
        hook.remove()
    return called[-1:]


def _flops(model: nn.Module, inputs: Inputs) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(model, inputs)
    return int(counter.get_total_flops())
