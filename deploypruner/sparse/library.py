"""Where the compiled kernels are, and what they can do on this CPU."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

import deploypruner.sparse as package
from deploypruner.errors import KernelError
from deploypruner.openvino_import import import_openvino

KERNELS = "libdeploypruner_kernels.so"
EXTENSION = "libdeploypruner_openvino.so"
REBUILD = "reinstall with a C++ compiler: pip install --force-reinstall --no-deps deploypruner"


def path_of(name: str) -> Path:
    """File of one of the two libraries.

    Raises:
        KernelError: The package was installed without its native part.
    """
    # An editable installation has the sources here and what was built in site-packages; both are on the path.
    for folder in package.__path__:
        found = Path(folder) / "lib" / name
        if found.is_file():
            return found
    raise KernelError(f"{name} is not installed: the package was built without its sparse kernels", hint=REBUILD)


def is_built() -> bool:
    """Whether the native part is there."""
    try:
        return path_of(EXTENSION).is_file() and path_of(KERNELS).is_file()
    except KernelError:
        return False


def extension_path() -> Path:
    """The library for `openvino.Core().add_extension`.

    Raises:
        KernelError: It is not there, or was built for another version of OpenVINO than the one installed, or nobody
            knows for which.
    """
    path, installed = path_of(EXTENSION), import_openvino().__version__
    label = path.with_suffix(".version")
    built = label.read_text().strip() if label.is_file() else ""
    if not built:
        raise KernelError(
            f"'{label}', which says for which OpenVINO the kernels were built, is missing", hint=REBUILD
        )
    if short_version(built) != short_version(installed):
        raise KernelError(
            f"the sparse kernels were built for OpenVINO {built}, and OpenVINO {installed} is installed",
            hint=f"install openvino=={short_version(built)}, or {REBUILD}",
        )
    return path


def short_version(version: str) -> str:
    """`2026.4.1-22982-abc` -> `2026.4.1`: what the name of OpenVINO's library depends on."""
    return ".".join(version.split("-")[0].split(".")[:3])


@cache
def load() -> ctypes.CDLL:
    """The kernels themselves, which need nothing but the C++ runtime.

    Raises:
        KernelError: They are not there, or cannot be loaded.
    """
    path = path_of(KERNELS)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(f"{path} cannot be loaded: {error}", hint=REBUILD) from error
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


def check_forced_target() -> None:
    """Find out before hours of work that DEPLOYPRUNER_TARGET cannot run; says nothing where there are no kernels.

    Raises:
        KernelError: As `active_target`.
    """
    if os.environ.get("DEPLOYPRUNER_TARGET") and is_built():
        active_target()
