"""An sshd of the tests' own on the loopback address: its own keys and configuration, no service of the system."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

SSHD = shutil.which("sshd") or next((p for p in ("/usr/sbin/sshd", "/sbin/sshd") if Path(p).exists()), None)
WHY_NOT = (
    ""
    if SSHD and shutil.which("ssh") and shutil.which("ssh-keygen")
    else "no sshd on this machine: apt install openssh-server openssh-client"
)


@dataclass
class Sshd:
    """A running server, and a client that is set up for it.

    Args:
        folder: With everything it needs.
        port: On 127.0.0.1.
        process: The server.
    """

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """What `--target` takes."""
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"

    @property
    def device(self) -> Path:
        """The folder that our things are kept in on the device."""
        return self.folder / "cache" / "deploypruner-device"

    def targets(self, text: str) -> None:
        """Write targets.toml."""
        path = self.folder / "config" / "deploypruner" / "targets.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def described(self, name: str = "pi", **more: object) -> str:
        """A table of targets.toml that names this server; its Python is the one of the tests."""
        values = {"address": self.address, "python": sys.executable} | more
        lines = [f"{key} = {_toml(value)}" for key, value in values.items()]
        return "\n".join([f"[{name}]", *lines, ""])

    def agents(self) -> list[int]:
        """Processes of ours on the device: agents and workers."""
        mark = str(self.device).encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mark in (entry / "cmdline").read_bytes().replace(b"\0", b" "):
                    found.append(int(entry.name))
            except OSError:
                continue
        return sorted(found)

    def cut(self) -> None:
        """End every connection at once, as when a cable is pulled and the system finds out."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children():
                child.kill()


@contextmanager
def running_sshd(folder: Path, *options: str, known: bool = True) -> Iterator[Sshd]:
    """Yield a server, and set this process up so that our commands, run in it, find it.

    Args:
        folder: New; made for this user alone.
        options: Lines of its configuration.
        known: Is its key among those that the client knows?
    """
    for name in ("host", "user", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "authorized_keys").write_text((folder / "user.pub").read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lines = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized_keys",
        "PidFile": folder / "pid",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
        "PermitUserEnvironment": "no",
        "SetEnv": f"XDG_CACHE_HOME={folder / 'cache'}",
    }
    (folder / "sshd_config").write_text("".join(f"{k} {v}\n" for k, v in lines.items()) + "\n".join(options) + "\n")
    remember(folder, port, "host" if known else None)
    program = folder / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder / "ssh_config"} "$@"\n')
    program.chmod(0o755)
    if os.getuid() == 0:  # where root's sshd shuts its network code in; the system's service makes it as well
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    command = [str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")]
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL)
    server = Sshd(folder, port, process)
    server.environment = {
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "XDG_CONFIG_HOME": str(folder / "config"),
        "DEPLOYPRUNER_CACHE": str(folder / "c"),
    }
    try:
        _wait_for(port, process, folder / "sshd.log")
        yield server
    finally:
        server.cut()
        process.terminate()
        process.wait()


def none_left(server: Sshd) -> bool:
    """Does all that is ours there end within 20 seconds?"""
    deadline = time.monotonic() + 20
    while server.agents() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not server.agents()


def remember(folder: Path, port: int, key: str | None, **more: str) -> None:
    """Write what the client knows: the key of the server, and where its own is."""
    known = folder / "known_hosts"
    known.write_text("")
    if key is not None:
        known.write_text(f"[127.0.0.1]:{port} {(folder / f'{key}.pub').read_text()}")
    lines = {"IdentityFile": folder / "user", "IdentitiesOnly": "yes", "UserKnownHostsFile": known} | more
    text = "Host *\n" + "".join(f"  {name} {value}\n" for name, value in lines.items())
    (folder / "ssh_config").write_text(text)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"sshd did not start: {log.read_text()}")


def _toml(value: object) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
    return str(value)
