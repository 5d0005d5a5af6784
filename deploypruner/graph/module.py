"""A traced graph that behaves as the nn.Module it came from: state under the user's names, train() and eval()."""

from __future__ import annotations

import warnings
from typing import Any, Self

import torch
from torch import nn
from torch.fx import GraphModule, Node

from deploypruner.graph.nodes import arguments, op_name, set_argument

# Where a fused attention keeps the dropout it has in training.
DROPOUT = "dropout_p_in_training"
# Marks a call that the model makes in training mode whatever its own mode is (Monte Carlo dropout).
ALWAYS = "always_in_training"


class TracedModule(GraphModule):
    """An exported ATen graph as a trainable module.

    Parameters and buffers keep their fully qualified names. `train()` and `eval()` switch the batch-norm,
    dropout and attention calls inside the graph, as they would in the original module; a batch norm without running
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
            switch, value = mode_argument(node, mode)
            if switch and arguments(node)[switch] != value:
                set_argument(node, switch, value)
                changed = True
        return changed


def mode_argument(node: Node, mode: bool) -> tuple[str, bool | float]:
    """Name and value of the argument that tells training from inference, "" where none is to be switched."""
    return ("", False) if ALWAYS in node.meta else any_mode_argument(node, mode)


def any_mode_argument(node: Node, mode: bool) -> tuple[str, bool | float]:
    """The same, also of a call that the model always makes in training mode."""
    op = op_name(node)
    if op == "batch_norm" and isinstance(arguments(node)["running_mean"], Node):
        return "training", mode
    if op in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"):
        return "train", mode
    if DROPOUT in node.meta:
        return "dropout_p", node.meta[DROPOUT] if mode else 0.0
    return "", False


def mark_always_training(module: GraphModule) -> None:
    """Let every call that is in training mode now, after an export in evaluation mode, stay so."""
    for node in module.graph.nodes:
        switch, value = mode_argument(node, False)
        if switch and arguments(node)[switch] != value:
            node.meta[ALWAYS] = True


def get_state(module: nn.Module, name: str) -> Any:
    """The parameter, buffer or attribute called `name` (dots descend into sub-modules)."""
    owner, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)


def set_state(module: nn.Module, name: str, value: torch.Tensor) -> None:
    """Replace or add a parameter or buffer under a dotted name; owners that are missing are made."""
    owner_name, _, leaf = name.rpartition(".")
    owner = module
    for part in owner_name.split(".") if owner_name else ():
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    for kind in (owner._parameters, owner._buffers, owner.__dict__):
        kind.pop(leaf, None)
    if isinstance(value, nn.Parameter):
        owner.register_parameter(leaf, value)
    else:
        owner.register_buffer(leaf, value)
