"""Which calls of a graph do something else in training, and what they are told there."""

from __future__ import annotations

from collections.abc import Mapping

from torch.fx import Graph, Node

from deploypruner.graph.nodes import arguments, op_name, set_argument

# Where a fused attention keeps the dropout it has in training.
DROPOUT = "dropout_p_in_training"
# Marks a call that the model makes alike in both modes: Monte Carlo dropout, a batch norm its train() keeps frozen.
FIXED = "same_in_training"

_SWITCHES: Mapping[str, str] = {
    **dict.fromkeys(
        ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout"), "train"
    ),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), "train"),
    **dict.fromkeys(("rrelu", "rrelu_with_noise"), "training"),
}
# Of these only the ones with running statistics: the others always normalise by their input.
_NORMS: Mapping[str, str] = {
    "batch_norm": "training",
    "native_batch_norm": "training",
    "_native_batch_norm_legit": "training",
    "instance_norm": "use_input_stats",
}


def mode_argument(node: Node, mode: bool) -> tuple[str, bool | float]:
    """Name and value of the argument that tells training from inference, "" where none is to be switched."""
    return ("", False) if FIXED in node.meta else any_mode_argument(node, mode)


def any_mode_argument(node: Node, mode: bool) -> tuple[str, bool | float]:
    """The same, also of a call that the model makes alike in both modes."""
    op = op_name(node)
    if op in _NORMS:
        return (_NORMS[op], mode) if isinstance(arguments(node)["running_mean"], Node) else ("", False)
    if op in _SWITCHES:
        return _SWITCHES[op], mode
    if DROPOUT in node.meta:
        return "dropout_p", node.meta[DROPOUT] if mode else 0.0
    return "", False


def switch(graph: Graph, mode: bool) -> bool:
    """Set the mode of every call that has one; was any of them different before?"""
    changed = False
    for node in graph.nodes:
        name, value = mode_argument(node, mode)
        if name and arguments(node)[name] != value:
            set_argument(node, name, value)
            changed = True
    return changed


def mark_always_training(graph: Graph) -> None:
    """Let every call that is in training mode now, after an export in evaluation mode, stay so."""
    for node in graph.nodes:
        name, value = mode_argument(node, False)
        if name and arguments(node)[name] != value:
            node.meta[FIXED] = True
