"""The scoring data, minibatch by minibatch, in parts whose passes fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from deploypruner.errors import InputError
from deploypruner.graph import Graph
from deploypruner.graph.execute.shared_weights import sharing_copy
from deploypruner.graph.inputs import Inputs, batch_size, call, carries_batch, map_tensors, resized, tensors
from deploypruner.losses import BY_SHAPE, Labels, ModelLoss, labels_at

Batch = tuple[tuple[Any, ...], Labels]

# Bytes a backward pass may hold at one time on a CPU, so that ResNet-50 at 224 scores within 2 GB. A constant: the
# numbers must not depend on what else runs. Of a GPU's memory it is this share.
_HELD = 384 << 20
_SHARE = 0.25


@dataclass
class BatchPart:
    """Some samples of a minibatch.

    Args:
        inputs: On the device of the model.
        labels: Of these samples, or None.
        share: Of the minibatch's samples, so that losses and gradients weighted with it add up to the mean.
        targets: What the outputs are compared with; drawn once, so that every pass has the same loss.
    """

    inputs: Inputs
    labels: Labels
    share: float
    targets: list[Tensor] | None = None


class Passes:
    """A copy of the model with shared weights, and the data that is run through it.

    Minibatches are cut into parts only where the model runs at any batch size; in inference mode the mean over
    parts is the mean over the minibatch.

    Args:
        graph: The traced model.
        batches: (inputs, labels or None).
        seed: For targets and probes.
        on_batch: Called after each minibatch.
        limit: Minibatches to look at, None for all.
        held: Bytes a backward pass may hold, None for the device's own limit.
        loss: Of every output; by shape where None.
    """

    def __init__(
        self,
        graph: Graph,
        batches: Iterable[Batch],
        *,
        seed: int,
        on_batch: Callable[[], None] = lambda: None,
        limit: int | None = None,
        held: int | None = None,
        loss: ModelLoss | None = None,
    ) -> None:
        self._loss = loss or BY_SHAPE
        self.graph = graph
        self.module = _computing(sharing_copy(graph.module)).requires_grad_(True)
        self.weights = dict(self.module.named_parameters(remove_duplicate=False))
        self._dtype = next((w.dtype for w in self.weights.values() if w.is_floating_point()), torch.float32)
        self.device = next((w.device for w in self.weights.values()), torch.device("cpu"))
        self.generator = torch.Generator().manual_seed(seed)
        self._batches = islice(iter(batches), limit)
        self._on_batch = on_batch
        self._held = held or _limit(self.device)

    def minibatches(self, *, holds: float = 1) -> Iterator[tuple[int, list[BatchPart]]]:
        """Number (from 1) and parts of each minibatch.

        Args:
            holds: How much more a pass holds than what one forward pass leaves for a backward pass; 0 for nothing.

        Raises:
            InputError: There is no batch.
        """
        number = 0
        for number, (inputs, labels) in enumerate(self._batches, start=1):
            placed = map_tensors(self._placed, inputs)
            yield number, list(self._parts(placed, labels, holds))
            self._on_batch()
        if not number:
            raise InputError("the scoring data has no batches", hint="check --data")

    def loss(self, part: BatchPart, output: Any) -> Tensor:
        """Mean loss of a part, weighted with its share."""
        outputs = [leaf for leaf in tensors(output) if leaf.is_floating_point()]
        if part.targets is None:
            part.targets = self._loss.targets(outputs, part.labels, self.generator)
        return self._loss.against(outputs, part.targets, part.labels) * part.share

    def signs(self, like: Tensor) -> Tensor:
        """A tensor of random signs, the same on every device."""
        return torch.randint(0, 2, like.shape, generator=self.generator).to(like) * 2 - 1

    def _placed(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self._dtype if tensor.is_floating_point() else tensor.dtype)

    def _parts(self, inputs: Inputs, labels: Labels, holds: float) -> Iterator[BatchPart]:
        samples = batch_size(inputs)
        size = samples
        if holds and samples > 1 and self.graph.dynamic_batch:
            size = max(1, min(samples, int(self._held / max(1, holds * self._bytes(inputs)))))
        for start in range(0, samples, size):
            stop = min(start + size, samples)
            yield BatchPart(
                _samples(inputs, start, stop),
                labels_at(labels, slice(start, stop)),
                (stop - start) / samples,
            )

    def _bytes(self, inputs: Inputs) -> int:
        """What autograd keeps for one sample, measured on the first of them once."""
        if self._kept is None:
            self._kept = _kept_bytes(self, inputs)
        return self._kept

    _kept: int | None = None


def _computing(module: nn.Module) -> nn.Module:
    """In float32 where the weights have 16 bits: squares and sums of gradients need more than that."""
    short = any(w.dtype in (torch.float16, torch.bfloat16) for w in module.parameters())
    return module.float() if short else module


def checked(loss: float, number: int) -> float:
    """A loss that is a number.

    Raises:
        InputError: It is not; names the minibatch.
    """
    if not torch.isfinite(torch.tensor(loss)):
        raise InputError(
            f"the loss of scoring batch {number} is {loss}",
            hint="check the data for NaN, and that it is normalised as the model expects",
        )
    return loss


def differentiate(
    loss: Tensor,
    weights: Sequence[Tensor],
    *,
    again: bool = False,
    keep: bool = False,
    what: str = "gradient",
) -> tuple[Tensor | None, ...]:
    """Gradients, None for what the loss does not depend on.

    Args:
        loss: A scalar.
        weights: With respect to these.
        again: Make the gradients differentiable.
        keep: Keep the graph for another pass.
        what: What this is, for a message.

    Raises:
        InputError: There is none.
    """
    try:
        return torch.autograd.grad(loss, weights, allow_unused=True, create_graph=again, retain_graph=again or keep)
    except RuntimeError as error:
        raise InputError(
            f"the model has no {what}: {str(error).splitlines()[0][:200]}",
            hint=f"use --criterion {'taylor' if 'second' in what else 'magnitude, which looks at weights only'}",
        ) from error


def _samples(inputs: Inputs, start: int, stop: int) -> Inputs:
    return map_tensors(lambda t: t[start:stop] if carries_batch(t, inputs) else t, inputs)


def _limit(device: torch.device) -> int:
    if device.type == "cuda":
        return int(_SHARE * torch.cuda.get_device_properties(device).total_memory)
    return _HELD


def _kept_bytes(passes: Passes, inputs: Inputs) -> int:
    own = {w.untyped_storage().data_ptr() for w in passes.weights.values()}
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    two = resized(inputs, 2)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = call(passes.module, two)
    del output
    return sum(seen.values()) // 2
