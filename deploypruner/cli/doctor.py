"""The command `doctor`: what this machine has, what it lacks, and what to do about it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from deploypruner.cli.help import GroupedCommand
from deploypruner.cli.options import colour, console, width
from deploypruner.cli.recipe_options import command_option
from deploypruner.errors import InputError
from deploypruner.terminal import write_line

if TYPE_CHECKING:
    from deploypruner.doctor import Finding

_MARKS = {"fine": "", "lack": "lack: ", "broken": "broken: "}
_STYLES = {"fine": "", "lack": "warn", "broken": "bad"}
_TOPIC = 17


@click.command("doctor", cls=GroupedCommand, examples={"deploypruner doctor": ""})
@command_option("--json", "as_document", is_flag=True, help="Everything as JSON, for a program.")
def doctor_command(as_document: bool) -> None:
    """What this machine has and lacks: int8, bf16, cores, load, memory, disks, runtimes, kernels, caches.

    Every lack has a hint. Exit code 2 where something that every build needs is missing or broken. Nothing is changed
    and nothing is sent anywhere.
    """
    write_line(sys.stderr, "looking at this machine; the runtimes are loaded, each in a process of its own")
    with console() as shown:
        from deploypruner.doctor import examine

        found = tell(examine(), None if as_document else shown.aside(click.echo))
    conclude(found, as_document=as_document)


def tell(findings: Iterable[Finding], say: Callable[[str], None] | None) -> list[Finding]:
    """All findings; each is said as soon as it is there.

    Args:
        findings: As they are made.
        say: Called with the lines of each, None for not at all.
    """
    found = []
    for finding in findings:
        found.append(finding)
        if say is not None:
            say(lines(finding))
    return found


def conclude(found: list[Finding], *, as_document: bool) -> None:
    """Print the document, or say how much is lacking; end with an error where something is broken.

    Args:
        found: Everything that was looked at.
        as_document: For programs?

    Raises:
        InputError: Something that is needed is missing.
    """
    if as_document:
        click.echo(json.dumps(document(found), indent=2))
    broken = [finding for finding in found if finding.state == "broken"]
    if not as_document:
        lacks = sum(finding.state == "lack" for finding in found)
        write_line(sys.stderr, "")
        write_line(sys.stderr, f"{'all' if not broken else 'not all'} that is needed is there; {_count(lacks)}")
    if broken:
        raise InputError(
            f"{broken[0].topic}: {broken[0].says}" + (f", and {len(broken) - 1} more" if broken[1:] else ""),
            hint=broken[0].hint,
        )


def _count(lacks: int) -> str:
    if not lacks:
        return "nothing is lacking"
    return f"{lacks} thing{' that costs' if lacks == 1 else 's that cost'} speed or trust, with hints, above"


def lines(finding: Finding) -> str:
    """The finding, and below it its hint, in columns."""
    from deploypruner.report.terminal import painter, wrap

    paint = painter(colour())
    mark = _MARKS[finding.state]
    text = wrap(f"{finding.topic:{_TOPIC}}", mark + finding.says, width())
    if mark:
        text = text.replace(mark, paint(mark.rstrip(), _STYLES[finding.state]) + " ", 1)
    if finding.hint:
        text += "\n" + wrap(f"{'':{_TOPIC}}hint: ", finding.hint, width())
    return text


def document(found: list[Finding]) -> dict[str, object]:
    """For programs: the state of everything together, and what was found in order."""
    states = {finding.state for finding in found}
    worst = next(state for state in ("broken", "lack", "fine") if state in states)
    return {"state": worst, "findings": [vars(finding) for finding in found]}
