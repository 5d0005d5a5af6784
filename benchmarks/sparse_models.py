"""The networks of benchmarks.sparse_networks: random but lively weights, a sparse pattern, every engine's own file.

Each folder below `benchmarks/work/sparse` holds one architecture at one share of zeros:

    fp32.onnx            what the others are made of
    openvino.onnx        int8 QDQ, pairs where OpenVINO wants them: what everything is compared with
    gated.onnx           int8 QDQ, pairs where our kernels want them; the sparse model is made of it
    onnxruntime.onnx     int8 QDQ, pairs where ONNX Runtime wants them
    deepsparse.onnx      QLinearConv, the form DeepSparse computes in int8
    sparse.onnx          our operators, where the product's own measurement of the layers says so
    every.onnx           our operators wherever they can stand
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from benchmarks.lively import calibrate, liven
from benchmarks.qlinear import to_qlinear
from benchmarks.zoo_models import untrained
from deploypruner.build.sparse_model import make_sparse
from deploypruner.errors import VerificationError
from deploypruner.export import exporters
from deploypruner.graph import trace
from deploypruner.graph.execute.module import get_state
from deploypruner.quantize import Placement, quantize_static
from deploypruner.recipe.sparse import SparseSettings
from deploypruner.sparse.convert import sparsify
from deploypruner.sparsity.patterns import make_pattern
from deploypruner.sparsity.patterns.distribution import units_to_keep
from deploypruner.sparsity.training.layers import choose_layers

WORK = Path(__file__).parent / "work" / "sparse"
NETS = ("resnet50", "mobilenet_v2", "efficientnet_b0", "mobilenet_v3_large", "regnet_y_400mf")
DENSE = "dense"
_CALIBRATION_BATCHES = 4


@dataclass(frozen=True)
class Variant:
    """One architecture as it is measured.

    Args:
        net: torchvision's name.
        pattern: Sparse pattern, or "dense".
        sparsity: Share of zeros in every convolution but the stem and the depthwise ones, 0 where dense.
        batch: Images at once.
        threads: That layers are chosen for.
    """

    net: str
    pattern: str = DENSE
    sparsity: float = 0.0
    batch: int = 1
    threads: int = 1

    @property
    def label(self) -> str:
        """How tables name it."""
        return DENSE if self.pattern == DENSE else f"{self.pattern} {self.sparsity:.0%}"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the input."""
        return self.batch, 3, 224, 224

    def file(self, kind: str) -> Path:
        """Where `prepare` puts the file of a kind."""
        folder = WORK / self.net / f"{self.label.replace(' ', '-').replace('%', '')}-batch{self.batch}"
        return folder / (f"sparse-threads{self.threads}.onnx" if kind == "sparse" else f"{kind}.onnx")


def prepare(variant: Variant, kinds: tuple[str, ...]) -> None:
    """Write what is missing of the files of these kinds."""
    missing = [kind for kind in kinds if not variant.file(kind).exists()]
    if not missing:
        return
    fp32 = variant.file("fp32")
    fp32.parent.mkdir(parents=True, exist_ok=True)
    if not fp32.exists():
        module, example = make_module(variant)
        exporters.get("onnx")().write(module, (example,), fp32, dynamic_batch=False)
    for kind in missing:
        path = variant.file(kind)
        part = path.with_suffix(".part.onnx")
        _WRITERS[kind](variant, part)
        part.replace(path)


def make_module(variant: Variant) -> tuple[nn.Module, Tensor]:
    """The network with its zeros, and one example input [batch, 3, 224, 224].

    The zeros are the smallest weights the pattern allows, the same share in every layer; batch norms are calibrated
    on noise afterwards, so that activations stay alive whatever was pruned.
    """
    torch.manual_seed(0)
    module, example_inputs = untrained(f"torchvision:{variant.net}")
    liven(module)
    if variant.pattern != DENSE:
        _prune(module, example_inputs, variant)
    example = torch.zeros(variant.shape)
    calibrate(module, (example,))
    return module.eval(), example


def _prune(module: nn.Module, example_inputs: tuple[Tensor, ...], variant: Variant) -> None:
    """Zero the smallest units of every convolution, in place; linear layers are classifiers here."""
    graph = trace(module, example_inputs)
    layers = choose_layers(graph, SparseSettings(sparsity=variant.sparsity, layers=("1x1", "conv")))
    pattern = make_pattern(variant.pattern)
    for layer in layers:
        weight = get_state(module, layer.weight)
        saliency = weight.detach().square()
        (keep,) = units_to_keep(pattern, [saliency], variant.sparsity, distribution="uniform")
        with torch.no_grad():
            weight.mul_(pattern.units(saliency).mask(saliency, keep))


def _write_quantized(variant: Variant, path: Path, placement: Placement) -> None:
    generator = torch.Generator().manual_seed(1)
    noise = [[torch.randn(variant.shape, generator=generator).numpy()] for _ in range(_CALIBRATION_BATCHES)]
    quantize_static(variant.file("fp32"), path, calibration=noise, placement=placement)


def _write_sparse(variant: Variant, path: Path) -> None:
    """What the product makes of a quantized file: it measures the layers, so the machine must be quiet.

    Where no layer is faster sparse, the product ships the dense model, and that is what is written.
    """
    prepare(variant, ("gated",))
    dense = variant.file("gated")
    noise = torch.randn(variant.shape, generator=torch.Generator().manual_seed(2)).numpy()
    made = make_sparse(dense, path, feeds=[[noise]], threads=variant.threads)
    variant.file("sparse").with_suffix(".json").write_text(json.dumps(made.document, indent=1))
    if made.check is None:
        shutil.copyfile(dense, path)
    elif not made.check.passed:
        raise VerificationError(f"{dense}: {made.check.detail}", hint="do not measure what computes something else")


def _write_every(variant: Variant, path: Path) -> None:
    prepare(variant, ("gated",))
    made = sparsify(onnx.load(variant.file("gated")), every=True)
    assert made.model is not None, f"{path}: nothing could be converted"
    onnx.save(made.model, path)


def _write_deepsparse(variant: Variant, path: Path) -> None:
    prepare(variant, ("openvino",))
    onnx.save(to_qlinear(onnx.load(variant.file("openvino"))), path)


_WRITERS: dict[str, Callable[[Variant, Path], None]] = {
    "openvino": partial(_write_quantized, placement="openvino"),
    "gated": partial(_write_quantized, placement="sparse"),
    "onnxruntime": partial(_write_quantized, placement="onnxruntime"),
    "deepsparse": _write_deepsparse,
    "sparse": _write_sparse,
    "every": _write_every,
}
