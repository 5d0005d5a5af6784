"""From a user's model to a clean ATen graph with a dynamic batch axis, compared with the model itself.

The graph is torch.export's *training IR*: high-level operators (conv2d, batch_norm, scaled_dot_product_attention)
with the model's own parameters under their own names. It is never decomposed further, because decomposition
loses the train/eval switch of batch norm and multiplies the number of rules.

Three ways lead there, tried in this order: exported with a marked batch that is opened afterwards (fast),
exported with a symbolic batch, and exported with the batch as given. Each result has to compute what the model does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from deploypruner.errors import InputError, TraceError
from deploypruner.graph.capture.asked_axes import Asked, Request, argument_names, resolve
from deploypruner.graph.capture.captured import Capture, aliases_of, has_state, some, traced_module, unused_state
from deploypruner.graph.capture.cleaning import clean
from deploypruner.graph.capture.data_types import mark_followers
from deploypruner.graph.capture.dynamic_batch import Uncertain, checked_run, marked, marker, open_batch, rescale
from deploypruner.graph.capture.from_program import capture_program
from deploypruner.graph.capture.input_checks import check_model
from deploypruner.graph.capture.opening import Length, Opened, Opening, lengths_of
from deploypruner.graph.capture.other_sizes import agrees, agrees_at, all_sizes, open_sizes, sizes_taken
from deploypruner.graph.capture.stochastic_depth import keep_stochastic_depth
from deploypruner.graph.capture.torch_export import export, quiet, unlifted, without_collection
from deploypruner.graph.capture.train_mode import exportable_in_training, learn_training
from deploypruner.graph.execute.mode_flags import mark_always_training
from deploypruner.graph.execute.module import TracedModule
from deploypruner.graph.execute.shared_weights import sharing_copy
from deploypruner.graph.inputs import Inputs, batch_size, carries_batch, resized, tensors
from deploypruner.graph.open_axes import Place
from deploypruner.graph.reference import Reference, register_dataclasses, run, said, seeded, without_opaque_outputs
from deploypruner.records import Check

__all__ = ["Capture", "capture", "quiet"]

# torch.export specialises sizes 0 and 1 to constants; two samples also tell a batch from a broadcast.
_BATCH = 2
# torch.export's names for sizes that depend on data.
_FROM_DATA = ("u", "zuf")

_Way = Callable[[], tuple[TracedModule, Check]]


def capture(model: nn.Module | ExportedProgram, example_inputs: Inputs, request: Request = None) -> Capture:
    """Export `model`, clean the graph and compare it with the model; the model itself is not touched.

    Args:
        model: A module in any mode, on any device, of any floating dtype, or a program saved by torch.export.
        example_inputs: A tuple of positional or a dict of keyword arguments. The batch is axis 0 of the first
            tensor, and of every tensor with an axis 0 of the same length.
        request: Axes that stay open beside the batch. None keeps sizes open only where they would
            otherwise be numbers in the graph of an image model.

    Raises:
        InputError: The model is none, or is scripted, quantized, masked, lazy, or holds NaN; or there is no sample;
            or an axis that was asked for cannot stay open.
        TraceError: It does not run on these inputs, cannot be exported, or the graph computes something else.
    """
    check_model(model)
    register_dataclasses(example_inputs)
    if not tensors(example_inputs):
        raise InputError("the example inputs hold no tensor", hint="pass one batch the model can run on")
    if batch_size(example_inputs) == 0:
        raise InputError("the example inputs hold no sample", hint="pass a batch of at least one sample")
    with without_collection():
        if isinstance(model, ExportedProgram):
            return capture_program(model, example_inputs, request)
        return _Capturing(model, example_inputs, request).run()


class _Capturing:
    """The ways to a graph of one model, and the model's own outputs to judge them by."""

    def __init__(self, model: nn.Module, inputs: Inputs, request: Request = None) -> None:
        self.model, self.given = model, inputs
        self.names = argument_names(model, inputs)
        self.asked: dict[Place, Asked | None] = {}
        if request == "auto":
            self.asked = all_sizes(inputs)
        elif isinstance(request, tuple):
            self.asked = {**resolve(request, self.names, inputs)}
        self.lengths: dict[Place, Length] = {}
        self.opened = Opened()
        self.reference = Reference(sharing_copy(model))
        # As few samples as will do: more only make everything after this slower.
        self.small = resized(inputs, min(_BATCH, batch_size(inputs)))
        self.ways: tuple[_Way, ...] = (self.marked, self.symbolic, self.static)
        if self.asked:
            self.ways = (self.open, self.static)
        self.reasons: list[str] = []
        try:
            self.wanted = self.reference.outputs(self.small)
        except TraceError as refused:
            # Axis 0 of these inputs may be no batch: a detector takes a list of images.
            self.wanted = self.reference.outputs(inputs)
            self.small, self.ways = inputs, (self.static,)
            self.reasons.append(refused.message)
        self.unused: list[str] = []
        self.aliases: dict[str, str] = {}
        self.lost: list[str] = []

    def run(self) -> Capture:
        """The first way whose graph agrees with the model."""
        reasons = self.reasons
        error: Exception | None = None
        failed: Check | None = None
        for way in self.ways:
            try:
                module, check = way()
            except Exception as raised:  # noqa: BLE001 - torch.export raises anything a model raises
                error = raised
                reasons.append(str(raised) if isinstance(raised, Uncertain) else said(raised))
                continue
            if check.passed:
                fixed = reasons[-1] if way == self.static and reasons else ""
                settled = self._settle(module, fixed=bool(fixed)) if self.asked else self._at_other_sizes(module)
                return self._capture(settled, check, fixed)
            failed = check
            reasons.append("at other sizes the model does something else")
        if failed is not None:
            raise self._disagreement(failed)
        raise TraceError(
            f"torch.export cannot trace this model: {reasons[-1]}",
            hint="without --dynamic it may be traced with the example's sizes"
            if self.asked
            else "control flow that depends on tensor values must be written with torch.where or torch.cond",
        ) from error

    def marked(self) -> tuple[TracedModule, Check]:
        """Export with an unmistakable batch, open it, and compare shape by shape on a run."""
        module, got = self._with_marked_batch()
        check = self.reference.compare(got, self.wanted)
        traced = self._traced(module)
        return traced, check if check.passed else self._on_two(traced, check)

    def _with_marked_batch(self, *, training: bool = False) -> tuple[GraphModule, list[Tensor]]:
        """The module with an open batch, and what it returns.

        Raises:
            Uncertain: The batch could not be told from everything else.
        """
        prime = marker(self.model, self.given)
        inputs = marked(self.given, prime, lambda t: carries_batch(t, self.given))
        module = self._exported(inputs, training=training)
        open_batch(module, prime)
        with seeded(self.small, 0):
            got = [] if training else checked_run(module, prime, self.small)
        rescale(module, prime, _BATCH)
        return module, got

    def symbolic(self) -> tuple[TracedModule, Check]:
        """Let torch.export carry the batch as a symbol: no other axis is asked for on this way."""
        return self.open()

    def open(self) -> tuple[TracedModule, Check]:
        """Let torch.export carry the batch and the asked sizes as symbols."""
        traced = self._traced(self._with_symbols())
        check = self._compare(traced, self.small, self.wanted)
        return traced, check if check.passed else self._on_two(traced, check)

    def _settle(self, module: TracedModule, *, fixed: bool) -> TracedModule:
        """The graph with its open axes, and guards for lengths that it is not right for.

        Raises:
            InputError: An axis that was asked for cannot stay open.
        """
        inputs = self.given if fixed else resized(self.given, _BATCH)
        self.opened = Opening(
            *(self.lengths, self.asked, inputs, self.names),
            agrees=lambda case: agrees_at(module, self.reference, case),
        ).settle()
        return module.specialise(sizes=sizes_taken(module, inputs, self.opened.axes))

    def _at_other_sizes(self, module: TracedModule) -> TracedModule:
        """A graph that is right at other sizes, or one that refuses them.

        Images of another size are common, so sizes that are numbers in their graph are opened without being asked.
        """
        right = agrees(module, self.reference, self.small)
        if right:
            return module
        if right is False and any(t.ndim >= 4 for t in tensors(self.given)):
            state = (self.unused, self.aliases, self.lost)
            self.asked = all_sizes(self.given)
            try:
                opened, found = self.open()
                if found.passed and agrees(opened, self.reference, self.small):
                    return opened
            except Exception:  # noqa: BLE001 - torch.export raises anything a model raises
                pass
            self.asked = {}
            self.unused, self.aliases, self.lost = state
        return module.specialise(sizes=sizes_taken(module, self.small))

    def static(self) -> tuple[TracedModule, Check]:
        """Export with the batch as given."""
        traced = self._traced(self._exported(self.given, self._closed_batch()))
        return traced, self._compare(traced, self.given, self.reference.outputs(self.given))

    def _closed_batch(self) -> Any:
        """Dynamic shapes of the asked axes alone, None where there are none."""
        return open_sizes(self.given, self.asked, batch=False) if self.asked else None

    def _with_symbols(self, *, training: bool = False) -> GraphModule:
        two = resized(self.given, _BATCH)
        return self._exported(two, open_sizes(two, self.asked), training=training)

    def in_training(self, *, dynamic: bool) -> GraphModule:
        """The model exported in training mode.

        Raises:
            Exception: Whatever the model or torch.export raises.
        """
        if not dynamic:
            return self._exported(self.given, self._closed_batch(), training=True)
        if not self.asked:
            with suppress(Uncertain):
                return self._with_marked_batch(training=True)[0]
        return self._with_symbols(training=True)

    def _exported(
        self, inputs: Inputs, dynamic_shapes: Inputs | None = None, *, training: bool = False
    ) -> GraphModule:
        copied = sharing_copy(self.model)
        # Not the seed of the runs it is compared with: numbers that are drawn once, while tracing, shall differ.
        with seeded(inputs, 1):
            lost = keep_stochastic_depth(copied)
            if self.reference.left_out:
                without_opaque_outputs(copied)
            if training:
                exportable_in_training(copied).train()
            program = export(copied, inputs, dynamic_shapes)
        if any(str(symbol).startswith(_FROM_DATA) for symbol in program.range_constraints):
            raise Uncertain("the size of a tensor depends on the values of another (nonzero, boolean indexing)")
        limits = program.range_constraints
        if self.asked and not training:
            self.lengths = lengths_of(program)
            sizes = {self.lengths[place].symbol for place in self.asked}
            limits = {symbol: limit for symbol, limit in limits.items() if str(symbol) not in sizes}
        bounded = [r for r in limits.values() if r.upper < 2**31 or r.lower > _BATCH]
        if bounded and not training:
            raise Uncertain(f"the model takes batches of {bounded[0].lower} to {bounded[0].upper} only")
        module = unlifted(program)
        clean(module, detach=training)
        if not training:
            mark_always_training(module.graph)
            self.lost = lost
            self.unused = unused_state(program, module)
            self.aliases = aliases_of(program, module)
        return module

    def _traced(self, module: GraphModule) -> TracedModule:
        traced = traced_module(module, self.aliases)
        mark_followers(traced.graph, self.model, self.small)
        return traced

    def _on_two(self, traced: TracedModule, check: Check) -> Check:
        """Some models squeeze a batch of one away; what they do with two samples is what counts then."""
        if batch_size(self.small) >= _BATCH:
            return check
        two = resized(self.given, _BATCH)
        return self._compare(traced, two, self.reference.outputs(two))

    def _compare(self, traced: TracedModule, inputs: Inputs, wanted: list[Tensor]) -> Check:
        return self.reference.compare(tensors(run(traced, inputs)), wanted)

    def _capture(self, module: TracedModule, check: Check, fixed_because: str) -> Capture:
        remarks = []
        if fixed_because:
            remarks.append(f"the batch size is fixed at the example's: {fixed_because}")
        if self.reference.left_out:
            remarks.append(f"outputs of type {', '.join(self.reference.left_out)} are left out of the graph")
        training = self._learn_training(module, dynamic=not fixed_because)
        unused = [name for name in self.unused if not has_state(module, name)]
        if unused:
            remarks.append(f"{len(unused)} tensors are not used at inference and were dropped: {some(unused)}")
        if self.lost and module.training_graph is None:
            remarks.append(
                f"{len(self.lost)} layers drop samples in training, and the traced model does not: {some(self.lost)}"
            )
        elif training:
            remarks.append(training)
        if module.other_outputs:
            remarks.append(
                "in training mode the model returns something else than in evaluation mode, and so does the pruned "
                "module; recovery trains what evaluation returns, with dropouts and norms as in training"
            )
        inputs = self.given if fixed_because else resized(self.given, _BATCH)
        remarks += self.opened.remarks
        return Capture(module, inputs, not fixed_because, tuple(remarks), check, training, self.opened.axes)

    def _learn_training(self, module: TracedModule, *, dynamic: bool) -> str:
        def exported() -> GraphModule:
            graph = self.in_training(dynamic=dynamic)
            mark_followers(graph.graph, self.model, self.small, training=True)
            return graph

        inputs = self.small if dynamic else self.given
        return learn_training(module, self.reference, inputs, exported)

    def _disagreement(self, check: Check) -> TraceError:
        if self.reference.is_random(self.small):
            return TraceError(
                "the model is random in evaluation mode: it returns something else each time it is run",
                hint="draw nothing when `self.training` is false",
            )
        how = check.detail or f"max |difference| {check.max_abs_diff:.2e}, allowed {check.tolerance:.2e}"
        return TraceError(
            f"the traced graph computes something else than the model: {how}",
            hint="forward must depend on its inputs and the model's weights alone",
        )
