"""The devices a user has: addresses, and what targets.toml says about those that have a name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deploypruner.errors import InputError, RecipeError, nearest
from deploypruner.ranges import THREADS, check_number
from deploypruner.reading import read_toml, status
from deploypruner.registries import runtimes, transports

HERE = "cpu"
"""What the machine that this runs on is called."""

_EXAMPLE = "ssh://user@host, or ssh://user@host:2222"
_HOST = re.compile(r"[A-Za-z0-9_.:%-]+")
_USER = re.compile(r"[A-Za-z0-9_.@\\$-]+")
_VARIABLE = re.compile(r"[A-Za-z_]\w*")
_KEYS = ("address", "python", "runtimes", "threads", "cores", "folder", "environment")


@dataclass(frozen=True)
class Address:
    """Where a device is.

    Args:
        scheme: Name of the transport.
        host: Name or number, or what ssh's configuration calls it.
        user: "" for what ssh's configuration says, else the same as here.
        port: None for what it says, else 22.
    """

    scheme: str
    host: str
    user: str = ""
    port: int | None = None


@dataclass(frozen=True)
class DescribedTarget:
    """A device as the user described it.

    Args:
        name: In targets.toml, or the address.
        address: Where it is; None for this machine.
        python: What its shell calls a Python that has numpy and a runtime.
        runtimes: To measure on where none is asked for; () for all of the default ones that it has.
        threads: Of every runtime where no number is asked for.
        cores: That workers are pinned to; () for the best there are.
        folder: That everything is kept in there; "" for deploypruner-device in the user's cache.
        environment: Variables of the workers.
    """

    name: str
    address: Address | None = None
    python: str = "python3"
    runtimes: tuple[str, ...] = ()
    threads: int | None = None
    cores: tuple[int, ...] = ()
    folder: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


def targets_file() -> Path:
    """Where targets have names: deploypruner/targets.toml in $XDG_CONFIG_HOME, else in ~/.config."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "deploypruner" / "targets.toml"


def described(name: str) -> DescribedTarget:
    """What is known of the target called `name`.

    Args:
        name: `cpu`, an address, or a name in targets.toml.

    Raises:
        RecipeError: No such target, or no address; the hint offers the nearest.
        InputError: The file is damaged.
    """
    if name == HERE:
        return DescribedTarget(HERE)
    if "://" in name:
        return DescribedTarget(name, parse_address(name))
    known = described_targets()
    if name not in known:
        raise RecipeError(
            f"no target called '{name}'",
            hint=f"{nearest(name, [HERE, *known])} ({targets_file()} names devices, and {_EXAMPLE} needs no name)",
        )
    return known[name]


def described_targets() -> dict[str, DescribedTarget]:
    """Name -> every target in targets.toml, in its order; {} where there is no such file.

    Raises:
        InputError: It cannot be read, or says something about a target that is not known or makes no sense.
    """
    path = targets_file()
    if status(path, what="list of targets") is None:
        return {}
    document = read_toml(path, what="list of targets", hint=f'[pi]\naddress = "{_EXAMPLE.partition(",")[0]}"')
    return {name: _described(path, name, table) for name, table in document.items()}


def parse_address(text: str) -> Address:
    """Take "ssh://user@host:port" apart.

    Raises:
        RecipeError: It has no host, a port out of range, a password, a path, or a scheme that no transport has.
    """
    hint = f"write {_EXAMPLE}"
    scheme, _, rest = text.partition("://")
    transports.check(scheme, called="way to a target")
    try:
        parts = urlsplit(f"//{rest}")
        port = parts.port
    except ValueError as error:
        raise RecipeError(f"target '{text}' is no address: {str(error).lower()}", hint=hint) from None
    user, host = parts.username or "", parts.hostname or ""
    if not host:
        raise RecipeError(f"target '{text}' has no host", hint=hint)
    if parts.password is not None:
        raise RecipeError(
            f"target '{scheme}://{user}:...@{host}' has a password", hint="ssh-copy-id, then leave it out"
        )
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise RecipeError(f"target '{text}' goes on after the host", hint=hint)
    # Neither may be taken for an option of ssh.
    if not _HOST.fullmatch(host) or host.startswith("-") or (user and (not _USER.fullmatch(user) or user[0] == "-")):
        raise RecipeError(f"target '{text}' names no user and host", hint=hint)
    # Python makes host names small; what ssh's configuration calls a machine may be written otherwise.
    written = re.search(re.escape(host), rest.rpartition("@")[2], re.IGNORECASE)
    return Address(scheme, written[0] if written else host, user, port)


def _described(path: Path, name: str, table: Any) -> DescribedTarget:
    """One table of the file, checked."""
    where = f"{path}: target '{name}'"
    if not isinstance(table, dict):
        raise InputError(f"{where} is no table", hint=f"write [{name}] and below it address = ...")
    if name == HERE or "://" in name:
        raise InputError(f"{where}: the name is taken", hint=f"'{HERE}' is this machine; give it another name")
    for key in table:
        if key not in _KEYS:
            raise InputError(f"{where} has an unknown key '{key}'", hint=nearest(key, _KEYS))
    if not isinstance(table.get("address"), str):
        raise InputError(f"{where} has no address", hint=f'address = "{_EXAMPLE.partition(",")[0]}"')
    variables = table.get("environment", {})
    checks = {
        "python": isinstance(table.get("python", ""), str),
        "folder": isinstance(table.get("folder", ""), str),
        "runtimes": _all(table.get("runtimes", []), str),
        "cores": _all(table.get("cores", []), int) and all(core >= 0 for core in table.get("cores", [])),
        "threads": _all([table.get("threads", 1)], int),
        "environment": isinstance(variables, dict)
        and _all(variables.values(), str)
        and all(_VARIABLE.fullmatch(key) for key in variables),
    }
    for key, good in checks.items():
        if not good:
            raise InputError(f"{where}: {key} = {table[key]!r} cannot be used", hint=f"as in {_GOOD[key]}")
    try:
        check_number("threads", table.get("threads"), least=1, most=THREADS, hint="1 for the steadiest timing")
        for runtime in table.get("runtimes", []):
            runtimes.check(runtime)
        address = parse_address(table["address"])
    except RecipeError as error:
        raise InputError(f"{where}: {error.message}", hint=error.hint) from None
    return DescribedTarget(
        name=name,
        address=address,
        python=table.get("python") or "python3",
        runtimes=tuple(table.get("runtimes", ())),
        threads=table.get("threads"),
        cores=tuple(table.get("cores", ())),
        folder=table.get("folder", ""),
        environment=dict(variables),
    )


_GOOD = {
    "python": 'python = "/home/pi/venv/bin/python"',
    "folder": 'folder = "/data/deploypruner"',
    "runtimes": 'runtimes = ["onnxruntime"]',
    "cores": "cores = [4, 5, 6, 7]",
    "threads": "threads = 4",
    "environment": 'environment = { OMP_WAIT_POLICY = "PASSIVE" }',
}


def _all(values: Iterable[Any], kind: type) -> bool:
    """Is it a list of these? A yes or no is no number."""
    if isinstance(values, (str, dict)):
        return False
    try:
        return all(type(value) is kind for value in values)
    except TypeError:
        return False
