"""PyTorch itself, operator by operator: what the model costs before any compiler has seen it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from deploypruner.errors import InputError, said_by
from deploypruner.records import TensorSpec
from deploypruner.runtime import (
    Array,
    Runtime,
    Session,
    Shapes,
    Usage,
    check_feeds,
    check_openable,
    keyword,
    runtimes,
    unreadable,
)

if TYPE_CHECKING:
    import torch
    from torch.fx import Node

_DTYPES = frozenset({"bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"})


@runtimes.register("torch")
class TorchEager(Runtime):
    """PyTorch in eager mode; opens torch.export programs."""

    suffixes: ClassVar[frozenset[str]] = frozenset({".pt2"})
    label: ClassVar[str] = "PyTorch"
    by_default: ClassVar[bool] = False

    def open(self, path: Path, *, threads: int = 1, shapes: Shapes | None = None) -> Session:
        """Load `path`; see `Runtime.open`. The number of threads holds for all of torch in this process.

        Args:
            path: A .pt2 file.
            threads: Threads inside of an operator; operators run one after another.
            shapes: Not looked at: operators are the same for dynamic shapes.

        Raises:
            InputError: The file is missing, damaged, or takes something that is not a tensor.
            RecipeError: `threads` < 1.
        """
        import torch

        from deploypruner.pt2 import quiet, read_program  # imports torch

        check_openable(TorchEager, path, threads)
        torch.set_num_threads(threads)
        try:
            with quiet():
                session = TorchSession(
                    read_program(path), {"num_threads": str(threads), "mode": "eager, inference_mode"}
                )
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001 - building the module raises whatever torch raises
            raise unreadable(TorchEager, path, error) from None
        return session

    @classmethod
    def usage(cls, file: Path, inputs: Sequence[str], *, threads: int, extension: Path | None = None) -> Usage:
        """See `Runtime.usage`; the program takes its inputs as they were exported, tensors in order."""
        del extension  # sparse files run elsewhere
        tensors = ", ".join(f"torch.as_tensor({keyword(name)})" for name in inputs)
        return (
            f"import torch; torch.set_num_threads({threads})",
            f"module = torch.export.load({str(file)!r}).module()",
            f"outputs = module({tensors})",
        )

    def version(self) -> str:
        """Version of the loaded torch."""
        import torch

        return str(torch.__version__)


class TorchSession(Session):
    """A loaded program.

    Args:
        program: As `read_program` returns it.
        settings: What torch was told.

    Raises:
        InputError: An input that is not a tensor, or of a type numpy does not have.
    """

    def __init__(self, program: torch.export.ExportedProgram, settings: dict[str, str]) -> None:
        placeholders = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
        outputs = next(iter(program.graph.find_nodes(op="output"))).args[0]
        given, returned = program.graph_signature.user_inputs, set(program.graph_signature.user_outputs)
        self.inputs = tuple(_spec(placeholders.get(str(name)), str(name)) for name in given)
        self.outputs = tuple(_spec(node, node.name) for node in outputs if getattr(node, "name", None) in returned)
        self.settings = settings
        self._structure = program.call_spec.in_spec
        self._module = program.module()

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        """See `Session.run`."""
        import torch

        call = self._bound(feeds)
        with _refused_by_program(self.inputs, feeds):
            flat, _ = torch.utils._pytree.tree_flatten(call())
        return [value.numpy(force=True).copy() for value in flat if isinstance(value, torch.Tensor)]

    def prepare(self, feeds: Sequence[Array]) -> Callable[[], None]:
        """See `Session.prepare`."""
        call = self._bound(feeds)
        with _refused_by_program(self.inputs, feeds):
            call()

        def infer() -> None:
            call()

        return infer

    def _bound(self, feeds: Sequence[Array]) -> Callable[[], Any]:
        """The program on its own copy of `feeds`, in the structure it was exported with."""
        import torch

        check_feeds(self.inputs, feeds)
        tensors = [torch.from_numpy(np.array(array, order="C")) for array in feeds]
        assert self._structure is not None, "an exported program knows its inputs"
        args, kwargs = torch.utils._pytree.tree_unflatten(tensors, self._structure)
        module, without_gradients = self._module, torch.inference_mode

        def call() -> Any:
            with without_gradients():
                return module(*args, **kwargs)

        return call


def _spec(node: Node | None, name: str) -> TensorSpec:
    """Describe an input or output from the value it was traced with."""
    value = None if node is None else node.meta.get("val")
    if value is None or not hasattr(value, "shape"):
        raise InputError(
            f"'{name}' is no tensor", hint="export the model with tensors as its only inputs and outputs"
        )
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise InputError(f"'{name}' has type {dtype}, which numpy cannot hold")
    return TensorSpec(name, tuple(size if isinstance(size, int) else None for size in value.shape), dtype)


@contextlib.contextmanager
def _refused_by_program(inputs: Sequence[TensorSpec], feeds: Sequence[Array]) -> Iterator[None]:
    """Turn what a program says about inputs it was not exported for into words."""
    try:
        yield
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        shapes = ", ".join(f"{spec.name}={list(array.shape)}" for spec, array in zip(inputs, feeds, strict=True))
        raise InputError(
            f"the program does not run on {shapes}: {said_by(error)}",
            hint="give sizes it was exported for: --input-shape NAME=1,3,224,224",
        ) from error
