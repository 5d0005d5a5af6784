"""A pattern and a share of zeros for every layer of a model that has none yet: predicted, measured, corrected.

    1  the int8 model is timed dense, and with 1x4 at one sparsity wherever zeros may be: the reference
    2  what each layer took there / what the machine's rates say corrects all that is predicted of it
    3  `sparsity.assign.solver` fills the layers within the budget
    4  that filling is timed, its layers are corrected again, and 3 is repeated

Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import floor
from pathlib import Path

import numpy as np
import onnx
from torch import Tensor

from deploypruner.errors import BudgetError, InputError
from deploypruner.latency.clock import Clock, current_clock
from deploypruner.latency.sparse_costs import MeasuredCosts
from deploypruner.onnx_file import write_onnx
from deploypruner.onnx_graph import read_graph
from deploypruner.runtime import Array
from deploypruner.scratch import scratch
from deploypruner.search.latency_search import OutOfReach
from deploypruner.sparse.cost import Rates
from deploypruner.sparse.layer import Operation, Weighted
from deploypruner.sparse.match import match
from deploypruner.sparse.partition import Sides
from deploypruner.sparse.rewrite import rewrite
from deploypruner.sparsity.assign.filling import REFERENCE, Fillable
from deploypruner.sparsity.assign.solver import Filling, PatternOption, fastest_ns, fill

_ROUNDS = 2


@dataclass(frozen=True)
class PatternRequest:
    """What is to be filled.

    Args:
        dense: QDQ file of the model, without zeros.
        weights: Layer name, as `match` gives it -> weight [O, I, *kernel] of each layer that may have zeros.
        rates: Of the machine.
        feeds: One array per input, as many images as the model is to run with.
        threads: Of the runtime.
        sparsity: Of the reference, 1x4 at this share of zeros in all of `weights`.
        speedup: Over the dense model; None for as fast as the reference.
        seed: Of the solver's restarts.
        say: Told what is done.
        clock: Says what layers take.
    """

    dense: Path
    weights: Mapping[str, Tensor]
    rates: Rates
    feeds: Sequence[Array]
    threads: int = 1
    sparsity: float = 0.8
    speedup: float | None = None
    seed: int = 0
    say: Callable[[str], None] = lambda line: None
    clock: Clock = field(default_factory=current_clock)


@dataclass(frozen=True)
class LayerFilling:
    """What one layer gets.

    Args:
        name: Of the layer, as `match` gives it.
        pattern: Registered name, or "dense".
        sparsity: Share of its weights that become zero.
        kept: Share of its saliency that stays.
        sparse: Is it predicted to run in our kernels?
        sparse_us: Predicted there.
        dense_us: Measured in OpenVINO.
    """

    name: str
    pattern: str
    sparsity: float
    kept: float
    sparse: bool
    sparse_us: float
    dense_us: float


@dataclass(frozen=True)
class Assignment:
    """Result of `assign`. Milliseconds are OpenVINO's counters, of one inference.

    Args:
        layers: Every layer that may have zeros, in the graph's order.
        dense_ms: Of the model with no layer in our kernels.
        reference_ms: Predicted with the reference, each layer where it is faster.
        budget_ms: For the model.
        predicted_ms: Of the model with these layers.
        kept: Mean share of saliency that the layers keep.
        reference_kept: The same for the reference.
        trials: (predicted, measured) milliseconds in our kernels, of each filling that was timed on the way.
    """

    layers: tuple[LayerFilling, ...]
    dense_ms: float
    reference_ms: float
    budget_ms: float
    predicted_ms: float
    kept: float
    reference_kept: float
    trials: tuple[tuple[float, float], ...] = field(default=())

    @property
    def speedup(self) -> float:
        """Predicted, over the model with no layer in our kernels."""
        return self.dense_ms / self.predicted_ms


def assign(request: PatternRequest) -> Assignment:
    """Choose pattern and share of zeros of every layer so that most saliency is kept within the budget.

    The saliency of a weight is its square, as for every mask, and counts in shares of its layer's.

    Raises:
        OutOfReach: The budget is; the message says what is not.
        InputError: OpenVINO cannot run the model, or no layer of it fits the kernels.
        KernelError: The kernels cannot run here.
    """
    return _Search(request).run()


class _Search:
    """Everything that is known so far."""

    def __init__(self, request: PatternRequest) -> None:
        self._request = request
        rates = replace(request.rates, images=request.feeds[0].shape[0] if request.feeds else 1)
        self._model = read_graph(onnx.load(request.dense))
        self._layers = match(self._model.graph).layers
        names = {layer.name for layer in self._layers}
        self._fillable = {
            number: Fillable.of(layer, request.weights[layer.name], rates, reference=request.sparsity)
            for number, layer in enumerate(self._layers)
            # A weight that two layers share would have to suit both.
            if isinstance(layer, Weighted) and layer.name in request.weights and f"{layer.name}'" not in names
        }
        if not self._fillable:
            raise InputError("no layer that may have zeros fits the sparse kernels", hint="see --sparse-layers")
        self._first = {n: f.option(REFERENCE, request.sparsity) for n, f in self._fillable.items()}
        layers = [self._layer(n, self._first) for n in range(len(self._layers))]
        self._costs = self._timed(layers)
        for number, option in self._first.items():
            self._fillable[number].correct(option, self._costs.sparse(layers[number]))

    def run(self) -> Assignment:
        """See `assign`."""
        filling, trials = self._filled(), []
        for _ in range(_ROUNDS):
            if not any(filling.sparse):
                break
            trials.append(self._trial(filling))
            self._request.say(
                f"layers in sparse kernels: {trials[-1][0]:.3g} ms predicted, {trials[-1][1]:.3g} measured"
            )
            filling, before = self._filled(), filling
            if filling.options == before.options:
                break
        return self._result(filling, trials)

    def _filled(self) -> Filling:
        """The best filling by what is known."""
        try:
            return fill(self._sides(), self._ladders(), self._budget_ns(), seed=self._request.seed)
        except BudgetError as error:
            raise self._out_of_reach() from error

    def _trial(self, filling: Filling) -> tuple[float, float]:
        """Time a filling and learn from it; milliseconds of its layers in our kernels, predicted and measured."""
        ours = [number for number, sparse in enumerate(filling.sparse) if sparse]
        layers = [self._layer(number, filling.options) for number in ours]
        found = self._timed(layers)
        # A disturbance only ever makes things longer: of dense layers the least counts, and what they all take more
        # than that now, the sparse ones beside them do too.
        dense = {name: min(ns, found.dense_ns.get(name, ns)) for name, ns in self._costs.dense_ns.items()}
        known = dense.keys() & found.dense_ns.keys()
        drift = sum(found.dense_ns[name] for name in known) / sum(dense[name] for name in known) if known else 1.0
        predicted = measured = 0.0
        for number, layer in zip(ours, layers, strict=True):
            ns = found.sparse(layer) / drift
            measured += ns
            if number in filling.options:
                predicted += filling.options[number].ns
                self._fillable[number].correct(filling.options[number], ns)
            else:
                predicted += self._costs.sparse(layer)
        before = self._costs
        self._costs = replace(
            before,
            dense_ns=dense,
            rest_ns=min(before.rest_ns, found.rest_ns),
            sparse_ns={**before.sparse_ns, **_divided(found.sparse_ns, drift)},
            enter_ns={**before.enter_ns, **_divided(found.enter_ns, drift)},
            leave_ns={**before.leave_ns, **_divided(found.leave_ns, drift)},
        )
        return predicted / 1e6, measured / 1e6

    def _timed(self, layers: Sequence[Operation]) -> MeasuredCosts:
        """Costs with these layers in our kernels and the others in OpenVINO."""
        request = self._request
        with scratch() as folder:
            path = folder / "sparse.onnx"
            write_onnx(rewrite(self._model, layers), path)
            return request.clock.layer_costs(
                request.dense, path, layers, feeds=request.feeds, threads=request.threads, rates=request.rates
            )

    def _layer(self, number: int, options: Mapping[int, PatternOption]) -> Operation:
        """A layer as the options fill it."""
        return self._fillable[number].filled(options[number]) if number in options else self._layers[number]

    def _sides(self) -> Sides:
        return Sides(self._model.graph, self._layers, self._costs)

    def _ladders(self) -> dict[int, list[PatternOption]]:
        return {number: fillable.ladder() for number, fillable in self._fillable.items()}

    @property
    def _rest_ns(self) -> float:
        """Of what is part of no layer."""
        return self._costs.rest_ns

    @property
    def _dense_ns(self) -> float:
        """Of the whole model with no layer in our kernels."""
        return self._rest_ns + sum(map(self._costs.dense, self._layers))

    def _budget_ns(self) -> float:
        """Of all layers and their borders."""
        speedup = self._request.speedup
        return self._reference_ns() if speedup is None else self._dense_ns / speedup - self._rest_ns

    def _reference_ns(self) -> float:
        """The same with the reference in every layer, by what is known now."""
        sides = self._sides()
        for number, fillable in self._fillable.items():
            sides.price(number, fillable.option(REFERENCE, self._request.sparsity).ns)
        return float(sides.ns)

    def _out_of_reach(self) -> OutOfReach:
        """Only a speed-up can be; the reference is in reach of itself."""
        fastest = fastest_ns(self._sides(), self._ladders()) + self._rest_ns
        best = self._dense_ns / fastest
        return OutOfReach(
            f"{self._request.speedup:.3g}x is out of reach of zeros alone: with the sparsest layers the model is "
            f"predicted to be {best:.3g}x as fast as dense",
            hint=f"about {floor(95 * best) / 100:g}x can be reached; removing channels may reach further",
            numbers={"reachable": best, "requested": self._request.speedup},
        )

    def _result(self, filling: Filling, trials: Sequence[tuple[float, float]]) -> Assignment:
        layers = tuple(
            LayerFilling(
                name=self._layers[number].name,
                pattern=option.pattern,
                sparsity=option.sparsity,
                kept=option.kept,
                sparse=filling.sparse[number],
                sparse_us=option.ns / 1e3,
                dense_us=self._costs.dense(self._layers[number]) / 1e3,
            )
            for number, option in filling.options.items()
        )
        kept = [option.kept for option in self._first.values()]
        return Assignment(
            layers=layers,
            dense_ms=self._dense_ns / 1e6,
            reference_ms=(self._reference_ns() + self._rest_ns) / 1e6,
            budget_ms=(self._budget_ns() + self._rest_ns) / 1e6,
            predicted_ms=(filling.ns + self._rest_ns) / 1e6,
            kept=filling.kept,
            reference_kept=float(np.mean(kept)) if kept else 1.0,
            trials=tuple(trials),
        )


def _divided(times: Mapping[str, float], factor: float) -> dict[str, float]:
    return {name: ns / factor for name, ns in times.items()}
