"""How a model trains, and a graph that does the same: checked by running both in training mode.

One step of the model and one of the graph, with the same seed, on the same few samples: outputs, gradients, buffers
and what was drawn from the random generators have to agree. Switching the calls of the graph
(`graph.execute.mode_flags`) is enough for most models. Where it is not (dropout that only training has, a branch on
`self.training`, a batch norm with a cumulative average, power iterations of a spectral norm, a gradient that stops in
training only), the model is exported once more, in training mode, and that graph is what trains.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from deploypruner.graph.capture.training_step import Step, same_draws, training_step
from deploypruner.graph.execute.mode_flags import DROPOUT, FIXED, mode_argument, switch
from deploypruner.graph.execute.module import TracedModule, get_state, set_state
from deploypruner.graph.execute.shared_weights import sharing_copy
from deploypruner.graph.inputs import Inputs, batch_size, call, resized, tensors
from deploypruner.graph.largest_gap import magnitude, proving_gap
from deploypruner.graph.nodes import op_name
from deploypruner.graph.reference import Reference, said, seeded
from deploypruner.graph.rewrite.size_attributes import module_path

# Two samples, because batch norm refuses one.
_SAMPLES = 2
# Outputs of the two graphs that differ by more than this share of their size mean different things: logits and
# probabilities do, the next step of a power iteration does not.
_OTHER = 0.5
# Gradients are sums over samples and positions, taken backwards through all that was rounded: this many times the
# tolerance of an output. One that is tiny beside the largest is rounding (a bias in front of a batch norm).
_ROUNDED_BACKWARDS, _SMALL_GRADIENT = 10, 1e-3


def learn_training(
    module: TracedModule,
    reference: Reference,
    inputs: Inputs,
    exported: Callable[[], GraphModule],
) -> str:
    """Let a graph train as its model does.

    Args:
        module: The graph, in evaluation mode; it is specialised.
        reference: The model; it is left in evaluation mode, with the buffers it had.
        inputs: What it runs on.
        exported: Gives the model exported in training mode, or raises anything.

    Returns:
        A remark where the graph trains differently or that could not be found out, "" where it trains alike.
    """
    inputs = resized(inputs, max(_SAMPLES, batch_size(inputs)))
    listener = _Listener()
    try:
        wanted = _model_step(reference, inputs, listener)
    except Exception as error:  # noqa: BLE001 - a training forward may want labels, whatever it then raises
        return (
            f"what the model does in training could not be compared: it does not run on these inputs then "
            f"({said(error)}); the pruned graph trains with its dropouts and norms on, and else as in evaluation"
        )
    _frozen_layers(module, reference.module)
    _set_attention_dropout(module, listener.heard)
    gap = wanted.beyond or _gap(module, inputs, wanted.step, reference) or _branches(wanted.step, reference, inputs)
    if not gap:
        return wanted.unknown
    try:
        _adopt(module, exported())
        left = wanted.beyond or _gap(module, inputs, wanted.step, reference)
        why = f"its graph in training mode does not either ({left})" if left else ""
    except Exception as error:  # noqa: BLE001 - torch.export raises anything a model raises
        why = f"torch.export cannot trace it in training mode ({said(error)})"
    if why:
        module.training_graph = None
        module.recompile()
        return _remark(gap, why)
    module.other_outputs = _returns_something_else(module, inputs)
    return wanted.unknown


def _remark(gap: str, why: str) -> str:
    return (
        f"the pruned graph does not train as the model does: in training mode {gap}, and {why}; train the model in "
        f"your own class instead (plan.apply_to, dp.restore)"
    )


# ---------------------------------------------------------------------- the model


@dataclass(frozen=True)
class _Wanted:
    """The model's step.

    Args:
        step: What it did.
        beyond: What no graph could do of it, "" for nothing.
        no_backward: What it raised when it ran backwards, "" where it did not.
    """

    step: Step
    beyond: str = ""
    no_backward: str = ""

    @property
    def unknown(self) -> str:
        """A remark about what could not be compared, "" for nothing."""
        if not self.no_backward:
            return ""
        return (
            f"the gradients of the model could not be compared: it cannot be run backwards in training mode "
            f"({self.no_backward}); the pruned graph agrees with it in all else, and may not train as it does"
        )


def _model_step(reference: Reference, inputs: Inputs, listener: _Listener) -> _Wanted:
    """What the model does in a step: on a copy, because it may count its steps in plain attributes."""
    model, no_backward = sharing_copy(reference.module), ""
    try:
        step = training_step(model, inputs, gradients=True, listener=listener)
    except Exception as error:  # noqa: BLE001 - a model may run forwards only
        no_backward = said(error)
        listener.heard.clear()
        model = sharing_copy(reference.module)
        step = training_step(model, inputs, listener=listener)
    foreign = [name for name in step.generators if "torch" not in name]
    if foreign:
        return _Wanted(step, f"it draws from {foreign[0]}")
    if step.counted:
        again = training_step(model, inputs)
        name = min(again.counted or step.counted)
        if again.counted:
            return _Wanted(step, f"'{name}' changes with every step and is no buffer")
        if not reference.compare(again.outputs, step.outputs).passed:
            return _Wanted(step, f"its first step is another than its second: it sets '{name}'")
    return _Wanted(step, no_backward=no_backward)


def _frozen_layers(module: TracedModule, model: nn.Module) -> None:
    """Mark calls of layers that the model's train() leaves in evaluation mode, to stay there."""
    model.train()
    frozen = {name for name, part in model.named_modules() if not part.training}
    model.eval()
    for node in module.graph.nodes if frozen else ():
        if mode_argument(node, True)[0] and module_path(node) in frozen:
            node.meta[FIXED] = True


def _set_attention_dropout(module: TracedModule, heard: list[float]) -> None:
    """Note on every fused attention the dropout that the model asks for in training."""
    calls = [node for node in module.graph.nodes if op_name(node) == "scaled_dot_product_attention"]
    if len(heard) != len(calls):
        return
    for node, probability in zip(calls, heard, strict=True):
        if probability > 0:
            node.meta[DROPOUT] = probability


class _Listener(TorchFunctionMode):
    """Hears the dropout of every fused attention, in the order of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[float] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.heard.append(float(args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)))
        return func(*args, **kwargs)


# ---------------------------------------------------------------------- comparing


def _branches(step: Step, reference: Reference, inputs: Inputs) -> str:
    """Does a step read values of tensors that evaluation does not: does it branch on them?"""
    if not step.read:
        return ""
    usual = training_step(sharing_copy(reference.module), inputs, mode=False)
    more = [line for line in step.read if line not in usual.read]
    return f"what it does depends on the value of a tensor (at {more[0]})" if more else ""


def _gap(module: TracedModule, inputs: Inputs, wanted: Step, reference: Reference) -> str:
    """How the graph differs from its model in training mode, "" where it does not."""
    try:
        got = training_step(module, inputs, gradients=wanted.gradients is not None)
    except Exception as error:  # noqa: BLE001 - an operator may refuse what training gives it
        return f"it raises {said(error)}"
    check = reference.compare(got.outputs, wanted.outputs)
    if not check.passed:
        return (
            f"outputs differ by {check.max_abs_diff:.1e}"
            if check.max_abs_diff == check.max_abs_diff
            else check.detail
        )
    return (
        _state_gap(got, wanted, reference)
        or _gradient_gap(got.gradients, wanted.gradients, reference)
        or ("" if same_draws(got, wanted) else "the model draws random numbers that it does not")
    )


def _state_gap(got: Step, wanted: Step, reference: Reference) -> str:
    counters = {
        f"{name}.num_batches_tracked".lstrip(".")
        for name, part in reference.module.named_modules()
        if getattr(part, "momentum", None) is not None
    }
    for name, value in wanted.state.items():
        mine = got.state.get(name)
        if name in counters:  # nothing reads it where the momentum is a number
            continue
        if mine is None:
            if name not in wanted.unchanged:
                return f"the model writes to '{name}', and it does not"
            continue
        check = reference.compare([mine], [value])
        if not check.passed:
            return f"'{name}' differs by {check.max_abs_diff:.1e} after one step"
    return ""


def _gradient_gap(got: Mapping[str, Tensor] | None, wanted: Mapping[str, Tensor] | None, reference: Reference) -> str:
    """Which gradient differs by more than rounding; one that is missing is zero."""
    if wanted is None:
        return ""
    got = got or {}
    sizes = {name: magnitude(value[:-1]) for name, value in {**got, **wanted}.items()}
    floor = _SMALL_GRADIENT * max(sizes.values(), default=0.0)
    for name in sizes:
        one, two = got.get(name), wanted.get(name)
        present = two if one is None else one
        assert present is not None, "the name is from one of them"
        one, two = (torch.zeros_like(present) if g is None else g for g in (one, two))
        difference = proving_gap(one[:-1], two[:-1])
        tolerance = reference.relative([two]) * _ROUNDED_BACKWARDS * max(sizes[name], floor)
        if not difference <= tolerance:
            return f"the gradient of '{name}' differs by {difference:.1e}, the largest is {sizes[name]:.1e}"
    return ""


def _returns_something_else(module: TracedModule, inputs: Inputs) -> bool:
    """Is what the training graph returns, its dropouts and norms switched off, no output of evaluation mode?

    What is random in it all the same may be off by as much as two runs are.
    """
    with torch.no_grad(), seeded(inputs, 0):
        usual = tensors(call(module, inputs))
    quiet = copy.deepcopy(module)
    assert quiet.training_graph is not None, "it was adopted"
    switch(quiet.training_graph, False)
    quiet.recompile()
    runs = [training_step(quiet, inputs, seed=seed).outputs for seed in range(2)]
    if [t.shape for t in usual] != [t.shape for t in runs[0]]:
        return True
    first, one, two = (outputs[0].double() for outputs in (usual, *runs))
    gap = ((one + two) / 2 - first).norm()
    return bool(gap > max(_OTHER * float(first.norm()), 2 * float((one - two).norm())))


# ---------------------------------------------------------------------- the second graph


def _adopt(module: TracedModule, trained: GraphModule) -> None:
    """Let a graph exported in training mode run on the state of `module`; what that lacks it gets."""
    known = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    known |= {name for name, _ in module.named_buffers(remove_duplicate=False)}
    for node in trained.graph.find_nodes(op="get_attr"):
        name, value = str(node.target), get_state(trained, str(node.target))
        if not isinstance(value, Tensor):
            continue
        if name.startswith("lifted_tensor"):  # constants of the code are numbered in each graph anew
            node.target = f"training_{name}"
            set_state(module, str(node.target), value.detach())
        elif name not in known:
            set_state(module, name, value)
    module.specialise(training_graph=trained.graph)


def exportable_in_training(model: nn.Module) -> nn.Module:
    """Write layers that torch.export cannot follow in training mode in a form that it can, in place."""
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.momentum is None and part.track_running_stats:
            part.forward = MethodType(_cumulative, part)  # type: ignore[method-assign]
    return model


def _cumulative(norm: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    """Batch norm with momentum=None: the share of a batch in the running statistics is one over their number."""
    if not norm.training:
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    assert norm.running_mean is not None, "it tracks running statistics"
    assert norm.running_var is not None, "it tracks running statistics"
    assert norm.num_batches_tracked is not None, "it tracks running statistics"
    given, rest = x.detach(), [0, *range(2, x.ndim)]
    norm.num_batches_tracked.add_(1)
    share = 1 / norm.num_batches_tracked.to(norm.running_mean.dtype)
    norm.running_mean.lerp_(given.mean(rest).to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(given.var(rest, correction=1).to(norm.running_var.dtype), share)
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, True, 0.0, norm.eps)
