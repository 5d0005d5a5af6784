"""ONNX from one run of a model, for models whose control flow no export can follow.

The file holds the path that the example inputs take. Where variations of the inputs take another one and come to
another result, no file is written: it would be silently wrong.
"""

from __future__ import annotations

import inspect
import io
from contextlib import redirect_stdout

import onnx
import torch

from deploypruner.errors import TraceError, said_by
from deploypruner.export.program import evaluating, quiet
from deploypruner.graph.capture.observe import variations
from deploypruner.graph.inputs import Inputs, as_arguments, batch_size, call, carries_batch, tensors

# The last opset of the exporter that works by running.
_OPSET = 20


def onnx_by_running(
    module: torch.nn.Module, example_inputs: Inputs, *, dynamic_batch: bool, refused: str
) -> onnx.ModelProto:
    """Run `module` once and write down what it did.

    Args:
        module: float32 module on the CPU; it is not changed.
        example_inputs: Positional or keyword inputs, batch on axis 0.
        dynamic_batch: Leave the batch open.
        refused: Why torch.export could not capture it.

    Raises:
        TraceError: Other inputs take another path, or an operator has no ONNX counterpart; carries both reasons.
    """
    model = evaluating(module)
    args, kwargs = as_arguments(example_inputs)
    _require_one_path(model, example_inputs, refused)
    with torch.no_grad():
        outputs = tensors(call(model, example_inputs))
    names = _input_names(module, example_inputs)
    stem = "result" if any(name.startswith("output") for name in names) else "output"
    results = [stem] if len(outputs) == 1 else [f"{stem}_{i}" for i in range(len(outputs))]
    batched = [
        name for name, t in zip(names, tensors(example_inputs), strict=True) if carries_batch(t, example_inputs)
    ]
    size = batch_size(example_inputs)
    batched += [name for name, t in zip(results, outputs, strict=True) if t.ndim and t.shape[0] == size]
    buffer = io.BytesIO()
    with quiet(), redirect_stdout(io.StringIO()):
        try:
            torch.onnx.export(
                model,
                args,
                buffer,  # type: ignore[arg-type]  # this exporter takes a file, whatever the signature says
                kwargs=kwargs,
                input_names=names,
                output_names=results,
                opset_version=_OPSET,
                dynamic_axes={name: {0: "batch"} for name in batched} if dynamic_batch else None,
                dynamo=False,
            )
        except Exception as error:
            raise TraceError(
                f"the model cannot be converted to ONNX: {refused}; by running it once: {said_by(error)}",
                hint="the pruned weights are saved; dp.restore puts them into your class",
            ) from error
    return onnx.load_from_string(buffer.getvalue())


def _require_one_path(model: torch.nn.Module, example_inputs: Inputs, refused: str) -> None:
    """Compare one recorded run with the model on variations of its inputs."""
    args, kwargs = as_arguments(example_inputs)
    names = list(inspect.signature(model.forward).parameters)
    with quiet(), torch.no_grad():
        recorded = torch.jit.trace(
            model, example_kwarg_inputs={**dict(zip(names, args, strict=False)), **kwargs}, strict=False
        )
        for case in variations(example_inputs):
            try:
                wanted = tensors(call(model, case))
            except Exception:  # noqa: BLE001 - a variation may be no valid input, whatever the model then raises
                continue
            got = tensors(call(recorded, case))
            for a, b in zip(got, wanted, strict=True):
                if a.shape != b.shape or not torch.allclose(a, b, rtol=1e-3, atol=1e-5):
                    raise TraceError(
                        f"the model takes more than one path, and an ONNX file can hold only one: {refused}",
                        hint="write the branch with torch.where or torch.cond; the pruned weights are saved, and "
                        "dp.restore puts them into your class",
                    )


def _input_names(module: torch.nn.Module, inputs: Inputs) -> list[str]:
    """Argument names, where every argument is one tensor; numbers otherwise."""
    count = len(tensors(inputs))
    if isinstance(inputs, dict):
        names = list(inputs)
    else:
        parameters = inspect.signature(module.forward).parameters.values()
        names = [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL][: len(inputs)]
    return names if len(names) == count else [f"input_{i}" for i in range(count)]
