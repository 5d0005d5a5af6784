"""The libraries: which are there, whether they load, and which of our kernels run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

from deploypruner.doctor.finding import Finding
from deploypruner.errors import KernelError
from deploypruner.registries import runtimes
from deploypruner.sparse.library import (
    EXTENSION,
    KERNELS,
    active_target,
    extension_path,
    is_built,
    known_targets,
    not_running,
    path_of,
    rebuild,
    targets,
)
from deploypruner.target import processor_flags

_PATIENCE_S = 120
_COMPILERS = ("c++", "g++", "clang++")
# Not needed by every command: which of our extras installs them.
_OPTIONAL = {
    "timm": "zoo",
    "torchvision": "zoo",
    "transformers": "zoo",
    "lightning-fabric": "distributed",
    "ray": "ray",
}
_VERSION = "from deploypruner.registries import runtimes; print(runtimes.get({name!r})().version())"
_EXTENSION = (
    "from deploypruner.runtime.on_openvino import add_sparse_operations; add_sparse_operations(); print('loads')"
)


def software_findings() -> Iterator[Finding]:
    """Every runtime, loaded in a process of its own; the kernels; what is optional.

    A library that ends its process, because it was built for another processor, then ends only that one.
    """
    started = [(name, _start(_VERSION.format(name=name))) for name in runtimes]
    loaded: dict[str, bool] = {}
    for name, process in started:
        finding = runtime(name, *_ended(process))
        loaded[name] = finding.state == "fine"
        yield finding
    yield kernels(loads=loaded.get("openvino", False))
    yield optional({name: _installed(name) for name in _OPTIONAL})


def runtime(name: str, code: int | None, out: str, said: str) -> Finding:
    """One runtime, from how the process that loaded it ended.

    Args:
        name: Of the runtime, and of its package.
        code: Exit status, negative for a signal, None where it never ended.
        out: Its standard output, which ends with the version.
        said: Its standard error.
    """
    if code == 0 and out.split():
        version = out.split()[-1]
        return Finding(name, f"{version.partition('-')[0]}, loads", facts={"version": version, "loads": True})
    installed = _installed(name)
    facts: dict[str, Any] = {"version": installed, "loads": False}
    if installed is None:
        return Finding(name, "not installed", "broken", f"pip install {name}", facts)
    if code is None:
        why = f"did not load within {_PATIENCE_S} s"
    elif code < 0:
        why = f"ends its process with {_signal(-code)} when it is loaded: it may be built for another processor"
    else:
        why = f"does not load: {_last_line(said)}"
    return Finding(name, f"{installed} {why}", "broken", f"pip install --force-reinstall {name}", facts)


def kernels(*, loads: bool) -> Finding:
    """Are the sparse kernels built, do they fit OpenVINO, and which of them runs here, and why.

    Args:
        loads: Does OpenVINO?
    """
    facts: dict[str, Any] = {"built": is_built(), "target": None, "targets": [], "known": []}
    try:
        if not is_built():
            path_of(KERNELS)
            path_of(EXTENSION)
        here, chosen, known = targets(), active_target(), known_targets()
        facts |= {"target": chosen, "targets": list(here), "known": list(known)}
        if not loads:
            return Finding(
                "kernels", "built; they run in OpenVINO, which does not load", "lack", "mend openvino first", facts
            )
        library = extension_path()
    except KernelError as error:
        forced = facts["built"] and os.environ.get("DEPLOYPRUNER_TARGET") and not facts["target"]
        compiler = next(filter(shutil.which, _COMPILERS), None)
        without = "" if facts["built"] or compiler else f"; there is no C++ compiler here ({', '.join(_COMPILERS)})"
        first = "" if facts["built"] or compiler else "install a C++ compiler (apt install g++), then "
        hint = first + error.hint.replace(" with a C++ compiler", "") if first else error.hint
        return Finding("kernels", error.message + without, "broken" if forced else "lack", hint, facts)
    code, _, said = _ended(_start(_EXTENSION))
    if code != 0:
        how = _last_line(said) if code is None or code > 0 else f"it ends with {_signal(-code)}"
        return Finding("kernels", f"{library} cannot be loaded into OpenVINO: {how}", "lack", rebuild(), facts)
    forced_by = os.environ.get("DEPLOYPRUNER_TARGET")
    why = f"as DEPLOYPRUNER_TARGET says, of {', '.join(here)}" if forced_by else "the best that this processor runs"
    beyond = not_running(known, here, processor_flags())
    lacking = f"; not {beyond}" if beyond else ""
    return Finding("kernels", f"built, load into OpenVINO; {chosen} is taken, {why}{lacking}", facts=facts)


def optional(versions: dict[str, str | None]) -> Finding:
    """Packages that only some commands need, by name."""
    there = [f"{name} {version}" for name, version in versions.items() if version is not None]
    missing = [name for name, version in versions.items() if version is None]
    extras = sorted({_OPTIONAL[name] for name in missing})
    says = ", ".join(there) or "none"
    if missing:
        says += (
            f"; not there: {', '.join(missing)} (pip install 'deploypruner[{','.join(extras)}]' where you need them)"
        )
    return Finding("optional", says, facts=dict(versions))


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _start(code: str) -> subprocess.Popen[str]:
    # -P: what is installed is loaded, not what happens to lie in the working folder, such as its sources.
    command = [sys.executable, "-P", "-c", code]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _ended(process: subprocess.Popen[str]) -> tuple[int | None, str, str]:
    """Exit status, output and errors; None for the status of one that does not end."""
    try:
        out, said = process.communicate(timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        out, said = process.communicate()
        return None, out, said
    return process.returncode, out, said


def _last_line(said: str) -> str:
    """The last of a traceback, which is the message; a hint of ours below it is not."""
    lines: Sequence[str] = [line.strip() for line in said.partition("\n\nhint: ")[0].splitlines() if line.strip()]
    return lines[-1] if lines else "it does not say why"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
