"""Where the compiled kernels are, and what they can do on this CPU."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shlex
import struct
from collections.abc import Collection, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import deploypruner.sparse as package
from deploypruner.errors import KernelError
from deploypruner.openvino_import import import_openvino
from deploypruner.target import processor_flags

KERNELS = "libdeploypruner_kernels.so"
EXTENSION = "libdeploypruner_openvino.so"

# What each target needs of a processor, as /proc/cpuinfo spells it; of one kind of processor the best last.
_NEEDS = {
    "avx2": ("avx2", "fma"),
    "avx_vnni": ("avx2", "fma", "avx_vnni"),
    "avx512_vnni": ("avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
    "avx512_vbmi": ("avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512vbmi"),
    "neon_dot": ("asimddp",),
    "neon_i8mm": ("asimddp", "i8mm"),
}
_ELF, _ELF64 = b"\x7fELF", 2
# As processors call themselves, by the number that ELF has for each.
_ARCHITECTURES = {62: "x86_64", 183: "aarch64"}
_GLIBC = re.compile(rb"\bGLIBC_(\d+)\.(\d+)")
_sent: list[Path] = []


class LibraryNeeds(NamedTuple):
    """What a machine must have to load the two libraries.

    Args:
        architecture: As `platform.machine` calls it.
        glibc: Its C library, this version or a newer one.
        openvino: Exactly this version.
    """

    architecture: str
    glibc: tuple[int, int]
    openvino: str


def needs() -> LibraryNeeds:
    """What the libraries that are installed here need.

    Raises:
        KernelError: They are not installed, cut off, or do not fit the OpenVINO here.
    """
    extension, kernels = extension_path().read_bytes(), path_of(KERNELS).read_bytes()
    (number,) = struct.unpack_from("<H", extension, 18)
    asked = [(int(major), int(minor)) for major, minor in _GLIBC.findall(extension + kernels)]
    built = path_of(EXTENSION).with_suffix(".version").read_text().strip()
    return LibraryNeeds(
        _ARCHITECTURES.get(number, f"machine {number}"), max(asked, default=(2, 0)), short_version(built)
    )


def beside_extension(extension: Path) -> tuple[Path, Path]:
    """What is needed beside OpenVINO's library: the kernels, and the version it was built for."""
    return extension.with_name(KERNELS), extension.with_suffix(".version")


def take_from(folder: Path) -> None:
    """Use the libraries in this folder, which they were sent to, before any that the package has."""
    if folder not in _sent:
        _sent.append(folder)


def path_of(name: str) -> Path:
    """File of one of the two libraries.

    Raises:
        KernelError: The package was installed without its native part.
    """
    # An editable installation has the sources here and what was built in site-packages; both are on the path.
    for folder in (*_sent, *(Path(found) / "lib" for found in package.__path__)):
        found = folder / name
        if found.is_file():
            return found
    raise KernelError(f"{name} is not installed: the package was built without its sparse kernels", hint=rebuild())


def rebuild() -> str:
    """What builds the kernels anew, from where the package was installed from."""
    return f"reinstall with a C++ compiler: pip install --force-reinstall --no-deps {_origin()}"


def _origin() -> str:
    """The argument of pip that stands for the sources of what is installed."""
    try:
        package = metadata.distribution("deploypruner")
    except metadata.PackageNotFoundError:
        return "FOLDER, the one of the sources"
    origin = json.loads(package.read_text("direct_url.json") or "{}")  # PEP 610; an index leaves none
    place = unquote(urlsplit(str(origin.get("url", ""))).path)
    if "dir_info" in origin:
        return ("-e " if origin["dir_info"].get("editable") else "") + shlex.quote(place)
    if place.endswith(".tar.gz"):
        return shlex.quote(place)
    if place:  # a wheel, and its like would have none again
        return f"deploypruner-{package.version}.tar.gz, the sources of that wheel"
    return "--no-cache-dir --no-binary deploypruner deploypruner"


def is_built() -> bool:
    """Whether the native part is there."""
    try:
        return path_of(EXTENSION).is_file() and path_of(KERNELS).is_file()
    except KernelError:
        return False


def extension_path() -> Path:
    """The library for `openvino.Core().add_extension`.

    Raises:
        KernelError: It is not there or cut off, or was built for another version of OpenVINO than the one installed,
            or nobody knows for which.
    """
    path, installed = path_of(EXTENSION), import_openvino().__version__
    label = path.with_suffix(".version")
    built = label.read_text().strip() if label.is_file() else ""
    if not built:
        raise KernelError(
            f"'{label}', which says for which OpenVINO the kernels were built, is missing", hint=rebuild()
        )
    if short_version(built) != short_version(installed):
        raise KernelError(
            f"the sparse kernels were built for OpenVINO {built}, and OpenVINO {installed} is installed",
            hint=f"install openvino=={short_version(built)}, or {rebuild()}",
        )
    _check_whole(path)
    return path


def _check_whole(path: Path) -> None:
    """Refuse a library that is cut off: mapping it and reading beyond its end would end the process.

    The linker writes the table of sections last, so a file that holds it holds everything.

    Raises:
        KernelError: The file is shorter than its own header says.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) == 64 and (head[:4] != _ELF or head[4] != _ELF64):
        return  # another system's format, which its loader checks
    needed = 64
    if len(head) == 64:
        order = "<" if head[5] == 1 else ">"
        (begin,) = struct.unpack_from(f"{order}Q", head, 40)
        size, count = struct.unpack_from(f"{order}HH", head, 58)
        needed = begin + size * count
    if path.stat().st_size < needed:
        raise KernelError(
            f"'{path}' is cut off: it has {path.stat().st_size} bytes, and its header speaks of {needed}",
            hint=rebuild(),
        )


def short_version(version: str) -> str:
    """`2026.4.1-22982-abc` -> `2026.4.1`: what the name of OpenVINO's library depends on."""
    return ".".join(version.split("-")[0].split(".")[:3])


@cache
def load() -> ctypes.CDLL:
    """The kernels themselves, which need nothing but the C++ runtime.

    Raises:
        KernelError: They are not there, cut off, or cannot be loaded.
    """
    path = path_of(KERNELS)
    _check_whole(path)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(f"{path} cannot be loaded: {error}", hint=rebuild()) from error
    library.dp_target_name.restype = ctypes.c_char_p
    return library


def known_targets() -> tuple[str, ...]:
    """Names of all targets in the library, best last."""
    library = load()
    names: list[str] = []
    while name := library.dp_target_name(len(names)):
        names.append(name.decode())
    return tuple(names)


def targets() -> tuple[str, ...]:
    """Names of the targets this CPU runs, best last; `scalar` is always one."""
    library = load()
    return tuple(name for i, name in enumerate(known_targets()) if library.dp_target_runs(i))


def active_target() -> str:
    """Name of the target that runs here: what DEPLOYPRUNER_TARGET says, or the best.

    Raises:
        KernelError: The variable names a target that this CPU does not run.
    """
    here, named = targets(), os.environ.get("DEPLOYPRUNER_TARGET")
    if named and named not in here:
        raise KernelError(f"DEPLOYPRUNER_TARGET={named} cannot run here", hint=f"this CPU runs {', '.join(here)}")
    return named or here[-1]


def targets_outlook() -> str:
    """Which targets this CPU runs, which one is taken, and why; or why there is none."""
    try:
        here, taken = targets(), active_target()
    except KernelError as error:
        return f"sparse kernels: none, {error.message}; {error.hint}"
    forced = bool(os.environ.get("DEPLOYPRUNER_TARGET"))
    why = "which DEPLOYPRUNER_TARGET says" if forced else "the fastest of those that this CPU runs"
    lacking = not_running(known_targets(), here, processor_flags())
    return f"sparse kernels: {taken}, {why}: {', '.join(here)}{f'; not {lacking}' if lacking else ''}"


def not_running(known: Sequence[str], here: Collection[str], flags: Collection[str]) -> str:
    """Of all known targets those that do not run here, each with what the processor lacks for it; "" for none."""
    beyond = [name for name in known if name not in here]
    lacks = {name: [flag for flag in _NEEDS.get(name, ()) if flag not in flags] for name in beyond}
    return ", ".join(f"{name} (lacks {' '.join(lacks[name]) or 'its instructions'})" for name in beyond)


def target_for(flags: Collection[str]) -> str | None:
    """The best target for a processor with these flags, as /proc/cpuinfo spells them; None where none is fast."""
    fitting = [name for name, needs in _NEEDS.items() if set(needs) <= set(flags)]
    return fitting[-1] if fitting else None


def no_fast_target() -> str:
    """What to say where this CPU runs the oracle alone."""
    lacks = "no dot product (asimddp)" if "neon_dot" in known_targets() else "neither AVX2 nor AVX-512 VNNI"
    return f"this CPU has {lacks} for the kernels"


def check_forced_target() -> None:
    """Find out before hours of work that DEPLOYPRUNER_TARGET cannot run; says nothing where there are no kernels.

    Raises:
        KernelError: As `active_target`.
    """
    if os.environ.get("DEPLOYPRUNER_TARGET") and is_built():
        active_target()
