"""The executed operations in a profile that ONNX Runtime wrote: what they are and what each took."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from deploypruner.runtime import NodeTime

WARM_CALLS = 3
# Times are whole microseconds, cut off; half of one is what is missing on average.
_CUT_OFF_NS = 500
_SUFFIX = "_kernel_time"
_NUMBER = re.compile(r"_token_\d+")


def executed_nodes(events: Sequence[Mapping[str, Any]]) -> tuple[NodeTime, ...]:
    """Every node of the profile, in the order it ran, with the median of its times.

    The first inferences are left out where there are others. Weights are not among the shapes where a kernel packs
    them.

    Args:
        events: The profile: one event for each run of each node, and others.
    """
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and str(event["name"]).endswith(_SUFFIX):
            runs.setdefault(f"{event['name']} {event['args']['node_index']}", []).append(event)
    return tuple(_node(name, runs) for name, runs in zip(_names(runs), runs.values()))


def _names(runs: Iterable[str]) -> list[str]:
    """Names that are the same for every width of one network: nodes the optimizer adds are numbered in passing, so
    they are called after the node before them.
    """
    plain = [_NUMBER.sub("", run.rpartition(" ")[0].removesuffix(_SUFFIX)) for run in runs]
    count, names, before = Counter(plain), list[str](), ""
    for name in plain:
        if count[name] == 1:
            before = name
        full = name if count[name] == 1 else f"{name} after {before}"
        names.append(full if full not in names else f"{full} #{len(names)}")
    return names


def _node(name: str, events: Sequence[Mapping[str, Any]]) -> NodeTime:
    args = events[0]["args"]
    inputs, outputs = _tensors(args["input_type_shape"]), _tensors(args["output_type_shape"])
    counted = events[WARM_CALLS:] or events
    return NodeTime(
        name=name,
        kind=str(args["op_name"]),
        shapes=tuple(shape for _, shape in (*inputs, *outputs)),
        precisions=f"{','.join(kind for kind, _ in inputs)}>{','.join(kind for kind, _ in outputs)}",
        ns=median(float(event["dur"]) for event in counted) * 1e3 + _CUT_OFF_NS,
    )


def _tensors(listed: Sequence[Mapping[str, Sequence[int]]]) -> list[tuple[str, tuple[int, ...]]]:
    return [(kind, tuple(int(size) for size in shape)) for one in listed for kind, shape in one.items()]
