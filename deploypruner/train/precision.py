"""Mixed precision: the forward pass in 16 bits, weights and what updates them in 32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from deploypruner.errors import InputError
from deploypruner.recipe.finetune import Amp
from deploypruner.target import detect
from deploypruner.train.modes import device_of

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# A gradient that overflows even so is not finite for another reason.
_SMALLEST_SCALE = 2.0**-10


def chosen_amp(amp: Amp, module: nn.Module) -> Amp:
    """What "auto" stands for: bf16 on a CPU that multiplies in it, else off; others as they are.

    Off with depthwise convolutions too. Training steps on one core of an AMD EPYC with AVX512-BF16, bf16 over
    float32: ResNet-20 at 32 px 1.78x as fast, inverted residuals at 96 px 0.81x (0.58x in NHWC order).
    """
    if amp != "auto":
        return amp
    depthwise = any(p.dim() >= 3 and p.shape[1] == 1 and p.shape[0] > 1 for p in module.parameters())
    return "bf16" if device_of(module).type == "cpu" and cpu_has_bf16() and not depthwise else "off"


@cache
def cpu_has_bf16() -> bool:
    """Does this CPU multiply in bf16?"""
    return detect().multiplies_bf16


class Precision:
    """How one run computes its forward and backward passes.

    fp16 gradients would vanish below 6e-8, so the loss is scaled up before `backward` and the gradients down again
    before anybody sees them; the scale halves after an overflow, whose step is skipped, and doubles after 2000 good
    steps (torch.amp.GradScaler).

    Args:
        amp: "off", "bf16" or "fp16".
        device: Where the training runs.
    """

    def __init__(self, amp: Amp, device: torch.device) -> None:
        self._device = device
        self.mixed = amp != "off"
        self._dtype = _DTYPES.get(amp)
        self._scaler = torch.amp.GradScaler(device.type) if amp == "fp16" else None

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Autocast for the length of the block."""
        if self._dtype is None:
            yield
            return
        with torch.autocast(self._device.type, dtype=self._dtype):
            yield

    def backward(self, loss: Tensor) -> None:
        """Gradients, still scaled."""
        scaled = loss if self._scaler is None else self._scaler.scale(loss)
        torch.autograd.backward(scaled)

    def unscale(self, optimizer: torch.optim.Optimizer, *, where: str) -> bool:
        """Bring the gradients of everything in `optimizer` to their true size; is this step to be skipped?

        Raises:
            InputError: They overflow at every scale.
        """
        if self._scaler is None:
            return False
        self._scaler.unscale_(optimizer)
        overflow = any(
            parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
            for group in optimizer.param_groups
            for parameter in group["params"]
        )
        if overflow and self._scaler.get_scale() < _SMALLEST_SCALE:
            raise InputError(
                f"the gradients overflow fp16 at every loss scale in {where}", hint='use amp = "bf16", or "off"'
            )
        return overflow

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Move the weights, unless the gradients overflowed."""
        if self._scaler is None:
            optimizer.step()
            return
        self._scaler.step(optimizer)
        self._scaler.update()

    def state(self) -> dict[str, Any]:
        """Numbers a checkpoint has to hold."""
        return {} if self._scaler is None else self._scaler.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        if self._scaler is not None:
            self._scaler.load_state_dict(state)
