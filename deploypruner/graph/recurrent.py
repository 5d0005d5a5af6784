"""Recurrent layers: shapes where the sequence is open, states where they do not fit.

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
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
# Those that ONNX has whole; a plain RNN is taken apart step by step on its way there.
_LAYERS = (_aten.lstm.input, _aten.gru.input)
_KEYS = (DispatchKey.CompositeImplicitAutograd, DispatchKey.Autograd)


class CheckedStates(TorchDispatchMode):
    """While this lasts, an LSTM refuses states of another batch size than its input's.

    `nn.LSTM` does so itself. A graph calls the operator, which on CPUs reads and writes beyond the end of the states:
    torch 2.13 ends with a signal.

    Raises:
        ValueError: They do not fit.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let everything else pass."""
        if func is _aten.mkldnn_rnn_layer.default:
            steps, states = args[0], args[5:7]
            if any(state.shape[-2] != steps.shape[-2] for state in states):
                raise ValueError(
                    f"an LSTM of {steps.shape[-2]} samples has states of shape {list(states[0].shape)} "
                    f"and {list(states[1].shape)}"
                )
        return func(*args, **(kwargs or {}))


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
