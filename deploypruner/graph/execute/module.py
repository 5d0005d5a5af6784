"""A traced graph that behaves as the nn.Module it came from: state under the user's names, train() and eval()."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule
from torch.fx.graph_module import _forward_from_src
from torch.utils import _pytree as pytree

from deploypruner.errors import InputError
from deploypruner.graph.execute.device_moves import follow, kind_of
from deploypruner.graph.execute.mode_flags import switch
from deploypruner.graph.execute.serialization import Plain, nodes_of, to_plain
from deploypruner.graph.open_axes import OpenAxis

# Per argument of forward, per tensor in it: the length of every axis, or those it may have; None where any will do.
Sizes = Mapping[str, tuple[tuple[int | OpenAxis | None, ...], ...]]


class TracedModule(GraphModule):
    """An exported ATen graph as a trainable module.

    Parameters and buffers keep their fully qualified names. `train()` and `eval()` switch the calls inside the graph
    that behave differently in training, as they would in the original module. Where that is not all the model does
    differently, a second graph over the same state is what runs in training mode. Data types and devices that the
    model takes from its inputs or weights follow `.to()`, `.half()` and the like. It can be copied and pickled.

    Attributes:
        training_graph: What runs in training mode, None where the one graph does for both.
        sizes: Lengths of axes that are written into the graph; inputs of other lengths are refused.
        as_evaluated: In training mode, too, run the graph of evaluation mode, its dropouts and norms switched: for a
            trainer that compares outputs with those of evaluation mode.
        other_outputs: Does the training graph return something else than the other (logits instead of
            probabilities, auxiliary heads)?
    """

    training_graph: Graph | None
    sizes: Sizes
    as_evaluated: bool
    other_outputs: bool

    def __init__(self, root: nn.Module | dict[str, Any], graph: Graph) -> None:
        super().__init__(root, graph)
        self.training_graph, self.sizes = None, {}
        self.as_evaluated = self.other_outputs = False

    def specialise(
        self, *, training_graph: Graph | None = None, sizes: Sizes | None = None, other_outputs: bool = False
    ) -> Self:
        """Set what runs in training mode, or what sizes are taken; see the attributes."""
        if training_graph is not None:
            self.training_graph, self.other_outputs = training_graph, other_outputs
        if sizes is not None:
            self.sizes = sizes
        self.recompile()
        return self

    def like(self, other: TracedModule) -> Self:
        """Take over what `other`, a module of the same inputs and state, was specialised to."""
        self.as_evaluated = other.as_evaluated
        return self.specialise(
            training_graph=other.training_graph, sizes=other.sizes, other_outputs=other.other_outputs
        )

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """What runs in evaluation mode, and what runs in training mode where that is another graph."""
        return (self.graph,) if self.training_graph is None else (self.graph, self.training_graph)

    def train(self, mode: bool = True) -> Self:
        """Switch between training and inference behaviour."""
        if switch(self.graph, mode and (self.training_graph is None or self.as_evaluated)):
            self.recompile()
        for module in self.modules():
            module.training = mode
        return self

    def recompile(self) -> Any:
        """Generate code after the graphs were edited."""
        code = super().recompile()
        cls, evaluated = type(self), type(self).forward
        graph = self.__dict__.get("training_graph")
        if graph is None and not self.__dict__.get("sizes"):
            return code
        trained = evaluated if graph is None else _compiled(self, graph)

        @functools.wraps(evaluated)
        def _forward(self: TracedModule, *args: Any, **kwargs: Any) -> Any:
            if self.sizes:
                _check_sizes(evaluated, self.sizes, args, kwargs)
            return (trained if self.training and not self.as_evaluated else evaluated)(self, *args, **kwargs)

        cls.forward = _forward  # every graph module has a class of its own
        return code

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = kind_of(self)
        super()._apply(fn, recurse)
        if follow(self.graphs, before, kind_of(self)):
            self.recompile()
        return self

    def _deepcopy_init(self) -> Callable[..., None]:
        return TracedModule.__init__

    def __deepcopy__(self, memo: dict[int, Any]) -> TracedModule:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch about its own tree specs
            copied: Any = super().__deepcopy__(memo)
        _copy_missing(self, copied, memo)
        copied.as_evaluated = self.as_evaluated
        return copied.specialise(
            training_graph=copy.deepcopy(self.training_graph, memo),
            sizes=self.sizes,
            other_outputs=self.other_outputs,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        extras = {"sizes": dict(self.sizes), "as_evaluated": self.as_evaluated, "other_outputs": self.other_outputs}
        flags = {name: module.training for name, module in self.named_modules()}
        state = {name: value for name, value in _state_of(self) if not isinstance(value, GraphModule)}
        regions = {name: to_plain(value.graph) for name, value in _state_of(self) if isinstance(value, GraphModule)}
        return _restored, ([to_plain(graph) for graph in self.graphs], state, regions, extras, flags)


def _restored(
    graphs: list[Plain],
    state: dict[str, Any],
    regions: dict[str, Plain],
    extras: dict[str, Any],
    flags: dict[str, bool],
) -> TracedModule:
    """The opposite of `TracedModule.__reduce__`."""
    root = nn.Module()
    for name, plain in regions.items():
        set_state(root, name, GraphModule({}, nodes_of(plain)))
    for name, value in state.items():
        set_state(root, name, value)
    graph, *others = map(nodes_of, graphs)
    module = TracedModule(root, graph)
    _copy_missing(root, module, {})
    module.as_evaluated = extras.pop("as_evaluated")
    module.specialise(training_graph=others[0] if others else None, **extras)
    for name, part in module.named_modules():
        part.training = flags.get(name, module.training)
    return module


def _state_of(module: TracedModule) -> Iterator[tuple[str, Any]]:
    """Parameters and buffers under all their names, and whatever else the graphs read."""
    seen: set[str] = set()
    for name, tensor in [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]:
        seen.add(name)
        yield name, tensor
    for graph in module.graphs:
        for node in graph.find_nodes(op="get_attr"):
            if str(node.target) not in seen:
                seen.add(str(node.target))
                yield str(node.target), get_state(module, str(node.target))


def _copy_missing(module: nn.Module, copied: nn.Module, memo: dict[int, Any]) -> None:
    """Give a copy the state that its graph does not read: other names of tied tensors, what only training reads."""
    have = dict([*copied.named_parameters(remove_duplicate=False), *copied.named_buffers(remove_duplicate=False)])
    for name, tensor in [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]:
        if name not in have:
            set_state(copied, name, copy.deepcopy(tensor, memo) if memo else tensor)


def _compiled(module: TracedModule, graph: Graph) -> Callable[..., Any]:
    """The function of a second graph, which nests its inputs and outputs in its own way."""
    code = graph.python_code(root_module="self")
    info = graph._codegen.pytree_info  # type: ignore[attr-defined]  # an exported graph has it
    module._training_in_spec, module._training_out_spec = info.in_spec, info.out_spec
    source = code.src.replace("self._in_spec", "self._training_in_spec")
    source = source.replace("self._out_spec", "self._training_out_spec")
    compiled: Callable[..., Any] = _forward_from_src(source, code.globals, {})
    return compiled


def _check_sizes(forward: Callable[..., Any], sizes: Sizes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    names = forward.__code__.co_varnames[1 : forward.__code__.co_argcount]
    for name, value in [*zip(names, args, strict=False), *kwargs.items()]:
        found = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
        for tensor, taken in zip(found, sizes.get(name, ()), strict=False):
            shape = tuple(tensor.shape)
            if len(shape) != len(taken):
                continue
            for axis, length in zip(taken, shape, strict=True):
                if isinstance(axis, OpenAxis) and not axis.takes(length):
                    raise InputError(
                        f"{axis.where} is {length} long, and the graph is for {axis.lengths}",
                        hint="pad or cut the input to such a length, or trace with an example of this one",
                    )
            fixed = [(s, t) for s, t in zip(shape, taken, strict=True) if isinstance(t, int)]
            if any(s != t for s, t in fixed):
                got, had = ("x".join(str(pair[i]) for pair in fixed) for i in (0, 1))
                raise InputError(
                    f"input '{name}' of this graph was traced with {had}, got {got}: "
                    "sizes are written into the graph, and it would compute something else",
                    hint='trace with dynamic_shapes="auto" to keep them open, or with inputs of this size',
                )


def get_state(module: nn.Module, name: str) -> Any:
    """The parameter, buffer or attribute called `name` (dots descend into sub-modules)."""
    owner, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)


def set_state(module: nn.Module, name: str, value: Any) -> None:
    """Replace or add a parameter or buffer under a dotted name; owners that are missing are made.

    What is no tensor becomes an attribute.
    """
    owner_name, _, leaf = name.rpartition(".")
    owner = module
    for part in owner_name.split(".") if owner_name else ():
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    for kind in (owner._parameters, owner._buffers, owner.__dict__):
        kind.pop(leaf, None)
    if isinstance(value, nn.Parameter):
        owner.register_parameter(leaf, value)
    elif isinstance(value, torch.Tensor):
        owner.register_buffer(leaf, value)
    else:
        setattr(owner, leaf, value)
