"""The command line. Results go to stdout, everything else to stderr; heavy libraries are imported per command."""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from deploypruner.benching import bench_command
from deploypruner.checking import check_command
from deploypruner.errors import DeployPrunerError, RecipeError, nearest
from deploypruner.options import (
    RUNTIME,
    SECONDS,
    THREADS,
    chosen_runtimes,
    colour,
    sparse_options,
    sparse_overrides,
    sparse_patterns,
    width,
)

Command = Callable[..., None]

_KINDS = (
    *("criteria", "normalizers", "patterns", "runtimes", "schedules", "scopes"),
    *("sparse-schedules", "targets"),
)


def main() -> None:
    """Entry point: run a command and turn every outcome into an exit code.

    0 done, 1 our bug (traceback), 2 bad usage or input, 3 budget not reachable, 4 verification failed,
    130 interrupted.
    """
    try:
        # Not cli.main(): it turns a closed pipe into exit code 1.
        with cli.make_context("deploypruner", sys.argv[1:]) as context:
            cli.invoke(context)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.UsageError as error:
        _print_error(
            _in_our_words(error), f"`{error.ctx.command_path} --help` lists what there is" if error.ctx else ""
        )
        sys.exit(2)
    except DeployPrunerError as error:
        _print_error(error.message, error.hint)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        if sys.stderr.isatty():
            click.echo(err=True)  # after the ^C
        resumable = "compile" in sys.argv[1:2]
        _print_error("interrupted", "run the same command with --resume to go on" if resumable else "")
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read stdout has seen enough; Python would complain when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _print_error(
            f"no space left while writing {error.filename or 'the output'}", "free some space and run it again"
        )
        sys.exit(2)


def _in_our_words(error: click.UsageError) -> str:
    """Click's message as ours are written: lower case, no full stop."""
    message = error.format_message()
    return (message[:1].lower() + message[1:]).removesuffix(".")


def _print_error(message: str, hint: str) -> None:
    click.echo(f"error: {message}", err=True)
    if hint:
        click.echo(f"\nhint: {hint}", err=True)


def _say(line: str) -> None:
    click.echo(line, err=True)


class _InOrder(click.Group):
    """Lists commands in the order a user meets them, and offers the nearest name for a mistyped one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise RecipeError(f"no command called '{args[0]}'", hint=nearest(args[0], self.commands))
        return super().resolve_command(ctx, args)


@click.group(
    cls=_InOrder,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="deploypruner")
@click.pass_context
def cli(context: click.Context) -> None:
    """From a trained PyTorch model to a smaller, faster artifact, with the proof beside it."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


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


def _numbers(_: click.Context, __: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """ "0.485,0.456,0.406" -> a tuple of floats."""
    if value is None:
        return None
    try:
        return tuple(float(number) for number in value.split(","))
    except ValueError:
        raise click.BadParameter(f"'{value}' is not a list of numbers such as 0.5,0.5,0.5") from None


def _model_options(command: Command) -> Command:
    """MODEL and everything about loading it and its data."""
    for option in reversed(
        (
            click.argument("model", required=False),
            click.option("--data", metavar="DIR", help="Image folder, .npz, or package.module:factory of loaders."),
            click.option("--weights", type=click.Path(path_type=Path), help="Weights for package.module:factory."),
            click.option(
                "--input-shape",
                multiple=True,
                callback=_shape,
                metavar="1,3,224,224",
                help="Shape of each input, batch included.",
            ),
            click.option("--trust-pickle", is_flag=True, default=None, help="Let a pickled module run its code."),
            click.option("--mean", callback=_numbers, metavar="R,G,B", help="Of images scaled to 0..1."),
            click.option("--std", callback=_numbers, metavar="R,G,B", help="Of images scaled to 0..1."),
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
            click.option("--target", metavar="NAME", help="Device to compile for.  [default: cpu]"),
            click.option("--recipe", type=click.Path(path_type=Path), help="TOML file with any option."),
            click.option("--seed", type=int, help="Decides every random choice.  [default: 0]"),
        )
    ):
        command = option(command)
    return command


def _budget_options(command: Command) -> Command:
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
                "--accuracy-drop", type=float, metavar="POINTS", help="That int8 may cost in auto.  [default: 1]"
            ),
        )
    ):
        command = option(command)
    return command


def _overrides(options: dict[str, Any]) -> dict[str, Any]:
    """Command line options as a nested recipe; what was not given is None."""
    return {
        "model": {
            "source": options["model"],
            "weights": options["weights"],
            "input_shapes": options["input_shape"] or None,
            "trust_pickle": options["trust_pickle"],
        },
        "data": {"source": options["data"], "settings": {"mean": options["mean"], "std": options["std"]}},
        "prune": {
            **{name: options.get(name) for name in ("latency", "speedup", "macs", "criterion", "scope", "step")},
            "normalizer": options["normalizer"],
            **{name: options[name] for name in ("min_width", "max_cut", "heads", "statistics")},
            "exclude": options["exclude"] or None,
            "patterns": sparse_patterns(options),
        },
        "sparse": sparse_overrides(options),
        "recover": {
            **{name: options.get(name) for name in ("epochs", "train", "reconstruct")},
            "settings": {name: options.get(name) for name in ("lr", "optimizer", "ema", "amp", "devices")},
        },
        "learn": {"schedule": options.get("schedule"), "epochs": options.get("learn_epochs")},
        "measure": {
            "runtimes": chosen_runtimes(options.get("runtime")),
            "threads": options.get("threads"),
            **{name: options.get(name) for name in ("seconds", "precision", "accuracy_drop")},
        },
        "target": options["target"],
        "seed": options["seed"],
    }


@cli.command("compile")
@_model_options
@_budget_options
@click.option("--schedule", metavar="NAME", help="See `deploypruner list schedules`.  [default: by criterion]")
@click.option("--learn-epochs", type=int, metavar="N", help="Of training while channels are chosen.  [default: 3]")
@sparse_options
@click.option("--epochs", type=int, metavar="N", help="Fine-tuning epochs.  [default: 3 with data]")
@click.option("--train", metavar="MODULE:FUNCTION", help="Your own train(student, teacher, data).")
@click.option(
    "--reconstruct/--no-reconstruct",
    default=None,
    help="Solve each layer's kept weights for the dense outputs first.  [default: with data]",
)
@click.option("--optimizer", metavar="NAME", help="Of torch.optim: sgd, adamw, ...  [default: sgd]")
@click.option("--lr", type=float, metavar="RATE", help="Highest learning rate.  [default: 0.02 for sgd]")
@click.option("--ema", type=float, metavar="DECAY", help="Average the weights, such as 0.998.  [default: 0, off]")
@click.option(
    "--amp",
    type=click.Choice(("off", "bf16", "fp16")),
    help="Numbers of the forward pass in training.  [default: off]",
)
@click.option("--devices", type=int, metavar="N", help="Processes that train together.  [default: 1]")
@RUNTIME
@THREADS
@SECONDS
@click.option("--out", default="build", show_default=True, type=click.Path(path_type=Path), help="Build folder.")
@click.option("--resume", is_flag=True, help="Go on with the build in --out.")
def compile_command(out: Path, resume: bool, **options: Any) -> None:
    """Prune, recover, quantize, export, verify and measure MODEL.

    MODEL is file.pt2, file.pt (with --trust-pickle), package.module:factory, timm:NAME, torchvision:NAME or
    transformers:DIR_OR_NAME.
    """
    from deploypruner.api import run_recipe
    from deploypruner.config import read_recipe
    from deploypruner.progress import progress_for

    recipe = read_recipe(options["recipe"], _overrides(options))
    command = shlex.join(["deploypruner", *sys.argv[1:]])
    run_recipe(recipe, out, command=command, resume=resume, progress=progress_for(), say=_say)
    _show(out)


@cli.command("plan")
@_model_options
@_budget_options
@RUNTIME
@THREADS
@click.option(
    "--time", "with_times", is_flag=True, help="Predict milliseconds too; layers are timed once, then cached."
)
@click.option("--frozen", is_flag=True, help="List what cannot be pruned, why, and where in the code.")
@click.option("--json", "as_document", is_flag=True, help="Everything as JSON, for a program.")
def plan_command(with_times: bool, frozen: bool, as_document: bool, **options: Any) -> None:
    """Dry run: groups, what is frozen and why, and the reachable budget; with a budget also the widths for it."""
    from deploypruner import planning
    from deploypruner.config import read_recipe
    from deploypruner.progress import progress_for

    recipe = read_recipe(options["recipe"], _overrides(options))
    asked = any(options[name] is not None for name in ("latency", "speedup", "macs"))
    found = planning.dry_run(recipe, with_widths=asked, with_times=with_times, progress=progress_for())
    if as_document:
        click.echo(json.dumps(planning.as_json(found), indent=2))
        return
    click.echo(planning.describe(found, frozen=frozen, width=width()), nl=False)


cli.add_command(bench_command)
cli.add_command(check_command)


@cli.command("report")
@click.argument("folder", type=click.Path(path_type=Path))
def report_command(folder: Path) -> None:
    """Print the table of a finished build and write its report.html again."""
    from deploypruner.folder import BuildFolder
    from deploypruner.report import read_report, render_html

    folder = folder.parent if folder.name == "report.json" else folder
    report = read_report(folder)
    BuildFolder(folder).write_text("report.html", render_html(report))
    _show(folder)


@cli.command("list")
@click.argument("kind", metavar="|".join(_KINDS))
def list_command(kind: str) -> None:
    """List what can be chosen by name."""
    if kind not in _KINDS:
        raise RecipeError(f"nothing called '{kind}' to list", hint=nearest(kind, _KINDS))
    described = _described(kind)
    width = max(len(name) for name in described)
    for name, text in described.items():
        click.echo(f"{name:{width}}  {text}")


def _described(kind: str) -> dict[str, str]:
    if kind == "targets":
        from deploypruner.target import TARGETS

        return TARGETS
    if kind == "runtimes":
        from deploypruner.runtime import runtimes

        return runtimes.describe()
    if kind == "criteria":
        from deploypruner.criteria import criteria

        return criteria.describe()
    if kind == "schedules":
        from deploypruner.learn.schedules import SCHEDULES

        return SCHEDULES
    if kind == "normalizers":
        from deploypruner.prune.normalize import NORMALIZERS

        return {name: found.about for name, found in NORMALIZERS.items()}
    if kind == "patterns":
        from deploypruner.patterns import described

        return described()
    if kind == "sparse-schedules":
        from deploypruner.recover.sparse import schedules

        return schedules.describe()
    from deploypruner.prune.allocate import SCOPES

    return SCOPES


@cli.command("demo")
@click.option("--out", default="demo", show_default=True, type=click.Path(path_type=Path), help="Build folder.")
def demo_command(out: Path) -> None:
    """Train a small network on handwritten digits and compile it; about two minutes, no download."""
    from deploypruner.demo import run_demo
    from deploypruner.progress import progress_for

    run_demo(out, progress=progress_for(), say=_say, command=shlex.join(["deploypruner", *sys.argv[1:]]))
    _show(out)


def _show(folder: Path) -> None:
    """The result on stdout; where to read more on stderr."""
    from deploypruner.report import read_report, table

    click.echo(table(read_report(folder), colour=colour(), width=width()), nl=False)
    _say(f"\n{folder / 'report.html'} has the pictures, the proof and the raw data")
