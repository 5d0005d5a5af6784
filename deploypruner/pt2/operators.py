"""Operators that a program may name: those that compute on tensors and sizes, and touch nothing else."""

from __future__ import annotations

import re

import torch

from deploypruner.pt2.refusal import Refusal, shown

_OPERATOR = re.compile(r"torch\.ops\.([a-z_]\w*)\.([A-Za-z_]\w*)\.([A-Za-z_]\w*)", re.ASCII)
_LIBRARIES = frozenset({"aten", "prims", "torchvision", "quantized_decomposed"})
# Reads and writes any file that it is told.
_TOUCHES_FILES = frozenset({"from_file", "save"})
# Neither take nor give a tensor, and are part of programs with symbolic sizes.
_ON_NUMBERS = frozenset({"_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size"})
_HIGHER_ORDER = frozenset(
    f"torch.ops.higher_order.{name}"
    for name in "cond while_loop scan associative_scan map_impl invoke_subgraph wrap_with_set_grad_enabled "
    "wrap_with_autocast".split()
)
_PYTHON = frozenset(
    [
        *(
            f"_operator.{name}"
            for name in "eq ne le ge lt gt neg pos abs add sub mul floordiv truediv mod pow and_ or_ not_ lshift "
            "rshift getitem".split()
        ),
        *(f"math.{name}" for name in "trunc ceil floor sqrt".split()),
        *(f"torch.sym_{name}" for name in "not int float ite max min sqrt sum".split()),
    ]
)


def operator(target: str) -> str:
    """Accept the name of an operator.

    Raises:
        Refusal: Anything else that the name could lead to, or an operator that is not known here.
    """
    if target in _PYTHON or target in _HIGHER_ORDER:
        return target
    found = _OPERATOR.fullmatch(target)
    if found is None:
        raise Refusal(f"{shown(target)} is not an operator on tensors or sizes")
    library, name, overload = found.groups()
    if library not in _LIBRARIES:
        raise Refusal(f"{shown(target)} is an operator of a library that is not torch's own")
    resolved = getattr(getattr(getattr(torch.ops, library), name, None), overload, None)
    if not isinstance(resolved, torch._ops.OpOverload):
        raise Refusal(
            f"{shown(target)} is not known here", f"it is of another torch, or of {library}; export it again"
        )
    if name in _TOUCHES_FILES or not (_has_tensors(resolved) or name in _ON_NUMBERS):
        raise Refusal(f"{shown(target)} is not an operator on tensors or sizes")
    return target


def _has_tensors(resolved: torch._ops.OpOverload) -> bool:
    schema = resolved._schema
    return any("Tensor" in str(value.type) for value in (*schema.arguments, *schema.returns))
