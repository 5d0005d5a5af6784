"""Timings on disk: one file for each device and setting, shared by all models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from deploypruner.atomic import write_json
from deploypruner.caches import default_folder
from deploypruner.device.machine import Machine
from deploypruner.errors import InputError, said_by
from deploypruner.graph import Graph
from deploypruner.graph.inputs import tensors
from deploypruner.latency.nodes import Node
from deploypruner.latency.points import Points
from deploypruner.latency.quality import LatencyQuality
from deploypruner.reading import read_json, status
from deploypruner.records import Setting

FORMAT = 5


class Cache:
    """Earlier timings of one setting on one machine.

    Args:
        folder: Where files are; None for `default_folder`.
        setting: Runtime, precision and threads.
        machine: Whose timings they are; this one where None.

    Attributes:
        points: What was timed.
        remark: What a user should know about the file, "" where it was as expected.
    """

    def __init__(self, folder: Path | None, setting: Setting, machine: Machine | None = None) -> None:
        self._folder = folder or default_folder()
        self._device = device(setting, machine)
        digest = hashlib.sha256(json.dumps(self._device, sort_keys=True).encode()).hexdigest()[:16]
        self._name = f"latency-{setting.runtime}-{setting.precision}-{setting.threads}-{digest}.json"
        self.points, self.remark = Points(), ""
        self._models: dict[str, Any] = {}
        self._read()

    def model(self, fingerprint: str) -> tuple[tuple[Node, ...], LatencyQuality] | None:
        """Operations and quality of a model that was built before."""
        found = self._models.get(fingerprint)
        if found is None:
            return None
        return tuple(map(Node.from_json, found["nodes"])), LatencyQuality.from_json(found["quality"])

    def write(self, fingerprint: str, nodes: Sequence[Node], quality: LatencyQuality, points: Points) -> None:
        """Keep a model and all points; a folder that cannot be written to is a remark, no error."""
        self.points = points
        self._models[fingerprint] = {"nodes": [asdict(node) for node in nodes], "quality": asdict(quality)}
        document = {"format": FORMAT, "device": self._device, "points": points.to_json(), "models": self._models}
        try:
            write_json(self._folder / self._name, document)
        except InputError as error:
            self.remark = f"the latency table was not kept: {error.message}"

    def _read(self) -> None:
        path = self._folder / self._name
        try:
            if status(path, what="cache") is None:
                return
            document = read_json(path, what="cache", hint="delete it")
            if document["format"] != FORMAT or document["device"] != self._device:
                raise ValueError("another format or device")
            points, models = Points.from_json(document["points"]), dict(document["models"])
            for found in models.values():
                nodes = tuple(map(Node.from_json, found["nodes"]))
                LatencyQuality.from_json(found["quality"])
                if not all(points.has(node.key) for node in nodes):
                    raise ValueError("operations without timings")
        except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            self.remark = (
                f"the latency table {path} is damaged or of another device ({said_by(error)}), so it is rebuilt"
            )
            return
        self.points, self._models = points, models


def device(setting: Setting, machine: Machine | None = None) -> dict[str, Any]:
    """What timings depend on besides the model, JSON-able; how a machine is reached is no part of it.

    Args:
        setting: Runtime, precision and threads.
        machine: Where it runs; this one where None.
    """
    machine = machine or Machine()
    limits = machine.limits | dict(setting.environment)
    return {
        **machine.fingerprint,
        "runtime": setting.runtime,
        "version": machine.version(setting.runtime),
        "precision": setting.precision,
        "threads": setting.threads,
        **({"environment": limits} if limits else {}),
    }


def fingerprint(graph: Graph) -> str:
    """Equal for models with the same operations, sizes, groups and input shapes, whatever their weights."""
    module = graph.module
    code = module.code if isinstance(module, torch.fx.GraphModule) else repr(module)
    facts = [
        "layers by their modules",  # operations that were bound under other names are of no use
        code,
        [(name, list(value.shape)) for name, value in module.state_dict().items()],
        [(g.id, g.size, [(m.parameter, m.axis, list(m.index.shape)) for m in g.members]) for g in graph.groups],
        [(b.id, b.parameters, b.groups) for b in graph.branches],
        [list(tensor.shape) for tensor in tensors(graph.example_inputs)],
        [graph.part, graph.dynamic_batch],
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
