"""What takes the place of a dropped branch in the user's own class: the module that held it, or its layers.

A class that adds its branch in its own forward needs none of that once the branch is gone: where all its branches go,
the whole module becomes `nn.Identity`. Where others stay, or where the module does more than add, the last layer of
the branch gives zero instead, and those before it hand on what they get. Which of the two computes what the pruned
graph does is for the caller to find out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import Node

from deploypruner.graph.labels.labelling import Labelling, Residual
from deploypruner.graph.rewrite.size_attributes import module_path


class Dropped(nn.Module):
    """In place of the last layer of a branch that is gone: zero, whatever it is given."""

    def forward(self, x: Tensor, *others: object) -> Tensor:
        """A zero without axes, which adds to a tensor of any shape."""
        return x.new_zeros(())


def stand_ins(model: nn.Module, labelling: Labelling, removed: NDArray[np.bool_]) -> Iterator[dict[str, nn.Module]]:
    """Ways to leave the dropped branches out, the simplest first; one without any where no branch is dropped.

    Args:
        model: The user's module.
        labelling: Of its graph.
        removed: Bool over atoms.

    Yields:
        Name of a sub-module -> what takes its place.
    """
    dropped = [r for r in labelling.residuals.values() if removed[r.atom]]
    if not dropped:
        yield {}
        return
    calls, names = _calls(labelling), {name for name, _ in model.named_modules()}
    whole: dict[str, nn.Module] = {}
    layers: dict[str, nn.Module] = {}
    stays = {module_path(r.add) for r in labelling.residuals.values() if not removed[r.atom]}
    for residual in dropped:
        owner, inside = module_path(residual.add), _inside(residual, calls)
        by_layers = {name: nn.Identity() for name in inside[:-1]} | {name: Dropped() for name in inside[-1:]}
        by_layers = {name: module for name, module in by_layers.items() if name in names}
        layers |= by_layers
        whole |= by_layers if owner in stays or owner not in names or not owner else {owner: nn.Identity()}
    yield {name: module for name, module in whole.items() if not within(name, whole)}
    if whole.keys() != layers.keys():
        yield layers


def _calls(labelling: Labelling) -> Mapping[str, set[Node]]:
    """Name of a module -> every call made inside its forward."""
    found: dict[str, set[Node]] = {}
    for node in labelling.values:
        if isinstance(node, Node) and node.op == "call_function":
            for path, _ in (node.meta.get("nn_module_stack") or {}).values():
                found.setdefault(str(path).partition("@")[0], set()).add(node)
    return found


def _inside(residual: Residual, calls: Mapping[str, set[Node]]) -> list[str]:
    """Names of the outermost modules that do nothing but serve the branch, in the order they finish."""
    inside = {name: nodes for name, nodes in calls.items() if name and nodes <= residual.region}
    outermost = {name: nodes for name, nodes in inside.items() if not within(name, inside)}
    order = {node: i for i, node in enumerate(residual.add.graph.nodes)}
    return sorted(outermost, key=lambda name: max(order[node] for node in outermost[name]))


def within(name: str, others: Mapping[str, object]) -> bool:
    """Is this module or parameter inside one of these modules?"""
    parts = name.split(".")
    return any(".".join(parts[:i]) in others for i in range(1, len(parts)))
