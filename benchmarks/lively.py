"""Weights that make a comparison of outputs mean something, without a download.

A freshly initialised network hardly depends on its input: scales start at zero or 1e-6, batch norm divides by
nothing, residual branches are tiny. Outputs of such a network agree whatever was done to it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploypruner.graph.inputs import Inputs, call

_BATCH = 4


def liven(module: nn.Module, seed: int = 0) -> None:
    """Draw every parameter that is constant or tiny, and all batch-norm statistics, in place.

    Constant scales become 0.5 to 1.5, zero biases and tables get a spread, and matrices whose spread is under
    half of 1 / sqrt(inputs) are scaled up to it.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            _liven_parameter(name, parameter, generator)
        for layer in module.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.track_running_stats:
                assert layer.running_mean is not None, "statistics are tracked"
                assert layer.running_var is not None, "statistics are tracked"
                layer.running_mean.normal_(0, 0.2, generator=generator)
                layer.running_var.uniform_(0.5, 1.5, generator=generator)


def _liven_parameter(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    if parameter.numel() < 2 or not parameter.is_floating_point():
        return
    spread = float(parameter.std())
    if spread < 1e-4:
        if float(parameter.abs().max()) < 1e-4 and (name.endswith("bias") or parameter.ndim > 1):
            parameter.normal_(0, 0.1, generator=generator)
        else:
            parameter.uniform_(0.5, 1.5, generator=generator)
    elif parameter.ndim > 1:
        inputs = parameter[0].numel()
        if spread < 0.5 * inputs**-0.5:
            parameter.mul_(inputs**-0.5 / spread)


def calibrate(module: nn.Module, example_inputs: Inputs, seed: int = 0) -> None:
    """Set batch-norm statistics to those of a batch of noise, in place; a network without any is left alone."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return
    generator = torch.Generator().manual_seed(seed)
    noise = pytree.tree_map_only(Tensor, lambda t: noisy(t, generator), example_inputs)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        call(module, noise)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def noisy(tensor: Tensor, generator: torch.Generator, batch: int = _BATCH) -> Any:
    """A batch like `tensor`: standard normal noise, or its own integers in another order."""
    shape = (batch, *tensor.shape[1:])
    if tensor.is_floating_point():
        return torch.randn(shape, generator=generator, dtype=tensor.dtype)
    flat = tensor.reshape(-1)
    return flat[torch.randint(len(flat), shape, generator=generator)]
