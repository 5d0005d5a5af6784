"""The second front end: torch-pruning's autograd tracing, for models whose control flow no export can follow.

It sees what one run did, not what the model may do. So the model is run on several variations of its inputs, every
path found is followed, the labels of all paths are joined, and every group is tried out (`trials`) before it is
offered. What cannot be followed is frozen with the reason.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deploypruner.errors import TraceError
from deploypruner.graph.capture.autograd_ports import Port, Ports
from deploypruner.graph.capture.observe import Products, check_deterministic, paths_through, runs_at_other_sizes
from deploypruner.graph.execute.shared_weights import sharing_copy
from deploypruner.graph.inputs import Inputs, call, tensors
from deploypruner.graph.labels.atoms import IntArray, Labels
from deploypruner.graph.labels.axes import Axes
from deploypruner.graph.labels.group_validation import Trials
from deploypruner.graph.labels.groups import find_groups
from deploypruner.graph.labels.labelling import Affine, Contraction, Labelling, StateTensor
from deploypruner.graph.labels.rules.contraction import SPATIAL
from deploypruner.graph.reference import said
from deploypruner.graph.rewrite.resize import Resized, state_names

# torch-pruning's shape inference is exponential on some graphs (Swin, MaxViT).
_SECONDS = 20.0

_STATISTIC = "removing would change a normalisation statistic, which autograd tracing cannot prove"
_UNKNOWN = "a layer that torch-pruning's tracing does not know"


@dataclass(frozen=True)
class Traced:
    """What this front end gives.

    Args:
        module: The model in eval mode, sharing the user's weights.
        labelling: Labels of its parameters.
        cut: Bool over atoms -> a smaller module of the user's class.
        remarks: What a user should know.
        dynamic_batch: Whether other batch sizes run.
    """

    module: nn.Module
    labelling: Labelling
    cut: Callable[[NDArray[np.bool_]], nn.Module]
    remarks: tuple[str, ...]
    dynamic_batch: bool


def trace_autograd(model: nn.Module, inputs: Inputs, *, seconds: float = _SECONDS) -> Traced:
    """Label a model by running it.

    Args:
        model: The user's module; it is not changed.
        inputs: What it runs on.
        seconds: How long torch-pruning may think.

    Raises:
        TraceError: torch-pruning cannot trace it, or it computes something else on every run.
    """
    module = sharing_copy(model)
    paths = paths_through(module, inputs)
    check_deterministic(module, inputs)
    labelling = _Labeller(_differentiable(sharing_copy(model)), module)
    deadline = time.monotonic() + seconds
    for cases in paths.values():
        labelling.follow(cases[0], deadline)
    labelling.count(inputs)
    labelling.freeze_rest({name for path in paths for name in path})

    def cut(removed: NDArray[np.bool_]) -> nn.Module:
        return next(Resized(module, labelling, removed).variants())

    frozen = _freeze_failing(
        labelling, Trials(module, labelling, cut, [case for cases in paths.values() for case in cases])
    )
    return Traced(module, labelling, cut, _remarks(module, paths, frozen), runs_at_other_sizes(module, inputs))


class _Labeller(Labelling):
    """Fills in a Labelling from torch-pruning's graphs of `traced`, in terms of the tensors of `module`."""

    def __init__(self, traced: nn.Module, module: nn.Module) -> None:
        super().__init__()
        self.traced = traced
        self.paths = {m: name for name, m in traced.named_modules()}
        own = dict(module.named_parameters(remove_duplicate=False)) | dict(
            module.named_buffers(remove_duplicate=False)
        )
        self._entry: dict[int, StateTensor] = {}
        self._bound: set[tuple[int, int]] = set()
        for tensor, names in state_names(traced).values():
            kept = own[names[0]]
            entry = StateTensor(list(names), kept, [self.atoms.fresh(size) for size in tensor.shape])
            self.state[id(kept)] = self._entry[id(tensor)] = entry

    # ------------------------------------------------------------------ one path

    def follow(self, inputs: Inputs, deadline: float) -> None:
        """Join what torch-pruning's graph of one run says."""
        import torch_pruning as tp  # slow to import, and needed by this front end only

        graph = _limited(tp, deadline)
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            try:
                graph.build_dependency(
                    self.traced,
                    inputs,
                    forward_fn=call,
                    output_transform=lambda out: [t * 1 for t in tensors(out) if t.requires_grad],
                    verbose=False,
                )
            except _TooLongError:
                raise TraceError("torch-pruning does not come to an end on this model") from None
            except Exception as error:
                raise TraceError(f"torch-pruning cannot trace this model: {said(error)}") from error
        ports = Ports(self.atoms, tp._helpers._HybridIndex)
        layers = [node for node in graph.module2node.values() if self._seed(graph, ports, node)]
        if not layers:
            raise TraceError("torch-pruning finds no layer it knows between inputs and outputs")
        ports.walk()
        for node in graph.module2node.values():
            self._ends(graph, ports, node)
        for node in graph.module2node.values():
            self._bind(graph, ports, node)

    def _seed(self, graph: Any, ports: Ports, node: Any) -> bool:
        """Give the ports of a layer their channels; is it one?"""
        pruner = graph.get_pruner_of_module(node.module)
        pruner.pruning_dim = node.pruning_dim
        try:
            sizes = (pruner.get_out_channels(node.module), pruner.get_in_channels(node.module))
        except (AttributeError, IndexError, TypeError):
            return False
        known = isinstance(node.module, nn.Parameter) or node.module in self.paths
        if not known or None in sizes:
            return False
        for function, size in zip((pruner.prune_out_channels, pruner.prune_in_channels), sizes, strict=True):
            if (node, function) not in ports.at:
                ports.seed((node, function), size)
        return True

    def _ends(self, graph: Any, ports: Ports, node: Any) -> None:
        """Freeze the channels the model gives out and those it is given."""
        out, into = _both(graph, node)
        if not node.outputs:
            self.atoms.freeze(_atoms(ports, out), "model output", self._name(node.module))
        # Without labels for the model's inputs, only the transposed weight of a linear layer leads into it.
        fed = any(source.inputs or (source, _both(graph, source)[0][1]) in ports.sized for source in node.inputs)
        if into in ports.sized and not fed and not isinstance(node.module, nn.Parameter | nn.Embedding):
            self.atoms.freeze(_atoms(ports, into), "model input", self._name(node.module))

    def _bind(self, graph: Any, ports: Ports, node: Any) -> None:
        """Tie the channels at a layer's ports to the parameters they index, or freeze them."""
        both = _both(graph, node)
        if both[0] not in ports.sized:
            return
        self.atoms.site = self._name(node.module)
        for port, labels in zip(both, self._labels(node), strict=True):
            atoms = _atoms(ports, port)
            if atoms is None:
                continue
            if isinstance(labels, str):
                self.atoms.freeze(atoms, labels)
            else:
                self._freeze_alone(ports, atoms)
                self.atoms.unify(atoms, labels, "channels of a layer")
        self.atoms.site = None

    def _freeze_alone(self, ports: Ports, atoms: IntArray) -> None:
        """Freeze channels that meet no other layer: whatever makes or uses them was not followed."""
        alone = np.array([a not in ports.reached for a in atoms[:, 0].tolist()])
        if alone.any():
            self.atoms.freeze(atoms[alone], "no other layer was found that these channels come from or go to")

    def _labels(self, node: Any) -> tuple[Labels | str, Labels | str]:
        """Labels of a layer's output and input channels in terms of its parameters, or why they stay."""
        module = node.module
        if isinstance(module, nn.Parameter):
            labels = self._axis(module, node.pruning_dim)
            return labels, labels
        computed = getattr(module, "weight", None) is not None and "weight" not in module._parameters
        match module:
            case _ if computed:
                return ("its weight is computed by a parametrization",) * 2
            case nn.modules.conv._ConvNd():
                return self._convolution(module)
            case nn.Linear():
                self._role(module, 0, 1)
                return self._axis(module.weight, 0, module.bias), self._axis(module.weight, 1)
            case nn.modules.batchnorm._NormBase():
                return (self._norm(module),) * 2
            case nn.PReLU():
                return (self._axis(module.weight, 0),) * 2
            case nn.Embedding():
                return (self._axis(module.weight, 1),) * 2
            case nn.LayerNorm() | nn.GroupNorm():
                return (_STATISTIC,) * 2
        return (_UNKNOWN,) * 2

    def _norm(self, module: nn.modules.batchnorm._NormBase) -> Labels | str:
        held = [t for t in (module.weight, module.bias, module.running_mean, module.running_var) if t is not None]
        if not held:
            return "a normalisation without parameters"
        for tensor in held:
            self._entry[id(tensor)].roles[0] = "norm"
        if module.weight is not None:
            self._affine(module, 0, "norm")
        return self._axis(held[0], 0, *held[1:])

    def _convolution(self, module: nn.modules.conv._ConvNd) -> tuple[Labels | str, Labels | str]:
        rows, columns = (1, 0) if module.transposed else (0, 1)
        weight = module.weight
        for axis in range(2, weight.ndim):
            self.atoms.freeze(self._axis(weight, axis), SPATIAL)
        if module.groups == 1:
            self._role(module, rows, columns)
            return self._axis(weight, rows, module.bias), self._axis(weight, columns)
        if module.transposed:
            return ("a grouped transposed convolution, which this front end leaves whole",) * 2
        self._role(module, 0, None)
        out, inner = self._axis(weight, 0, module.bias), self._axis(weight, 1)
        groups = module.groups
        group, _ = self.atoms.split(out, [groups, weight.shape[0] // groups])
        self.counts[self.paths[module]] = ("groups", group)
        return out, self.atoms.flatten([group, inner], [groups, weight.shape[1]])

    # ------------------------------------------------------------------ parameters

    def _axis(self, tensor: Tensor, axis: int, *same: Tensor | None) -> Labels:
        """Labels of an axis, shared with the first axis of other tensors."""
        entry = self._entry[id(tensor)]
        axis %= max(tensor.ndim, 1)
        self._bound.add((id(entry), axis))
        for other in same:
            if other is not None:
                self._bound.add((id(self._entry[id(other)]), 0))
                self.atoms.unify(entry.axes[axis], self._entry[id(other)].axes[0], "bias or statistic of a layer")
        return entry.axes[axis]

    def _role(self, module: Any, producer: int, consumer: int | None) -> None:
        entry = self._entry[id(module.weight)]
        entry.roles[producer] = "producer"
        if consumer is not None:
            entry.roles[consumer] = "consumer"
        if module.bias is not None:
            self._entry[id(module.bias)].roles[0] = "producer"
        self._affine(module, producer, "producer")

    def _affine(self, module: Any, axis: int, role: Any) -> None:
        name = self._entry[id(module.weight)].names[0]
        known = self.affines[name].biases if name in self.affines else ()
        bias = () if module.bias is None else (self._entry[id(module.bias)].names[0],)
        self.affines[name] = Affine(name, axis, tuple(dict.fromkeys((*known, *bias))), role)

    def _name(self, module: Any) -> str:
        entry = self._entry.get(id(module))
        return entry.names[0] if entry is not None else self.paths.get(module, "")

    # ------------------------------------------------------------------ the whole

    def count(self, inputs: Inputs) -> None:
        """Record the multiply-adds of the path that the inputs as given take."""
        products = Products()
        with torch.no_grad(), products:
            call(self.traced, inputs)
        for product in products.found:
            entry = self._entry.get(id(product.weight))
            axes: list[tuple[Labels, int]] = [(None, size) for size in product.outer]
            if entry is None:
                axes += [(None, size) for size in product.weight.shape]
            else:
                axes += list(zip(entry.axes, entry.tensor.shape, strict=True))
            self.contractions.append(Contraction(None, entry.names[0] if entry else "", tuple(axes)))

    def freeze_rest(self, ran: set[str]) -> None:
        """Freeze every axis that no layer was found to use."""
        for entry in self.state.values():
            if entry.tensor.ndim > 1 and not entry.roles:
                entry.roles[0] = "producer"  # so that it is listed among what is frozen
            for axis, labels in enumerate(entry.axes):
                if (id(entry), axis) not in self._bound:
                    owner = entry.names[0].rpartition(".")[0]
                    why = _UNKNOWN if owner in ran else "it did not run on the example inputs"
                    self.atoms.freeze(labels, why, owner)


def _differentiable(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return module


def _atoms(ports: Ports, port: Port) -> Labels:
    known = ports.at.get(port)
    return np.array([known[i] for i in sorted(known)])[:, None] if known else None


def _both(graph: Any, node: Any) -> tuple[Port, Port]:
    """The ports of a node's output and input channels; one and the same for all but weights with two axes."""
    pruner = graph.get_pruner_of_module(node.module)
    return (node, pruner.prune_out_channels), (node, pruner.prune_in_channels)


def _freeze_failing(labelling: _Labeller, trials: Trials) -> int:
    groups = [found.atoms for found in find_groups(labelling, Axes(labelling.atoms))]
    failing = trials.failing(groups)
    for position in failing:
        labelling.atoms.freeze(
            groups[position][:, None],
            "a trial removal of these channels did not compute what masking them does, or there was no time for one",
        )
    return len(failing)


def _remarks(module: nn.Module, paths: dict[tuple[str, ...], list[Inputs]], frozen: int) -> tuple[str, ...]:
    found = []
    if len(paths) > 1:
        found.append(f"{len(paths)} paths through the model were found and joined")
    ran = {name for path in paths for name in path}
    idle = [name for name, m in module.named_modules() if m._parameters and name not in ran]
    if idle:
        found.append(
            f"{len(idle)} layers never ran ({', '.join(idle[:3])}{', ...' if len(idle) > 3 else ''}): they stay "
            f"whole, and inputs that reach them may fail where their neighbours were pruned"
        )
    if frozen:
        found.append(f"{frozen} groups that torch-pruning found did not stand a trial removal and stay whole")
    return tuple(found)


class _TooLongError(Exception):
    """torch-pruning's shape inference used up its time."""


def _limited(tp: Any, deadline: float) -> Any:
    """A dependency graph that gives up: its recursions all ask for a node's channels, and there the clock is read.

    A signal would do in the main thread only.
    """

    class Limited(tp.DependencyGraph):
        def get_out_channels(self, module_or_node: Any) -> Any:
            _check_clock(deadline)
            return super().get_out_channels(module_or_node)

        def get_in_channels(self, module_or_node: Any) -> Any:
            _check_clock(deadline)
            return super().get_in_channels(module_or_node)

    return Limited()


def _check_clock(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise _TooLongError
