"""The same recovery for every plan, and what it is worth afterwards in OpenVINO, fp32 and int8."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.rivals import Keep
from deploypruner.export import exporters
from deploypruner.graph import Graph
from deploypruner.graph.execute.parameter_override import holding
from deploypruner.losses import label_of
from deploypruner.measure import evaluate, outputs
from deploypruner.quantize import quantize_static
from deploypruner.recipe.finetune import Amp, FinetuneSettings
from deploypruner.runtime import runtimes
from deploypruner.search.judge import Judge
from deploypruner.sources.adapted import Unlabelled
from deploypruner.sources.batches import Batches, Data
from deploypruner.target import detect
from deploypruner.train.batches import Batch, TrainingBatches
from deploypruner.train.batchnorm import reestimate_batchnorm
from deploypruner.train.budget import recovery_defaults, time_step
from deploypruner.train.features import find_features
from deploypruner.train.finetune import finetune
from deploypruner.train.reconstruct import reconstruct

_RECONSTRUCTED, _CALIBRATED, _STATISTICS_BATCHES = 256, 256, 50
_BATCH = 64


@dataclass(frozen=True)
class Recovery:
    """How long every plan is trained.

    Args:
        images: Training images, None for all.
        epochs: Passes over them.
    """

    images: int | None
    epochs: int


RECOVERIES = {"short": Recovery(10_000, 2), "long": Recovery(None, 15), "tiny": Recovery(512, 1)}


def repaired(
    graph: Graph,
    keep: Keep,
    train: TrainingBatches,
    *,
    seed: int = 0,
    reconstruction: bool = True,
    statistics: bool = True,
    augment: bool = True,
    weights: Mapping[str, Tensor] | None = None,
    held_out: int = 0,
) -> nn.Module:
    """What is left of the model, its layers solved by least squares and its batch-norm statistics set anew.

    With `weights` in place of the dense model's own, which stays what layers are solved for. With so many images held
    out, what `compile` does: of the corrections as much stays as does best on these, without labels.
    """

    def images() -> Iterator[Batch]:
        return train.epoch(batch_size=_BATCH, seed=seed, shuffle=True, augment=augment)

    with holding(graph, weights or {}):
        module = graph.cut(graph.removed(keep))
    if reconstruction and held_out:
        plain = train.epoch(batch_size=_BATCH, seed=seed, shuffle=True, augment=False)
        held = [(inputs, None) for inputs, _ in islice(plain, held_out // _BATCH)]
        others = islice(images(), len(held), len(held) + _RECONSTRUCTED // _BATCH)
        Judge(graph, solving=list(others), held_out=held).repair(module.eval(), keep)
    elif reconstruction:
        reconstruct(graph, keep, module, islice(images(), _RECONSTRUCTED // _BATCH))
    if statistics:
        reestimate_batchnorm(module, images(), max_batches=_STATISTICS_BATCHES)
    return module.eval()


def trained(
    graph: Graph, module: nn.Module, train: TrainingBatches, *, epochs: int, seed: int, amp: Amp = "auto"
) -> nn.Module:
    """The module after fine-tuning, half of the loss from the dense model; statistics set anew once more."""
    settings = FinetuneSettings(epochs=epochs, lr=0.02, amp=amp, channels_last=True, seed=1000 * seed)
    if not any(name.endswith("running_mean") for name, _ in module.named_buffers()):
        settings = replace(settings, lr=0.0005, optimizer="adamw", weight_decay=0.05)  # transformers
    finetune(module, graph.module, train, settings)
    images = train.epoch(batch_size=_BATCH, seed=seed, shuffle=True, augment=True)
    reestimate_batchnorm(module, images, max_batches=_STATISTICS_BATCHES)
    return module.eval()


def mimicked(graph: Graph, keep: Keep, module: nn.Module, train: Batches, *, minutes: float) -> int:
    """Let the module learn the dense outputs and features without labels, as `compile` does; gives the steps."""
    images, features = Unlabelled(train), find_features(graph, keep, module)
    outlook = recovery_defaults(
        FinetuneSettings(channels_last=True),
        samples=train.samples or 0,
        labelled=False,
        gap=None,
        seconds_per_step=lambda s: time_step(module, graph.module, images, s, features=features),
        minutes=minutes,
    )
    finetune(module, graph.module, images, outlook.settings, features=features)
    module.eval()
    return outlook.steps * outlook.settings.epochs


def judged(module: nn.Module, graph: Graph, data: Data, *, dense: Path | None = None) -> dict[str, Any]:
    """Top-1 in percent of both precisions in OpenVINO, and agreement with the dense model where its file is given.

    Args:
        module: What is left of the model.
        graph: Of the dense model.
        data: Calibration is on 256 training samples; all validation samples judge.
        dense: The dense model's fp32 ONNX file, any batch.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = written(module, graph, data.train, Path(folder))
        reference = None if dense is None else outputs(_open(dense), _samples(data.val))
        found: dict[str, Any] = {}
        for precision, path in files.items():
            quality = evaluate(_open(path), _samples(data.val), reference=reference)
            found[precision] = quality.accuracy
            if reference is not None:
                found[f"{precision} agreement"] = quality.agreement
    return found


def written(module: nn.Module, graph: Graph, train: TrainingBatches, folder: Path) -> dict[str, Path]:
    """Precision -> ONNX file for any batch size, int8 calibrated on training samples."""
    fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
    exporters.get("onnx")().write(module, graph.example_inputs, fp32, dynamic_batch=graph.dynamic_batch)
    batches = train.epoch(batch_size=8, seed=0, shuffle=True, augment=False)
    feeds = ([np.ascontiguousarray(x.numpy()) for x in inputs] for inputs, _ in islice(batches, _CALIBRATED // 8))
    quantize_static(fp32, int8, calibration=feeds, method="auto", reduce_range=detect().saturates, repair=True)
    return {"fp32": fp32, "int8": int8}


def _open(path: Path) -> Any:
    return runtimes.get("openvino")().open(path, threads=torch.get_num_threads())


def _samples(val: TrainingBatches) -> Iterator[tuple[list[Any], Any]]:
    for inputs, labels in val.epoch(batch_size=50, seed=0, shuffle=False, augment=False):
        known = label_of(labels, 0)
        yield [np.ascontiguousarray(x.numpy()) for x in inputs], None if known is None else known.numpy()
