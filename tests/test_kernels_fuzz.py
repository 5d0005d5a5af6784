"""The C++ fuzz driver: against the library as installed, and with sanitizers against the sources."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from deploypruner.sparse.library import KERNELS, is_built, path_of, targets

KERNEL_SOURCES = Path(__file__).parents[1] / "kernels"
CASES = 1500
SANITIZED_CASES = 300
_BUILD_S = 1800

compiler = shutil.which(os.environ.get("CXX", "g++"))
needs_compiler = pytest.mark.skipif(compiler is None, reason="no C++ compiler here")


def run(*command: str | Path, timeout: float) -> str:
    """Both streams of a command that must succeed."""
    done = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout.strip()


@needs_compiler
@pytest.mark.skipif(not is_built(), reason="the package was built without its sparse kernels")
def test_all_targets_agree_on_random_convolutions_between_pages_that_must_not_be_touched(tmp_path: Path) -> None:
    program, library = tmp_path / "fuzz", path_of(KERNELS)
    run(
        *(compiler, "-std=c++17", "-O1", KERNEL_SOURCES / "tests" / "fuzz.cpp", "-o", program),
        *(f"-I{KERNEL_SOURCES / 'include'}", library, f"-Wl,-rpath,{library.parent}", "-pthread"),
        timeout=_BUILD_S,
    )
    assert run(program, "0", str(CASES), timeout=600) == f"{CASES} cases on {' '.join(targets())}"


@needs_compiler
@pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake here")
@pytest.mark.skipif(
    not os.environ.get("DEPLOYPRUNER_SANITIZE"), reason="compiles for a minute: set DEPLOYPRUNER_SANITIZE=1 to run it"
)
def test_sanitizers_find_nothing_in_the_kernels_nor_in_the_targets_this_cpu_has_to_emulate(
    pytestconfig: pytest.Config,
) -> None:
    folder = pytestconfig.cache.mkdir("kernels-sanitized")  # what did not change is not compiled again
    run("cmake", "-S", KERNEL_SOURCES / "tests", "-B", folder, "-DDP_SANITIZE=ON", timeout=_BUILD_S)
    run("cmake", "--build", folder, "--target", "fuzz", timeout=_BUILD_S)
    said = run(folder / "fuzz", "5000", str(SANITIZED_CASES), timeout=900)
    assert said.startswith(f"{SANITIZED_CASES} cases on scalar")
    assert set(targets()) <= set(said.split())
