"""A traced graph that behaves as the nn.Module it came from: state under the user's names, train() and eval()."""

from __future__ import annotations

import warnings
from typing import Any, Self

import torch
from torch import nn
from torch.fx import GraphModule, Node

from deploypruner.graph.nodes import arguments, op_name, set_argument


class TracedModule(GraphModule):
    """An exported ATen graph as a trainable module.

    Parameters and buffers keep their fully qualified names. `train()` and `eval()` switch the batch-norm and
    dropout calls inside the graph, as they would in the original module; a batch norm without running
    statistics (weight standardisation) always normalises by its input and is left alone.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> TracedModule:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch about its own tree specs
            copied: Any = super().__deepcopy__(memo)
        return copied

    def train(self, mode: bool = True) -> Self:
        """Switch batch norm and dropout between training and inference behaviour."""
        if self._set_mode(mode):
            self.recompile()
        for module in self.modules():
            module.training = mode
        return self

    def _set_mode(self, mode: bool) -> bool:
        """Set the mode arguments of the graph's calls; was any of them different before?"""
        changed = False
        for node in self.graph.nodes:
            switch = _mode_argument(node)
            if switch and arguments(node)[switch] != mode:
                set_argument(node, switch, mode)
                changed = True
        return changed


def _mode_argument(node: Node) -> str:
    """Name of the argument that tells training from inference, "" where the op has none."""
    op = op_name(node)
    if op == "batch_norm":
        return "training" if isinstance(arguments(node)["running_mean"], Node) else ""
    return "train" if op in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout") else ""


def get_state(module: nn.Module, name: str) -> Any:
    """The parameter, buffer or attribute called `name` (dots descend into sub-modules)."""
    owner, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)


def set_state(module: nn.Module, name: str, value: torch.Tensor) -> None:
    """Replace or add a parameter or buffer under a dotted name; its owners must exist."""
    owner_name, _, leaf = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    for kind in (owner._parameters, owner._buffers, owner.__dict__):
        kind.pop(leaf, None)
    if isinstance(value, nn.Parameter):
        owner.register_parameter(leaf, value)
    else:
        owner.register_buffer(leaf, value)
