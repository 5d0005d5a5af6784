"""The models that benchmarks.measuring times, and benchmark_app as a function."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from benchmarks.zoo_models import untrained
from deploypruner.export import exporters
from deploypruner.quantize.static import quantize_static

MODELS = ("resnet18", "mobilenet_v2", "mobilenet_v2_int8")
_CHANNELS, _SIZE = 24, 28
_MEDIAN = re.compile(r"Median:\s+([\d.]+) ms")
_TIMEOUT_S = 120


def save_chain(path: Path, layers: int) -> None:
    """Write a chain of equal 3x3 convolutions with ReLU."""
    rng = np.random.default_rng(0)
    names = ["x", *(f"h{layer}" for layer in range(1, layers)), "y"]
    nodes, weights = [], []
    for layer in range(layers):
        weight = rng.standard_normal((_CHANNELS, _CHANNELS, 3, 3), dtype=np.float32) / np.float32(3 * _CHANNELS**0.5)
        weights.append(numpy_helper.from_array(weight, f"w{layer}"))
        nodes.append(helper.make_node("Conv", [names[layer], f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [names[layer + 1]]))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, _CHANNELS, _SIZE, _SIZE]) for name in "xy")
    graph = helper.make_graph(nodes, "chain", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def save_model(name: str, path: Path) -> None:
    """Write a torchvision model with random weights for batch 1; int8 is calibrated on noise."""
    torch.manual_seed(0)
    module, example_inputs = untrained(f"torchvision:{name.removesuffix('_int8')}")
    fp32 = path.with_suffix(".fp32.onnx") if name.endswith("_int8") else path
    exporters.get("onnx")().write(module, example_inputs, fp32, dynamic_batch=False)
    if fp32 != path:
        noise = torch.randn(8, 1, 3, 224, 224).numpy()
        quantize_static(fp32, path, calibration=[[sample] for sample in noise])


def app_median_ms(path: Path, *, seconds: float) -> float:
    """Median of OpenVINO's benchmark_app: one call after another, one thread, latency hint, f32 where not int8.

    Raises:
        RuntimeError: It failed, or said no median.
    """
    settings = path.with_suffix(".app.json")
    # On the command line, benchmark_app takes a hint or threads, not both.
    settings.write_text(json.dumps({"CPU": {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}}))
    app = Path(sys.executable).with_name("benchmark_app")
    command = [app, "-m", path, "-d", "CPU", "-api", "sync", "-hint", "latency", "-load_config", settings]
    done = subprocess.run(
        [*map(str, command), "-t", str(round(seconds))],
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_S,
    )
    said = _MEDIAN.search(done.stdout)
    if said is None:
        raise RuntimeError(f"benchmark_app said no median: {done.stdout[-500:]}{done.stderr[-500:]}")
    return float(said.group(1))
