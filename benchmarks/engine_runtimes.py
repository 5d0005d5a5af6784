"""Engines that only benchmarks run: DeepSparse, OpenVINO's throughput streams, the kernels without a framework."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from deploypruner.openvino_import import import_openvino
from deploypruner.records import TensorSpec
from deploypruner.runtime import Array, Runtime, Session, Shapes, check_feeds, check_openable, runtimes
from deploypruner.runtime.on_openvino import OpenVino, OpenVinoSession
from deploypruner.sparse import bindings as kernels
from deploypruner.sparse.bindings import Conv, ConvShape
from deploypruner.sparse.library import load

if TYPE_CHECKING:
    import deepsparse

_ONNX = frozenset({".onnx"})
REQUESTS_PER_CALL = 8


@runtimes.register("deepsparse")
class DeepSparse(Runtime):
    """DeepSparse 1.8, the last one there was; it needs Python 3.11 or older and numpy 1."""

    suffixes: ClassVar[frozenset[str]] = _ONNX
    label: ClassVar[str] = "DeepSparse"
    by_default: ClassVar[bool] = False

    def open(self, path: Path, *, threads: int = 1, shapes: Shapes | None = None) -> Session:
        """See `Runtime.open`; the batch is that of the file."""
        from deepsparse import Engine

        check_openable(DeepSparse, path, threads)
        batch = _batch_of(path)
        return DeepSparseSession(Engine(str(path), batch_size=batch, num_cores=threads))

    def version(self) -> str:
        """Version of the library."""
        import deepsparse

        return str(deepsparse.__version__)


class DeepSparseSession(Session):
    """A compiled model; `settings` say how much of it DeepSparse computes itself.

    Args:
        engine: The native one.
    """

    def __init__(self, engine: deepsparse.Engine) -> None:
        shapes = [tuple(shape) for shape in engine.input_shapes]
        named = zip(engine.input_names, shapes, strict=True)
        self.inputs = tuple(TensorSpec(name, shape, "float32") for name, shape in named)
        self.outputs = tuple(TensorSpec(name, (), "float32") for name in engine.output_names)
        self.settings = {
            "num_cores": str(engine.num_cores),
            "fraction_of_supported_ops": f"{engine.fraction_of_supported_ops:.4f}",
            "cpu_avx_type": engine.cpu_avx_type,
            "cpu_vnni": str(engine.cpu_vnni),
        }
        self._engine = engine

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        """See `Session.run`."""
        check_feeds(self.inputs, feeds)
        return [np.asarray(output) for output in self._engine.run(list(feeds))]

    def prepare(self, feeds: Sequence[Array]) -> Callable[[], None]:
        """See `Session.prepare`."""
        check_feeds(self.inputs, feeds)
        kept = [np.ascontiguousarray(array) for array in feeds]

        def infer() -> None:
            self._engine.run(kept, val_inp=False)

        return infer


def _batch_of(path: Path) -> int:
    import onnx

    shape = onnx.load(path, load_external_data=False).graph.input[0].type.tensor_type.shape
    return int(shape.dim[0].dim_value)


@runtimes.register("openvino-streams")
class OpenVinoStreams(OpenVino):
    """OpenVINO with one stream a thread; one call is `REQUESTS_PER_CALL` requests at once."""

    label: ClassVar[str] = "OpenVINO, throughput"
    by_default: ClassVar[bool] = False

    def open(self, path: Path, *, threads: int = 1, shapes: Shapes | None = None) -> Session:
        """See `Runtime.open`."""
        more = {"NUM_STREAMS": str(threads), "PERFORMANCE_HINT": "THROUGHPUT"}
        return StreamsSession(self._compile(path, threads=threads, shapes=shapes, more=more))


class StreamsSession(Session):
    """A compiled model with a queue of requests.

    Args:
        one: The same model, to run one request at a time.
    """

    def __init__(self, one: OpenVinoSession) -> None:
        self.inputs, self.outputs = one.inputs, one.outputs
        self.settings = one.settings | {"requests per call": str(REQUESTS_PER_CALL)}
        self._one = one

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        """See `Session.run`."""
        return self._one.run(feeds)

    def prepare(self, feeds: Sequence[Array]) -> Callable[[], None]:
        """See `Session.prepare`."""
        check_feeds(self.inputs, feeds)
        queue = import_openvino().AsyncInferQueue(self._one._compiled, REQUESTS_PER_CALL)
        kept = dict(enumerate(np.ascontiguousarray(array) for array in feeds))

        def infer() -> None:
            for _ in range(REQUESTS_PER_CALL):
                queue.start_async(kept)
            queue.wait_all()

        return infer


@runtimes.register("kernels")
class Kernels(Runtime):
    """Our kernels called one after the other on numpy arrays: a chain of SparseConv, without any framework."""

    suffixes: ClassVar[frozenset[str]] = _ONNX
    label: ClassVar[str] = "the kernels alone"
    sparse: ClassVar[bool] = True
    by_default: ClassVar[bool] = False

    def open(self, path: Path, *, threads: int = 1, shapes: Shapes | None = None) -> Session:
        """See `Runtime.open`; the bindings run on one thread."""
        check_openable(Kernels, path, threads)
        return KernelsSession(_chain_of(path))

    def version(self) -> str:
        """Name of the best target."""
        from deploypruner.sparse.library import targets

        return targets()[-1]


class KernelsSession(Session):
    """Convolutions in C4; the input is random bytes, as it is in the middle of a network.

    Args:
        chain: At least one.
    """

    def __init__(self, chain: Sequence[Conv]) -> None:
        shape = chain[0].shape
        self.inputs, self.outputs = (), ()
        self.settings = {
            "target": chain[0].target,
            "steps": str(sum(conv.steps for conv in chain)),
            "bytes": str(sum(conv.bytes for conv in chain)),
            "pixels": str(shape.height * shape.width),
        }
        self._chain = chain

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        """Not for results: they are in C4."""
        self.prepare(feeds)()
        return []

    def prepare(self, feeds: Sequence[Array]) -> Callable[[], None]:
        """See `Session.prepare`."""
        tensors = []
        for conv in self._chain:
            shape = conv.shape
            tensors.append(kernels.aligned(kernels.c4_shape(1, shape.channels_in, shape.height * shape.width)))
        last = self._chain[-1].shape
        tensors.append(kernels.aligned(kernels.c4_shape(1, last.channels_out, last.height * last.width)))
        tensors[0][:] = np.random.default_rng(0).integers(0, 128, tensors[0].shape)
        run = load().dp_conv_run
        # Bound beforehand: in Python the arguments of a call cost as much as a small layer.
        calls = [
            (conv._handle, 1, *map(_pointer, (x, None, y, conv._scratch)), 1, None, None)
            for conv, x, y in zip(self._chain, tensors[:-1], tensors[1:], strict=True)
        ]

        def infer(_alive: tuple[object, ...] = (self, tensors)) -> None:
            for arguments in calls:
                run(*arguments)

        return infer


def _pointer(array: Array | None) -> ctypes.c_void_p | None:
    return None if array is None else ctypes.c_void_p(array.ctypes.data)


def _chain_of(path: Path) -> list[Conv]:
    import onnx
    from onnx import helper, numpy_helper

    graph = onnx.load(path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    chain = []
    for node in graph.node:
        if node.op_type != "SparseConv":
            continue
        said = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        mask, values, scale, bias = (stored[name] for name in node.input[1:5])
        shape = ConvShape(
            **{name: said[name] for name in ("channels_in", "channels_out", "height", "width", "low", "high")},
            input_zero_point=said["input_zero_point"],
            output_zero_point=said["output_zero_point"],
        )
        weights = np.zeros((shape.channels_out, shape.channels_in, 1, 1), np.int8)
        weights.reshape(-1)[np.unpackbits(mask, count=weights.size, bitorder="little").astype(bool)] = values
        folded = bias + shape.input_zero_point * weights.reshape(len(weights), -1).sum(1, dtype=np.int32)
        chain.append(Conv(shape, weights, scale, folded))
    return chain
