"""The commands `target list`, `target check` and `target clean`: other machines to measure on."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from deploypruner.cli.doctor import conclude, tell
from deploypruner.cli.help import GroupedCommand
from deploypruner.cli.options import console
from deploypruner.cli.recipe_options import command_option
from deploypruner.device.described import HERE, DescribedTarget, described, described_targets, targets_file
from deploypruner.errors import RecipeError
from deploypruner.figures import scaled
from deploypruner.terminal import escaped, write_line


@click.group("target")
def target_group() -> None:
    """Machines to measure on, over ssh.

    `bench --target` takes an address, ssh://user@host[:port], or a name that deploypruner/targets.toml gives it, in
    $XDG_CONFIG_HOME or else in ~/.config. Keys, jump hosts and known hosts are those of your ssh configuration.
    """


@target_group.command("list", cls=GroupedCommand, examples={"deploypruner target list": ""})
@command_option("--json", "as_document", is_flag=True, help="Everything as JSON, for a program.")
def list_command(as_document: bool) -> None:
    """The machines that have a name, and what is said about them; none is asked anything."""
    known = described_targets()
    if as_document:
        click.echo(
            json.dumps({"file": str(targets_file()), "targets": [asdict(one) for one in known.values()]}, indent=2)
        )
        return
    names = [HERE, *known]
    width = max(map(len, names))
    click.echo(f"{HERE:{width}}  this machine")
    for name, target in known.items():
        click.echo(escaped(f"{name:{width}}  {_about(target)}"))
    about = f"{len(known)} of them in" if known else "others would stand in"
    write_line(sys.stderr, f"{about} {targets_file()}")


@target_group.command(
    "check",
    cls=GroupedCommand,
    examples={
        "deploypruner target check pi": "a machine that targets.toml names",
        "deploypruner target check ssh://pi@raspberrypi.local": "any other",
    },
)
@click.argument("name")
@command_option("--json", "as_document", is_flag=True, help="Everything as JSON, for a program.")
def check_command(name: str, as_document: bool) -> None:
    """What a machine has for measuring and what it lacks, in a few seconds.

    Every lack has a hint. Exit code 2 where it cannot be reached, or something is missing that measuring needs. The
    worker, some 70 kB, is left there; `target clean` removes it.
    """
    target = _elsewhere(name)
    with console() as shown:
        shown.doing(f"asking {name}")
        from deploypruner.device.reach import reach
        from deploypruner.doctor.device import device_findings

        with reach(target) as device:
            found = tell(device_findings(device, target), None if as_document else shown.aside(click.echo))
    conclude(found, as_document=as_document)


@target_group.command("clean", cls=GroupedCommand, examples={"deploypruner target clean pi": ""})
@click.argument("name")
def clean_command(name: str) -> None:
    """Remove what was sent to a machine: the worker and the models, and nothing that is not ours."""
    target = _elsewhere(name)
    with console() as shown:
        shown.doing(f"asking {name}")
        from deploypruner.device.reach import reach

        with reach(target) as device:
            size = device.clean()
    write_line(sys.stderr, f"removed {scaled(size, 'B')} from {name}")


def _elsewhere(name: str) -> DescribedTarget:
    if name == HERE:
        raise RecipeError(f"'{HERE}' is this machine", hint="`deploypruner doctor` looks at it")
    return described(name)


def _about(target: DescribedTarget) -> str:
    """Address, and what is not the default."""
    address = target.address
    assert address is not None, "a target of the file has an address"
    user, port = f"{address.user}@" if address.user else "", f":{address.port}" if address.port else ""
    parts = [f"{address.scheme}://{user}{address.host}{port}", target.python]
    parts += [" and ".join(target.runtimes)] if target.runtimes else []
    parts += [f"{target.threads} threads"] if target.threads else []
    parts += [f"cores {', '.join(map(str, target.cores))}"] if target.cores else []
    parts += [f"in {target.folder}"] if target.folder else []
    parts += [f"{name}={value}" for name, value in target.environment.items()]
    return "; ".join(parts)
