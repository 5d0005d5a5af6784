"""The mask that soft ones end in: exactly so many entries of every row."""

from __future__ import annotations

import torch
from torch import Tensor

Keep = int | Tensor


def rows_of(keep: Keep, like: Tensor) -> Tensor:
    """`keep` as an int64 tensor `[...]`, one number for every row of `like` `[..., n]`."""
    count = torch.as_tensor(keep, device=like.device)
    assert not count.is_floating_point(), f"a number of entries to keep is whole, got {count.dtype}"
    return count.expand(like.shape[:-1])


def top_mask(values: Tensor, keep: Keep) -> Tensor:
    """Bool `[..., n]`: the `keep` largest values of every row; of equal ones the first.

    Args:
        values: `[..., n]`.
        keep: How many stay, one number or one for every row `[...]`; from 0 to n.
    """
    ranks = values.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return ranks < rows_of(keep, values)[..., None]
