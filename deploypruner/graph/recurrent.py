"""Shapes of recurrent layers whose sequence is open.

torch finds the shape of an LSTM by running through its time steps, which makes their number a constant. The shape
does not depend on the steps, so that it can be said without them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._decomp import decomposition_table

_aten = torch.ops.aten
# Those that ONNX has whole; a plain RNN is taken apart step by step on its way there.
_LAYERS = (_aten.lstm.input, _aten.gru.input)
_KEYS = (DispatchKey.CompositeImplicitAutograd, DispatchKey.Autograd)


@contextmanager
def open_sequences() -> Iterator[None]:
    """While this lasts, recurrent layers over an open number of steps tell their shapes and compute nothing.

    Others do as always.
    """
    with ExitStack() as stack:
        for layer in _LAYERS:
            tables: list[tuple[dict[Any, Any], Any]] = [(layer.py_kernels, _KEYS), (decomposition_table, (layer,))]
            for table, keys in tables:
                known = {key: _shaped(table[key]) for key in keys if key in table}
                stack.enter_context(patch.dict(table, known))
            stack.callback(layer._dispatch_cache.clear)
            layer._dispatch_cache.clear()
        yield


def _shaped(usual: Any) -> Any:
    """A layer that tells its shape where the number of steps is open, and does as `usual` elsewhere."""

    def _told(input: Tensor, hx: Any, params: Sequence[Tensor], *rest: Any, **named: Any) -> Any:
        if all(isinstance(size, int) for size in input.shape[:2]):
            return usual(input, hx, params, *rest, **named)
        _, _, _, _, bidirectional, _ = rest
        states = hx if isinstance(hx, list | tuple) else (hx,)
        columns = states[0].shape[2] * (2 if bidirectional else 1)
        output = input.new_empty((*input.shape[:2], columns))
        return (output, *(state.new_empty(state.shape) for state in states))

    return _told
