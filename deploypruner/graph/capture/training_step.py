"""One step of a module in training mode, and all that it does besides returning something.

Two modules train alike where this is the same of both: outputs, gradients, buffers, parameters that the forward
pass itself writes to, what was drawn from which random generator, and what is counted in plain attributes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from deploypruner.graph.inputs import Inputs, call, tensors
from deploypruner.graph.reference import seeded, users_line

# Of each gradient, as many elements as this are kept, evenly spaced, and its norm.
_ELEMENTS = 256


@dataclass(frozen=True)
class Step:
    """What a step did.

    Args:
        outputs: Tensors it returned.
        state: Buffers after it, and the parameters that its forward pass wrote to.
        unchanged: Which of them are as before.
        gradients: Under every name of a parameter that got one: some elements and the norm; None where none was
            asked for.
        generators: Torch's, Python's and NumPy's random state after it, as far as it drew from them.
        read: Lines that read the value of a tensor into Python, as a branch does.
        counted: Plain attributes that it changed, "module.attribute".
    """

    outputs: list[Tensor]
    state: Mapping[str, Tensor]
    unchanged: frozenset[str]
    gradients: Mapping[str, Tensor] | None
    generators: Mapping[str, Any]
    read: tuple[str, ...]
    counted: frozenset[str]


def training_step(
    module: nn.Module,
    inputs: Inputs,
    *,
    mode: bool = True,
    seed: int = 0,
    gradients: bool = False,
    listener: TorchFunctionMode | None = None,
) -> Step:
    """Run a module once; buffers, parameters and random states are as they were after it, the mode is evaluation.

    Args:
        module: Plain attributes that it changes stay changed.
        inputs: At least two samples.
        mode: Training mode, or evaluation mode.
        seed: Of every generator.
        gradients: Run it backwards, too, from fixed random weights on its outputs.
        listener: Hears the calls of functions.

    Raises:
        Exception: Whatever the module raises.
    """
    before = {name: buffer.clone() for name, buffer in module.named_buffers(remove_duplicate=False)}
    attributes = _attributes(module)
    watch = _Watch(module)
    module.train(mode)
    try:
        with torch.set_grad_enabled(gradients), seeded(inputs, seed):
            start = _states(inputs)
            with watch, listener or nullcontext():
                outputs = tensors(call(module, inputs))
            after = _states(inputs)
            found = _gradients(module, outputs) if gradients else None
        buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers(remove_duplicate=False)}
        written = {name: parameter.detach().clone() for name, (parameter, _) in watch.written.items()}
        was = before | {name: value for name, (_, value) in watch.written.items()}
        changed = _attributes(module)
        return Step(
            [t.detach().clone() for t in outputs],
            buffers | written,
            frozenset(n for n, t in (buffers | written).items() if n in was and _same(was[n], t)),
            found,
            {name: value for name, value in after.items() if not _same(value, start[name])},
            tuple(watch.read),
            frozenset(name for name, value in changed.items() if attributes.get(name, value) != value),
        )
    finally:
        module.eval()
        with torch.no_grad():
            for parameter, value in watch.written.values():
                parameter.copy_(value)
            for name, buffer in module.named_buffers(remove_duplicate=False):
                if name in before and before[name].shape == buffer.shape:
                    buffer.copy_(before[name])


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Every attribute that is a number, a text, a flag or None, except the mode; the states of generators."""
    found: dict[str, Any] = {}
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            key = f"{path}.{name}".lstrip(".")
            match value:
                case bool() | int() | float() | str() | None if name != "training":
                    found[key] = value
                case random.Random():
                    found[key] = value.getstate()
                case np.random.Generator():
                    found[key] = str(value.bit_generator.state)
                case np.random.RandomState():
                    found[key] = str(value.get_state(legacy=False))
                case torch.Generator():
                    found[key] = bytes(value.get_state().numpy())
    return found


def _states(inputs: Inputs) -> dict[str, Any]:
    """State of every random generator that a forward pass may draw from."""
    states: dict[str, Any] = {"torch": torch.get_rng_state()}
    if any(t.device.type == "cuda" for t in tensors(inputs)):
        states["torch on cuda"] = torch.cuda.get_rng_state()
    numpy: Any = np.random.get_state()
    return {**states, "Python's random": random.getstate(), "numpy.random": [numpy[1].tobytes(), *numpy[2:]]}


def same_draws(one: Step, two: Step) -> bool:
    """Did both draw as much from the same generators?"""
    names = one.generators.keys()
    return names == two.generators.keys() and all(_same(one.generators[n], two.generators[n]) for n in names)


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        return one.shape == two.shape and one.dtype == two.dtype and torch.equal(one.nan_to_num(), two.nan_to_num())
    return bool(one == two)


# ---------------------------------------------------------------------- gradients


def _gradients(module: nn.Module, outputs: list[Tensor]) -> dict[str, Tensor]:
    """Some elements and the norm of every gradient, one parameter at a time: all of them never lie in memory."""
    loss = sum((output * _weights(output)).sum() for output in outputs if _learns(output))
    if not isinstance(loss, Tensor):  # no output depends on what can be learnt
        return {}
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    found: dict[str, Tensor] = {}

    def keep(parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None, "it was just accumulated"
        flat = (gradient.to_dense() if gradient.is_sparse else gradient).detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // _ELEMENTS)]
        found.update(dict.fromkeys(names[id(parameter)], torch.cat((some, flat.norm().reshape(1)))))
        parameter.grad = None

    with _hooked(module, keep):
        loss.backward()
    return found


@contextmanager
def _hooked(module: nn.Module, keep: Any) -> Iterator[None]:
    handles = [p.register_post_accumulate_grad_hook(keep) for p in module.parameters() if p.requires_grad]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in module.parameters():
            parameter.grad = None


def _learns(output: Tensor) -> bool:
    return output.requires_grad and output.is_floating_point()


def _weights(output: Tensor) -> Tensor:
    """A random direction, always the same: a sum of squares says nothing about outputs of fixed length."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(output.shape, generator=generator).to(output.device, output.dtype)


# ---------------------------------------------------------------------- watching


class _Watch(TorchDispatchMode):
    """Sees every operator of a forward pass, those on `.data` too.

    Attributes:
        written: Name -> a parameter that is written to, and its value before that.
        read: Where values of tensors were read.
    """

    supports_higher_order_operators = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.written: dict[str, tuple[Tensor, Tensor]] = {}
        self.read: list[str] = []
        self._held: dict[int, list[tuple[str, Tensor]]] = {}
        for name, parameter in module.named_parameters():
            if parameter.numel() and parameter.device.type != "meta":
                self._held.setdefault(parameter.untyped_storage().data_ptr(), []).append((name, parameter))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            self.read.append(users_line())
        for target in _written(func, args, kwargs):
            for name, parameter in self._held.get(target.untyped_storage().data_ptr(), ()):
                if name not in self.written:
                    self.written[name] = (parameter, parameter.detach().clone())
        return func(*args, **kwargs)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Arguments that an operator writes to."""
    if not isinstance(func, torch._ops.OpOverload) or not func._schema.is_mutable:
        return []
    declared = func._schema.arguments
    values: list[Any] = [
        args[i] if i < len(args) else kwargs.get(argument.name)
        for i, argument in enumerate(declared)
        if argument.is_write
    ]
    leaves = [leaf for value in values for leaf in (value if isinstance(value, list | tuple) else [value])]
    return [leaf for leaf in leaves if type(leaf) in (Tensor, nn.Parameter, nn.Buffer)]
