"""The kernels on 64-bit Arm without an Arm machine: instructions of the inner loops, a bound, emulated runs.

    python -m benchmarks.arm_kernels count                    # instruction counts, sizes, fuzz in emulation
    python -m benchmarks.arm_kernels openvino DIR MODEL.onnx  # DIR: `openvino` of the aarch64 wheel, unpacked
    python -m benchmarks.arm_kernels libraries LIB.so         # dot products in a runtime's aarch64 library
    python -m benchmarks.arm_kernels table

Needs cmake, g++-aarch64-linux-gnu and qemu-user. Nothing here is a time: an emulator has none, and a bound on cycles,
by published tables, is what a loop cannot be faster than: every load in the first-level cache, nothing waited for.
"""

from __future__ import annotations

import platform
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.kept import changing, read
from deploypruner.measure import environment
from deploypruner.openvino_import import import_openvino
from deploypruner.sparse.library import extension_path
from tests.kernel_cases import as_onnx, random_case

_RESULTS = Path(__file__).parent / "results" / "arm_kernels.json"
_SOURCES = Path(__file__).parents[1]
_FUZZERS = ("fuzz", "fuzz_gates", "fuzz_border", "fuzz_linear")
_PREFIX, _ROOT = "aarch64-linux-gnu-", "/usr/aarch64-linux-gnu"
# With SVE, OpenVINO 2026.4.1 gives other numbers in qemu 7.2 than everywhere else, its own fp32 included.
_CPUS = ("max,sve=off", "neoverse-n1", "cortex-a72")
_MODELS = 40

# Multiply-adds of one instruction.
_PRODUCTS = {"sdot": 16, "udot": 16, "usdot": 16, "sudot": 16, "smmla": 32, "ummla": 32, "usmmla": 32}
# Innermost loops by what they compute: the widest tile without swish and residual.
_LOOPS = {
    "sparse rows (1x4, unstructured)": r"sparse_block<false, 2, 3, false, false>",
    "paired rows (2x4)": r"sparse_block<true, 2, 3, false, false>",
    "shared rows (4x4, dense), 4 registers": r"shared_pass<4, false, false>",
    "shared rows (4x4, dense), 6 registers": r"shared_pass<6, false, false>",
    "one pixel (linear)": r"\bdot\(int",
}


@dataclass(frozen=True)
class Core:
    """What a core starts in a cycle at most.

    Args:
        vectors: Instructions on 128-bit registers.
        loads: Loads of up to `bytes` each.
        bytes: Of one load in one cycle.
        issue: Instructions of any kind; None where the source does not say.
        i8mm: Has it USDOT and USMMLA?
        source: Where that is published.
    """

    vectors: float
    loads: int
    bytes: int
    issue: int | None
    i8mm: bool
    source: str


_LLVM = "LLVM's AArch64Sched{}.td, after Arm's Software Optimization Guide of that core"
_ARM = "Arm's {} Core Software Optimization Guide, {}"
CORES = {
    "Cortex-A55": Core(1, 1, 8, 2, False, _LLVM.format("A55")),
    "Neoverse N1": Core(2, 2, 16, 8, False, _LLVM.format("NeoverseN1")),
    "Cortex-A720": Core(2, 3, 16, None, True, _ARM.format("Cortex-A720", "109720 issue 7.0, tables 3-13 and 3-15")),
    "Neoverse V2": Core(4, 3, 16, None, True, _ARM.format("Neoverse V2", "109898 issue 3.0, figure 2-1 and 3.16")),
}


def said(*command: str | Path) -> str:
    """What a command prints that must succeed."""
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout


def built(folder: Path, source: str, *options: str, targets: Sequence[str] = ()) -> Path:
    """A CMake build for Arm."""
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={_SOURCES / 'kernels' / 'aarch64.cmake'}"
    said("cmake", "-S", _SOURCES / source, "-B", folder, toolchain, *options)
    said("cmake", "--build", folder, "--parallel", "2", *(("--target", *targets) if targets else ()))
    return folder


Instruction = tuple[int, str, str]  # address, name, operands


def functions(library: Path) -> dict[str, list[Instruction]]:
    """Instructions of every function."""
    found: dict[str, list[Instruction]] = {}
    name = ""
    for line in said(f"{_PREFIX}objdump", "-d", "-C", "--no-show-raw-insn", library).splitlines():
        if head := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            name = head[1]
            found[name] = []
        elif name and (one := re.match(r"\s*([0-9a-f]+):\t(\S+)\t?(.*)", line)):
            found[name].append((int(one[1], 16), one[2], one[3]))
    return found


def innermost(body: list[Instruction]) -> list[list[Instruction]]:
    """Loops that contain no other one, and no way out but their end."""
    places = {address: i for i, (address, _, _) in enumerate(body)}
    spans = []
    for end, (_, name, operands) in enumerate(body):
        to = re.search(r"\b([0-9a-f]+) <", operands)
        if (
            (name.startswith("b.") or name in ("cbz", "cbnz"))
            and to
            and (begin := places.get(int(to[1], 16))) is not None
        ):
            spans += [(begin, end)] if begin <= end else []
    loops = [body[begin : end + 1] for begin, end in spans]
    return [loop for loop in loops if sum(name.startswith(("b", "cb", "ret")) for _, name, _ in loop) == 1]


def loaded_bytes(name: str, operands: str) -> int:
    """Of a load; 0 of what is none."""
    if not name.startswith("ld"):
        return 0
    one = 4 if "sw" in name else {"q": 16, "d": 8, "x": 8, "w": 4, "s": 4}[operands[0]]
    return one * (2 if name.startswith("ldp") else 1)


def counted(loop: list[Instruction]) -> dict[str, Any]:
    """Kinds of instructions of a loop, and the least cycles that each core takes for one round of it."""
    names = Counter(name for _, name, _ in loop)
    loads = [found for _, name, operands in loop if (found := loaded_bytes(name, operands))]
    vectors = sum(
        not name.startswith(("ld", "st")) and bool(re.match(r"[vsd]\d", operands)) for _, name, operands in loop
    )
    stores = sum(name.startswith("st") for _, name, _ in loop)
    bounds = {}
    needs_i8mm = any(name in ("usdot", "sudot", "usmmla") for name in names)
    for core, can in CORES.items():
        if needs_i8mm and not can.i8mm:
            continue
        limits = {
            "vectors": vectors / can.vectors,
            "loads": sum(-(-size // can.bytes) for size in loads) / can.loads,
            "issue": len(loop) / can.issue if can.issue else 0.0,
        }
        by = max(limits, key=lambda what: limits[what])
        bounds[core] = {"cycles": round(limits[by], 2), "by": by}
    return {
        "instructions": len(loop),
        "multiply_adds": sum(_PRODUCTS.get(name, 0) * count for name, count in names.items()),
        "products": {name: count for name, count in names.items() if name in _PRODUCTS},
        "loads": len(loads),
        "loaded_bytes": sum(loads),
        "other_vector": vectors - sum(names[name] for name in _PRODUCTS),
        "stores": stores,
        "least_cycles": bounds,
    }


def loops_of(target: str, objects: Path) -> dict[str, Any]:
    """Of one target, the loops that are looked at."""
    (file,) = objects.rglob(f"target_{target}.cpp.o")
    found = {}
    for what, pattern in _LOOPS.items():
        bodies = [body for name, body in functions(file).items() if re.search(pattern, name)]
        loops = [counted(loop) for body in bodies for loop in innermost(body)]
        if loops and (best := max(loops, key=lambda loop: loop["multiply_adds"]))["multiply_adds"]:
            found[what] = best
    return found


@click.group()
def main() -> None:
    """Count, emulate, print."""


@main.command()
@click.option("--cases", default=2000, show_default=True, help="Random cases of each fuzz driver.")
def count(cases: int) -> None:
    """Instruction counts, sizes and emulated fuzz of the two NEON targets, with the options that are shipped."""
    with tempfile.TemporaryDirectory() as name:
        folder = built(Path(name), "kernels/tests", "-DDP_OPTIMIZE=-O3")
        library = folder / "libdeploypruner_kernels.so"
        found: dict[str, Any] = {"cores": {core: asdict(can) for core, can in CORES.items()}}
        found["compiler"] = said(f"{_PREFIX}g++", "--version").splitlines()[0]
        found["emulator"] = said("qemu-aarch64", "--version").splitlines()[0]
        found["loops"] = {target: loops_of(target, folder) for target in ("neon_dot", "neon_i8mm")}
        said(f"{_PREFIX}strip", "-o", folder / "stripped.so", library)
        found["library_bytes"] = {
            "linked": library.stat().st_size,
            "stripped": (folder / "stripped.so").stat().st_size,
        }
        run = ("qemu-aarch64", "-L", _ROOT, "-cpu")
        found["fuzz"] = {what: said(*run, "max", folder / what, "0", str(cases)).strip() for what in _FUZZERS}
        found["chosen"] = {
            cpu: said(*run, cpu, folder / "fuzz_linear", "0", "1").split(" on ")[1].split() for cpu in _CPUS
        }
    _keep("kernels", found)


def ran(program: Path, extension: Path, models: Sequence[Path], *before: str) -> dict[str, dict[str, Any]]:
    """Of each model its checksum and first values, and how its layers were executed; in OpenVINO."""
    found: dict[str, dict[str, Any]] = {}
    for line in said(*before, program, extension, *models).splitlines():
        kind, *words = line.split()
        if kind == "output":
            last = found[Path(words[0]).name] = {
                "hash": words[1],
                "values": list(map(float, words[2:])),
                "layers": {},
            }
        elif kind == "layer" and words[0] in ("Convolution", "FullyConnected", "MatMul", "Reference"):
            last["layers"][" ".join(words)] = last["layers"].get(" ".join(words), 0) + 1
    return found


def driver(compiler: str, package: Path, to: Path) -> Path:
    """kernels/tests/in_openvino.cpp against a package of OpenVINO."""
    libraries = package / "libs"
    (openvino,) = libraries.glob("libopenvino.so.*")
    paths = (f"-Wl,-rpath,{libraries}", f"-Wl,-rpath-link,{libraries}")
    source = _SOURCES / "kernels" / "tests" / "in_openvino.cpp"
    said(compiler, "-std=c++17", "-O1", source, f"-I{package / 'include'}", openvino, *paths, "-o", to)
    return to


@main.command()
@click.argument("package", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("models", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def openvino(package: Path, models: tuple[Path, ...]) -> None:
    """The extension for Arm inside OpenVINO for Arm: random layers give the same bytes as here; MODELS besides."""
    own = Path(str(import_openvino().__file__)).parent
    with tempfile.TemporaryDirectory() as name:
        folder, layers = Path(name), []
        for seed in range(_MODELS):
            layers.append(folder / f"layer{seed}.onnx")
            layers[-1].write_bytes(as_onnx(random_case(1000 + seed, batch=1 + seed % 3)))
        built(folder / "arm", ".", f"-DDP_OPENVINO={package.resolve()}", "-DCMAKE_BUILD_TYPE=Release")
        extension = folder / "arm" / "kernels" / "libdeploypruner_openvino.so"
        here = ran(driver("g++", own, folder / "here"), extension_path(), [*layers, *models])
        there = driver(f"{_PREFIX}g++", package.resolve(), folder / "there")
        found: dict[str, Any] = {
            "version": import_openvino().__version__,
            "bytes": extension.stat().st_size,
            "models": {},
        }
        for cpu in _CPUS:
            emulated = ran(there, extension, [*layers, *models], "qemu-aarch64", "-L", _ROOT, "-cpu", cpu)
            equal = sum(emulated[layer.name]["hash"] == here[layer.name]["hash"] for layer in layers)
            found[cpu] = {"layers": _MODELS, "equal": equal}
            for model in models:
                mine, its = here[model.name], emulated[model.name]
                gap = max(abs(a - b) for a, b in zip(mine["values"], its["values"], strict=True))
                about = {**its, "equal": mine["hash"] == its["hash"], "largest_gap_of_first_8": gap}
                found["models"].setdefault(model.name, {"here": mine})[cpu] = about
    _keep("openvino", found)


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def libraries(files: tuple[Path, ...]) -> None:
    """How often int8 products stand in the code of runtimes' libraries: what they can do, not what they do."""
    found = {}
    for file in files:
        names = Counter(re.findall(r"\t(\w+)\t", said(f"{_PREFIX}objdump", "-d", "--no-show-raw-insn", file)))
        found[file.name] = {name: names[name] for name in _PRODUCTS}
    _keep("libraries", found)


def _keep(what: str, found: dict[str, Any]) -> None:
    with changing(_RESULTS) as kept:
        kept[what] = {**found, "environment": environment(), "machine": platform.machine()}
    click.echo(f"{what} is in {_RESULTS}")


@main.command()
def table() -> None:
    """What was counted, in markdown."""
    kept = read(_RESULTS)["kernels"]
    click.echo(f"| target | loop | multiply-adds | instructions | loads | least cycles: {' | '.join(CORES)} |")
    click.echo(f"|---|---|--:|--:|--:|{'--:|' * len(CORES)}")
    for target, loops in kept["loops"].items():
        for what, loop in loops.items():
            bounds = [loop["least_cycles"].get(core) for core in CORES]
            least = [f"{found['cycles']:.1f} ({found['by']})" if found else "" for found in bounds]
            numbers = (loop["multiply_adds"], loop["instructions"], loop["loads"])
            click.echo(f"| `{target}` | {what} | {' | '.join(map(str, numbers))} | {' | '.join(least)} |")


if __name__ == "__main__":
    main()
