"""Options that fill a recipe: the same on every command that takes a MODEL."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from deploypruner.options import chosen_runtimes

Command = Callable[..., None]


def _shape(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """ "1,3,224,224" -> (1, 3, 224, 224)."""
    shapes = []
    for value in values:
        try:
            shape = tuple(int(size) for size in value.replace("x", ",").split(","))
        except ValueError:
            shape = ()
        if not shape or min(shape) < 1:
            raise click.BadParameter(f"'{value}' is not a shape such as 1,3,224,224")
        shapes.append(shape)
    return tuple(shapes)


def numbers(_: click.Context, __: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """ "0.485,0.456,0.406" -> a tuple of floats."""
    if value is None:
        return None
    try:
        found = tuple(float(number) for number in value.split(","))
    except ValueError:
        found = (math.nan,)
    if not all(map(math.isfinite, found)):
        raise click.BadParameter(f"'{value}' is not a list of numbers such as 0.5,0.5,0.5")
    return found


def _epochs(_: click.Context, __: click.Parameter, value: str | None) -> int | str | None:
    """ "auto" or a number."""
    if value is None or value == "auto":
        return value
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter(f"'{value}' is neither a number nor auto") from None


def model_options(command: Command) -> Command:
    """MODEL and everything about loading it and its data."""
    command = input_options(quality_options(command))
    for option in reversed(
        (
            click.argument("model", required=False),
            click.option("--data", metavar="DIR", help="Image folder, .npz, or package.module:factory of loaders."),
            click.option("--weights", type=click.Path(path_type=Path), help="Weights for package.module:factory."),
            click.option("--trust-pickle", is_flag=True, default=None, help="Let a pickled module run its code."),
            click.option("--mean", callback=numbers, metavar="R,G,B", help="Of images scaled to 0..1."),
            click.option("--std", callback=numbers, metavar="R,G,B", help="Of images scaled to 0..1."),
            click.option("--criterion", metavar="NAME", help="See `deploypruner list criteria`."),
            click.option("--normalizer", metavar="NAME", help="See `list normalizers`.  [default: the criterion's]"),
            click.option("--scope", metavar="NAME", help="See `list scopes`.  [default: global]"),
            click.option("--step", type=int, metavar="N", help="Widths become multiples of N.  [default: 8]"),
            click.option(
                "--exclude",
                multiple=True,
                metavar="PATTERN",
                help="Module to leave alone, such as 'layer1.*'; repeat.",
            ),
            click.option(
                "--min-width", type=int, metavar="N", help="Output channels every layer keeps.  [default: 1]"
            ),
            click.option(
                "--max-cut", type=float, metavar="FRACTION", help="Of a layer's channels, at most.  [default: 0.9]"
            ),
            click.option(
                "--heads",
                type=click.Choice(("auto", "columns", "heads", "both")),
                help="What of an attention is cut.  [default: auto]",
            ),
            click.option(
                "--statistics",
                type=click.Choice(("auto", "keep", "prune")),
                help="Channels a normalisation averages over; auto: cut only if needed.  [default: auto]",
            ),
            click.option(
                "--depth",
                type=click.Choice(("auto", "keep")),
                help="Whether a budget of time may leave out whole residual branches.  [default: auto]",
            ),
            click.option(
                "--channels",
                type=click.Choice(("auto", "scores", "readers")),
                help="Which stay: of the highest scores, or missed most by layers solved anew.  [default: auto]",
            ),
            click.option("--target", metavar="NAME", help="Device to compile for.  [default: cpu]"),
            click.option("--recipe", type=click.Path(path_type=Path), help="TOML file with any option."),
            click.option("--seed", type=int, help="Decides every random choice.  [default: 0]"),
        )
    ):
        command = option(command)
    return command


def input_options(command: Command) -> Command:
    """Shapes of the example inputs, and which of their axes stay open."""
    for option in reversed(
        (
            click.option(
                "--input-shape",
                multiple=True,
                callback=_shape,
                metavar="1,3,224,224",
                help="Shape of each input, batch included.",
            ),
            click.option(
                "--dynamic",
                multiple=True,
                metavar="2,3",
                help="Axes open beside the batch: 2,3 or NAME:AXIS=MIN..MAX, auto, none.  [default: a .pt2's own]",
            ),
        )
    ):
        command = option(command)
    return command


def quality_options(command: Command) -> Command:
    """What the outputs are, and whose labels are whose."""
    for option in reversed(
        (
            click.option(
                "--classes",
                type=click.Path(path_type=Path),
                metavar="FILE",
                help="Names of the model's classes in the order of its outputs, for other class folders.",
            ),
            click.option(
                "--allow-chance",
                is_flag=True,
                default=None,
                help="Go on though the dense model does no better than chance on the labels.",
            ),
            click.option(
                "--task",
                multiple=True,
                metavar="[OUTPUT=]TASK",
                help="What an output is, where labels and answers do not say. See `list tasks`; repeat.",
            ),
            click.option(
                "--metric",
                metavar="MODULE:FUNCTION",
                help="Your own metric(outputs, labels) -> float, such as mAP; higher is better.",
            ),
        )
    ):
        command = option(command)
    return command


def budget_options(command: Command) -> Command:
    """What the compiled model may cost, and in which setting."""
    for option in reversed(
        (
            click.option("--latency", metavar="5ms", help="Of one inference, measured; 5ms@p95 for a quantile."),
            click.option("--speedup", type=float, metavar="TIMES", help="Over the dense model, measured."),
            click.option(
                "--macs", type=float, metavar="FRACTION", help="Multiply-adds that may remain.  [default: 0.5]"
            ),
            click.option(
                "--precision",
                type=click.Choice(("auto", "fp32", "int8")),
                help="Of --latency and --speedup; auto: the fastest that keeps the accuracy.  [default: auto]",
            ),
            click.option(
                "--accuracy-drop",
                type=float,
                metavar="POINTS",
                help="Of the metric, that everything together may cost; without labels of agreement.  [3; 10]",
            ),
            click.option(
                "--search-minutes",
                type=float,
                metavar="MINUTES",
                help="For the whole search under a budget of time; what was cut is said.  [default: 15]",
            ),
        )
    ):
        command = option(command)
    return command


def training_options(command: Command) -> Command:
    """How channels are learned and accuracy is brought back."""
    for option in reversed(
        (
            click.option("--schedule", metavar="NAME", help="See `list schedules`.  [default: by criterion]"),
            click.option(
                "--learn-epochs", type=int, metavar="N", help="Of training while channels are chosen.  [default: 3]"
            ),
            click.option(
                "--epochs",
                callback=_epochs,
                metavar="N|auto",
                help="Of fine-tuning.  [default: auto: by data and gap]",
            ),
            click.option("--train", metavar="MODULE:FUNCTION", help="Your own train(student, teacher, data)."),
            click.option(
                "--reconstruct/--no-reconstruct",
                default=None,
                help="Solve each layer's kept weights for the dense outputs first.  [default: with data]",
            ),
            click.option("--optimizer", metavar="NAME", help="Of torch.optim: sgd, adamw, ...  [default: sgd]"),
            click.option("--lr", type=float, metavar="RATE", help="Highest learning rate.  [default: 0.02 for sgd]"),
            click.option(
                "--ema", type=float, metavar="DECAY", help="Average the weights, such as 0.998.  [default: 0, off]"
            ),
            click.option(
                "--amp",
                type=click.Choice(("auto", "off", "bf16", "fp16")),
                help="Numbers of the forward pass in training.  [default: auto]",
            ),
            click.option("--devices", type=int, metavar="N", help="Processes that train together.  [default: 1]"),
        )
    ):
        command = option(command)
    return command


def sparse_options(command: Command) -> Command:
    """Which weights become zero, and how."""
    for option in reversed(
        (
            click.option(
                "--pattern",
                multiple=True,
                metavar="NAME",
                help="channel, nm64, 2:4, auto, ...; channel and one other combine. See `list patterns`.",
            ),
            click.option(
                "--sparsity",
                type=float,
                metavar="FRACTION",
                help="Of the weights, zero.  [default: 0.8]",
            ),
            click.option("--sparse-schedule", metavar="NAME", help="See `deploypruner list sparse-schedules`."),
            click.option(
                "--sparse-layers",
                multiple=True,
                metavar="KIND",
                help="1x1, conv, linear, stem, depthwise, classifier.  [default: 1x1,conv,linear]",
            ),
            click.option("--sparse-only", multiple=True, metavar="PATTERN", help="Only modules so called; repeat."),
            click.option(
                "--sparse-exclude", multiple=True, metavar="PATTERN", help="Modules to leave dense; repeat."
            ),
        )
    ):
        command = option(command)
    return command


def overrides(options: dict[str, Any]) -> dict[str, Any]:
    """Command line options as a nested recipe; what was not given is None."""
    return {
        "model": {
            "source": options["model"],
            "weights": options["weights"],
            "input_shapes": options["input_shape"] or None,
            "trust_pickle": options["trust_pickle"],
            "dynamic": options["dynamic"] or None,
        },
        "data": {
            "source": options["data"],
            "settings": {"mean": options["mean"], "std": options["std"]},
            **{name: options[name] for name in ("classes", "allow_chance")},
        },
        "prune": {
            **{name: options.get(name) for name in ("latency", "speedup", "macs", "criterion", "scope", "step")},
            "normalizer": options["normalizer"],
            **{name: options[name] for name in ("min_width", "max_cut", "heads", "statistics", "depth", "channels")},
            "exclude": options["exclude"] or None,
            "patterns": _patterns(options),
        },
        "search": {"minutes": options.get("search_minutes")},
        "sparse": _sparse(options),
        "recover": {
            **{name: options.get(name) for name in ("epochs", "train", "reconstruct")},
            "settings": {name: options.get(name) for name in ("lr", "optimizer", "ema", "amp", "devices")},
        },
        "learn": {"schedule": options.get("schedule"), "epochs": options.get("learn_epochs")},
        "measure": {
            "runtimes": chosen_runtimes(options.get("runtime")),
            "threads": options.get("threads"),
            **{name: options.get(name) for name in ("seconds", "precision", "accuracy_drop", "metric")},
            "tasks": options["task"] or None,
        },
        "target": options["target"],
        "seed": options["seed"],
    }


def _patterns(options: dict[str, Any]) -> tuple[str, ...] | None:
    """What --pattern named, repeated or with commas; None where it was not given."""
    return _listed(options.get("pattern"))


def _sparse(options: dict[str, Any]) -> dict[str, Any]:
    """The [sparse] section as the command line gives it."""
    return {
        "sparsity": options.get("sparsity"),
        "schedule": options.get("sparse_schedule"),
        "layers": _listed(options.get("sparse_layers")),
        "only": options.get("sparse_only") or None,
        "exclude": options.get("sparse_exclude") or None,
    }


def _listed(values: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return tuple(part.strip() for value in values or () for part in value.split(",")) or None
