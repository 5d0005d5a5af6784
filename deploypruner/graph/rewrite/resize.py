"""The pruned model in the user's own class: a structural copy whose state and sizes are cut by the labels.

State is sliced under its own names, so ties, parametrizations, hooks, modes and `requires_grad` stay. A layer of
torch.nn gets its sizes from its new weights. Any other module holds sizes in attributes nobody can name in general,
so integers that equal the old length of an axis the module works on become its new length; where that is
ambiguous there are several `variants`, and the caller keeps the first that computes what it should.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deploypruner.errors import PlanError
from deploypruner.graph.labels.labelling import Labelling
from deploypruner.graph.rewrite.branch_stand_ins import within
from deploypruner.graph.rewrite.size_attributes import Renames, SizeChoice, choices, group_counts

# Of 2^k ways to read k ambiguous attributes, as many as this are tried.
_MOST_VARIANTS = 12


class Resized:
    """A copy of a model without the removed channels.

    Args:
        model: The user's module; it is not changed. The copy owns its weights.
        labelling: Labels of the model's parameters, from either front end.
        removed: Bool over atoms.
        instead: Name of a sub-module -> what takes its place, see `graph.rewrite.branch_stand_ins`.

    Attributes:
        module: The copy, with the state and the torch.nn layers cut.

    Raises:
        PlanError: A tensor that shrinks is not state of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        labelling: Labelling,
        removed: NDArray[np.bool_],
        *,
        instead: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.module = structural_copy(model, instead=instead)
        _cut_state(self.module, labelling, removed, left_out=instead or {})
        counts = group_counts(labelling, removed)
        for path, module in self.module.named_modules():
            set_sizes(module, counts.get(path))
        self._renames = Renames(labelling, removed)
        # Switching drops what some models cache in eval mode: a table of the old sizes.
        self.module.train()
        self.module.eval()

    def variants(self) -> Iterator[nn.Module]:
        """`module` with its integer attributes changed in one plausible way after another, the likeliest first.

        It is one module that changes with every step.
        """
        certain, doubtful = choices(self.module, self._renames)
        for choice in certain:
            choice.apply(choice.options[0])
        # One reading serves all modules of a class: what `window` means does not differ from block to block.
        kinds: dict[tuple[Any, ...], list[SizeChoice]] = {}
        for choice in doubtful:
            kinds.setdefault(choice.kind, []).append(choice)
        every = itertools.product(*(range(len(members[0].options)) for members in kinds.values()))
        likeliest_first = sorted(itertools.islice(every, 1 << 12), key=sum)
        for numbers in likeliest_first[:_MOST_VARIANTS]:
            for number, members in zip(numbers, kinds.values(), strict=True):
                for choice in members:
                    choice.apply(choice.options[number])
            yield self.module


def structural_copy(model: nn.Module, *, instead: Mapping[str, nn.Module] | None = None) -> nn.Module:
    """A copy of the modules, hooks and attributes of a model around the very same tensors.

    Sharing them in the memo of deepcopy also copies what deepcopy refuses: cached tensors with a history.

    Args:
        model: Any module.
        instead: Name of a sub-module -> what takes its place in the copy, as it is.
    """
    memo: dict[int, Any] = {id(model.get_submodule(name)): module for name, module in (instead or {}).items()}
    for module in model.modules():
        held = (*module._parameters.values(), *module._buffers.values(), *vars(module).values())
        memo.update({id(t): t for t in held if isinstance(t, Tensor)})
    return copy.deepcopy(model, memo)


def owned_copy(model: nn.Module, *, instead: Mapping[str, nn.Module] | None = None) -> nn.Module:
    """A copy with parameters and buffers of its own; cached tensors stay shared. See `structural_copy`."""
    copied = structural_copy(model, instead=instead)
    given = {id(t) for module in (instead or {}).values() for t in (*module.parameters(), *module.buffers())}
    for tensor, names in state_names(copied).values():
        if id(tensor) in given:
            continue
        new = _own(tensor, [])
        for name in names:
            _replace(copied, name, new)
    return copied


def _cut_state(
    module: nn.Module, labelling: Labelling, removed: NDArray[np.bool_], *, left_out: Mapping[str, nn.Module]
) -> None:
    """Give `module` state of its own: cut where labels say so, a clone everywhere else; none for what is left out."""
    names = state_names(module)
    owners = {name: tensor_id for tensor_id, (_, ns) in names.items() for name in ns}
    axes = {}
    for state in labelling.all_state.values():
        known = next((name for name in state.names if name in owners), None)
        gone = [labelling.atoms.gone(labels, removed) for labels in state.axes]
        if known is not None:
            axes[owners[known]] = gone
        elif any(g is not None for g in gone) and not within(state.names[0], left_out):
            held = _plain_tensor(module, state.names[0])
            if held is None:
                raise PlanError(
                    f"'{state.names[0]}' shrinks and is no parameter or buffer of the model",
                    hint="use dp.remove, which gives the pruned graph",
                )
            names[id(held)] = (held, [state.names[0]])
            axes[id(held)] = gone
    for tensor_id, (tensor, aliases) in names.items():
        new = _own(tensor, axes.get(tensor_id, []))
        for name in aliases:
            _replace(module, name, new)


def state_names(module: nn.Module) -> dict[int, tuple[Tensor, list[str]]]:
    """id(tensor) -> the tensor and every name of it, over parameters and buffers."""
    found: dict[int, tuple[Tensor, list[str]]] = {}
    for name, tensor in itertools.chain(
        module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
    ):
        found.setdefault(id(tensor), (tensor, []))[1].append(name)
    return found


def _own(tensor: Tensor, gone: list[NDArray[np.bool_] | None]) -> Tensor:
    """A new tensor of the same kind with the marked indices of each axis left out."""
    new = tensor.detach()
    for axis, mask in enumerate(gone):
        if mask is not None:
            new = new.index_select(axis, torch.as_tensor(np.flatnonzero(~mask), device=new.device))
    if new.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr():
        new = new.clone()
    return nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new


def _plain_tensor(module: nn.Module, name: str) -> Tensor | None:
    """The tensor a module holds as an ordinary attribute, None where there is none."""
    owner, _, leaf = name.rpartition(".")
    try:
        found = vars(module.get_submodule(owner)).get(leaf)
    except AttributeError:
        return None
    return found if isinstance(found, Tensor) else None


def _replace(module: nn.Module, name: str, new: Tensor) -> None:
    """Put a tensor where one of this name is, as what that one was."""
    owner_name, _, leaf = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    for kind in (owner._parameters, owner._buffers, vars(owner)):
        if leaf in kind:
            kind[leaf] = new  # type: ignore[assignment]


def set_sizes(module: nn.Module, groups: int | None = None) -> None:
    """Make the size attributes of one torch.nn layer agree with its weight.

    Args:
        module: Any module; those that are not of torch.nn are left alone.
        groups: New number of groups of a grouped convolution or group norm, None where it stays.
    """
    if isinstance(module, nn.RNNBase):
        module.input_size = module.get_parameter("weight_ih_l0").shape[1]
        # The list its kernel reads, which would still hold the old tensors.
        module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
        return
    # What a hook computes the weight from is cut; the weight itself is there again after the next forward pass.
    kept = (module._parameters.get(name) for name in ("weight_v", "weight_orig"))
    weight = next((tensor for tensor in kept if tensor is not None), getattr(module, "weight", None))
    if not isinstance(weight, Tensor):
        return
    shape = tuple(weight.shape)
    match module:
        case nn.modules.conv._ConvNd():
            module.groups = groups or module.groups
            across = shape[1] * module.groups
            module.in_channels, module.out_channels = (shape[0], across) if module.transposed else (across, shape[0])
        case nn.Linear():
            module.out_features, module.in_features = shape
        case nn.modules.batchnorm._NormBase():
            module.num_features = shape[0]
        case nn.LayerNorm() | nn.RMSNorm():
            module.normalized_shape = shape
        case nn.GroupNorm():
            module.num_channels, module.num_groups = shape[0], groups or module.num_groups
        case nn.Embedding() | nn.EmbeddingBag():
            module.num_embeddings, module.embedding_dim = shape
        case nn.PReLU():
            module.num_parameters = shape[0]
        case nn.Bilinear():
            module.out_features, module.in1_features, module.in2_features = shape
