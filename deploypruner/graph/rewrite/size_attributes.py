"""Where a module of any class keeps the lengths of axes that shrink: its integer attributes, read by their values."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.fx import Node

from deploypruner.graph.labels.labelling import Labelling
from deploypruner.graph.labels.lazy_axes import JointAxis
from deploypruner.graph.nodes import is_tensor, shape_of

# Sizes of these follow from their weights; what else they hold (strides, padding) is no length of an axis.
_TORCH_LAYERS = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.Bilinear,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.PReLU,
)


@dataclass(frozen=True)
class SizeChoice:
    """An attribute whose value may have to change.

    Args:
        module: Its owner.
        name: Attribute name.
        kind: Equal for attributes that must be read alike: class, name, old value and options.
        options: Values it may take, the likeliest first.
    """

    module: nn.Module
    name: str
    kind: tuple[Any, ...]
    options: tuple[Any, ...]

    def apply(self, value: Any) -> None:
        """Set the attribute."""
        setattr(self.module, self.name, value)


class Renames:
    """Old length -> new lengths, per module, of all axes of all tensors the module works on.

    Args:
        labelling: Labels; of tensors where the front end knows them, else of parameters only.
        removed: Bool over atoms.
    """

    def __init__(self, labelling: Labelling, removed: NDArray[np.bool_]) -> None:
        self._lost: dict[int, int] = {}
        self._atoms, self._removed = labelling.atoms, removed
        self.lengths: dict[str, dict[int, Counter[int]]] = defaultdict(lambda: defaultdict(Counter))
        self.lists: dict[str, dict[tuple[int, ...], Counter[tuple[int, ...]]]] = defaultdict(
            lambda: defaultdict(Counter)
        )
        for node, values in labelling.values.items():
            self._tensor(node, values)
        for state in labelling.all_state.values():
            shape = tuple(state.tensor.shape)
            new = self._kept(state.axes, shape)
            for name in state.names:
                owner = name.rpartition(".")[0]
                for path in (owner, owner.rpartition(".")[0]):
                    self._note(path, shape, new)

    def _tensor(self, node: Node, values: Any) -> None:
        if not isinstance(values, list):
            return
        paths = {module_path(node)} | {module_path(user) for user in node.users}
        if is_tensor(node):
            shape = tuple(shape_of(node))
            for path in paths:
                self._note(path, shape, self._kept(values, shape))
        elif all(isinstance(v, list) for v in values) and len({len(v) for v in values}) == 1:
            self._pieces(node, values, paths)

    def _pieces(self, node: Node, values: list[list[Any]], paths: set[str]) -> None:
        """The lengths of the pieces of a split, together: the list a module may hold them in."""
        shapes = [tuple(int(size) for size in piece.shape) for piece in node.meta["val"]]
        kept = [self._kept(axes, shape) for axes, shape in zip(values, shapes, strict=True)]
        for old, new in zip(zip(*shapes, strict=True), zip(*kept, strict=True), strict=True):
            for path in paths:
                self.lists[path][old][new] += 1

    def _note(self, path: str, old: tuple[int, ...], new: tuple[int, ...]) -> None:
        self.lists[path][old][new] += 1
        for before, after in zip(old, new, strict=True):
            self.lengths[path][before][after] += 1

    def _kept(self, axes: list[Any], shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(size - self._gone(axis) for axis, size in zip(axes, shape, strict=True))

    def _gone(self, axis: Any) -> int:
        if axis is None:
            return 0
        if id(axis) not in self._lost:
            lost: Any
            if isinstance(axis, JointAxis) and axis.joint.axes is None:
                gone = axis.joint.gone(self._removed)
                lost = gone.all(axis=tuple(d for d in range(gone.ndim) if d != axis.position))
            else:
                lost = self._atoms.gone(axis.labels() if isinstance(axis, JointAxis) else axis, self._removed)
            self._lost[id(axis)] = 0 if lost is None else int(lost.sum())
        return self._lost[id(axis)]


def choices(model: nn.Module, renames: Renames) -> tuple[list[SizeChoice], list[SizeChoice]]:
    """Every attribute that may hold a length that shrank: those with one reading, and those with several."""
    certain: list[SizeChoice] = []
    doubtful: list[SizeChoice] = []
    for path, module in model.named_modules():
        if isinstance(module, _TORCH_LAYERS) or path not in renames.lengths:
            continue
        for name, value, options in _readings(module, path, renames):
            kind = (type(module), name, repr(value), repr(options))
            (certain if len(options) == 1 else doubtful).append(SizeChoice(module, name, kind, options))
    return certain, doubtful


def _readings(module: nn.Module, path: str, renames: Renames) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """(attribute, value, plausible new values) of the attributes of one module that may change."""
    for name, value in vars(module).items():
        if name.startswith("_"):
            continue
        if type(value) is int and value > 1:
            options = _ranked(renames.lengths[path].get(value, Counter()), value)
        elif isinstance(value, list | tuple) and len(value) > 1 and all(type(v) is int for v in value):
            known = renames.lists[path].get(tuple(value))
            found = _ranked(known, tuple(value)) if known else _by_element(value, renames.lengths[path])
            options = tuple(type(value)(v) for v in found) if type(value) in (list, tuple) else ()
        else:
            continue
        if options and options != (value,):
            yield name, value, options


def _ranked(seen: Counter[Any], old: Any) -> tuple[Any, ...]:
    """What an old value became, changed ones before an unchanged one, frequent ones first."""
    return tuple(sorted(seen, key=lambda new: (new == old, -seen[new], new)))


def _by_element(values: Any, lengths: dict[int, Counter[int]]) -> tuple[Any, ...]:
    new = tuple(_ranked(lengths.get(v, Counter()), v)[:1] or (v,) for v in values)
    changed = tuple(n[0] for n in new)
    return (changed, tuple(values)) if changed != tuple(values) else ()


def group_counts(labelling: Labelling, removed: NDArray[np.bool_]) -> dict[str, int]:
    """Module path -> number of groups that remain of its grouped convolution or group norm."""
    found = {}
    for site, (_, labels) in labelling.counts.items():
        gone = labelling.atoms.gone(labels, removed)
        if gone is not None:
            found[site if isinstance(site, str) else module_path(site)] = int((~gone).sum())
    return found


def module_path(node: Node) -> str:
    """Name of the module whose forward made this call, "" for the model itself."""
    modules = list((node.meta.get("nn_module_stack") or {}).values())
    return str(modules[-1][0]).partition("@")[0] if modules else ""
