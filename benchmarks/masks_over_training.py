"""How soft masks become hard ones: PDP and DTP on the channels of a trained CIFAR ResNet.

    python -m benchmarks.masks_over_training --net resnet20 --macs 0.5 --epochs 6 --train-limit 5000

For every method: is the number of channels exact at the end, which share of the masks is undecided (between 0.05 and
0.95) over the training, and the loss and accuracy of the network with soft masks against the one with the hard masks
it would end in, after every epoch. Writes benchmarks/results/masks_over_training.json and a picture beside it.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks.baseline import baseline
from benchmarks.cifar10 import cifar10
from benchmarks.curves import curves
from benchmarks.models import NETS
from deploypruner.channels.allocate import allocate
from deploypruner.channels.criteria import criteria
from deploypruner.channels.criteria.dtp import Dtp
from deploypruner.channels.criteria.pdp import Pdp
from deploypruner.channels.learned import ChannelRegime, learn, learned_regime
from deploypruner.channels.plan import Plan
from deploypruner.channels.statistics import score_groups
from deploypruner.graph import Graph, trace
from deploypruner.losses import label_parts
from deploypruner.recipe.budget import Budget
from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.sources.batches import Data
from deploypruner.train.modes import evaluating

RESULTS = Path(__file__).parent / "results" / "masks_over_training.json"
_BATCH = 128


@dataclass
class Recording:
    """What one training looked like.

    Args:
        regime: Its masks; told to report after every step.
        data: Validation images.
        per_epoch: Steps of an epoch.
        samples: Validation images that are looked at.
    """

    regime: ChannelRegime
    data: Data
    per_epoch: int
    samples: int
    undecided: list[float] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._soft: dict[str, Tensor] = {}
        before = self.regime.after_step

        def after_step(step: int) -> None:
            before(step)
            self.undecided.append(self.regime.undecided())
            if (step + 1) % self.per_epoch == 0:
                trained = {**self.regime.parameters, **self.regime.soft_weights()}
                self._soft = {name: tensor.detach().clone() for name, tensor in trained.items()}

        self.regime.after_step = after_step  # type: ignore[method-assign]  # the loop only calls it

    def validate(self, module: nn.Module) -> float:
        """Note losses and accuracies; the module holds the hard weights."""
        hard = self._judge(module)
        soft = self._judge(lambda x: functional_call(module, self._soft, (x,)))
        noted = {"hard_loss": hard[0], "soft_loss": soft[0], "hard_percent": hard[1], "soft_percent": soft[1]}
        self.epochs.append(noted)
        return hard[1]

    def _judge(self, forward: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        loss = right = seen = 0.0
        epoch = self.data.val.epoch(batch_size=250, seed=0, shuffle=True, augment=False)
        for (x,), labels in islice(epoch, self.samples // 250):
            (y,) = label_parts(labels)
            with torch.no_grad():
                output = forward(x)
            loss += float(F.cross_entropy(output, y, reduction="sum"))
            right += int((output.argmax(1) == y).sum())
            seen += len(y)
        return loss / seen, 100 * right / seen


@click.command()
@click.option("--net", type=click.Choice(sorted(NETS)), default="resnet20", show_default=True)
@click.option("--macs", default=0.5, show_default=True)
@click.option("--epochs", default=6, show_default=True)
@click.option("--train-limit", default=5000, show_default=True)
@click.option("--samples", default=2000, show_default=True, help="Validation images.")
@click.option("--step", default=1, show_default=True)
@click.option("--lr", default=0.02, show_default=True)
@click.option("--score-lr", default=Dtp.lr, show_default=True)
@click.option("--beta", default=Dtp.beta, show_default=True)
@click.option("--temperature", default=Pdp.temperature, show_default=True)
@click.option("--method", multiple=True, default=("pdp", "dtp"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(method: tuple[str, ...], out: Path, **options: Any) -> None:
    """Run every method and write what was seen."""
    torch.set_num_threads(1)
    data = cifar10(train_limit=options["train_limit"])
    graph = trace(baseline(options["net"]), torch.zeros(2, 3, 32, 32))
    chosen: dict[str, Pdp | Dtp] = {
        "pdp": Pdp(temperature=options["temperature"]),
        "dtp": Dtp(lr=options["score_lr"], beta=options["beta"]),
    }
    document: dict[str, Any] = {"settings": options, "machine": platform.processor(), "torch": torch.__version__}
    document["methods"] = {name: observe(graph, data, chosen[name], options) for name in method}
    out.write_text(json.dumps(document, indent=1) + "\n")
    picture = {name: found["undecided"] for name, found in document["methods"].items()}
    out.with_suffix(".svg").write_text(curves(picture, "share of undecided masks", "fraction of the training"))
    for name, found in document["methods"].items():
        last = found["epochs"][-1]
        click.echo(
            f"{name}: {found['kept']} of {found['planned']} channels kept, exact {found['exact']}; "
            f"{found['undecided'][len(found['undecided']) // 2]:.1%} undecided half way, "
            f"{found['undecided'][-1]:.1%} in the end; "
            f"soft {last['soft_percent']:.2f} % (loss {last['soft_loss']:.4f}), hard {last['hard_percent']:.2f} % "
            f"(loss {last['hard_loss']:.4f}); {found['seconds']:.0f} s"
        )


def observe(graph: Graph, data: Data, criterion: Pdp | Dtp, options: dict[str, Any]) -> dict[str, Any]:
    """One training; widths from a global ranking by Taylor, the same for every method."""
    plan = _plan(graph, data, options)
    regime = learned_regime(graph, plan, criterion)
    per_epoch = -(-options["train_limit"] // _BATCH)
    seen = Recording(regime, data, per_epoch, options["samples"])
    settings = FinetuneSettings(epochs=options["epochs"], batch_size=_BATCH, lr=options["lr"], channels_last=True)
    begun = time.perf_counter()
    with evaluating(graph.module):
        learned = learn(graph, data.train, regime, settings, validate=seen.validate)
    widths = {g.id: len(g.keep) for g in plan.groups}
    found = {g.id: len(g.keep) for g in learned.plan.groups}
    return {
        "planned": sum(widths.values()),
        "kept": sum(found.values()),
        "exact": widths == found,
        "halvings": getattr(regime, "halvings", None),
        "moved": sum(len(set(a.keep) - set(b.keep)) for a, b in zip(learned.plan.groups, plan.groups, strict=True)),
        "undecided": seen.undecided,
        "epochs": seen.epochs,
        "seconds": time.perf_counter() - begun,
    }


def _plan(graph: Graph, data: Data, options: dict[str, Any]) -> Plan:
    taylor = criteria.get("taylor")()
    batches = islice(data.train.epoch(batch_size=32, seed=0, shuffle=True, augment=False), 16)
    scores = score_groups(graph, taylor, batches)
    budget = Budget(macs=options["macs"])
    return allocate(graph, scores, budget, criterion="taylor", normalizer=taylor.normalizer, step=options["step"])


if __name__ == "__main__":
    main()
