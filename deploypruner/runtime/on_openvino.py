"""OpenVINO on the CPU; it opens its own IR and ONNX files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from deploypruner.errors import InputError, KernelError
from deploypruner.openvino_import import import_openvino, openvino_core
from deploypruner.records import Environment, Precision, TensorSpec
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
from deploypruner.runtime.openvino_nodes import WARM_CALLS, executed_nodes, mean_ns, mean_since
from deploypruner.sparse.custom_ops import uses_sparse_operations
from deploypruner.sparse.library import active_target, extension_path, rebuild
from deploypruner.target import LIMITS, Target

if TYPE_CHECKING:
    import openvino

_FIXED = {"NUM_STREAMS": "1", "PERFORMANCE_HINT": "LATENCY"}
_DTYPES = (
    {"boolean": "bool"}
    | {f"f{bits}": f"float{bits}" for bits in (16, 32, 64)}
    | {f"i{bits}": f"int{bits}" for bits in (8, 16, 32, 64)}
    | {f"u{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)}
)


@runtimes.register("openvino")
class OpenVino(Runtime, Profiler):
    """OpenVINO, CPU plugin, one latency stream."""

    suffixes: ClassVar[frozenset[str]] = frozenset({".onnx", ".xml"})
    label: ClassVar[str] = "OpenVINO"
    sparse: ClassVar[bool] = True
    in_bf16: ClassVar[str] = "openvino-bf16"
    # Said aloud: where a processor multiplies in bf16, OpenVINO would compute float layers in it without being asked.
    float_precision: ClassVar[str] = "f32"

    @classmethod
    def environments(cls, precision: Precision, target: Target) -> tuple[Environment, ...]:
        """See `Runtime.environments`: AMX, which OpenVINO takes where it can, is slower where layers are narrow.

        Where the user's own environment says the instruction set, that is it.
        """
        has_amx = "amx_int8" in target.int8_features
        if precision != "int8" or not has_amx or any(name in os.environ for name in LIMITS):
            return ((),)
        return ((), ((LIMITS[0], "AVX512_CORE_VNNI"),))

    def open(self, path: Path, *, threads: int = 1, shapes: Shapes | None = None) -> Session:
        """Load and compile `path`; see `Runtime.open`.

        Raises:
            InputError: The file is missing, damaged or uses an unknown operator or input type.
            RecipeError: `threads` < 1.
            KernelError: The model is sparse, and our library is not built or fits another OpenVINO.
        """
        return self._compile(path, threads=threads, shapes=shapes, more={})

    def profile(self, path: Path, feeds: Sequence[Array], *, threads: int, calls: int) -> tuple[NodeTime, ...]:
        """See `Profiler.profile`."""
        return self.counted(path, feeds, threads=threads).node_times(feeds, calls=calls)

    def counted(self, path: Path, feeds: Sequence[Array], *, threads: int) -> OpenVinoSession:
        """A session that can tell `node_times`; dynamic dimensions are fixed to the shapes of `feeds`.

        Raises:
            InputError: As `open`.
        """
        shapes = [array.shape for array in feeds]
        return self._compile(path, threads=threads, shapes=shapes, more={"PERF_COUNT": "YES"})

    def _compile(self, path: Path, *, threads: int, shapes: Shapes | None, more: dict[str, str]) -> OpenVinoSession:
        check_openable(type(self), path, threads)
        weights = path.with_suffix(".bin")
        if path.suffix == ".xml" and not weights.is_file():
            raise InputError(
                f"'{path}' has no weights beside it: '{weights.name}' is missing",
                hint="keep the .xml and .bin of one export together",
            )
        settings = {**self._settings(threads), **more}
        fixed: dict[str, str] = {}
        core = openvino_core()
        if uses_sparse_operations(path):
            add_sparse_operations()
        try:
            model = core.read_model(path)
            if shapes is not None and model.is_dynamic():
                model.reshape({port: list(shape) for port, shape in zip(model.inputs, shapes)})
                fixed = {"input shapes": " ".join("x".join(map(str, shape)) for shape in shapes)}
            compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            if uses_sparse_operations(path):
                raise _refused(path, error) from None
            raise unreadable(type(self), path, error) from None
        return OpenVinoSession(compiled, settings | fixed, path)

    @classmethod
    def usage(cls, file: Path, inputs: Sequence[str], *, threads: int, extension: Path | None = None) -> Usage:
        """See `Runtime.usage`."""
        first = "import openvino"
        core = "openvino.Core()"
        if extension is not None:
            first += f"; core = openvino.Core(); core.add_extension({str(extension)!r})"
            core = "core"
        return (
            first,
            f'model = {core}.compile_model({str(file)!r}, "CPU", {cls._settings(threads)})',
            f"outputs = model({fed(inputs)})",
        )

    @classmethod
    def _settings(cls, threads: int) -> dict[str, str]:
        return {"INFERENCE_NUM_THREADS": str(threads), **_FIXED, "INFERENCE_PRECISION_HINT": cls.float_precision}

    def version(self) -> str:
        """Version of the loaded openvino."""
        openvino = import_openvino()

        return str(openvino.__version__)


class OpenVinoSession(Session):
    """A compiled model.

    Args:
        compiled: The native model.
        settings: What it was told.
        path: The file.

    Raises:
        InputError: An input or output is no tensor of numbers with a known number of axes.
    """

    def __init__(self, compiled: openvino.CompiledModel, settings: dict[str, str], path: Path) -> None:
        self.inputs = tuple(_spec(port, f"input{i}", path) for i, port in enumerate(compiled.inputs))
        self.outputs = tuple(_spec(port, f"output{i}", path) for i, port in enumerate(compiled.outputs))
        self.settings = settings
        self._compiled = compiled

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        """See `Session.run`."""
        request = self._request
        self._bind(request, feeds)
        with running(OpenVino, feeds, (RuntimeError,)):
            request.infer(share_outputs=True)
        return [request.get_output_tensor(i).data.copy() for i in range(len(self.outputs))]

    def prepare(self, feeds: Sequence[Array]) -> Callable[[], None]:
        """See `Session.prepare`."""
        request = self._compiled.create_infer_request()
        self._bind(request, feeds)

        def infer() -> None:
            request.infer(share_outputs=True)

        return infer

    def node_times(self, feeds: Sequence[Array], *, calls: int) -> tuple[NodeTime, ...]:
        """Mean time of every executed node over `calls` inferences; needs PERF_COUNT."""
        request = self._compiled.create_infer_request()
        self._bind(request, feeds)
        for _ in range(WARM_CALLS):
            request.infer(share_outputs=True)
        before = mean_ns(request)
        for _ in range(calls):
            request.infer(share_outputs=True)
        return executed_nodes(self._compiled, request.profiling_info, mean_since(before, mean_ns(request), calls))

    @cached_property
    def _request(self) -> openvino.InferRequest:
        """What `run` uses again and again; a session that is only timed never allocates it."""
        return self._compiled.create_infer_request()

    def _bind(self, request: openvino.InferRequest, feeds: Sequence[Array]) -> None:
        """Give `request` its own copy of `feeds`."""
        openvino = import_openvino()

        check_feeds(self.inputs, feeds)
        for index, array in enumerate(feeds):
            request.set_input_tensor(index, openvino.Tensor(np.asarray(array, order="C")))


def add_sparse_operations() -> None:
    """Make the process's `Core` know our operations; again changes nothing.

    Raises:
        KernelError: Our library is not built, fits another OpenVINO, or cannot run what DEPLOYPRUNER_TARGET names.
    """
    library = extension_path()
    active_target()  # a name that cannot run is an error of its own, not one of the file
    try:
        _add_once(library)
    except RuntimeError as error:
        said = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
        raise KernelError(f"OpenVINO cannot load the sparse kernels '{library}': {said}", hint=rebuild()) from None


@cache
def _add_once(library: Path) -> None:
    openvino_core().add_extension(str(library))


def _refused(path: Path, error: RuntimeError) -> InputError:
    """What our operations said about a file, which OpenVINO buries above a summary."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines.index("Summary:") if "Summary:" in lines else len(lines)
    return InputError(
        f"the sparse model '{path}' cannot be loaded: {lines[last - 1] if last else type(error).__name__}",
        hint="the file is damaged or of another version; make it again with `deploypruner sparsify` or `compile`",
    )


def _spec(port: Any, fallback: str, path: Path) -> TensorSpec:
    """Describe a native port; an unnamed one gets `fallback`."""
    name = port.get_any_name() if port.names else fallback
    native_type = port.element_type.get_type_name()
    if native_type not in _DTYPES:
        raise no_numpy(path, name, native_type)
    rank = port.partial_shape.rank
    if rank.is_dynamic:
        raise InputError(f"'{name}' has no fixed number of dimensions", hint="export with a known rank")
    shape = tuple(None if size.is_dynamic else size.get_length() for size in port.partial_shape)
    return TensorSpec(name=name, shape=shape, dtype=_DTYPES[native_type])
