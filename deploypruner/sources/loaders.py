"""A torch DataLoader, or anything else that can be iterated again and again, as batches."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from deploypruner.errors import InputError
from deploypruner.sources.arrays import class_indices
from deploypruner.sources.batches import Batches, Judgeable
from deploypruner.sources.foreign import foreign

LABEL_KEYS = ("labels", "label", "targets", "target", "y")
"""Names that labels have in dicts."""
_PEEKED_BATCHES = 20
_END = object()


@dataclass(frozen=True, eq=False)
class LoaderBatches(Batches):
    """Batches that the user's own loader makes: its batch size, its order, its augmentation.

    `epoch` seeds torch's global generator (and the loader's own) around each batch and puts it back, so that a
    loader which draws from torch is repeatable; one that draws from elsewhere is not.

    Args:
        loader: Yields x, (x,), (x, y), (x1, x2, ..., y), ((x1, x2), y) or a dict of inputs.
        name: Of the split, for errors: "train".
        labels: Class indices [n] of the first 20 batches; None without labels.
        first_shapes: Shape of one sample of each input, from the first batch.
        limit: Samples after which an epoch ends; None = all.
        has_targets: Does it yield labels of any kind? A field where `Batches` has a property.
        keys: Names of the inputs, where it yields dicts.
    """

    loader: Iterable[object]
    name: str
    labels: Tensor | None
    first_shapes: tuple[tuple[int, ...], ...]
    limit: int | None = None
    has_targets: bool = False
    keys: tuple[str, ...] = ()

    @property
    def labelled(self) -> bool:
        """See `Batches`."""
        return self.labels is not None

    @property
    def samples(self) -> int | None:
        """See `Batches`; known for a DataLoader over a sized data set and for a list of batches."""
        count = _count(self.loader)
        return count if count is None or self.limit is None else min(count, self.limit)

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        """See `Batches`."""
        return self.first_shapes

    def epoch(
        self, *, batch_size: int, seed: int = 0, shuffle: bool = False, augment: bool = False
    ) -> Iterator[Judgeable]:
        """See `Batches`; size, order and augmentation are the loader's own, whatever is asked."""
        for inputs, target in self.with_targets(batch_size=batch_size, seed=seed, shuffle=shuffle):
            yield inputs, target if self.labelled else None

    def with_targets(self, *, batch_size: int, seed: int = 0, shuffle: bool = False) -> Iterator[Judgeable]:
        """See `Batches`."""
        left = self.limit
        for inputs, target in seeded_batches(self.loader, seed, self.name):
            if left is not None:
                inputs, target = tuple(x[:left] for x in inputs), first_targets(target, left)
                left -= inputs[0].shape[0]
            yield inputs, target
            if left == 0:
                return

    def known_labels(self) -> Tensor | None:
        """See `Batches`; those of the first 20 batches, since reading all would cost an epoch."""
        return self.labels

    def origin(self, index: int) -> str:
        """See `Batches`."""
        return f"sample {index} of {self.name}"


def from_loader(loader: Iterable[object], name: str, *, limit: int | None = None) -> tuple[LoaderBatches, list[str]]:
    """Look at the first batches of a loader and wrap it.

    Returns:
        The batches, and a remark where its targets can be used for nothing.

    Raises:
        InputError: It can be iterated only once, yields nothing, or yields something that is not a batch.
    """
    if isinstance(loader, Iterator) and iter(loader) is loader:  # the others are not started for this
        raise InputError(
            f"the {name} data is a {type(loader).__name__}, which can be read only once",
            hint="give a DataLoader, a list of batches, or an object whose __iter__ starts again",
        )
    first: tuple[object, Judgeable] | None = None
    labels: list[Tensor] = []
    with closing(_seeded_items(loader, 0, name)) as items:
        for number, item in enumerate(items):
            batch = to_batch(item, name)
            first = first or (item, batch)
            indices = class_indices(batch[1]) if isinstance(batch[1], Tensor) else None
            if indices is None or number == _PEEKED_BATCHES:
                break
            labels.append(indices)
    if first is None:
        raise InputError(f"the {name} data yields no batch", hint="check the data set and drop_last")
    item, (inputs, target) = first
    shapes = tuple(tuple(x.shape[1:]) for x in inputs)
    known = torch.cat(labels) if labels else None
    remarks = []
    if target is None and _parts(item, name)[1] is not None:
        remarks.append(f"targets of the {name} data have no entry per sample: treated as unlabelled")
    return LoaderBatches(loader, name, known, shapes, limit, target is not None, _keys(item)), remarks


def seeded_batches(loader: Iterable[object], seed: int, name: str) -> Iterator[Judgeable]:
    """Iterate a loader with torch's generator seeded for it alone; the caller's random state is kept."""
    with closing(_seeded_items(loader, seed, name)) as items:
        for item in items:
            yield to_batch(item, name)


def _seeded_items(loader: Iterable[object], seed: int, name: str) -> Generator[object]:
    state = torch.Generator().manual_seed(seed).get_state()
    own = getattr(loader, "generator", None)
    kept = own.get_state() if isinstance(own, torch.Generator) else None
    if isinstance(own, torch.Generator):
        own.manual_seed(seed)
    iterator: Iterator[object] | None = None
    try:
        while True:
            with torch.random.fork_rng(devices=[]), foreign(f"the {name} data raised"):
                torch.set_rng_state(state)
                iterator = iterator or iter(loader)
                item = next(iterator, _END)
                state = torch.get_rng_state()
            if item is _END:
                return
            yield item
    finally:
        if isinstance(own, torch.Generator) and kept is not None:
            own.set_state(kept)


def to_batch(item: object, name: str) -> Judgeable:
    """Bring what a loader yields to (inputs, target), on the CPU, floats as float32.

    The target is a tensor, a tuple of tensors (one per output of the model), or a list with an entry per sample.

    Raises:
        InputError: It is no batch of tensors, or its parts differ in length.
    """
    inputs, target = _parts(item, name)
    if not inputs or not all(isinstance(value, Tensor) and value.ndim for value in inputs):
        kinds = ", ".join(type(value).__name__ for value in inputs) or "nothing"
        raise InputError(f"a batch of the {name} data holds {kinds}, not tensors", hint="yield (inputs, labels)")
    tensors = tuple(_plain(value) for value in cast(Sequence[Tensor], inputs))
    lengths = {value.shape[0] for value in tensors}
    if isinstance(target, Tensor):
        lengths |= {target.shape[0] if target.ndim else 0}
    if len(lengths) != 1:
        raise InputError(
            f"a batch of the {name} data has parts of different lengths: {sorted(lengths)}",
            hint="yield one label per sample, the batch on axis 0",
        )
    return tensors, _targets(target, lengths.pop())


def first_targets(target: Any, count: int) -> Any:
    """The targets of the first samples."""
    if isinstance(target, tuple):
        return tuple(part[:count] for part in target)
    return None if target is None else target[:count]


def _targets(target: object, size: int) -> Any:
    """Labels of `size` samples in one of the forms of `to_batch`; None for what has no entry per sample."""
    if isinstance(target, Tensor):
        indices = class_indices(target.detach().cpu())
        return target.detach().cpu() if indices is None else indices
    if isinstance(target, Mapping):
        target = list(target.values())
    if not isinstance(target, tuple | list):
        return None
    parts = list(target)
    if parts and all(isinstance(part, Tensor) and part.ndim and len(part) == size for part in parts):
        return tuple(_targets(part, size) for part in parts)
    # Boxes and classes of detections, texts: nothing can be trained on them, and the user's own metric may take them.
    return parts if len(parts) == size else None


def _parts(item: object, name: str) -> tuple[Sequence[object], object]:
    """Inputs and target of one yielded item."""
    if isinstance(item, Mapping):
        key = next((key for key in LABEL_KEYS if key in item), None)
        inputs = [item[name] for name in _keys(item)]
        return inputs, None if key is None else item[key]
    if isinstance(item, (tuple, list)):
        if len(item) < 2:
            return item, None
        first = item[0] if isinstance(item[0], (tuple, list)) and len(item) == 2 else item[:-1]
        return first, item[-1]
    return (item,), None


def _keys(item: object) -> tuple[str, ...]:
    """Names of the inputs in a dict, in the order in which `_parts` gives them; none for anything else."""
    if not isinstance(item, Mapping):
        return ()
    label = next((key for key in LABEL_KEYS if key in item), None)
    return tuple(sorted(key for key, value in item.items() if key != label and isinstance(value, Tensor)))


def _plain(value: Tensor) -> Tensor:
    value = value.detach().cpu()
    return value.float() if value.is_floating_point() or value.dtype == torch.uint8 else value


def _count(loader: Iterable[object]) -> int | None:
    if isinstance(loader, DataLoader):
        if not isinstance(loader.dataset, Sized) or loader.batch_size is None:
            return None
        drawn = len(cast(Sized, loader.sampler))
        return drawn - drawn % loader.batch_size if loader.drop_last else drawn
    if isinstance(loader, (list, tuple)):
        return sum(to_batch(item, "listed")[0][0].shape[0] for item in loader)
    return None
