"""How `sparsify` and `quantize` show the forms of a given file, and refuse them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploypruner.cli.options import colour, width
from deploypruner.errors import BudgetError
from deploypruner.terminal import write_line

if TYPE_CHECKING:  # with numpy, which a mistake in the arguments need not wait for
    from deploypruner.records import Row


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
