"""Opening the batch axis of a graph that was exported at one batch size.

torch.export can trace with a symbolic batch, and takes two to three times as long over it. So the graph is
exported with a batch that nothing else could be: a prime that divides no axis of any weight or input. Wherever a
multiple k of it stands as a size, k times the batch is meant. Whatever looks like the batch and is no size makes
the outcome uncertain; the caller then lets torch.export do the work. `checked_run` compares each shape on a real run.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from deploypruner.graph.execute.module import get_state
from deploypruner.graph.execute.shared_weights import sizes_of
from deploypruner.graph.inputs import Inputs, as_arguments, batch_size, tensors

aten = torch.ops.aten

# Large enough that a multiple of it is hardly ever a spatial size. No memory is touched: the values do not matter.
_SMALLEST = 101
_LAST = torch.channels_last
# A number beyond this many samples is a limit or a mask, not a count.
_LARGEST = 1_000_000
# Integers of the schema type SymInt that are no sizes.
_NO_SIZES = {"stride", "padding", "output_padding", "dilation", "step", "index", "shifts", "pad", "storage_offset"}
# Sizes that the schema types as numbers.
_NUMBERS = {"arange": {"start", "end"}}


class Uncertain(Exception):
    """The batch cannot be told from a constant; the message says where."""


def marker(model: nn.Module, inputs: Inputs) -> int:
    """The smallest prime from 101 on that divides no axis of any tensor of the model or the inputs."""
    sizes = {*sizes_of(model), *(n for t in tensors(inputs) for n in t.shape)}
    candidate = _SMALLEST
    while not _is_prime(candidate) or any(n and n % candidate == 0 for n in sizes):
        candidate += 2
    return candidate


def marked(inputs: Inputs, prime: int, carries: Callable[[Tensor], bool]) -> Inputs:
    """Inputs of unspecified values with a batch of `prime`."""

    def one(tensor: Tensor) -> Tensor:
        if not carries(tensor):
            return tensor
        last = tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=_LAST)
        return torch.empty(
            (prime, *tensor.shape[1:]),
            dtype=tensor.dtype,
            device=tensor.device,
            memory_format=_LAST if last else torch.contiguous_format,
        )

    mapped: Inputs = pytree.tree_map_only(Tensor, one, inputs)
    return mapped


def open_batch(module: GraphModule, prime: int) -> None:
    """Turn every size that is a multiple of `prime` into that multiple of the first input's axis 0, in place.

    Args:
        module: Exported with a batch of `prime`, state as get_attr nodes.
        prime: From `marker`.

    Raises:
        Uncertain: Something else may depend on the batch. The module is then of no use.
    """
    opener = _Opener(module, prime)
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            opener.check_constant(node)
        elif node.op == "output":
            node.args = pytree.tree_map_only(int, opener.size, node.args)
        elif node.op == "call_function" and node.target is not operator.getitem:
            opener.call(node)
    for k, node in opener.made.items():
        node.meta["val"] = k * prime
    module.graph.lint()


class _Opener:
    """Replaces sizes; `made` maps a multiple to the node that computes it."""

    def __init__(self, module: GraphModule, prime: int) -> None:
        self.module, self.prime = module, prime
        self.made: dict[int, Node] = {}
        inputs = list(module.graph.find_nodes(op="placeholder"))
        self.last = inputs[-1]
        self.source = next(n for n in inputs if _axis0(n) == prime)

    def size(self, value: int) -> Any:
        """The node in the place of a number that is a multiple of the prime; other numbers stay."""
        if isinstance(value, bool) or value <= 0 or value % self.prime:
            return value
        k = value // self.prime
        if k not in self.made:
            batch = self.made.get(1) or self._insert(1, self.last, aten.sym_size.int, (self.source, 0))
            if k > 1:
                self._insert(k, batch, operator.mul, (batch, k))
        return self.made[k]

    def _insert(self, k: int, after: Node, target: Callable[..., Any], args: tuple[Any, ...]) -> Node:
        with self.module.graph.inserting_after(after):
            self.made[k] = self.module.graph.call_function(target, args)
        return self.made[k]

    def call(self, node: Node) -> None:
        """Replace the sizes among the arguments of one call."""
        if not isinstance(node.target, torch._ops.OpOverload):
            raise Uncertain(f"{node.target} is no ATen operator")
        schema = node.target._schema
        name = schema.name.split("::")[1]
        for position, argument in enumerate(schema.arguments):
            keyword = argument.name in node.kwargs
            if not keyword and position >= len(node.args):
                continue
            value = node.kwargs[argument.name] if keyword else node.args[position]
            symbolic = _element(argument) == "SymIntType" and argument.name not in _NO_SIZES
            if symbolic or argument.name in _NUMBERS.get(name, ()):
                new = pytree.tree_map_only(int, self.size, value)
            else:
                self._check_number(node, value)
                continue
            if keyword:
                node.update_kwarg(argument.name, new)
            else:
                node.update_arg(position, new)

    def check_constant(self, node: Node) -> None:
        """Constants made while tracing may have been made from the batch."""
        value = get_state(self.module, str(node.target))
        if not isinstance(value, Tensor):
            return
        if any(n and n % self.prime == 0 for n in value.shape):
            raise Uncertain(f"the constant {node.target} has the shape {list(value.shape)}")
        if str(node.target).startswith("lifted_tensor") and value.numel() <= 64 and not value.is_meta:
            for number in value.reshape(-1).tolist():
                self._check_number(node, number)

    def _check_number(self, node: Node, value: Any) -> None:
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, int | float) and not isinstance(leaf, bool) and _looks_like(leaf, self.prime):
                raise Uncertain(f"{node.name} is given {leaf}")


def _looks_like(value: float, prime: int) -> bool:
    """A multiple of the prime, or a small whole number over it or over its root."""
    if value == 0 or value != value or abs(value) == float("inf"):
        return False
    multiple = abs(value) / prime
    if 1 <= round(multiple) < _LARGEST and abs(multiple - round(multiple)) < 1e-9 * multiple:
        return True
    over = (abs(value) * prime, abs(value) * prime**0.5, abs(value) / prime**0.5)
    return any(abs(x - round(x)) < 1e-6 * x and 1 <= round(x) <= 16 and abs(value) % 1 for x in over)


def checked_run(module: GraphModule, prime: int, inputs: Inputs) -> list[Tensor]:
    """Run the opened graph; every shape must be the recorded one with the batch of `inputs` in place of `prime`.

    Returns:
        The tensors of its output.

    Raises:
        Uncertain: A shape differs, or an operator refuses; names the node.
    """
    leaves = pytree.tree_leaves(as_arguments(inputs))
    with torch.no_grad():
        return tensors(_Checking(module, prime, batch_size(inputs)).run(*leaves, enable_io_processing=False))


class _Checking(Interpreter):
    def __init__(self, module: GraphModule, prime: int, batch: int) -> None:
        super().__init__(module)
        self.prime, self.batch = prime, batch

    def run_node(self, n: Node) -> Any:
        try:
            result = super().run_node(n)
        except Exception as error:  # any operator may refuse a size that was no batch
            raise Uncertain(f"{n.name}: {error}") from error
        recorded, got = tensors(n.meta.get("val")), tensors(result)
        if n.op == "call_function" and len(recorded) != len(got):
            raise Uncertain(f"{n.name} returns {len(got)} tensors instead of {len(recorded)}")
        for was, now in zip(recorded, got, strict=False):
            wanted = [scaled(size, self.prime, self.batch) for size in was.shape]
            if list(now.shape) != wanted:
                raise Uncertain(f"{n.name} has the shape {list(now.shape)} instead of {wanted}")
        return result


def rescale(module: GraphModule, prime: int, batch: int) -> None:
    """Let the recorded shapes show `batch` samples."""
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, int) and not isinstance(value, bool):
            node.meta["val"] = scaled(value, prime, batch)
        elif value is not None:
            node.meta["val"] = pytree.tree_map_only(Tensor, lambda t: _resized(t, prime, batch), value)
        node.meta.pop("tensor_meta", None)


def _resized(tensor: Tensor, prime: int, batch: int) -> Tensor:
    """The fake tensor as it is at another batch; axes keep their order in memory."""
    if not any(n and n % prime == 0 for n in tensor.shape):
        return tensor
    shape = [scaled(n, prime, batch) for n in tensor.shape]
    old = tensor.stride()
    order = sorted(range(tensor.ndim), key=lambda axis: -old[axis])
    strides, step = [0] * tensor.ndim, 1
    for axis in reversed(order):
        strides[axis], step = step, step * max(shape[axis], 1)
    small = torch.empty_strided(shape, strides, dtype=tensor.dtype, device="meta")
    return FakeTensor(tensor.fake_mode, small, tensor.device) if isinstance(tensor, FakeTensor) else small


def scaled(size: int, prime: int, batch: int) -> int:
    """A recorded size at another batch."""
    return size if size == 0 or size % prime else size // prime * batch


def _element(argument: Any) -> str:
    """Kind of an argument of an operator, inside lists and optionals."""
    kind = argument.real_type
    while hasattr(kind, "getElementType"):
        kind = kind.getElementType()
    return str(kind.kind())


def _axis0(node: Node) -> int:
    value = node.meta.get("val")
    return int(value.shape[0]) if isinstance(value, Tensor) and value.ndim else 0


def _is_prime(n: int) -> bool:
    return n % 2 == 1 and all(n % d for d in range(3, int(n**0.5) + 1, 2))
