"""The C++ fuzz driver: against the library as installed; with sanitizers, and for Arm, against the sources."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from deploypruner.sparse.library import KERNELS, is_built, path_of, targets

pytestmark = pytest.mark.slow

KERNEL_SOURCES = Path(__file__).parents[1] / "kernels"
CASES = 1500
FEW_CASES, SANITIZED_CASES = 32, 300
SANITIZERS = ("address,undefined", "thread")
PROGRAMS = ("fuzz", "fuzz_gates", "fuzz_border", "fuzz_linear")
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
@pytest.mark.parametrize("what", PROGRAMS)
def test_all_targets_agree_on_random_cases_between_pages_that_must_not_be_touched(tmp_path: Path, what: str) -> None:
    program, library = tmp_path / what, path_of(KERNELS)
    run(
        *(compiler, "-std=c++17", "-O1", KERNEL_SOURCES / "tests" / f"{what}.cpp", "-o", program),
        *(f"-I{KERNEL_SOURCES / 'include'}", library, f"-Wl,-rpath,{library.parent}", "-pthread"),
        timeout=_BUILD_S,
    )
    assert run(program, "0", str(CASES), timeout=600) == f"{CASES} cases on {' '.join(targets())}"


@functools.cache
def has(sanitizers: str) -> bool:
    """Can the compiler make a program with them, and can it run here? (The kernel may lay memory out unsuitably.)"""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "p.cpp", Path(folder) / "p"
        source.write_text("int main() {}")
        made = subprocess.run(
            [str(compiler), f"-fsanitize={sanitizers}", str(source), "-o", str(program)],
            capture_output=True,
            check=False,
        )
        return made.returncode == 0 and subprocess.run([program], capture_output=True, check=False).returncode == 0


def compiled(folder: Path, *options: str) -> list[Path]:
    """The fuzz drivers, compiled with options of CMake; what did not change is not compiled again."""
    run("cmake", "-S", KERNEL_SOURCES / "tests", "-B", folder, *options, timeout=_BUILD_S)
    workers = str(len(os.sched_getaffinity(0)))
    run("cmake", "--build", folder, "--target", *PROGRAMS, "--parallel", workers, timeout=_BUILD_S)
    return [folder / name for name in PROGRAMS]


needs_cmake = pytest.mark.skipif(compiler is None or shutil.which("cmake") is None, reason="no C++ compiler or cmake")


@needs_cmake
@pytest.mark.parametrize("sanitizers", SANITIZERS)
def test_sanitizers_find_nothing_in_what_all_targets_share(sanitizers: str, pytestconfig: pytest.Config) -> None:
    if not has(sanitizers):
        pytest.skip(f"no -fsanitize={sanitizers} here")
    folder = pytestconfig.cache.mkdir(f"kernels-shared-{sanitizers.split(',')[0]}")
    options = (f"-DDP_SANITIZE={sanitizers}", "-DDP_TARGETS=scalar;avx2", "-DDP_OPTIMIZE=-O0")
    for program in compiled(folder, *options):
        assert run(program, "4000", str(FEW_CASES), timeout=300).startswith(f"{FEW_CASES} cases on scalar")


@needs_cmake
@pytest.mark.parametrize("sanitizers", SANITIZERS)
@pytest.mark.skipif(
    not os.environ.get("DEPLOYPRUNER_SANITIZE"), reason="compiles for minutes: set DEPLOYPRUNER_SANITIZE=1 to run it"
)
def test_sanitizers_find_nothing_in_the_kernels_nor_in_the_targets_this_cpu_has_to_emulate(
    sanitizers: str, pytestconfig: pytest.Config
) -> None:
    folder = pytestconfig.cache.mkdir(f"kernels-{sanitizers.split(',')[0]}")
    for program in compiled(folder, f"-DDP_SANITIZE={sanitizers}"):
        said = run(program, "5000", str(SANITIZED_CASES), timeout=900)
        assert said.startswith(f"{SANITIZED_CASES} cases on scalar")
        assert set(targets()) <= set(said.split())


# What each emulated processor runs: one that has all, one with dot products, one with neither.
ARM = {"max": "scalar neon_dot neon_i8mm", "neoverse-n1": "scalar neon_dot", "cortex-a72": "scalar"}
ARM_CASES, ARM_ROOT = 100, Path("/usr/aarch64-linux-gnu")
missing = [name for name in ("cmake", "aarch64-linux-gnu-g++", "qemu-aarch64") if shutil.which(name) is None]


@pytest.mark.skipif(
    bool(missing), reason=f"no {', '.join(missing)}: apt install cmake g++-aarch64-linux-gnu qemu-user"
)
def test_arm_targets_agree_in_emulation_and_only_those_run_that_the_processor_has(
    pytestconfig: pytest.Config,
) -> None:
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={KERNEL_SOURCES / 'aarch64.cmake'}"
    for program in compiled(pytestconfig.cache.mkdir("kernels-arm"), toolchain):
        for cpu, targets_there in ARM.items():
            cases = ARM_CASES if cpu == "max" else 4
            said = run("qemu-aarch64", "-L", ARM_ROOT, "-cpu", cpu, program, "8000", str(cases), timeout=900)
            assert said == f"{cases} cases on {targets_there}"
