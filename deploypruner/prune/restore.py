"""A compiled model from its build folder and fresh code: a plan and weights, no pickle."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from deploypruner.errors import InputError, PlanError
from deploypruner.graph import trace
from deploypruner.prune.plan import Plan

# A dynamic batch is traced with two samples: export turns a batch of one into a constant.
_BATCH = 2


def restore(model: nn.Module, folder: str | Path) -> nn.Module:
    """Rebuild the compiled model.

    Args:
        model: The dense model the build started from; its weights do not matter, and it is not changed.
        folder: Build folder with `plan.json` and `weights.safetensors`.

    Returns:
        The pruned and recovered module in eval mode, trainable.

    Raises:
        InputError: A file is missing or damaged.
        PlanError: The plan was made for another model; the first difference is named.
    """
    root = Path(folder)
    plan = Plan.from_json(_read_json(root / "plan.json"))
    inputs = tuple(_example(tuple(_BATCH if s is None else s for s in t.shape), t.dtype) for t in plan.inputs)
    graph = trace(model, inputs)
    plan.check(graph)
    module = graph.cut(graph.removed(plan.keep))
    path = root / "weights.safetensors"
    try:
        state = load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist", hint=f"{root} is not a finished build folder") from None
    except SafetensorError as error:
        raise InputError(f"{path} is truncated or corrupt: {error}", hint="compile again") from error
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise PlanError(f"{path} does not fit the pruned model: {first}", hint="compile again") from error
    return module.eval()


def _example(shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    """Values do not matter to the trace; integers are zero, a valid index into any table."""
    kind = getattr(torch, dtype)
    return torch.zeros(shape, dtype=kind)


def _read_json(path: Path) -> dict[str, object]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist", hint=f"{path.parent} is not a build folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged: {error}", hint="compile again") from error
