"""The user's own training function in place of the built-in fine-tuning."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from deploypruner.errors import InputError, nearest
from deploypruner.train.modes import mode_kept

Hook = Callable[[nn.Module, nn.Module, object], None]
SIGNATURE = "train(student, teacher, data) -> None"


def load_hook(spec: str) -> Hook:
    """Import the function that `spec`, "package.module:function", names.

    The working folder is searched too, as with `python -m`. An import error inside the user's own module
    propagates as it is.

    Raises:
        InputError: The text has another form, or the module or function does not exist.
    """
    module_name, _, function = spec.partition(":")
    if not module_name or not function:
        raise InputError(
            f"training function '{spec}' is not of the form package.module:function",
            hint=f"for example `my_project.training:train`, with the signature {SIGNATURE}",
        )
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Only the module the user named is their typing mistake; a missing dependency of it is not.
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        raise InputError(
            f"no module called '{error.name}' for the training function '{spec}'",
            hint=f"run from the folder that holds it (now {folder}), or install the package",
        ) from error
    found = getattr(module, function, None)
    if found is None:
        names = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        hint = nearest(function, names) if names else f"{module_name} defines no function"
        raise InputError(f"module '{module_name}' has no function '{function}'", hint=hint)
    if not callable(found):
        raise InputError(f"'{spec}' is a {type(found).__name__}, not a function", hint=f"expected {SIGNATURE}")
    return found


def hook_name(hook: object) -> str:
    """What to call a training function that was passed as an object: its own name, or that of its class."""
    return str(getattr(hook, "__name__", type(hook).__name__))


def run_hook(hook: Hook, student: nn.Module, teacher: nn.Module, data: object) -> None:
    """Call `hook`; it trains `student` in place. Both modules get their modes back.

    Args:
        hook: Any callable: a function, a bound method, an object with `__call__`, a `functools.partial`. What it
            returns is not looked at.
        student: The pruned module, in evaluation mode.
        teacher: The dense module.
        data: `.train` and `.val`, each with `epoch(batch_size=..., seed=..., shuffle=..., augment=...)` giving
            (inputs, labels or None).

    Raises:
        InputError: It changed a shape, removed a parameter, or left a weight that is not finite.
    """
    before = _shapes(student)
    with mode_kept(student), mode_kept(teacher):
        hook(student, teacher, data)
    after = _shapes(student)
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name, "missing"), after.get(name, "missing")
        if was != now:
            raise InputError(
                f"the training function changed '{name}' from {was} to {now}",
                hint="train the student in place; its structure is the plan's",
            )
    for name, tensor in student.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"after the training function '{name}' holds values that are not finite",
                hint="lower the learning rate",
            )


def _shapes(module: nn.Module) -> dict[str, str]:
    return {name: f"shape {list(tensor.shape)}" for name, tensor in module.state_dict().items()}
