"""The command line. Results go to stdout, everything else to stderr; heavy libraries are imported per command."""

from __future__ import annotations

import atexit
import json
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import click

from deploypruner.atomic import ERRORS, replacing
from deploypruner.cli.bench import bench_command
from deploypruner.cli.cache import cache_group
from deploypruner.cli.check import check_command
from deploypruner.cli.compare import compare_command
from deploypruner.cli.doctor import doctor_command
from deploypruner.cli.export import export_command
from deploypruner.cli.frontier import frontier_command
from deploypruner.cli.help import CommandList, GroupedCommand
from deploypruner.cli.init import init_command
from deploypruner.cli.measure import measure_command
from deploypruner.cli.options import OVERWRITE, colour, console, require_place, shows_progress, width
from deploypruner.cli.quantize import quantize_command
from deploypruner.cli.recipe_options import checked_recipe, command_option, recipe_options
from deploypruner.cli.sparsify import sparsify_command
from deploypruner.cli.sweep import sweep_command
from deploypruner.cli.target import target_group
from deploypruner.cli.validate import validate_command
from deploypruner.errors import DeployPrunerError, RecipeError, nearest
from deploypruner.openmp import SPINNING
from deploypruner.reading import report_file
from deploypruner.recipe.option import BUDGET, CHANNELS, GROUPS, MEASURING, MODEL
from deploypruner.refusals import allow_open_files, native_refusal, refusal
from deploypruner.registries import REGISTRIES, schedules, targets
from deploypruner.terminal import escaped, escaped_lines, open_streams, reader_is_gone, silence, write_line

# By which shells ask what a line could go on with.
_COMPLETE = "_DEPLOYPRUNER_COMPLETE"
# Beside the registries, what is chosen from one of them by another option.
_KINDS = (*sorted({*REGISTRIES, "sparse-schedules"}),)


def run() -> None:
    """Entry point of the program: `main`, without the second that Python takes to unload torch after the answer."""
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # which Python says in its own way
        sys.exit(code)
    os._exit(code)


def main() -> None:
    """Run a command and turn every outcome into an exit code.

    0 done, 1 our bug (traceback), 2 bad usage or input, 3 budget not reachable, 4 verification failed,
    130 interrupted.
    """
    # Threads that wait for one another spin, and on a busy machine they spin away each other's cores: 16 images took
    # 15 to 33 s instead of 3. Read once, when torch is loaded; whoever is timed gets the machine's own setting.
    os.environ.setdefault(*SPINNING)
    open_streams()
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        _main()
    finally:
        signal.signal(signal.SIGTERM, before)


def _main() -> None:
    try:
        if asked := os.environ.get(_COMPLETE):
            from click.shell_completion import shell_complete

            sys.exit(shell_complete(cli, {}, "deploypruner", _COMPLETE, asked))
        allow_open_files()
        # Not cli.main(): it turns a closed pipe into exit code 1.
        with cli.make_context("deploypruner", sys.argv[1:]) as context:
            cli.invoke(context)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.UsageError as error:
        _print_error(
            _in_our_words(error),
            f"`{error.ctx.command_path} {_help_of(error.ctx)}` lists what there is" if error.ctx else "",
        )
        sys.exit(2)
    except DeployPrunerError as error:
        _print_error(error.message, error.hint)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        if sys.stderr.isatty():
            click.echo(err=True)  # after the ^C
        resumable = sys.argv[1:2] and sys.argv[1] in ("compile", "frontier", "sweep")
        _print_error("interrupted", "run the same command with --resume to go on" if resumable else "")
        sys.exit(130)
    except BrokenPipeError:
        if not reader_is_gone(sys.stdout):
            raise
        silence(sys.stdout)  # whoever read it has seen enough; Python would complain when it flushes at the end
        sys.exit(0)
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        refused = refusal(error) if isinstance(error, OSError) else native_refusal(error)
        if refused is None:
            raise
        _stop_writing()
        _print_error(refused.message, refused.hint)
        sys.exit(refused.exit_code)


def _help_of(context: click.Context) -> str:
    """The option that shows every other one."""
    command = context.command
    return "--help-all" if isinstance(command, GroupedCommand) and command.more() else "--help"


def _stop_writing() -> None:
    """Give up on a stdout that cannot be written to: Python would complain when it flushes at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        silence(sys.stdout)


def _interrupt(number: int, frame: object) -> None:
    """End as after Ctrl-C: workers are ended, scratch folders go, and what is finished stays."""
    signal.signal(number, signal.SIG_IGN)  # asking twice does not cut the tidying short
    raise KeyboardInterrupt


def _in_our_words(error: click.UsageError) -> str:
    """Click's message as ours are written: lower case, no full stop."""
    message = error.format_message()
    return (message[:1].lower() + message[1:]).removesuffix(".")


def _print_error(message: str, hint: str) -> None:
    write_line(sys.stderr, f"error: {message}")
    if hint:
        write_line(sys.stderr, "")
        write_line(sys.stderr, f"hint: {hint}")


def _say(line: str) -> None:
    write_line(sys.stderr, line)


def _show_version(context: click.Context) -> None:
    from deploypruner import __version__  # 20 ms of reading metadata

    click.echo(f"deploypruner {__version__}")
    context.exit()


@click.group(
    cls=CommandList,
    examples={
        "deploypruner demo": "two minutes, nothing to prepare",
        "deploypruner compile model.pt2 --data photos/ --latency 5ms": "a model of yours, within 5 ms",
        "deploypruner COMMAND --help": "what a command takes, with examples",
    },
    panels={
        "Make": ("compile", "frontier", "sweep", "plan", "quantize", "sparsify", "export", "init"),
        "Measure": ("bench", "measure", "validate", "compare", "report"),
        "Look up": ("list", "doctor", "target", "cache", "criteria-check", "demo"),
    },
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda context, parameter, asked: _show_version(context) if asked else None,
    help="Show the version and exit.",
)
@click.pass_context
def cli(context: click.Context) -> None:
    """From a trained PyTorch model to a smaller, faster artifact, with the proof beside it."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command(
    "compile",
    cls=GroupedCommand,
    examples={
        "deploypruner compile model.pt2 --data photos/ --latency 5ms": "at most 5 ms, measured on this machine",
        "deploypruner compile timm:resnet18 --data photos/ --speedup 2 --epochs 3": "twice as fast, trained 3 epochs",
        "deploypruner compile --recipe recipe.toml --out build-2/": "as a file says (`deploypruner init` writes one)",
    },
)
@recipe_options(*GROUPS)
@command_option("--out", default="build", show_default=True, type=click.Path(path_type=Path), help="Build folder.")
@command_option("--resume", is_flag=True, help="Go on with the build in --out.")
@OVERWRITE
@shows_progress
def compile_command(out: Path, resume: bool, overwrite: bool, **options: Any) -> None:
    """Prune, recover, quantize, export, verify and measure MODEL.

    MODEL is file.pt2, file.pt (with --trust-pickle), package.module:factory, timm:NAME, torchvision:NAME or
    transformers:DIR_OR_NAME.
    """
    command = shlex.join(["deploypruner", *sys.argv[1:]])
    with console() as shown:
        recipe, origins = checked_recipe(options)
        require_place(out, overwrite=overwrite or resume)
        from deploypruner.api import run_recipe
        from deploypruner.build.folder import BuildFolder

        if not resume:  # a build that goes on is asked for by its own recipe
            BuildFolder(out).require_apart(options["recipe"])
        try:
            with origins.speaking():
                run_recipe(
                    recipe,
                    out,
                    command=command,
                    resume=resume,
                    overwrite=overwrite,
                    progress=shown,
                    say=shown.say,
                    detail=shown.detail,
                )
        except DeployPrunerError as error:
            if not error.finished:
                raise
            broken: DeployPrunerError | None = error
        else:
            broken = None
    _show(out, quiet=shown.quiet)
    if broken is not None:  # the answer comes before what is wrong with it
        raise broken


@cli.command(
    "plan",
    cls=GroupedCommand,
    examples={
        "deploypruner plan model.pt2": "what can go, what cannot, and why",
        "deploypruner plan model.pt2 --latency 5ms": "the widths that 5 ms would leave",
    },
)
@recipe_options(BUDGET, MODEL, CHANNELS, MEASURING, without=("schedule", "learn_epochs", "seconds"))
@command_option(
    "--time", "with_times", is_flag=True, help="Predict milliseconds too; layers are timed once, then cached."
)
@command_option("--frozen", is_flag=True, help="List what cannot be pruned, why, and where in the code.")
@command_option("--json", "as_document", is_flag=True, help="Everything as JSON, for a program.")
@shows_progress
def plan_command(with_times: bool, frozen: bool, as_document: bool, **options: Any) -> None:
    """Dry run: groups, what is frozen and why, and the reachable budget; with a budget also the widths for it."""
    asked = any(options[name] is not None for name in ("latency", "speedup", "macs"))
    with console() as shown:
        recipe, origins = checked_recipe(options)
        from deploypruner.cli import plan as planning

        with origins.speaking():
            found = planning.dry_run(recipe, with_widths=asked, with_times=with_times, progress=shown)
    if as_document:
        click.echo(json.dumps(planning.as_json(found), indent=2))
        return
    click.echo(escaped_lines(planning.describe(found, frozen=frozen, width=width())), nl=False)


cli.add_command(bench_command)
cli.add_command(export_command)
cli.add_command(frontier_command)
cli.add_command(sweep_command)
cli.add_command(compare_command)
cli.add_command(validate_command)
cli.add_command(measure_command)
cli.add_command(check_command)
cli.add_command(quantize_command)
cli.add_command(sparsify_command)


@cli.command("report", cls=GroupedCommand, examples={"deploypruner report build/": ""})
@click.argument("folder", type=click.Path(path_type=Path))
def report_command(folder: Path) -> None:
    """Print the table of a finished build and write its report.html again."""
    folder = report_file(folder).parent
    with console():
        from deploypruner.build.folder import BuildFolder
        from deploypruner.report import read_report, render_html

        report = read_report(folder)
        build = BuildFolder(folder)
        build.require_own("report.html")
        html = render_html(report)
    _show_table(folder)  # first: a folder that cannot be written to has one, too
    with replacing(build.path("report.html"), instead="copy the build to a folder that can be written to") as page:
        page.write_text(html, encoding="utf-8", errors=ERRORS)
    _name_pictures(folder)


@cli.command(
    "list",
    cls=GroupedCommand,
    examples={"deploypruner list": "every name there is", "deploypruner list criteria": "one kind, each with a line"},
    help=f"List what can be chosen by name.\n\nKIND is one of {', '.join(_KINDS)}; all without it.",
)
@click.argument("kind", required=False)
def list_command(kind: str | None) -> None:
    """One kind with a line about each, or the names of every kind."""
    if kind is None:
        for each in _KINDS:
            click.echo(f"{each:{max(map(len, _KINDS))}}  {', '.join(_described(each))}")
        return
    if kind not in _KINDS:
        raise RecipeError(f"nothing called '{kind}' to list", hint=nearest(kind, _KINDS))
    described = _described(kind)
    width = max(len(name) for name in described)
    for name, text in described.items():
        click.echo(escaped(f"{name:{width}}  {text}"))
        if kind == targets.plural:
            click.echo(escaped(f"{'':{width}}  {_facts(name)}"))
            click.echo(escaped(f"{'':{width}}  {_kernels()}"))


def _facts(target: str) -> str:
    """What a target is, and what int8 can give there."""
    from deploypruner.target import detect

    found = detect(target)
    return f"{found.processor}, {found.cores} core{'' if found.cores == 1 else 's'}; {found.int8_outlook}"


def _kernels() -> str:
    """Which of the sparse kernels' targets is taken, and why."""
    from deploypruner.sparse.library import targets_outlook

    return targets_outlook()


def _described(kind: str) -> dict[str, str]:
    """Name -> one line; of schedules those that the option of this name takes."""
    if kind == "schedules":
        return schedules.describe(to="channels")
    if kind == "sparse-schedules":
        return schedules.describe(to="weights")
    return REGISTRIES[kind].describe()


@cli.command("demo", cls=GroupedCommand, examples={"deploypruner demo --out demo/": ""})
@command_option("--out", default="demo", show_default=True, type=click.Path(path_type=Path), help="Build folder.")
@OVERWRITE
@shows_progress
def demo_command(out: Path, overwrite: bool) -> None:
    """Train a small network on handwritten digits and compile it; about two minutes, no download."""
    require_place(out, overwrite=overwrite)
    with console() as shown:
        from deploypruner.cli.demo import run_demo

        run_demo(out, overwrite=overwrite, shown=shown, command=shlex.join(["deploypruner", *sys.argv[1:]]))
    _show(out, quiet=shown.quiet)


cli.add_command(doctor_command)
cli.add_command(init_command)
cli.add_command(cache_group)
cli.add_command(target_group)


def _show(folder: Path, *, quiet: bool) -> None:
    """The result on stdout; where to read more on stderr."""
    _show_table(folder)
    if not quiet:
        _name_pictures(folder)


def _show_table(folder: Path) -> None:
    from deploypruner.report import read_report, table

    click.echo(table(read_report(folder), colour=colour(), width=width()), nl=False)


def _name_pictures(folder: Path) -> None:
    _say("")
    _say(f"{folder / 'report.html'} has the pictures, the proof and the raw data")
