"""Training and evaluation mode for the length of a block, and where a module's tensors live."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from deploypruner.graph.execute.module import TracedModule


def device_of(module: nn.Module) -> torch.device:
    """Device of the module's first parameter or buffer; the CPU where it has none."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def mode_kept(module: nn.Module) -> Iterator[None]:
    """Give every submodule its training flag back at the end, whatever happened in between."""
    flags = {part: part.training for part in module.modules()}
    try:
        yield
    finally:
        # Through train(), outermost first: a traced module switches its graph there, not in the flag.
        for part, flag in flags.items():
            if part is module or part.training != flag:
                part.train(flag)


@contextmanager
def outputs_as_evaluated(module: nn.Module) -> Iterator[None]:
    """Let a graph that returns something else in training return what it does in evaluation, for the block.

    A loss that compares with a model in evaluation mode needs that: logits are no probabilities.
    """
    if not isinstance(module, TracedModule) or not module.other_outputs:
        yield
        return
    module.as_evaluated = True
    try:
        yield
    finally:
        module.as_evaluated = False
        module.train(module.training)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for the length of the block."""
    with mode_kept(module):
        module.eval()
        yield
