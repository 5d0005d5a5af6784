"""A graph with other weights for the length of a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from deploypruner.graph.dependency import Graph
from deploypruner.graph.execute.module import get_state


@contextmanager
def holding(graph: Graph, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the parameters and buffers of `graph.module` be these tensors for the length of the block.

    Only which storage a parameter points to changes, so nothing that shares the old one (the user's model) sees it,
    and everything that knows the parameter objects (labels, costs, `cut`) goes on to work. No tensor is copied.

    Args:
        graph: The traced model.
        weights: Parameter or buffer name -> tensor of the same shape; names it does not have keep their values.
    """
    before: dict[int, tuple[Tensor, Tensor]] = {}
    try:
        for name, tensor in weights.items():
            held = get_state(graph.module, name)
            assert held.shape == tensor.shape, f"'{name}' is {list(held.shape)}, not {list(tensor.shape)}"
            before.setdefault(id(held), (held, held.data))
            held.data = tensor.detach().to(held)
        yield
    finally:
        for held, data in before.values():
            held.data = data
