"""Will a model that is run as it is need more memory than there is? Found out without running it."""

from __future__ import annotations

from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from deploypruner.errors import InputError
from deploypruner.graph.inputs import Inputs, call, described, map_tensors, tensors

# Of inputs this small no layer makes anything that matters.
_SMALL_BYTES = 1 << 24


def check_room(module: nn.Module, example_inputs: Inputs) -> None:
    """Check that every tensor the model makes of large inputs fits into the memory that is free.

    The model runs on tensors without values. One that cannot is let through: it may depend on the values.

    Raises:
        InputError: A tensor does not fit; says how large it is.
    """
    if sum(t.numel() * t.element_size() for t in tensors(example_inputs)) < _SMALL_BYTES:
        return
    sizes = _Sizes()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as fake, sizes, torch.no_grad():
            call(module, map_tensors(fake.from_tensor, example_inputs))
    except Exception:  # noqa: BLE001 - whatever a model raises without values; with them it is run next
        return
    free = psutil.virtual_memory().available
    if sizes.largest > free:
        raise InputError(
            f"on an input of shape {described(example_inputs)} one layer of the model makes "
            f"{sizes.largest / 1e9:.3g} GB, and {free / 1e9:.3g} GB of memory are free",
            hint="give a smaller shape with --input-shape 1,3,224,224",
        )


class _Sizes(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in pytree.tree_leaves(made):
            if isinstance(value, Tensor) and not value._is_view():
                self.largest = max(self.largest, int(value.numel()) * value.element_size())
        return made
