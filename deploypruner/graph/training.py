"""How a model trains, and a graph that does the same: checked by running both in training mode.

One run of the model and one of the graph, with the same seed, on the same few samples: outputs and running
statistics have to agree. Switching the calls of the graph (`graph.modes`) is enough for most models. Where it is not
(dropout that only training has, a branch on `self.training`, a batch norm with a cumulative average, power
iterations of a spectral norm), the model is exported once more, in training mode, and that graph is what trains.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from deploypruner.graph.inputs import Inputs, batch_size, call, resized, tensors
from deploypruner.graph.modes import DROPOUT, FIXED, mode_argument, switch
from deploypruner.graph.module import TracedModule, get_state, set_state
from deploypruner.graph.nodes import op_name
from deploypruner.graph.reference import Reference, said, seeded
from deploypruner.graph.sizes import module_path

# Two samples, because batch norm refuses one.
_SAMPLES = 2
# Outputs of the two graphs that differ by more than this share of their size mean different things: logits and
# probabilities do, the next step of a power iteration does not.
_OTHER = 0.5


@dataclass(frozen=True)
class TrainingOutcome:
    """What a module returned in training mode, and its buffers after that."""

    outputs: list[Tensor]
    buffers: dict[str, Tensor]


def learn_training(
    module: TracedModule,
    reference: Reference,
    inputs: Inputs,
    exported: Callable[[], GraphModule],
    *,
    stops_gradients: bool = False,
) -> str:
    """Let a graph train as its model does.

    Args:
        module: The graph, in evaluation mode; it is specialised.
        reference: The model; it is left in evaluation mode, with the buffers it had.
        inputs: What it runs on.
        exported: Gives the model exported in training mode, or raises anything.
        stops_gradients: Does the model run layers without gradients, which the graph does not?

    Returns:
        A remark where the graph trains differently or that could not be found out, "" where it trains alike.
    """
    inputs = resized(inputs, max(_SAMPLES, batch_size(inputs)))
    listener = _Listener()
    try:
        wanted = _frozen_layers(module, reference.module, lambda: _run(reference.module, inputs, listener))
    except Exception as error:  # noqa: BLE001 - a training forward may want labels, whatever it then raises
        return (
            f"what the model does in training could not be compared: it does not run on these inputs then "
            f"({said(error)}); the pruned graph trains with its dropouts and norms on, and else as in evaluation"
        )
    _set_attention_dropout(module, listener.heard)
    gap = _gap(module, inputs, wanted, reference)
    if not gap and stops_gradients:
        gap = "it has layers inside torch.no_grad, through which its own gradients do not flow"
    if not gap:
        return ""
    try:
        _adopt(module, exported())
        left = _gap(module, inputs, wanted, reference)
        why = f"its graph in training mode does not either ({left})" if left else ""
    except Exception as error:  # noqa: BLE001 - torch.export raises anything a model raises
        why = f"torch.export cannot trace it in training mode ({said(error)})"
    if why:
        module.training_graph = None
        module.recompile()
        return _remark(gap, why)
    module.other_outputs = _returns_something_else(module, inputs)
    return ""


def _remark(gap: str, why: str) -> str:
    return (
        f"the pruned graph does not train as the model does: in training mode {gap}, and {why}; train the model in "
        f"your own class instead (plan.apply_to, dp.restore)"
    )


# ---------------------------------------------------------------------- running


def _run(
    module: nn.Module, inputs: Inputs, listener: TorchFunctionMode | None = None, seed: int = 0
) -> TrainingOutcome:
    """One forward pass in training mode; mode and buffers are as they were after it."""
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module.train()
    try:
        with torch.no_grad(), seeded(inputs, seed):
            if listener is None:
                outputs = tensors(call(module, inputs))
            else:
                with listener:
                    outputs = tensors(call(module, inputs))
        return TrainingOutcome([t.clone() for t in outputs], {n: b.clone() for n, b in module.named_buffers()})
    finally:
        module.eval()
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                if name in before and before[name].shape == buffer.shape:
                    buffer.copy_(before[name])


def _frozen_layers(module: TracedModule, model: nn.Module, run: Callable[[], TrainingOutcome]) -> TrainingOutcome:
    """Run the model; calls of layers that its train() leaves in evaluation mode are marked to stay there."""
    model.train()
    frozen = {name for name, part in model.named_modules() if not part.training}
    model.eval()
    for node in module.graph.nodes if frozen else ():
        if mode_argument(node, True)[0] and module_path(node) in frozen:
            node.meta[FIXED] = True
    return run()


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


def _gap(module: TracedModule, inputs: Inputs, wanted: TrainingOutcome, reference: Reference) -> str:
    """How the graph differs from its model in training mode, "" where it does not."""
    try:
        got = _run(module, inputs)
    except Exception as error:  # noqa: BLE001 - an operator may refuse what training gives it
        return f"it raises {said(error)}"
    check = reference.compare(got.outputs, wanted.outputs)
    if not check.passed:
        return (
            f"outputs differ by {check.max_abs_diff:.1e}"
            if check.max_abs_diff == check.max_abs_diff
            else check.detail
        )
    for name, buffer in wanted.buffers.items():
        if not buffer.is_floating_point() or not buffer.numel():
            continue
        mine = got.buffers.get(name)
        if mine is None:
            continue
        check = reference.compare([mine], [buffer])
        if not check.passed:
            return f"'{name}' differs by {check.max_abs_diff:.1e} after one step"
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
    runs = [_run(quiet, inputs, seed=seed).outputs for seed in range(2)]
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
