"""Which of a file's roundings a runtime leaves out, so that training rounds where the exported network does.

OpenVINO adds a residual inside the convolution that gives one of its sides. The pair between the two is then a clip
alone: what is added was not rounded (its `DnnlPostOpsComposer` calls it "one special residual pattern": a
quantization, then a sum, then another quantization, all in one convolution). ONNX Runtime rounds wherever the file
does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx

from deploypruner.runtime import Array, NodeTime, Profiler, runtimes

_CONVOLUTION, _ROUND, _SUM = "Convolution", "FakeQuantize", "Add"


def left_out(path: Path, runtime: str, feeds: Sequence[Array]) -> frozenset[str]:
    """Names of the QuantizeLinear nodes whose rounding a runtime leaves out; none where it does not tell.

    Args:
        path: A QDQ file.
        runtime: A registered name.
        feeds: One array per input.

    Raises:
        InputError: The runtime cannot load or run the file.
    """
    reader = runtimes.get(runtime)()
    if not isinstance(reader, Profiler):
        return frozenset()
    rounding = {node.name for node in onnx.load(path).graph.node if node.op_type == "QuantizeLinear"}
    executed = reader.profile(path, feeds, threads=1, calls=0)
    return frozenset(
        next(name for name in node.origins if name in rounding)
        for node in executed
        if _adds_unrounded(node) and rounding.intersection(node.origins)
    )


def _adds_unrounded(node: NodeTime) -> bool:
    """Is it a convolution that quantizes, adds and quantizes again?"""
    first, *after = node.kind.split("+")
    added = after.index(_SUM) if _SUM in after else 0
    return first == _CONVOLUTION and after[:1] == [_ROUND] and added > 0 and _ROUND in after[added:]
