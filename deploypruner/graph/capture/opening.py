"""Which lengths of open axes a graph is right for: what torch.export found out, and what trying them shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.export import ExportedProgram

from deploypruner.errors import InputError
from deploypruner.graph.capture.asked_axes import Asked
from deploypruner.graph.inputs import Inputs, tensors
from deploypruner.graph.nodes import is_tensor
from deploypruner.graph.open_axes import OpenAxis, Place, described, names_of, with_lengths

# A network of more than six stages of stride two is rare.
_STEPS = (1, 2, 4, 8, 16, 32, 64)
# Models that pad do so to a power of two that divides this.
_ROUND = 32
# What is tried as the other length, as parts of the example's: not far, and small before large, which costs more.
_PARTS = (0.75, 0.5, 1.5, 2.0)
# torch.export takes every length from 2 on for possible, up to its largest integer.
_SMALLEST, _UNLIMITED = 2, 2**31

Agrees: TypeAlias = Callable[[Inputs], bool | None]
"""Does the graph compute on these inputs what the model does? None where the model does not take them."""


@dataclass(frozen=True)
class Length:
    """Length of an axis of an input as torch.export sees it: `scale` times a symbol plus `offset`.

    Args:
        symbol: Its name, "" where the length is a number.
        scale: 1 or more.
        offset: Any number.
        least: Smallest value of the symbol that the graph is for, None without a limit.
        most: Largest one.
    """

    symbol: str = ""
    scale: int = 1
    offset: int = 0
    least: int | None = None
    most: int | None = None

    def at(self, value: int) -> int:
        """The length at a value of the symbol."""
        return self.scale * value + self.offset


def lengths_of(program: ExportedProgram) -> dict[Place, Length]:
    """The length of every axis of every tensor that a program takes."""
    return {
        (number, axis): _length(size, program)
        for number, tensor in enumerate(tensors_taken(program))
        for axis, size in enumerate(tensor.shape)
    }


def tensors_taken(program: ExportedProgram) -> list[Tensor]:
    """Every tensor that a program takes, without values, its open lengths as torch.export's symbols."""
    names = set(program.graph_signature.user_inputs)
    return [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in names and is_tensor(n)]


def _length(size: Any, program: ExportedProgram) -> Length:
    expression = size.node.expr if isinstance(size, torch.SymInt) else None
    if expression is None or len(expression.free_symbols) != 1:
        return Length()
    symbol = next(iter(expression.free_symbols))
    offset, one, seven = (int(expression.subs(symbol, value)) for value in (0, 1, 7))
    if one - offset < 1 or seven != offset + 7 * (one - offset):
        return Length()
    limits = program.range_constraints.get(symbol)
    if limits is None:
        return Length(str(symbol), one - offset, offset)
    least, most = int(limits.lower), int(limits.upper) if limits.upper < _UNLIMITED else None
    return Length(str(symbol), one - offset, offset, least if least > _SMALLEST else None, most)


@dataclass(frozen=True)
class Opened:
    """What came of a request.

    Args:
        axes: Those that are open.
        remarks: What a user should know of them, and of those that could not be opened.
    """

    axes: tuple[OpenAxis, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass
class _Symbol:
    """A length that can change: its value in the example, limits, and what trying it showed."""

    value: int
    least: int = 1
    most: int | None = None
    step: int = 0
    why: str = ""

    def allows(self, value: int) -> bool:
        return value >= self.least and (self.most is None or value <= self.most) and value != self.value

    def near(self, part: float, turn: int) -> int:
        """About this part of the example's length, in whole steps and within the limits."""
        steps = round((part - 1) * self.value / self.step) + turn
        lowest = -((self.value - self.least) // self.step)
        steps = max(steps, lowest)
        if self.most is not None:
            steps = min(steps, (self.most - self.value) // self.step)
        return self.value + steps * self.step


@dataclass
class Opening:
    """Settles which asked axes of a graph are open, and for which lengths.

    Args:
        lengths: Of the graph's inputs, see `lengths_of`.
        asked: Axes that are to stay open, each with what was asked; None where it need not be ("auto", or the
            program's own).
        inputs: Example inputs, two samples where the batch is open.
        names: Argument name of each tensor.
        agrees: Tries lengths.
    """

    lengths: Mapping[Place, Length]
    asked: Mapping[Place, Asked | None]
    inputs: Inputs
    names: Sequence[str]
    agrees: Agrees
    symbols: dict[str, _Symbol] = field(default_factory=dict)

    def settle(self) -> Opened:
        """Try lengths until it is known which ones the graph takes.

        Raises:
            InputError: An axis that was asked for cannot stay open, or not in all of its range; names the axis.
        """
        for place, asked in self.asked.items():
            if not self.lengths[place].symbol and asked is not None:
                raise self._fixed(place, "the model computes with this number (position embeddings, a fixed reshape)")
            if self.lengths[place].symbol:
                self._limit(place, asked)
        self._find_steps()
        for place, asked in self.asked.items():
            symbol = self.symbols.get(self.lengths[place].symbol)
            if symbol is not None and not symbol.step and asked is not None:
                raise self._fixed(place, symbol.why)
        kept = [place for place in self.asked if (s := self.symbols.get(self.lengths[place].symbol)) and s.step]
        self.symbols = {key: symbol for key, symbol in self.symbols.items() if symbol.step}
        axes = self._axes(kept, self._other()) if kept else ()
        self._check_least()
        return Opened(axes, self._remarks(axes, kept))

    def _limit(self, place: Place, asked: Asked | None) -> None:
        """Bring together what was asked and what torch.export found, for one axis."""
        length = self.lengths[place]
        value = (self._example(place) - length.offset) // length.scale
        symbol = self.symbols.setdefault(length.symbol, _Symbol(value, length.least or 1, length.most))
        if asked is None:
            return
        for limit, wanted, word in ((length.most, asked.most, "at most"), (length.least, asked.least, "at least")):
            if limit is None or wanted is None:
                continue
            taken = length.at(limit)
            if (wanted > taken) if word == "at most" else (wanted < taken):
                raise InputError(
                    f"--dynamic {asked}: {self._where(place)} is to take {wanted}, and the model takes {word} "
                    f"{taken} there",
                    hint=f"ask for a range that ends there: {self._range(place, asked, taken, word)}",
                )
        if asked.least is not None:
            symbol.least = max(symbol.least, -((length.offset - asked.least) // length.scale))
        if asked.most is not None:
            most = (asked.most - length.offset) // length.scale
            symbol.most = most if symbol.most is None else min(symbol.most, most)

    def _range(self, place: Place, asked: Asked, taken: int, word: str) -> str:
        low, high = (asked.least or 1, taken) if word == "at most" else (taken, asked.most or "")
        return f"--dynamic {self.names[place[0]]}:{place[1]}={low}..{high}"

    def _find_steps(self) -> None:
        """The distance of the lengths that the graph takes, for every symbol; 0 where it takes no other one."""
        columns = [self._neighbours(symbol, 1) for symbol in self.symbols.values()]
        longest = max(map(len, columns), default=0)
        rows = [
            [column[min(i, len(column) - 1)] for column in columns] for i in range(longest if all(columns) else 0)
        ]
        if rows and all(self._try(dict(zip(self.symbols, row, strict=True))) for row in rows):
            for symbol in self.symbols.values():
                symbol.step = 1
            return
        for key, symbol in self.symbols.items():
            symbol.why = "the model runs at no other length that was tried"
            for step in _STEPS:
                found = [self._try({key: value}) for value in self._neighbours(symbol, step)]
                if found and all(found):
                    symbol.step = step
                    break
                if False in found:
                    symbol.why = "at other lengths the model takes another path than at the example's"

    def _neighbours(self, symbol: _Symbol, step: int) -> list[int]:
        """Values a few steps away: parities differ, and powers of two divide one of them."""
        round_up = -(-(symbol.value + 1) // _ROUND) * _ROUND
        whole = [symbol.value + k * step for k in (1, 2, 3)]
        whole += [round_up] if (round_up - symbol.value) % step == 0 else []
        mirrored = [v if symbol.allows(v) else 2 * symbol.value - v for v in whole]
        return [v for v in mirrored if symbol.allows(v)]

    def _other(self) -> dict[str, int]:
        """Another length for every symbol, all at once."""
        options = [{key: s.near(part, turn) for turn, (key, s) in enumerate(self.symbols.items())} for part in _PARTS]
        options.append({key: s.near(1.0, 1 + turn) for turn, (key, s) in enumerate(self.symbols.items())})
        options.append({key: s.near(1.0, -1 - turn) for turn, (key, s) in enumerate(self.symbols.items())})
        for values in options:
            if all(self.symbols[key].allows(value) for key, value in values.items()) and self._try(values):
                return values
        raise InputError(
            "the graph is right where one open size changes, and not where all of them do",
            hint="leave one of the axes out of --dynamic",
        )

    def _axes(self, places: Sequence[Place], other: Mapping[str, int]) -> tuple[OpenAxis, ...]:
        keys = [str((self.lengths[p].symbol, self.lengths[p].scale, self.lengths[p].offset)) for p in places]
        found = []
        for place, name in zip(places, names_of(places, tensors(self.inputs), keys), strict=True):
            length, (tensor, axis) = self.lengths[place], place
            symbol, asked = self.symbols[length.symbol], self.asked[place]
            limited = symbol.least > 1 or (asked is not None and asked.least is not None)
            found.append(
                OpenAxis(
                    *(self.names[tensor], tensor, axis, name, self._example(place)),
                    other=length.at(other[length.symbol]),
                    least=length.at(symbol.least) if limited else None,
                    most=None if symbol.most is None else length.at(symbol.most),
                    step=length.scale * symbol.step,
                )
            )
        return tuple(found)

    def _check_least(self) -> None:
        """Where a user said how short an axis may be, the model has to run there, and the graph with it."""
        for place, asked in self.asked.items():
            symbol = self.symbols.get(self.lengths[place].symbol)
            if symbol is None or asked is None or asked.least is None:
                continue
            shortest = symbol.near(0.0, 0)
            if not symbol.allows(shortest) or (found := self._try({self.lengths[place].symbol: shortest})):
                continue
            why = "does not run" if found is None else "takes another path than at the example's length"
            raise InputError(
                f"--dynamic {asked}: with length {self.lengths[place].at(shortest)} on {self._where(place)} the "
                f"model {why}",
                hint="begin the range at a longer one",
            )

    def _remarks(self, axes: Sequence[OpenAxis], kept: Sequence[Place]) -> tuple[str, ...]:
        remarks = [f"open beside the batch: {described(axes)}"] if axes else []
        for place in self.asked:
            if place not in kept:
                length = self.lengths[place]
                why = "the model computes with this number"
                if length.symbol in self.symbols or length.symbol:
                    why = "the graph is right at no other length that was tried"
                remarks.append(f"{self._where(place)} stays {self._example(place)}: {why}")
        return tuple(remarks)

    def _try(self, values: Mapping[str, int]) -> bool | None:
        """The outcome with these values of symbols, every other one as in the example."""
        new = {p: length.at(values[length.symbol]) for p, length in self.lengths.items() if length.symbol in values}
        return self.agrees(with_lengths(self.inputs, new))

    def _example(self, place: Place) -> int:
        return int(tensors(self.inputs)[place[0]].shape[place[1]])

    def _where(self, place: Place) -> str:
        return f"axis {place[1]} of '{self.names[place[0]]}'"

    def _fixed(self, place: Place, why: str) -> InputError:
        length = self._example(place)
        given = tensors(self.inputs)
        alike = next(
            (
                p
                for p in self.lengths
                if p[0] != place[0] and p not in self.asked and p[1] and given[p[0]].shape[p[1]] == length
            ),
            None,
        )
        hint = "leave this axis out of --dynamic, or take the size from the input's shape in forward"
        if alike is not None:
            axes = ",".join(map(str, sorted({place[1], alike[1]})))
            hint = (
                f"{self._where(alike)} is as long and was not asked for: try --dynamic {axes}; or leave this axis out"
            )
        return InputError(f"{self._where(place)} cannot stay open, it is {length} in the graph: {why}", hint=hint)
