"""What `sparsify` and `quantize` share: the request for forms of a given file, how they are shown, and refused."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploypruner.cli.options import colour, width
from deploypruner.errors import BudgetError
from deploypruner.registries import tasks
from deploypruner.terminal import write_line

if TYPE_CHECKING:  # with numpy, which a mistake in the arguments need not wait for
    from deploypruner.build.given_file import FileRequest
    from deploypruner.progress import Progress
    from deploypruner.records import Row

# Options whose field of the request has another name.
_FIELDS = {"accuracy_drop": "drop", "task": "tasks"}


def check_tasks(named: Sequence[str]) -> None:
    """Refuse a `--task` that is none, before anything is loaded."""
    for name in named:
        tasks.check(name.rpartition("=")[2])


def file_request(options: Mapping[str, Any], progress: Progress) -> FileRequest:
    """What was asked for; an option that was left out (None) is as the request has it.

    Args:
        options: Those of the command that are fields of the request.
        progress: Told how far it is.
    """
    from deploypruner.build.given_file import FileRequest

    given = {_FIELDS.get(name, name): value for name, value in options.items() if value is not None}
    if given.get("threads") == "auto":
        given |= {"threads": FileRequest.threads, "open_threads": True}
    return FileRequest(**given, progress=progress)


def show_forms(
    rows: Sequence[Row], sentences: Sequence[tuple[str, str]], warnings: Sequence[str], *, read_on: str
) -> None:
    """The table, its outputs and what follows on stdout; where to read on, on stderr.

    Args:
        rows: Of the forms; none where nothing was measured.
        sentences: Each with its label; "" is left out.
        warnings: What casts doubt on the result.
        read_on: A file, and what it has.
    """
    from deploypruner.report import table_rows
    from deploypruner.report.outputs import outputs_text
    from deploypruner.report.terminal import wrap

    if rows:
        click.echo(table_rows(rows, colour=colour(), width=width()) + "\n")
    by_output = outputs_text(rows)
    if by_output:
        click.echo(by_output + "\n")
    for label, text in (*sentences, *(("warning: ", text) for text in warnings)):
        if text:
            click.echo(wrap(label, text, width()))
    write_line(sys.stderr, "")
    write_line(sys.stderr, read_on)


def refused_form(model: Path, quality: str) -> BudgetError:
    """What to raise for an int8 form that loses more than is allowed.

    Args:
        model: The given file.
        quality: What is lost, in a sentence.
    """
    return BudgetError(
        f"the int8 form of {model} is refused: {quality}",
        hint=f"deploy {model} as it is, or allow more with --accuracy-drop",
        finished=True,
    )
