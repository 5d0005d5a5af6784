"""What training does to weights besides the optimizer's steps: masks, fixed or learned. One file for one kind.

A regime never changes the module's structure. In every step the loop asks it for tensors that take the place of
parameters in this forward pass (`torch.func.functional_call`), for example `mask * weight`; gradients flow through
them to the parameters of the module and to whatever the regime learns itself.

Everything is float32, also under mixed precision. Where several processes train together, each has a regime of its
own; they stay alike because gradients are averaged, so whatever a regime draws comes from a generator of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from deploypruner.graph.execute.module import get_state


class Regime:
    """Ordinary training; subclasses override what they need."""

    def begin(self, student: nn.Module, steps: int) -> None:
        """Get ready to train `student` for `steps` steps in all, before a checkpoint is read."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the regime learns itself, as optimizer groups; `lr_scale` is a factor on the weights' rate.

        A gradient is averaged over processes and freed of the loss scale only if its tensor is in some group; one
        that nobody is to move has `lr_scale` 0.
        """
        return []

    def weights(self, step: int) -> dict[str, Tensor]:
        """Parameter name -> what takes its place in the forward pass of step `step` (from 0). Called once a step."""
        return {}

    def after_backward(self, step: int) -> None:
        """Gradients are there, unscaled and not clipped yet.

        A step whose gradients overflow fp16 calls neither this nor `after_step`: it moves nothing.
        """

    def after_step(self, step: int) -> None:
        """The optimizer has moved the weights."""

    def hard_weights(self) -> dict[str, Tensor]:
        """Parameter name -> what it would be if training ended now; what validation and the end of training use.

        Computed from the parameters as they are at the call, which with `ema` hold averaged weights.
        """
        return {}

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold for a resumed run to end in the same weights; learned parameters included."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave, after `begin`."""

    def describe(self) -> str:
        """Everything about it that a run's result depends on; part of the checkpoint's fingerprint."""
        return type(self).__name__

    @contextmanager
    def hardened(self, student: nn.Module) -> Iterator[None]:
        """The weights that training would end in, for the length of the block."""
        hard = self.hard_weights()
        soft = {name: get_state(student, name).detach().clone() for name in hard}
        write(student, hard)
        try:
            yield
        finally:
            write(student, soft)

    def finish(self, student: nn.Module) -> None:
        """Write the final weights into `student`; training is over."""
        write(student, self.hard_weights())


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The part of a state whose names begin like this, without that beginning."""
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}


def write(student: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into the parameters and buffers of these names."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            get_state(student, name).copy_(tensor)
