"""Windows on a CPU that may not have their instruction: emulated against the oracle, and as compiled, read."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploypruner.sparse.library import KERNELS, is_built, known_targets, path_of, targets

pytestmark = pytest.mark.slow

SOURCES = Path(__file__).parents[1] / "kernels" / "tests"
CASES = 800
PASSES, VARIANTS = (4, 8, 12, 16, 20, 24), 4  # pixels of a pass; with and without a residual, a hard swish
_BUILD_S = 1800


def run(*command: str | Path) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=_BUILD_S)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("c++") is None, reason="no C++ compiler or no cmake"
)
@pytest.mark.skipif(
    not is_built() or "avx512_vnni" not in targets(), reason="what emulates the instruction needs AVX-512 VNNI"
)
def test_windows_equal_the_oracle_on_random_convolutions_with_their_one_instruction_emulated(
    pytestconfig: pytest.Config,
) -> None:
    folder = pytestconfig.cache.mkdir("kernels-emulated")  # what did not change is not compiled again
    run("cmake", "-S", SOURCES, "-B", folder)
    run("cmake", "--build", folder, "--target", "fuzz")
    said = run(folder / "fuzz", "200000", str(CASES)).strip()
    emulated = [name for name in known_targets() if name in targets() or name in ("avx512_vbmi", "avx_vnni")]
    assert said == f"{CASES} cases on {' '.join(emulated)} avx512_windows"


@dataclass(frozen=True)
class Loop:
    """Instructions between a conditional jump and where it goes back to."""

    names: tuple[str, ...]
    touches_the_stack: bool


def loops_with(name: str, library: Path) -> list[Loop]:
    """Innermost loops of a library in which an instruction occurs."""
    found: list[Loop] = []
    lines = run("objdump", "-d", "--no-show-raw-insn", library).splitlines()
    matches = (re.match(r"\s*([0-9a-f]+):\t(.*\S)", line) for line in lines)
    code = [(int(match[1], 16), match[2]) for match in matches if match]
    seen = [i for i, (_, text) in enumerate(code) if text.startswith(name + " ")]
    while seen:
        jump = next(i for i in range(seen[0], len(code)) if re.match(r"j(?!mp)", code[i][1]))
        back = int(code[jump][1].split()[1], 16)
        body = [text for address, text in code[:jump] if address >= back] + [code[jump][1]]
        found.append(Loop(tuple(text.split()[0] for text in body), any("%rsp" in text for text in body)))
        seen = [i for i in seen if i > jump]
    return found


@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump here")
@pytest.mark.skipif(
    not is_built() or "avx512_vbmi" not in known_targets(), reason="built without the target avx512_vbmi"
)
def test_the_inner_loop_of_windows_loads_permutes_and_multiplies_once_a_pixel_and_spills_nothing() -> None:
    tight = [
        loop.names.count("vpermb")
        for loop in loops_with("vpermb", path_of(KERNELS))
        if loop.names.count("vpdpbusd") == loop.names.count("vpermb")
        and len(loop.names) <= 3 * loop.names.count("vpermb") + 9  # indices, weights, the line's address, the loop
        and not loop.touches_the_stack
    ]
    # Others of that instruction, depthwise ones and what lays out an image, are not windows.
    assert sorted(filter(None, tight)) == sorted(PASSES * VARIANTS)
