"""Run the scoring data through the model once and collect what the criterion needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree

from deploypruner.criteria import Criterion, Needs
from deploypruner.errors import InputError, RecipeError
from deploypruner.graph import Graph
from deploypruner.graph.inputs import call, map_tensors
from deploypruner.graph.sharing import sharing_copy
from deploypruner.graph.views import gate_rows, last_affines, member_views

Batch = tuple[tuple[Any, ...], Tensor | None]
Scores = dict[str, Tensor]


def score_groups(
    graph: Graph,
    criterion: Criterion,
    batches: Iterable[Batch] | None,
    *,
    seed: int = 0,
    on_batch: Callable[[], None] = lambda: None,
) -> Scores:
    """Score every channel of every group.

    Args:
        graph: The traced model; it is not changed.
        criterion: How to score.
        batches: (inputs, labels or None); may be None for a criterion that looks at weights only.
        seed: For the labels drawn where there are none.
        on_batch: Called after each batch.

    Returns:
        Group id -> `[C]` float32 scores, larger means keep.

    Raises:
        RecipeError: The criterion needs data and there is none.
        InputError: A batch gives a loss that is not finite.
    """
    grads: dict[str, Tensor] | None = None
    gates: dict[str, Tensor] | None = None
    if criterion.needs & (Needs.GRADIENTS | Needs.GATES):
        if batches is None:
            raise RecipeError(
                f"criterion '{_name(criterion)}' looks at gradients and needs data",
                hint="pass --data DIR (labels are not required), or use --criterion magnitude",
            )
        grads, gates = _gradients(graph, batches, seed, on_batch)
    scores = {}
    for group in graph.groups:
        score = criterion.score(member_views(graph, group, grads=grads, gates=gates))
        assert score.shape == (group.size,), f"{_name(criterion)} scored {score.shape} for {group.size} channels"
        if not torch.isfinite(score).all():
            raise InputError(
                f"criterion '{_name(criterion)}' gives a score that is not finite for '{group.id}'",
                hint="check the model's weights and the scoring data for NaN and very large values",
            )
        scores[group.id] = score
    return scores


def _name(criterion: Criterion) -> str:
    return type(criterion).__name__.lower()


def _gradients(
    graph: Graph, batches: Iterable[Batch], seed: int, on_batch: Callable[[], None]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Mean gradients per parameter, and gate derivatives `[B, n]` per minibatch of every last affine layer."""
    module = sharing_copy(graph.module).requires_grad_(True)
    weights = dict(module.named_parameters(remove_duplicate=False))
    affines = list(dict.fromkeys(a for group in graph.groups for a in last_affines(graph, group)))
    device = next((w.device for w in weights.values()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)  # on the CPU, so that every device draws the same
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    gates: dict[str, list[Tensor]] = {a.weight: [] for a in affines}
    seen = 0
    for inputs, labels in batches:
        seen += 1
        placed = map_tensors(lambda t: t.to(device), inputs)
        loss = _loss(_first_tensor(call(module, placed)), labels, generator)
        if not torch.isfinite(loss):
            raise InputError(
                f"the loss of scoring batch {seen} is {loss.item()}",
                hint="check the data for NaN, and that it is normalised as the model expects",
            )
        found = _differentiate(loss, list(weights.values()))
        grads = {
            name: torch.zeros_like(w) if g is None else g for (name, w), g in zip(weights.items(), found, strict=True)
        }
        with torch.no_grad():
            for name, grad in grads.items():
                total[name] += grad
            for affine in affines:
                gates[affine.weight].append(gate_rows(affine, weights, grads))
        on_batch()
    if not seen:
        raise InputError("the scoring data has no batches", hint="check --data")
    stacked = {name: torch.stack(rows).detach().float() for name, rows in gates.items()}
    return {name: (grad / seen).float() for name, grad in total.items()}, stacked


def _differentiate(loss: Tensor, weights: list[Tensor]) -> tuple[Tensor | None, ...]:
    try:
        return torch.autograd.grad(loss, weights, allow_unused=True)
    except RuntimeError as error:
        raise InputError(
            f"the model has no gradient: {str(error).splitlines()[0][:200]}",
            hint="use --criterion magnitude, which looks at weights only",
        ) from error


def _first_tensor(output: Any) -> Tensor:
    return next(leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))


def _loss(output: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
    """Mean loss of a minibatch.

    With class labels: cross-entropy. Without: labels drawn from the model's own prediction (classifiers), or a
    unit Gaussian around it (everything else), so that the mean squared gradient estimates the Fisher information.
    """
    classifier = output.ndim == 2 and output.shape[1] > 1
    if classifier and labels is None:
        labels = torch.multinomial(output.detach().softmax(1).cpu(), 1, generator=generator).squeeze(1)
    if classifier and labels is not None:
        return functional.cross_entropy(output, labels.to(output.device))
    noise = torch.randn(output.shape, generator=generator, dtype=output.dtype).to(output.device)
    return 0.5 * functional.mse_loss(output, output.detach() + noise, reduction="sum") / len(output)
