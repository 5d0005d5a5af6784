"""The optimizers of `torch.optim` by name, their parameters checked before any work is done."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deploypruner.errors import RecipeError, nearest

if TYPE_CHECKING:
    import torch

Value = float | int | str | bool | list[float]

# In torch.optim, but not for training any network with gradients that exist once a step.
_UNFIT = {
    "lbfgs": "evaluates the loss several times a step",
    "muon": "takes matrices only, no biases, norms or convolutions",
    "sparseadam": "takes sparse gradients only",
}
_PARAMETERS = ("optimizer_parameters",)
# What the settings decide already, and what would break the loop.
_NOT_SET_HERE = {
    "params": "the model says it",
    "lr": "set lr beside it",
    "weight_decay": "set weight_decay beside it",
    "maximize": "training minimises",
    "differentiable": "nothing differentiates through a step",
    "capturable": "steps are not captured as CUDA graphs",
}


def optimizers() -> dict[str, type[torch.optim.Optimizer]]:
    """Name in lower case -> class, of every optimizer of this torch that trains any network."""
    import torch

    found = {name.lower(): cls for name, cls in vars(torch.optim).items() if _is_optimizer(cls)}
    return {name: found[name] for name in sorted(found) if name not in _UNFIT}


def default_rate(name: str) -> float:
    """The learning rate an optimizer begins with unless told otherwise: torch's own default, 0.02 for SGD (ours)."""
    return 0.02 if name.lower() == "sgd" else float(inspect.signature(_class(name)).parameters["lr"].default)


def check_optimizer(name: str, parameters: Mapping[str, Value], *, momentum: float) -> None:
    """Make sure that the optimizer exists and takes these parameters.

    Raises:
        RecipeError: It does not; says what it takes.
    """
    if name.lower() == "sgd" and not parameters:  # nothing to ask torch, which takes seconds to load
        return
    import torch

    cls = _class(name)
    known = [key for key in inspect.signature(cls).parameters if key not in _NOT_SET_HERE]
    for key in parameters:
        if key in _NOT_SET_HERE:
            raise RecipeError(f"optimizer parameter '{key}' cannot be set", hint=_NOT_SET_HERE[key], keys=_PARAMETERS)
        if key not in known:
            raise RecipeError(
                f"optimizer '{name}' has no parameter '{key}'", hint=nearest(key, known), keys=_PARAMETERS
            )
    trial = [{"params": [torch.nn.Parameter(torch.zeros(1))]}]
    try:
        make_optimizer(trial, name, parameters, momentum=momentum)
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{key} = {value!r}" for key, value in parameters.items())
        raise RecipeError(
            f"optimizer '{name}' refuses {given or 'its defaults'}: {str(error).lower()}",
            hint=f"parameters of '{name}': {', '.join(known)}",
            keys=_PARAMETERS,
        ) from error


def make_optimizer(
    groups: Iterable[dict[str, Any]], name: str, parameters: Mapping[str, Value], *, momentum: float
) -> torch.optim.Optimizer:
    """Build a checked optimizer; SGD has Nesterov momentum unless `parameters` say otherwise.

    Args:
        groups: Parameter groups, each with its weight decay; an optimizer without decay ignores it.
        name: Of `torch.optim`, in any case.
        parameters: Keyword arguments of its constructor; lists become tuples.
        momentum: Of SGD; the other optimizers have momenta of their own among their parameters.
    """
    import torch

    cls: Any = _class(name)
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, Sequence) and not isinstance(v, str) else v
                             for k, v in parameters.items()}  # fmt: skip
    own: dict[str, Any] = {"momentum": momentum, "nesterov": True} if cls is torch.optim.SGD else {}
    optimizer: torch.optim.Optimizer = cls(list(groups), lr=default_rate(name), **{**own, **given})
    return optimizer


def _class(name: str) -> type[torch.optim.Optimizer]:
    known = optimizers()
    if name.lower() in _UNFIT:
        raise RecipeError(
            f"optimizer '{name}' {_UNFIT[name.lower()]}",
            hint="adamw and sgd train every network",
            keys=("optimizer",),
        )
    if name.lower() not in known:
        raise RecipeError(
            f"no optimizer called '{name}' in torch.optim", hint=nearest(name.lower(), known), keys=("optimizer",)
        )
    return known[name.lower()]


def _is_optimizer(value: object) -> bool:
    import torch

    base = torch.optim.Optimizer
    return isinstance(value, type) and issubclass(value, base) and value is not base
