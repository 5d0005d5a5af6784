"""NNCF at its defaults, in an environment of its own: `pip install nncf onnx` and nothing of ours.

    python -P benchmarks/nncf_worker.py fp32.onnx noise.npz out.xml out.onnx

Writes the OpenVINO IR of `nncf.quantize` of the OpenVINO model, and the ONNX file of that of the ONNX model; prints
the version. `noise.npz` has batches of the first input.
"""

from __future__ import annotations

import sys

import nncf
import numpy as np
import onnx
import openvino


def main(fp32: str, noise: str, ir: str, qdq: str) -> None:
    """Write both files."""
    batches = list(np.load(noise).values())
    openvino.save_model(nncf.quantize(openvino.Core().read_model(fp32), nncf.Dataset(batches)), ir)
    model = onnx.load(fp32)
    name = model.graph.input[0].name
    onnx.save(nncf.quantize(model, nncf.Dataset(batches, lambda batch: {name: batch})), qdq)
    sys.stdout.write(f"{nncf.__version__}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
