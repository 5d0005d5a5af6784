"""The two tools behind one function each: dense model in, pruned model of at most so many MACs out.

Both see the same scoring batches and the same budget, counted by a third party (torch's FLOP counter). The scope
`blocks` restricts both to the channels inside the residual blocks: torch-pruning 1.6.1 cannot prune the residual
stream of these networks, because it does not follow channels through the zero-padded shortcut.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import NETS, ResNet
from deploypruner.channels.allocate import allocate
from deploypruner.channels.criteria import Criterion, criteria
from deploypruner.channels.learned.learned import learned_regime
from deploypruner.channels.learned.run import learn
from deploypruner.channels.learned.schedules import Shrinking, toward_budget
from deploypruner.channels.plan import Plan
from deploypruner.channels.remove import remove_and_prove
from deploypruner.channels.statistics import score_groups
from deploypruner.graph import Graph, trace
from deploypruner.graph.execute.parameter_override import holding
from deploypruner.losses import label_parts
from deploypruner.recipe.budget import Budget
from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.recipe.learn import LearnSettings
from deploypruner.sources.batches import Batch, Data
from deploypruner.train.reconstruct import reconstruct

Scoring = list[Batch]
History = list[tuple[str, bool, list[int]]]  # layer, whether its outputs, removed channels
INPUT = (1, 3, 32, 32)
SCAN, BISECTIONS = 32, 6
IMPORTANCE = {
    "taylor": tp.importance.GroupTaylorImportance,
    "magnitude": tp.importance.GroupMagnitudeImportance,
    "bn_scale": tp.importance.BNScaleImportance,
    "hessian": tp.importance.GroupHessianImportance,
}
# Name of a case -> criterion, its parameters, schedule.
OURS: dict[str, tuple[str, dict[str, float | str], str]] = {
    "taylor": ("taylor", {}, "one-shot"),
    "magnitude": ("magnitude", {}, "one-shot"),
    "magnitude L2": ("magnitude", {"p": 2.0}, "one-shot"),
    "bn_scale": ("bn_scale", {}, "one-shot"),
    "fpgm": ("fpgm", {}, "one-shot"),
    "activation": ("activation", {}, "one-shot"),
    "apoz": ("activation", {"statistic": "apoz"}, "one-shot"),
    "random": ("random", {}, "one-shot"),
    "taylor group": ("taylor", {"of": "group"}, "one-shot"),
    "taylor individual": ("taylor", {"of": "individual"}, "one-shot"),
    "taylor order 2": ("taylor", {"order": 2}, "one-shot"),
    "hessian": ("hessian", {}, "one-shot"),
    "oracle": ("oracle", {}, "one-shot"),
    "taylor iterative": ("taylor", {}, "iterative"),
    "magnitude gradual": ("magnitude", {}, "gradual"),
    "pdp": ("pdp", {}, "learned"),
    "dtp": ("dtp", {}, "learned"),
    "scratch": ("taylor", {}, "one-shot"),
    "taylor, reconstructed": ("taylor", {}, "one-shot"),
}
RECONSTRUCTED, _SAMPLES, _BATCH = ("taylor, reconstructed",), 256, 64


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Args:
        tool: "deploypruner" or "torch-pruning".
        criterion: A name of `OURS` or of `IMPORTANCE`; "scratch" is the widths of "taylor" with random weights;
            "taylor, reconstructed" is what a build does, with layers solved by least squares before any training.
        scope: "all" channels, or only those inside "blocks".
        step: Widths are multiples of this.
    """

    tool: str
    criterion: str
    scope: str
    step: int

    @property
    def name(self) -> str:
        return f"{self.tool} {self.criterion} {self.scope} step {self.step}"


@dataclass(frozen=True)
class Job:
    """What there is to prune, and with.

    Args:
        net: Name of the network.
        dense: Trained.
        macs: Fraction of its multiply-adds that may remain.
        scoring: Minibatches for criteria.
        data: For the cases that choose channels while training.
        training: How those train; it takes its epochs from the recovery's.
    """

    net: str
    dense: nn.Module
    macs: float
    scoring: Scoring
    data: Data
    training: FinetuneSettings


@dataclass(frozen=True)
class Pruned:
    """A pruned model.

    Args:
        module: Trainable.
        proof: Largest difference between the masked and the removed model, None where it was not checked.
        epochs: Spent on choosing.
    """

    module: nn.Module
    proof: float | None = None
    epochs: int = 0


class CannotPrune(Exception):
    """A tool failed on this network; the message is the tool's."""


def macs_of(module: nn.Module) -> int:
    """Multiply-adds of one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(INPUT))
    return counter.get_total_flops() // 2


def params_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def prune(case: Case, job: Job) -> Pruned:
    """Prune a copy of the dense network.

    Raises:
        CannotPrune: torch-pruning failed.
    """
    return TOOLS[case.tool](case, job)


def by_deploypruner(case: Case, job: Job) -> Pruned:
    graph = trace(job.dense, torch.zeros(2, *INPUT[1:]))
    if case.scope == "blocks":
        inside = tuple(group for group in graph.groups if group.id.endswith(".conv1.weight:0"))
        graph = replace(graph, groups=inside)
    name, parameters, schedule = OURS[case.criterion]
    criterion = criteria.get(name)(**parameters)
    scores = score_groups(graph, criterion, job.scoring)

    def allocated(scores: dict[str, Tensor], macs: float) -> Plan:
        return allocate(graph, scores, Budget(macs), criterion=name, normalizer=criterion.normalizer, step=case.step)

    plan = allocated(scores, job.macs)
    if case.criterion == "scratch":
        torch.manual_seed(job.training.seed)
        fresh = trace(NETS[job.net](), torch.zeros(2, *INPUT[1:]))
        return Pruned(fresh.cut(fresh.removed(plan.keep)))
    if schedule != "one-shot":
        return _learned(job, graph, plan, criterion, schedule=schedule, scores=scores, allocated=allocated)
    module, checks = remove_and_prove(graph, plan)
    if case.criterion in RECONSTRUCTED:
        images = job.data.train.epoch(batch_size=_BATCH, seed=job.training.seed, shuffle=True, augment=True)
        reconstruct(graph, plan.keep, module, islice(images, _SAMPLES // _BATCH))
    return Pruned(module, max(check.max_abs_diff for check in checks))


def _learned(
    job: Job,
    graph: Graph,
    plan: Plan,
    criterion: Criterion,
    *,
    schedule: str,
    scores: dict[str, Tensor],
    allocated: Callable[[dict[str, Tensor], float], Plan],
) -> Pruned:
    """Choose channels while the dense model trains."""
    if criterion.learned:
        regime = learned_regime(graph, plan, criterion)
    else:
        regime = Shrinking(
            graph,
            plan,
            criterion,
            schedule=schedule,
            settings=LearnSettings(),
            narrow=toward_budget(job.macs, allocated),
            before=scores,
        )
    learned = learn(graph, job.data.train, regime, job.training)
    with holding(graph, learned.weights):
        module, checks = remove_and_prove(graph, learned.plan)
    return Pruned(module, max(check.max_abs_diff for check in checks), job.training.epochs)


def by_torch_pruning(case: Case, job: Job) -> Pruned:
    """The widest model within the budget along torch-pruning's one number, the pruning ratio.

    A coarse scan finds the first ratio that meets the budget, because MACs do not fall steadily where widths are
    rounded; bisection then narrows the gap. Settings as in its README: global ranking, the classifier ignored.
    """
    assert isinstance(job.dense, ResNet), "the scope `blocks` is written for these networks"
    dense, macs = job.dense, job.macs
    gradients = GRADIENTS[case.criterion](dense, job.scoring) if case.criterion in GRADIENTS else {}
    allowed, reached = macs * macs_of(dense), macs_of(dense)
    best: tuple[int, nn.Module, History] | None = None
    for ratio in (i / SCAN for i in range(1, SCAN)):
        module, history = _at_ratio(case, dense, ratio, gradients)
        reached = min(reached, macs_of(module))
        if macs_of(module) <= allowed:
            best = macs_of(module), module, history
            break
    if best is None:
        raise CannotPrune(
            f"no pruning ratio meets the budget; the least it reaches is {reached / macs_of(dense):.1%}"
        )
    low, high = ratio - 1 / SCAN, ratio
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        module, history = _at_ratio(case, dense, middle, gradients)
        cost = macs_of(module)
        low, high = (low, middle) if cost <= allowed else (middle, high)
        if best[0] < cost <= allowed:
            best = cost, module, history
    _, module, history = best
    return Pruned(module, _masked_difference(dense, module, history) if case.scope == "blocks" else None)


TOOLS: dict[str, Callable[[Case, Job], Pruned]] = {
    "deploypruner": by_deploypruner,
    "torch-pruning": by_torch_pruning,
}


def _gradients(dense: ResNet, scoring: Scoring) -> dict[str, Tensor]:
    model = copy.deepcopy(dense).eval()
    for inputs, labels in scoring:
        (wanted,) = label_parts(labels)
        (F.cross_entropy(model(*inputs), wanted) / len(scoring)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _squared_gradients(dense: ResNet, scoring: Scoring) -> dict[str, Tensor]:
    """Mean over samples of the squared gradient, as GroupHessianImportance documents it.

    Handed over directly, because its own `accumulate_grad` (1.6.1) looks names up among parameters and so keeps only
    the last sample.
    """
    model, count = copy.deepcopy(dense).eval(), 0
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for (images,), labels in scoring:
        (wanted,) = label_parts(labels)
        for loss in F.cross_entropy(model(images), wanted, reduction="none"):
            count += 1
            found = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
            for sum_of, gradient in zip(total.values(), found, strict=True):
                sum_of += gradient.square()
    return {name: sum_of / count for name, sum_of in total.items()}


GRADIENTS = {"taylor": _gradients, "hessian": _squared_gradients}


def _at_ratio(case: Case, dense: ResNet, ratio: float, gradients: dict[str, Tensor]) -> tuple[nn.Module, History]:
    model = copy.deepcopy(dense)
    ignored: list[nn.Module] = [model.linear]
    if case.scope == "blocks":
        ignored += model.writers()
    try:
        pruner = tp.pruner.BasePruner(
            model,
            torch.zeros(INPUT),
            importance=IMPORTANCE[case.criterion](),
            global_pruning=True,
            pruning_ratio=ratio,
            ignored_layers=ignored,
            round_to=None if case.step == 1 else case.step,
        )
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name].clone() if name in gradients else None
        pruner.step()
        with torch.no_grad():
            model(torch.zeros(INPUT))
    except (IndexError, RuntimeError, AssertionError, ValueError) as error:
        raise CannotPrune(f"{type(error).__name__}: {error}") from error
    model.zero_grad()
    return model, pruner.pruning_history()


def _masked_difference(dense: ResNet, module: nn.Module, history: History) -> float | None:
    """Largest difference in float64 between zeroing the removed channels after bn1 and removing them."""
    masked, x = copy.deepcopy(dense).double().eval(), torch.randn(4, *INPUT[1:], dtype=torch.float64)
    for name, is_output, channels in history:
        if not name.endswith(".conv1") or not is_output:
            return None
        for part in ("weight", "bias"):
            masked.get_parameter(f"{name.removesuffix('conv1')}bn1.{part}").data[list(channels)] = 0
    with torch.no_grad():
        return float((masked(x) - copy.deepcopy(module).double().eval()(x)).abs().max())
