"""The executed operations of a model compiled by OpenVINO with counters: what they are and what each took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deploypruner.runtime import NodeTime

if TYPE_CHECKING:
    import openvino

WARM_CALLS = 3
# Counters are whole microseconds, cut off; half of one is what is missing on average.
_CUT_OFF_NS = 500


def mean_ns(request: openvino.InferRequest) -> dict[str, float]:
    """Name -> mean nanoseconds of every node that ran, over all inferences since the model was compiled."""
    return {
        node.node_name: node.real_time.total_seconds() * 1e9 + _CUT_OFF_NS
        for node in request.profiling_info
        if node.status.name == "EXECUTED"
    }


def mean_since(before: Mapping[str, float], after: Mapping[str, float], calls: int) -> dict[str, float]:
    """The means of the last `calls` inferences alone, where `before` was read after `WARM_CALLS` of them."""
    if not calls:
        return dict(before)
    done = WARM_CALLS
    return {
        name: max(_CUT_OFF_NS, (mean * (done + calls) - before.get(name, mean) * done) / calls)
        for name, mean in after.items()
    }


def executed_nodes(
    compiled: openvino.CompiledModel, counters: Sequence[Any], times: Mapping[str, float]
) -> tuple[NodeTime, ...]:
    """Join the executed graph with the times of its nodes.

    Args:
        compiled: The native model.
        counters: The request's `profiling_info`, in which fused operations appear with their types.
        times: Node name -> nanoseconds.
    """
    types = {node.node_name: node.node_type for node in counters}
    found = []
    for op in compiled.get_runtime_model().get_ordered_ops():
        name = op.get_friendly_name()
        if name not in times:
            continue
        facts = {key: value.astype(str) for key, value in op.get_rt_info().items()}
        origins = [origin for origin in facts.get("originalLayersNames", "").split(",") if origin]
        fused = [types[origin] for origin in origins if origin != name and origin in types]
        incoming = [port.get_source_output() for port in op.inputs()]
        sent = [_fact(port.get_node(), "outputPrecisions").split(",")[0] for port in incoming]
        shapes = [*(port.partial_shape for port in incoming), *(port.partial_shape for port in op.outputs())]
        found.append(
            NodeTime(
                name=name,
                kind="+".join([facts.get("layerType", "?"), *fused]),
                shapes=tuple(tuple(size.get_max_length() for size in shape) for shape in shapes),
                precisions=f"{','.join(sent)}>{facts.get('outputPrecisions', '')}",
                ns=times[name],
                origins=tuple(origins),
            )
        )
    return tuple(found)


def _fact(node: Any, key: str) -> str:
    facts = node.get_rt_info()
    return str(facts[key].astype(str)) if key in facts else ""
