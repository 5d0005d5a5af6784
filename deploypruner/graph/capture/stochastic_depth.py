"""Stochastic depth, which an export in evaluation mode would lose: found by what it does, and kept in the graph.

Drop-path layers are identities in evaluation mode and leave no trace in an exported graph; trained further, the
pruned model would then be a different one. torch has an operator that does the same and has a mode argument:
`feature_dropout` zeroes whole features, and with an axis of one put in front, a sample is a feature.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from deploypruner.graph.nodes import arguments, op_name

# A layer that drops one sample in a thousand is seen doing so with a probability of 98 % in the first probes.
_SAMPLES, _FIRST_PROBES, _MOST_PROBES = 512, 8, 1000
_RANKS = ((2, 1, 1), (2, 1), (2,))


class StochasticDepth(nn.Module):
    """Zeroes samples with probability `p` in training and scales the others by 1 / (1 - p).

    It draws its random numbers as the layers do that are common today, so that equal seeds drop equal samples.

    Args:
        p: Probability, 0 < p < 1.
        per_sample: Drop samples one by one (True), or all of a batch together.
    """

    def __init__(self, p: float, *, per_sample: bool) -> None:
        super().__init__()
        self.p, self.per_sample = p, per_sample

    def forward(self, x: Tensor) -> Tensor:
        """`x` of any rank, batch on axis 0."""
        lead = x.unsqueeze(0) if self.per_sample else x.unsqueeze(0).unsqueeze(0)
        dropped = torch.feature_dropout(lead, self.p, self.training)
        return dropped.squeeze(0) if self.per_sample else dropped.squeeze(0).squeeze(0)


def keep_stochastic_depth(model: nn.Module) -> list[str]:
    """Replace every layer that is stochastic depth by one that an export keeps.

    Args:
        model: In evaluation mode, and a copy: its sub-modules are replaced.

    Returns:
        Names of layers that drop samples in training but cannot be kept: they do not scale by 1 / (1 - p).
    """
    lost: list[str] = []
    made: dict[int, nn.Module | None] = {}
    for owner_name, owner in list(model.named_modules()):
        for name, layer in list(owner._modules.items()):
            if layer is None or not _may_be(layer):
                continue
            if id(layer) not in made:
                made[id(layer)] = _kept(layer)
                if made[id(layer)] is None and _drops(layer):
                    lost.append(f"{owner_name}.{name}".lstrip("."))
            kept = made[id(layer)]
            if kept is not None:
                owner._modules[name] = kept.eval()
    return lost


def _may_be(layer: nn.Module) -> bool:
    """No state, no sub-modules, no hooks, and not one of torch's own layers, which export keeps."""
    stateless = not any((layer._parameters, layer._buffers, layer._modules, layer._forward_hooks))
    return stateless and not type(layer).__module__.startswith("torch.nn.")


def _kept(layer: nn.Module) -> StochasticDepth | None:
    """The layer as stochastic depth, None where it is not exactly that."""
    factors = _factors(layer)
    if factors is None:
        return None
    scale = float(factors.max())
    if scale <= 1 or not bool(((factors == 0) | ((factors - scale).abs() < 1e-6 * scale)).all()):
        return None
    p = float(f"{1 - 1 / scale:.9g}")
    zeros = factors == 0
    per_sample = bool((zeros != zeros[:, :1]).any()) or not bool(zeros.any())
    draws = zeros.numel() if per_sample else len(zeros)
    seen = float(zeros.double().mean()) if per_sample else float(zeros[:, 0].double().mean())
    # Six standard deviations: a rate that is not p would not be stochastic depth.
    if abs(seen - p) > 6 * (p * (1 - p) / draws) ** 0.5 + 1 / draws:
        return None
    return StochasticDepth(p, per_sample=per_sample)


def _drops(layer: nn.Module) -> bool:
    """Does the layer zero some samples and leave others?"""
    factors = _factors(layer)
    return factors is not None and bool((factors == 0).any()) and bool((factors != 0).any())


def _factors(layer: nn.Module) -> Tensor | None:
    """What the layer multiplies each sample by in training, `[probes, samples]`.

    None where it does not do so: changes its input in evaluation mode, treats the elements of a sample
    differently, or does not take one tensor.
    """
    probe = copy.deepcopy(layer)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for rest in _RANKS:
            x = 1 + torch.rand(_SAMPLES, *rest, dtype=torch.float64)
            try:
                found = _run(probe, x)
            except Exception:  # noqa: BLE001 - a stranger's forward on a shape that may not be its own
                continue
            return found
    return None


def _run(probe: Callable[[Tensor], Tensor], x: Tensor) -> Tensor | None:
    assert isinstance(probe, nn.Module), "only modules are probed"
    if not torch.equal(probe.eval()(x), x):
        return None
    probe.train()
    rows: list[Tensor] = []
    while len(rows) < _FIRST_PROBES or (len(rows) < _MOST_PROBES and not _has_both(rows)):
        ratio = (probe(x.clone()) / x).flatten(1)
        if not torch.allclose(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-9):
            return None
        rows.append(ratio[:, 0])
        if len(rows) == _FIRST_PROBES and all(bool((row == 1).all()) for row in rows):
            return None
    return torch.stack(rows)


def _has_both(rows: list[Tensor]) -> bool:
    """Samples that were dropped, and samples that were not."""
    dropped = [bool((row == 0).any()) for row in rows]
    return any(dropped) and any(bool((row != 0).any()) for row in rows)


def without_stochastic_depth(graph: Graph) -> None:
    """Take out what `StochasticDepth` left in an exported graph in evaluation mode: it does nothing there."""
    last = next(iter(graph.find_nodes(op="output")))
    for node in list(graph.nodes):
        if node.op != "call_function" or last in node.users or not node.all_input_nodes:
            continue
        inner = node.all_input_nodes[0]
        off = op_name(node) == "feature_dropout" and not arguments(node)["train"]
        undone = (
            op_name(node) == "squeeze" and _axis(node) == 0 and op_name(inner) == "unsqueeze" and _axis(inner) == 0
        )
        if off or undone:
            node.replace_all_uses_with(inner if off else inner.all_input_nodes[0])
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _axis(node: Node) -> int | None:
    """The one axis that an unsqueeze or squeeze adds or drops."""
    dim = arguments(node).get("dim")
    return dim[0] if isinstance(dim, list | tuple) and len(dim) == 1 else dim if isinstance(dim, int) else None
