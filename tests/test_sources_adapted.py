from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from deploypruner.errors import InputError
from deploypruner.recipe.data import DataSettings
from deploypruner.sources.adapted import Unlabelled, WholeBatches
from deploypruner.sources.arrays import ArrayBatches
from deploypruner.sources.batches import Batches
from deploypruner.sources.loaders import from_loader


def arrays(count: int) -> Batches:
    """Sample i is [i, i] with label i."""
    x = torch.arange(count, dtype=torch.float32)[:, None].repeat(1, 2)
    return ArrayBatches(x, torch.arange(count), "train", DataSettings())


def loader(count: int, size: int) -> Batches:
    """The same samples from a loader that decides the batch size."""
    x = torch.arange(count, dtype=torch.float32)[:, None].repeat(1, 2)
    return from_loader(
        [(x[i : i + size], torch.arange(count)[i : i + size]) for i in range(0, count, size)], "train"
    )[0]


def read(batches: Batches, batch_size: int, **options: object) -> list[tuple[list[float], list[int] | None]]:
    return [
        (inputs[0][:, 0].tolist(), None if labels is None else labels.tolist())
        for inputs, labels in batches.epoch(batch_size=batch_size, **options)
    ]


@pytest.mark.parametrize("asked", [1, 4, 100])
@pytest.mark.parametrize("inner", [arrays(10), loader(10, 3), loader(10, 7), loader(10, 10)])
def test_whole_batches_have_one_size_whatever_is_asked(inner, asked):
    found = read(WholeBatches(inner, 4), asked)
    assert found == [([0, 1, 2, 3], [0, 1, 2, 3]), ([4, 5, 6, 7], [4, 5, 6, 7])]


def test_whole_batches_count_what_they_yield():
    whole = WholeBatches(arrays(10), 4)
    assert whole.samples == sum(len(x) for x, _ in read(whole, 4)) == 8
    assert whole.input_shapes == ((2,),)
    assert isinstance(whole.known_labels(), Tensor)


def test_whole_batches_follow_the_seed():
    whole = WholeBatches(arrays(10), 4)
    assert read(whole, 4, seed=1, shuffle=True) == read(whole, 4, seed=1, shuffle=True)
    assert read(whole, 4, seed=1, shuffle=True) != read(whole, 4, seed=2, shuffle=True)


def test_a_split_smaller_than_one_batch_is_refused():
    with pytest.raises(InputError, match="batches of exactly 4 samples, and a split of the data has only 3"):
        WholeBatches(arrays(3), 4)


def test_unlabelled_gives_the_same_inputs_without_labels():
    bare = Unlabelled(arrays(5))
    assert [x for x, _ in read(bare, 2)] == [x for x, _ in read(arrays(5), 2)]
    assert all(labels is None for _, labels in read(bare, 2))
    assert (bare.labelled, bare.samples, bare.known_labels()) == (False, 5, None)
    assert bare.origin(3) == arrays(5).origin(3)
    assert np.prod(bare.input_shapes) == 2
