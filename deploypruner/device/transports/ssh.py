"""Another machine, through the OpenSSH client of this one: the user's configuration, keys, jump hosts and known keys.

One connection carries everything: a few lines of Python that are sent as the command, the archive where the device
has not got it, and then the protocol. When it is gone, the agent's input ends, and the agent ends itself and its
workers.
"""

from __future__ import annotations

import base64
import re
import shlex
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from deploypruner.caches import default_folder
from deploypruner.device import archive
from deploypruner.device.bootstrap import BITS, NEEDED
from deploypruner.device.transports import Greeter, Transport
from deploypruner.errors import DeviceError, DeviceLostError
from deploypruner.registries import transports

if TYPE_CHECKING:
    from deploypruner.device.described import DescribedTarget

_OPTIONS = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "ConnectTimeout": "15",
    "ServerAliveInterval": "10",
    "ServerAliveCountMax": "6",
}
_KEEP_MASTER = "60"
_END_SHARED_S = 10
# Of a socket's name: 107 with the dot and 16 letters that ssh puts behind it while it is made, and the slash.
_LONGEST_SOCKET = 89
_HASHED_HOST = 40
_BOOTSTRAP = Path(__file__).parents[1] / "bootstrap.py"
_SSH_FAILED = 255
_NOT_FOUND = (126, 127)
_SAY_WHERE = 'python = "..." in targets.toml'


@transports.register("ssh")
class SshTransport(Transport):
    """Another machine, through the system's OpenSSH client.

    Args:
        target: As the user described it.
    """

    def __init__(self, target: DescribedTarget) -> None:
        assert target.address is not None, "a target without an address is this machine"
        self.name = target.name
        self.cores = target.cores
        self._target, self._address = target, target.address
        self._greeted = self._known = False

    @property
    def login(self) -> str:
        """The command that a person would log in with."""
        port = ["-p", str(self._address.port)] if self._address.port else []
        return shlex.join(["ssh", *port, self._host])

    @property
    def _host(self) -> str:
        return f"{self._address.user}@{self._address.host}" if self._address.user else self._address.host

    def start(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        """See `Transport.start`.

        Raises:
            DeviceError: There is no OpenSSH client here.
        """
        program = shutil.which("ssh")
        if program is None:
            raise DeviceError(
                "there is no OpenSSH client on this machine", hint="install it: apt install openssh-client"
            )
        port = ["-p", str(self._address.port)] if self._address.port else []
        options = [f"-o{name}={value}" for name, value in _OPTIONS.items()]
        shared = self._shared_connection(program, port)
        if self._greeted and shared:  # it was lost, and what shares it may not know yet
            end = [program, *shared, "-O", "exit", *port, "--", self._host]
            with suppress(subprocess.TimeoutExpired):
                subprocess.run(end, capture_output=True, check=False, timeout=_END_SHARED_S)
        self._greeted = False
        command = [program, "-T", *options, *shared, *port, "--", self._host]
        return subprocess.Popen(
            [*command, self._remote_command()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )

    def greet(self, device: Greeter) -> dict[str, Any]:
        """See `Transport.greet`: hears what is there, and sends the archive where it is new."""
        if not self._heard(device)["known"]:
            device.send_file(archive.archive())
        said = self._heard(device)
        self._greeted = self._known = True
        return said

    def _heard(self, device: Greeter) -> dict[str, Any]:
        said = device.first_words()
        if "lacks" in said:
            raise self._lacking(said)
        return said

    def no_agent(self, code: int | None, log: str, foreign: str) -> DeviceError:
        """See `Transport.no_agent`."""
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        last = lines[-1] if lines else ""
        if code == _SSH_FAILED or (code is None and last):
            return self._ssh_failed(log, last)
        if self._greeted:
            ended = f" (exit code {code})" if code else ""
            return DeviceLostError(
                f"{self.name}: the measuring process there ended{ended}{f': {last}' if last else ''}",
                hint="run it again; was it ended there, or is its memory full?",
            )
        if self._known:  # it was there a moment ago: it starts anew, or was lost once more on the way
            text = f"{self.name}: it could not be reached again{f': {last}' if last else ''}"
            return DeviceLostError(text, hint=f"{_REACHABLE} run it again")
        if code in _NOT_FOUND or "not found" in last.lower():
            return DeviceError(
                f"{self.name} has no Python called '{self._target.python}'{f': {last}' if last else ''}",
                hint=f"install Python {_version(NEEDED)} or newer there, or say where it is: {_SAY_WHERE}",
            )
        words = foreign.strip() or last or "nothing"
        return DeviceError(
            f"{self.name} answered the login with {_shortened(words)!r} and did not start Python",
            hint=f"`{self.login} python3 --version` must print a version and nothing else",
        )

    def no_answer(self, log: str) -> DeviceError:
        """See `Transport.no_answer`."""
        last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "")
        return DeviceLostError(
            f"{self.name} does not answer{f': {last}' if last else ''}", hint=f"can you log in? `{self.login}`"
        )

    def no_room(self, why: str, what: str) -> DeviceError:
        """See `Transport.no_room`."""
        return DeviceError(
            f"{self.name}: cannot keep {what} there: {why.lower()}",
            hint=f"free some space there (`deploypruner target clean {self.name}` removes what is kept), or name a "
            'disk with room: folder = "..." in targets.toml',
        )

    def _remote_command(self) -> str:
        """For any shell: nothing in it but letters, digits and what all of them quote alike."""
        code = _BOOTSTRAP.read_text(encoding="utf-8") + "\nmain(sys.argv[1], sys.argv[2], int(sys.argv[3]))\n"
        coded = base64.b64encode(code.encode()).decode()
        run = f"import base64;exec(base64.b64decode(b'{coded}'))".replace("'", '"')
        arguments = [self._target.folder, archive.digest(), str(len(archive.archive()))]
        variables = [f"{name}={value}" for name, value in self._target.environment.items()]
        python = self._target.python
        # The shell there knows where its user is at home.
        called = f"~/{shlex.quote(python[2:])}" if python.startswith("~/") else shlex.quote(python)
        return f"exec {shlex.join(['env', *variables])} {called} -c {shlex.join([run, *arguments])}"

    def _shared_connection(self, program: str, port: list[str]) -> list[str]:
        """Options that keep the connection for a minute, for the next command; none where the user has their own."""
        asked = subprocess.run(
            [program, "-G", *port, "--", self._host], capture_output=True, text=True, check=False, timeout=20
        ).stdout
        if re.search(r"^controlpath (?!none$)", asked, re.MULTILINE):
            return []
        folder = default_folder() / "ssh"
        if len(str(folder)) + _HASHED_HOST > _LONGEST_SOCKET:
            return []
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:  # it is quicker with one, and works without
            return []
        return ["-oControlMaster=auto", f"-oControlPath={folder}/%C", f"-oControlPersist={_KEEP_MASTER}"]

    def _lacking(self, said: dict[str, Any]) -> DeviceError:
        python, where = ".".join(map(str, said["python"])), said.get("executable", self._target.python)
        if said["lacks"] == "python":
            return DeviceError(
                f"{self.name} has Python {python} ('{where}'), and measuring needs {_version(NEEDED)} or newer",
                hint=f"install a newer one there and say where it is: {_SAY_WHERE}",
            )
        if said["lacks"] == "bits":
            return DeviceError(
                f"{self.name} has a {said['bits']}-bit Python ('{where}'), and neither runtime has packages for it",
                hint=f"install a {BITS}-bit system there, or say where a {BITS}-bit Python is: {_SAY_WHERE}",
            )
        if said["lacks"] == "folder":
            return DeviceError(
                f"{self.name}: cannot use the folder '{said['folder']}' there: {said['why'].lower()}",
                hint='name one that can be written to: folder = "/tmp/..." in targets.toml',
            )
        return self.no_room(said["why"], f"the worker ({len(archive.archive())} bytes) in '{said['folder']}'")

    def _ssh_failed(self, log: str, last: str) -> DeviceError:
        """What ssh said, with what to do about it."""
        host, by_hand = self._address.host, f"log in by hand to see: {self.login}"
        if "IDENTIFICATION HAS CHANGED" in log:
            return DeviceError(
                f"{self.name}: the host key has changed: it is another machine, or was set up anew",
                hint=f"if you know why: ssh-keygen -R {self._known_as()}, then accept the new key: `{self.login}`",
            )
        found = next((entry for entry in _FAILURES if entry.mark in log), None)
        if found is None and self._greeted and not last:
            return DeviceLostError(
                f"{self.name}: the connection was lost, or the measuring process there was ended by somebody else",
                hint="run it again; is it still on, and does it have the memory?",
            )
        if found is None:
            text = "the connection was lost" if self._greeted else "the login came to nothing"
            kind = DeviceLostError if self._known else DeviceError
            return kind(f"{self.name}: {text}{f': {last}' if last else ''}", hint=by_hand)
        kind = DeviceLostError if found.passes else DeviceError
        return kind(f"{self.name}: {found.text}: {last}", hint=found.hint.format(login=self.login, host=host))

    def _known_as(self) -> str:
        port = self._address.port
        return f"'[{self._address.host}]:{port}'" if port else self._address.host


class _Failure(NamedTuple):
    """What OpenSSH says, what it means and what to do about it; `passes`: may it be otherwise in a minute?"""

    mark: str
    text: str
    hint: str
    passes: bool = False


_REACHABLE = "is it on, and in this network?"
_FAILURES = (
    _Failure(
        "Host key verification failed", "its host key is not known here", "look at it and accept it once: {login}"
    ),
    _Failure(
        "Permission denied", "the login was refused", "check the user name, and give your key to it: ssh-copy-id"
    ),
    _Failure(
        "Could not resolve hostname", "there is no such host", "check the name, or write it into ~/.ssh/config", True
    ),
    _Failure("Connection refused", "nothing listens there", "is it on, and does sshd run on that port?", True),
    _Failure("timed out", "it cannot be reached", _REACHABLE, True),
    _Failure("No route to host", "it cannot be reached", _REACHABLE, True),
    _Failure("unreachable", "it cannot be reached", _REACHABLE, True),
    _Failure("not responding", "the connection was lost", f"{_REACHABLE} run it again", True),
    _Failure("Connection reset", "the connection was lost", f"{_REACHABLE} run it again", True),
    _Failure("closed by", "the connection was closed there", f"{_REACHABLE} run it again", True),
)


def _version(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def _shortened(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:120]}..."
