"""torch-pruning as its README uses it: one step, the classifier left alone.

`prune_by_torch_pruning` is its magnitude importance at a ratio; `Peer` its global Taylor ranking, as a plan of ours.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch_pruning as tp
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import ResNet
from deploypruner.graph import Graph
from deploypruner.graph.inputs import Inputs, call, tensors
from deploypruner.losses import label_of
from deploypruner.train.batches import Batch

_IMAGENET = 1000
_CLOSE = 1e-3  # relative difference between its pruned model and ours of the same channels


class CannotPrune(Exception):
    """torch-pruning failed on this network; the message is its own."""


@dataclass(frozen=True)
class Peer:
    """Global ranking by GroupTaylorImportance, and what it keeps as a plan of our graph.

    The residual stream of the CIFAR ResNets is left alone: torch-pruning 1.6.1 does not follow channels through a
    zero-padded shortcut.

    Args:
        model: Dense.
        graph: The same, traced by us.
        gradients: Parameter name -> gradient of the mean loss.
        step: Widths become multiples of this.
    """

    model: nn.Module
    graph: Graph
    gradients: Mapping[str, Tensor]
    step: int

    @staticmethod
    def of(model: nn.Module, graph: Graph, scoring: Sequence[Batch], *, step: int) -> Peer:
        """Collect gradients; where there are no labels, of the classes that the dense model names."""
        dense = copy.deepcopy(model).eval()
        for inputs, labels in scoring:
            output, known = dense(*inputs), label_of(labels, 0)
            wanted = output.argmax(1) if known is None else known
            (F.cross_entropy(output, wanted) / len(scoring)).backward()
        gradients = {name: p.grad for name, p in dense.named_parameters() if p.grad is not None}
        return Peer(model, graph, gradients, step)

    def keep(self, ratio: float) -> dict[str, NDArray[np.int64]]:
        """Group id -> channels that stay at a pruning ratio.

        Raises:
            CannotPrune: It stopped, or its model computes something else than ours with the same channels.
        """
        model, (example,) = copy.deepcopy(self.model), tensors(self.graph.example_inputs)
        try:
            pruner = tp.pruner.BasePruner(
                model,
                example,
                importance=tp.importance.GroupTaylorImportance(),
                global_pruning=True,
                pruning_ratio=ratio,
                max_pruning_ratio=1.0,
                ignored_layers=[
                    *classifiers(model, (example,)),
                    *(model.writers() if isinstance(model, ResNet) else ()),
                ],
                round_to=None if self.step == 1 else self.step,
            )
            for name, parameter in model.named_parameters():
                parameter.grad = self.gradients[name].clone() if name in self.gradients else None
            pruner.step()
            keep = self._kept(pruner.pruning_history())
            self._check(model, keep)
        except (IndexError, RuntimeError, AssertionError, ValueError) as error:
            raise CannotPrune(f"{type(error).__name__}: {error}") from error
        return keep

    def _kept(self, history: Sequence[tuple[str, bool, Sequence[int]]]) -> dict[str, NDArray[np.int64]]:
        """What stays, from the layers and positions where torch-pruning began each cut."""
        places = {
            (member.parameter, member.axis, int(position)): (group.id, channel)
            for group in self.graph.groups
            for member in group.members
            for channel, positions in enumerate(member.index)
            for position in positions
        }
        gone: dict[str, set[int]] = {}
        for layer, is_output, positions in history:
            for position in positions:
                group, channel = places[f"{layer}.weight", 0 if is_output else 1, int(position)]
                gone.setdefault(group, set()).add(channel)
        return {g.id: np.setdiff1d(np.arange(g.size), list(gone.get(g.id, ()))) for g in self.graph.groups}

    @torch.no_grad()
    def _check(self, model: nn.Module, keep: Mapping[str, NDArray[np.int64]]) -> None:
        (example,) = tensors(self.graph.example_inputs)
        x = torch.randn(example.shape, generator=torch.Generator().manual_seed(0))
        theirs, mine = model.eval()(x), self.graph.cut(self.graph.removed(keep)).eval()(x)
        off = float((theirs - mine).abs().max() / theirs.abs().max())
        if not off < _CLOSE:
            raise CannotPrune(f"its model and ours of the same channels differ by {off:.2g}")


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
