"""ONNX Runtime on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from deploypruner.records import TensorSpec
from deploypruner.runtime import (
    Array,
    NodeTime,
    Profiler,
    Runtime,
    Session,
    Shapes,
    Usage,
    check_feeds,
    check_openable,
    fed,
    no_numpy,
    running,
    runtimes,
    unreadable,
)
from deploypruner.runtime.onnxruntime_nodes import WARM_CALLS, executed_nodes
from deploypruner.scratch import scratch

if TYPE_CHECKING:
    import onnxruntime

_FATAL_ONLY = 4  # errors are raised as well
# Idle workers must not burn the core of the one being timed, so threads stop spinning when a run returns.
# Spinning stays on inside a run, as in deployment: without it two threads cost a small model 20-30 %.
_STOP_SPINNING = "session.force_spinning_stop"
_DTYPES = (
    {"tensor(bool)": "bool", "tensor(double)": "float64", "tensor(float)": "float32"}
    | {"tensor(float16)": "float16"}
    | {f"tensor(int{bits})": f"int{bits}" for bits in (8, 16, 32, 64)}
    | {f"tensor(uint{bits})": f"uint{bits}" for bits in (8, 16, 32, 64)}
)


@runtimes.register("onnxruntime")
class OnnxRuntime(Runtime, Profiler):
    """ONNX Runtime, CPU execution provider."""

    suffixes: ClassVar[frozenset[str]] = frozenset({".onnx"})
    label: ClassVar[str] = "ONNX Runtime"

    def open(
        self,
        path: Path,
        *,
        threads: int = 1,
        shapes: Shapes | None = None,
        literal: bool = False,
        counters: Path | None = None,
    ) -> OnnxRuntimeSession:
        """Load `path`; see `Runtime.open`.

        Args:
            path: An .onnx file.
            threads: Intra-op threads; operators run one after another.
            shapes: Not looked at: its kernels are the same for dynamic shapes.
            literal: Execute the graph as written, with every graph optimisation off, so that
                quantize and dequantize nodes round exactly where they stand. Slow; for checking.
            counters: Time every node, and write the times to a file in this folder when `node_times` asks for them.

        Raises:
            InputError: The file is missing, damaged or uses an unknown operator or input type.
            RecipeError: `threads` < 1.
        """
        import onnxruntime

        check_openable(OnnxRuntime, path, threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = _FATAL_ONLY
        if counters is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(counters / "nodes")
        options.add_session_config_entry(_STOP_SPINNING, "1")
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_DISABLE_ALL if literal else levels.ORT_ENABLE_ALL
        try:
            native_session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except load_errors() as error:
            raise unreadable(OnnxRuntime, path, error) from None
        settings = {
            "intra_op_num_threads": str(threads),
            "inter_op_num_threads": "1",
            _STOP_SPINNING: "1",
            "graph_optimization_level": options.graph_optimization_level.name,
        }
        return OnnxRuntimeSession(native_session, settings, path)

    def profile(self, path: Path, feeds: Sequence[Array], *, threads: int, calls: int) -> tuple[NodeTime, ...]:
        """See `Profiler.profile`."""
        with scratch() as folder:
            session = self.open(path, threads=threads, counters=folder)
            return session.node_times(feeds, calls=calls)

    @classmethod
    def usage(cls, file: Path, inputs: Sequence[str], *, threads: int, extension: Path | None = None) -> Usage:
        """See `Runtime.usage`."""
        del extension  # sparse files run elsewhere
        return (
            f"import onnxruntime; options = onnxruntime.SessionOptions(); options.intra_op_num_threads = {threads}",
            f'session = onnxruntime.InferenceSession({str(file)!r}, options, providers=["CPUExecutionProvider"])',
            f"outputs = session.run(None, {fed(inputs)})",
        )

    def version(self) -> str:
        """Version of the loaded onnxruntime."""
        import onnxruntime

        return str(onnxruntime.__version__)


class OnnxRuntimeSession(Session):
    """A loaded .onnx file.

    Args:
        session: The native session.
        settings: What it was told.
        path: The file.

    Raises:
        InputError: An input or output is no tensor of numbers.
    """

    def __init__(self, session: onnxruntime.InferenceSession, settings: dict[str, str], path: Path) -> None:
        self.inputs = tuple(_spec(arg, path) for arg in session.get_inputs())
        self.outputs = tuple(_spec(arg, path) for arg in session.get_outputs())
        self.settings = settings
        self._session = session

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        """See `Session.run`."""
        check_feeds(self.inputs, feeds)
        named = {spec.name: array for spec, array in zip(self.inputs, feeds)}
        with running(OnnxRuntime, feeds, load_errors()):
            return [np.asarray(output) for output in self._session.run(None, named)]

    def prepare(self, feeds: Sequence[Array]) -> Callable[[], None]:
        """See `Session.prepare`."""
        check_feeds(self.inputs, feeds)
        binding = self._session.io_binding()
        kept = [np.array(array, order="C") for array in feeds]
        for spec, array in zip(self.inputs, kept):
            binding.bind_cpu_input(spec.name, array)
        for spec in self.outputs:
            binding.bind_output(spec.name, "cpu")
        run = self._session.run_with_iobinding

        def infer(_alive: list[Array] = kept) -> None:
            run(binding)

        return infer

    def node_times(self, feeds: Sequence[Array], *, calls: int) -> tuple[NodeTime, ...]:
        """Median time of every executed node over `calls` inferences; needs counters, and ends them."""
        infer = self.prepare(feeds)
        for _ in range(WARM_CALLS + calls):
            infer()
        return executed_nodes(json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8")))


def load_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises for a model it cannot load; most of it is no RuntimeError."""
    from onnxruntime.capi import onnxruntime_pybind11_state as native

    return (
        RuntimeError,
        native.EPFail,
        native.Fail,
        native.InvalidArgument,
        native.InvalidGraph,
        native.InvalidProtobuf,
        native.NoModel,
        native.NoSuchFile,
        native.NotImplemented,
        native.RuntimeException,
    )


def _spec(arg: Any, path: Path) -> TensorSpec:
    """Describe a native input or output; ONNX Runtime writes dynamic dimensions as names or None."""
    if arg.type not in _DTYPES:
        raise no_numpy(path, arg.name, arg.type)
    shape = tuple(size if isinstance(size, int) else None for size in arg.shape)
    return TensorSpec(name=arg.name, shape=shape, dtype=_DTYPES[arg.type])
