"""Float networks in the forms that int8 is compared on: dense, pruned, with zeros, and each with uneven ranges."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import numpy_helper
from torch import nn

import deploypruner
from benchmarks.alike import repaired
from benchmarks.baseline import baseline
from benchmarks.cifar10 import WORK
from benchmarks.imagenet import efficientnet_lite0
from deploypruner.export import exporters
from deploypruner.graph import Graph, trace
from deploypruner.onnx_graph import constant, operand, sizes, to_model
from deploypruner.quantize.homogeneous import scalable_channels
from deploypruner.quantize.scaling import rescale
from deploypruner.recipe.sparse import SparseSettings
from deploypruner.schedules.one_shot import OneShotMasks
from deploypruner.sources.batches import Data
from deploypruner.sparsity.patterns import make_pattern
from deploypruner.sparsity.training.layers import choose_layers
from deploypruner.train.batches import TrainingBatches
from deploypruner.train.batchnorm import reestimate_batchnorm

FOLDER = WORK / "int8-accuracy"
OF_PHOTOGRAPHS = "efficientnet_lite0"
NETS = ("resnet20", "resnet56", "se_net", OF_PHOTOGRAPHS)
FORMS = ("dense", "dense rescaled", "dense bounds rescaled", "pruned", "pruned rescaled", "zeros", "zeros rescaled")
_MACS, _DECADES = 0.7, 4.0
_PATTERN, _ZEROS = "1x4", 0.5


def forms_of(net: str) -> tuple[str, ...]:
    """Those that a network is compared in."""
    left_out = "pruned" if net == OF_PHOTOGRAPHS else ("zeros", "dense bounds")
    return tuple(form for form in FORMS if not form.startswith(left_out))


def side_of(net: str) -> int:
    """Height and width of its images."""
    return 224 if net == OF_PHOTOGRAPHS else 32


def float_file(net: str, form: str, data: Data) -> Path:
    """The float network of this form, made once."""
    path = FOLDER / f"{net}-{form.replace(' ', '-')}.onnx"
    if path.exists():
        return path
    part = path.with_suffix(".part")
    if form.endswith("rescaled"):
        plain = onnx.load(float_file(net, form.split()[0], data))
        onnx.save(rescaled(bounds_by_channel(plain) if "bounds" in form else plain), part)
    else:
        model = efficientnet_lite0() if net == OF_PHOTOGRAPHS else baseline(net)
        example = (torch.zeros(2, 3, side_of(net), side_of(net)),)
        graph = trace(model, example)
        module = graph.module
        if form == "pruned":
            plan = deploypruner.prune(model, example, criterion="magnitude", macs=_MACS).plan
            module = repaired(graph, {group.id: np.asarray(group.keep) for group in plan.groups}, data.train)
        elif form == "zeros":
            module = with_zeros(graph, data.train)
        exporters.get("onnx")().write(module, graph.example_inputs, part, dynamic_batch=True)
    part.replace(path)
    return path


def with_zeros(graph: Graph, train: TrainingBatches) -> nn.Module:
    """The network with half of its 1x1 convolutions' weights zero, and batch-norm statistics of its own."""
    settings = SparseSettings(sparsity=_ZEROS, layers=("1x1",))
    weights = [layer.weight for layer in choose_layers(graph, settings)]
    module = copy.deepcopy(graph.module)
    regime = OneShotMasks(weights, make_pattern(_PATTERN), settings)
    regime.begin(module, 0)
    regime.finish(module)
    reestimate_batchnorm(module, train.epoch(batch_size=20, seed=0, shuffle=True, augment=False), max_batches=20)
    return module.eval()


def bounds_by_channel(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with each Clip(0, B) as a relu and a Min with a stored bound B for each channel."""
    held = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    clips = {str(node.outputs[0].name): node for node in held.graph if node.op_type == "Clip"}
    made = onnx.ModelProto()
    made.CopyFrom(model)
    nodes = []
    for node in made.graph.node:
        if node.op_type != "Clip":
            nodes.append(node)
            continue
        clip, (x, *_), (y,) = clips[node.output[0]], node.input, node.output
        channels = sizes(operand(clip, 0))
        assert channels is not None, f"the shape of '{x}' is not known"
        bound = np.full((1, channels[1] or 0, 1, 1), constant(operand(clip, 2)), np.float32)
        made.graph.initializer.append(numpy_helper.from_array(bound, f"{y}_bound"))
        nodes.append(onnx.helper.make_node("Relu", [x], [f"{y}_relu"], name=f"{node.name}_relu"))
        nodes.append(onnx.helper.make_node("Min", [f"{y}_relu", f"{y}_bound"], [y], name=f"{node.name}_min"))
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return onnx.shape_inference.infer_shapes(made)


def rescaled(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same function by channels whose ranges are up to `_DECADES` decades apart; those behind a clip stay."""
    held = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    found = scalable_channels(held.graph)
    exponents = np.random.default_rng(0).uniform(-_DECADES / 2, _DECADES / 2, len(found.free))
    rescale(held.graph, found, np.where(np.isfinite(found.bounds), 1.0, 10.0**exponents))
    return to_model(held)
