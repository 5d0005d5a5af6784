"""OpenVINO IR, made from an ONNX file so that both hold the same graph."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from deploypruner.atomic import unsaid_errors
from deploypruner.errors import InputError, TraceError
from deploypruner.export import Exporter, exporters
from deploypruner.export.metadata import PREFIX, read_metadata
from deploypruner.export.to_onnx import Onnx
from deploypruner.graph.inputs import Inputs
from deploypruner.graph.open_axes import OpenAxis
from deploypruner.openvino_import import import_openvino, openvino_core


def write_ir(onnx_path: Path, xml_path: Path) -> None:
    """Convert an ONNX file, fp32 or QDQ, to IR: `xml_path` and a .bin of the same stem beside it.

    The same ONNX file gives the same bytes. Weights keep their precision: OpenVINO would store fp32 as fp16 by
    default, which changes the numbers. What the file says of itself is in the IR's rt_info under "deploypruner".

    Raises:
        InputError: `onnx_path` cannot be read or uses an operator OpenVINO lacks.
    """
    openvino = import_openvino()
    try:
        model = openvino_core().read_model(onnx_path)
    except RuntimeError as error:
        said = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
        raise InputError(
            f"OpenVINO cannot read '{onnx_path}': {said}", hint="check that the file is a complete ONNX model"
        ) from None
    _number_names(model)
    for name, value in read_metadata(onnx_path).items():
        model.set_rt_info(value, [PREFIX.rstrip("."), name])
    openvino.save_model(model, xml_path, compress_to_fp16=False)


def _number_names(model: Any) -> None:
    """Count unnamed operations from 0: OpenVINO counts them on over all models a process has read."""
    for index, operation in enumerate(model.get_ordered_ops()):
        kind = operation.get_type_name()
        if re.fullmatch(rf"{kind}_\d+", operation.get_friendly_name()):
            operation.set_friendly_name(f"{kind}_{index}")


@exporters.register("openvino")
class OpenVinoIr(Exporter):
    """OpenVINO IR, an .xml with its .bin beside it."""

    suffix: ClassVar[str] = ".xml"
    format: ClassVar[str] = "openvino"
    from_module: ClassVar[bool] = False

    def write(
        self,
        module: torch.nn.Module,
        example_inputs: Inputs,
        path: Path,
        *,
        dynamic_batch: bool,
        open_axes: Sequence[OpenAxis] = (),
    ) -> None:
        """See `Exporter.write`. Where the ONNX file exists already, `write_ir` alone is faster."""
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".ir-") as folder, unsaid_errors(Path(folder)):
            between = Path(folder) / "model.onnx"
            Onnx().write(module, example_inputs, between, dynamic_batch=dynamic_batch, open_axes=open_axes)
            try:
                write_ir(between, path)
            except InputError as error:
                raise TraceError(f"the model cannot be converted to IR: {error.message}") from error
