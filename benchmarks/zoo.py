"""Popular architectures at half their MACs, no data: traced, pruned, proved, exported. Random weights.

    python -m benchmarks.zoo                       # the CNNs
    python -m benchmarks.zoo timm:rexnet_100 ...   # any MODEL of the command line

Batch-norm statistics are randomised, because a freshly initialised network hardly depends on its input and any
comparison of outputs would pass.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn

from deploypruner.criteria import criteria
from deploypruner.errors import DeployPrunerError
from deploypruner.export import exporters
from deploypruner.graph import trace
from deploypruner.prune.allocate import allocate
from deploypruner.prune.evidence import score_groups
from deploypruner.prune.remove import remove_and_prove
from deploypruner.records import Budget
from deploypruner.runtime import runtimes
from deploypruner.sources.model import load_model

RESULTS = Path(__file__).parent / "results"
CNNS = (
    *("torchvision:resnet18", "torchvision:resnet50", "torchvision:vgg16_bn", "torchvision:mobilenet_v2"),
    *("torchvision:mobilenet_v3_large", "torchvision:efficientnet_b0", "torchvision:densenet121"),
    *("torchvision:regnet_y_400mf", "torchvision:googlenet", "torchvision:shufflenet_v2_x1_0"),
    *("torchvision:resnext50_32x4d", "torchvision:inception_v3", "timm:repvgg_a0", "timm:cspdarknet53"),
    *("timm:ghostnet_100", "timm:res2net50_26w_4s", "timm:mobilenetv4_conv_small", "timm:hrnet_w18_small"),
)


@click.command()
@click.argument("models", nargs=-1)
@click.option("--macs", default=0.5, show_default=True)
@click.option("--step", default=8, show_default=True)
def main(models: tuple[str, ...], macs: float, step: int) -> None:
    """Print one markdown row per model and keep the raw numbers."""
    torch.set_num_threads(2)
    click.echo("| model | trace s | groups | prunable outputs | MACs | proof | signal | ONNX Runtime | seconds |")
    click.echo("|---|---|---|---|---|---|---|---|---|")
    rows = []
    for name in models or CNNS:
        row = {"model": name, **_try(name, macs, step)}
        rows.append(row)
        click.echo(_line(row))
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "zoo.json").write_text(json.dumps({"macs": macs, "step": step, "rows": rows}, indent=1))


def _try(name: str, macs: float, step: int) -> dict[str, Any]:
    begun = time.perf_counter()
    try:
        row = _measure(name, macs, step)
    except DeployPrunerError as error:
        row = {"failed": error.message}
    return {**row, "seconds": time.perf_counter() - begun}


def _measure(name: str, macs: float, step: int) -> dict[str, Any]:
    loaded = load_model(f"{name}?pretrained=0")
    assert isinstance(loaded.module, nn.Module), "zoo models are modules"
    _liven(loaded.module)
    traced_at = time.perf_counter()
    graph = trace(loaded.module, loaded.example_inputs)
    trace_s = time.perf_counter() - traced_at
    magnitude = criteria.get("magnitude")()
    plan = allocate(
        graph,
        score_groups(graph, magnitude, None),
        Budget(macs),
        criterion="magnitude",
        normalizer=magnitude.normalizer,
        step=step,
    )
    module, checks = remove_and_prove(graph, plan)
    outputs = sum(g.size for g in graph.groups if not g.secondary and not g.changes_statistics)
    kept_whole = sum(g.size for g in graph.groups if g.changes_statistics)
    frozen = sum(f.count for f in graph.frozen if f.axis == 0 and f.reason != "model output")
    return {
        "trace_s": trace_s,
        "groups": len(graph.groups),
        "prunable": outputs / (outputs + kept_whole + frozen),
        "macs": plan.macs_after / plan.macs_before,
        "proof": max(c.max_abs_diff for c in checks),
        "passed": all(c.passed for c in checks),
        "signal": checks[0].detail,
        "onnx": _onnx_difference(module, graph.example_inputs, dynamic=graph.dynamic_batch),
    }


def _liven(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
            layer.running_mean.normal_(0, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
            if layer.weight is not None:
                layer.weight.data.uniform_(0.5, 1.5, generator=generator)
                layer.bias.data.normal_(0, 0.1, generator=generator)


def _onnx_difference(module: nn.Module, inputs: tuple[Any, ...], *, dynamic: bool) -> float:
    """Largest relative difference between torch and ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.onnx"
        exporters.get("onnx")().write(module, inputs, path, dynamic_batch=dynamic)
        got = runtimes.get("onnxruntime")().open(path, threads=2).run([t.numpy() for t in inputs])[0]
        wanted = module(*inputs)
        first = next(t for t in torch.utils._pytree.tree_leaves(wanted) if isinstance(t, torch.Tensor)).numpy()
    return float(np.abs(got - first).max() / np.abs(first).max())


def _line(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"| {row['model']} | {row['failed']} |"
    proof = f"{row['proof']:.0e}" if row["passed"] else f"FAILED {row['proof']:.0e}"
    return (
        f"| {row['model']} | {row['trace_s']:.1f} | {row['groups']} | {row['prunable']:.1%} | {row['macs']:.3f} | "
        f"{proof} | {row['signal'].split()[3]} | {row['onnx']:.0e} | {row['seconds']:.0f} |"
    )


if __name__ == "__main__":
    main()
