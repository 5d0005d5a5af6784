"""What a weight file is, as people publish them: state dicts under keys, behind prefixes, beside an averaged copy.

Nothing here knows a framework by name. Every dict of tensors in a file is looked at, and what counts is whether its
names and shapes are those of the model, once wrappers and one common prefix are taken off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# DistributedDataParallel, torch.compile, FSDP and activation checkpointing put these before names, in any order.
_COMPILED = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_WRAPPERS = (frozenset[str](), _COMPILED, _COMPILED | {"module"})
# Of several states that fit, the one under such a key is the model; the others are copies or helpers of it.
_USUAL = ("state_dict", "model_state_dict", "model", "params", "net", "weights")
# Dicts inside dicts; no framework nests deeper.
_DEPTH = 4

State = dict[str, Tensor]


@dataclass(frozen=True)
class Fit:
    """A state of a file under the model's own names.

    Args:
        label: Where in the file it was: its keys, then the prefix of its names, joined by dots; "" for all of it.
        state: Name in the model -> tensor.
        missing: Names of the model that the file lacks.
        unexpected: Names of the file, without the prefix, that the model lacks.
        reshaped: Names of both, of another shape or kind of number.
        beside: Entries of the file outside the prefix: a loss, a teacher.
    """

    label: str
    state: State
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]
    beside: int

    @property
    def exact(self) -> bool:
        """Does it fit entry by entry?"""
        return not (self.missing or self.unexpected or self.reshaped)

    @property
    def averaged(self) -> bool:
        """Is it called an exponential moving average?"""
        return "ema" in re.split(r"[._]", self.label.lower())

    def named(self, asked: str) -> bool:
        """Is `asked` its label, or a run of the label's parts?"""
        return f".{asked.strip('.')}." in f".{self.label}."


def states(held: object, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], State]]:
    """Every dict with tensors under names in what a file held, the outermost first, with the keys that lead to it."""
    if not isinstance(held, Mapping) or len(keys) > _DEPTH:
        return
    named = {name: value for name, value in held.items() if isinstance(name, str)}
    found = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if found:
        yield keys, found
    for name, value in named.items():
        yield from states(value, (*keys, name))


def fits(held: object, own: Mapping[str, object]) -> list[Fit]:
    """How the states of a file fit a model: those that do exactly, else the one that comes closest.

    Args:
        held: What the file held.
        own: The model's state dict.
    """
    found = [fit for keys, state in states(held) for fit in _fits(keys, state, own)]
    exact = [fit for fit in found if fit.exact]
    return exact or sorted(found, key=lambda fit: -len(fit.state) + len(fit.reshaped))[:1]


def preferred(found: list[Fit]) -> list[Fit]:
    """Of states that all fit: the one average, else the one under a usual key; all of them where that is unclear."""
    averaged = [fit for fit in found if fit.averaged]
    if len(averaged) == 1:
        return averaged
    if all(_equal(fit.state, found[0].state) for fit in found[1:]):
        return found[:1]
    usual = [fit for fit in found if not fit.label or fit.label.partition(".")[0] in _USUAL]
    return usual if len(usual) == 1 and not averaged else found


def _fits(keys: tuple[str, ...], state: State, own: Mapping[str, object]) -> Iterator[Fit]:
    for wrappers in _WRAPPERS:
        theirs, ours = _bare(state, wrappers), _bare(own, wrappers)
        if len(theirs) < len(state) or len(ours) < len(own):
            continue  # two names become one
        tried = [_fit(keys, state, own, (theirs, ours, prefix)) for prefix in _prefixes(theirs, ours)]
        yield from tried
        if any(fit.exact for fit in tried):
            return


def _bare(names: Mapping[str, object], wrappers: frozenset[str]) -> dict[str, str]:
    """Name without these parts -> name."""
    return {".".join(part for part in name.split(".") if part not in wrappers): name for name in names}


def _prefixes(theirs: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    """What may stand before the model's names in the file; what the model puts before the file's has a "-" first."""
    first, file_first = next(iter(ours), ""), next(iter(theirs), "")
    longer = [name.removesuffix(first) for name in theirs if name.endswith("." + first)]
    shorter = [f"-{name.removesuffix(file_first)}" for name in ours if name.endswith("." + file_first)]
    return ["", *longer, *shorter]


def _fit(
    keys: tuple[str, ...], state: State, own: Mapping[str, object], names: tuple[dict[str, str], dict[str, str], str]
) -> Fit:
    theirs, ours, prefix = names
    lead = prefix[1:] if prefix.startswith("-") else ""
    prefix = "" if lead else prefix
    inside = {lead + name.removeprefix(prefix): full for name, full in theirs.items() if name.startswith(prefix)}
    fitted = {ours[name]: state[full] for name, full in inside.items() if name in ours}
    return Fit(
        label=".".join(filter(None, [*keys, prefix.rstrip(".")])),
        state=fitted,
        # Counters that older checkpoints lack; no output depends on them in eval mode.
        missing=tuple(n for n in own if n not in fitted and not n.endswith("num_batches_tracked")),
        unexpected=tuple(name.removeprefix(lead) for name in inside if name not in ours),
        reshaped=tuple(name for name, value in fitted.items() if not _alike(own[name], value)),
        beside=len(theirs) - len(inside),
    )


def _alike(own: object, given: Tensor) -> bool:
    if not isinstance(own, Tensor):
        return True
    # An average of counters is a float; integers in the place of weights are a quantized model.
    return own.shape == given.shape and (given.is_floating_point() or not own.is_floating_point())


def _equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
