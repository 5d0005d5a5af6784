"""What the fuzzer tries: one function per kind of input, (random, workshop, folder) -> case."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle  # noqa: TID251 - hostile pickles are written here and never read
import random
import shutil
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import save_file

import deploypruner as dp
from deploypruner.build import pipeline  # noqa: F401 - the same
from deploypruner.channels.remove import remove
from deploypruner.cli import main as cli
from deploypruner.cli import plan as planning
from deploypruner.errors import DeployPrunerError
from deploypruner.measure import trial
from deploypruner.recipe import Recipe, resolved_toml
from deploypruner.report import render_json
from tests.builds import FACTORIES, IMAGE, samples, save_program, tiny
from tests.fuzzing import Case
from tests.test_report_examples import EXAMPLES

Random = random.Random
NUMBERS = (
    *("-5", "-1", "0", "1", "2", "7", "0.5", "-0.0", "nan", "inf", "-inf", "1e308", "1e-320", "1e999", "3.0"),
    *("99999999999999999999", "9" * 5000, "0x10", "1_000", "²", "4294967296", "-9223372036854775808", "1e30"),
)
TEXTS = (
    *("", " ", "auto", "none", "-", "--", "\x1b[31mred", "a\nb", "\u202eabc", "<script>fuzz</script>", "a" * 300),
    *("../..", "/dev/zero", "/dev/null", "/proc/self/mem", "~", "a:b", ":", "timm:", "x.pt2", "é", "\udcff", "%s%n"),
    *("1,3,16,16", "1,3,99999999,99999999", "1x3x16x16", "1,,3", "5ms", "5ms@p95", "2:4", "nm64", "layer*", "["),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2**31, 2**63, 2**64, 10**30, -0.5, 1e308, "", "\x1b[31m", "<script>fuzz</script>"),
    *([], {}, [[]], [None], {"a": 1}, "x" * 5000, "\ud800", 3.5, "nan", [1, 2, 3]),
)


class Workshop:
    """Good files of every kind, which cases are made from."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True)
        self.root = root
        save_program(tiny(), root / "tiny.pt2", torch.zeros(2, *IMAGE))
        self.program = (root / "tiny.pt2").read_bytes()
        (x, y), (x_val, y_val) = samples(24), samples(8, seed=1)
        np.savez(root / "labelled.npz", x=x, y=y, x_val=x_val, y_val=y_val)
        self.arrays = (root / "labelled.npz").read_bytes()
        (root / "factories.py").write_text(FACTORIES)
        self.recipe = resolved_toml(Recipe())
        self.reports = [json.loads(render_json(report)) for report in EXAMPLES.values()]
        self.onnx = small_onnx(zeros=True)
        onnx.save(self.onnx, root / "small.onnx")
        save_file(tiny().state_dict(), root / "w.safetensors")
        self.safetensors = (root / "w.safetensors").read_bytes()
        torch.save(tiny().state_dict(), root / "w.pt")
        self.state = (root / "w.pt").read_bytes()
        torch.save(tiny().state_dict(), root / "old.pt", _use_new_zipfile_serialization=False)
        self.old_state = (root / "old.pt").read_bytes()
        graph = dp.trace(tiny(), torch.zeros(2, *IMAGE))
        plan = dp.plan(graph, budget=dp.Budget(macs=0.5), step=1)
        self.plan = plan.to_json()
        save_file(remove(graph, plan).state_dict(), root / "weights.safetensors")
        with contextlib.suppress(DeployPrunerError):  # loads what is loaded on first use
            planning.dry_run(Recipe(), with_widths=False)


def command(*arguments: str) -> Callable[[], None]:
    """The real command line with these arguments."""

    def run() -> None:
        sys.argv = ["deploypruner", *arguments]
        sys.path.insert(0, os.getcwd())
        cli.main()

    return run


def api(call: Callable[[], object]) -> Callable[[], None]:
    """A call of the Python API whose errors end as the command line would end them."""

    def run() -> None:
        try:
            call()
        except DeployPrunerError as error:
            cli._print_error(error.message, error.hint or "(none)")
            sys.exit(error.exit_code)

    return run


# ---------------------------------------------------------------------- mutations


def mutated(rng: Random, data: bytes) -> bytes:
    """Bytes with a few of them changed, cut, doubled or moved."""
    held = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(held) + 1)
        match rng.randrange(6):
            case 0:
                held[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del held[at : at + rng.choice((1, 4, 64, 4096))]
            case 2:
                held[at:at] = held[at : at + rng.choice((1, 8, 64))]
            case 3:
                held[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\x01\0\0\0"))
            case 4:
                held[at : at + 8] = rng.choice((b"\xff" * 8, b"\0" * 8, b"\xff" * 7 + b"\x7f"))
            case _:
                if at < len(held):
                    held[at] ^= 1 << rng.randrange(8)
        if not held:
            break
    return bytes(held)


def damaged_text(rng: Random, text: str) -> bytes:
    """Text with bytes changed, or with nonsense in it."""
    if rng.random() < 0.6:
        return mutated(rng, text.encode())
    at = rng.randrange(len(text))
    junk = rng.choice(
        ("[" * 100_000, "{" * 2000, "9" * 5000, "\x00", "\x1b[31m", '"', "\ufeff", "a.b.c.d=1\n", "= =")
    )
    return (text[:at] + junk + text[at:]).encode()


def edited(rng: Random, document: Any) -> Any:
    """JSON values with one replaced, deleted, added or nested, anywhere."""
    places = list(_places(document))
    holder, key = rng.choice(places)
    match rng.randrange(8):
        case 0:
            del holder[key]
        case 1:
            holder[key] = [holder[key]]
        case 2 if isinstance(holder[key], dict):
            holder[key][rng.choice(("extra", "\x1b[31m", "<script>fuzz"))] = rng.choice(VALUES)
        case 3 if isinstance(holder[key], list):
            holder[key] = holder[key] * 3
        case 4 if isinstance(holder[key], int | float):
            holder[key] = rng.choice((-holder[key], holder[key] * 10**6, 0, 1e308, 2**63 - 1, -1, 0.5))
        case 5 if isinstance(holder[key], str):
            holder[key] = rng.choice([text for text in TEXTS if text.isascii()])
        case 6:
            other, name = rng.choice(places)
            holder[key] = json.loads(json.dumps(other[name])) if name in other or isinstance(other, list) else None
        case _:
            holder[key] = rng.choice(VALUES)
    return document


def _places(document: Any) -> Any:
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in list(items):
        yield document, key
        if isinstance(value, dict | list):
            yield from _places(value)


def edited_copy(rng: Random, document: Any) -> Any:
    """A copy that was edited once to four times."""
    copy = json.loads(json.dumps(document))
    for _ in range(rng.choice((1, 1, 2, 4))):
        with contextlib.suppress(IndexError, KeyError, TypeError):
            copy = edited(rng, copy)
    return copy


def json_text(rng: Random, document: Any) -> bytes:
    """An edited document, or its damaged text."""
    if rng.random() < 0.15:
        return damaged_text(rng, json.dumps(document, indent=1))
    return json.dumps(edited_copy(rng, document)).encode(errors="replace")


def rezipped(rng: Random, data: bytes, change: Callable[[str, bytes], bytes]) -> bytes:
    """A zip archive with sound checksums, one of whose members was changed."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        chosen = rng.choice(old.namelist())
        for name in old.namelist():
            held = old.read(name)
            new.writestr(name, change(name, held) if name == chosen else held)
    return made.getvalue()


def bomb(name: str, count: int = 1 << 32) -> bytes:
    """A zip archive of a few kilobytes whose member says it has `count` bytes."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, b"\0" * (1 << 22))
    held = made.getvalue()
    said = (1 << 22).to_bytes(4, "little")
    return held.replace(said, min(count, 0xFFFFFFFE).to_bytes(4, "little"))


# ---------------------------------------------------------------------- kinds


_OPTIONS = (
    *(
        "--data",
        "--weights",
        "--input-shape",
        "--dynamic",
        "--mean",
        "--std",
        "--criterion",
        "--normalizer",
        "--scope",
        "--step",
    ),
    *(
        "--exclude",
        "--min-width",
        "--max-cut",
        "--heads",
        "--statistics",
        "--depth",
        "--target",
        "--recipe",
        "--seed",
    ),
    *("--latency", "--speedup", "--macs", "--precision", "--accuracy-drop", "--search-minutes", "--runtime"),
    *(
        "--threads",
        "--seconds",
        "--schedule",
        "--learn-epochs",
        "--epochs",
        "--train",
        "--optimizer",
        "--lr",
        "--ema",
    ),
    *("--amp", "--devices", "--pattern", "--sparsity", "--sparse-schedule", "--sparse-layers", "--sparse-only"),
    *("--sparse-exclude", "--out", "--interval", "--json", "--batch", "--samples", "--time", "--frozen", "--resume"),
)
_FLAGS = ("--time", "--frozen", "--resume", "--trust-pickle")


def arguments(rng: Random, workshop: Workshop, folder: Path) -> Case:
    """Any command with any options; where everything is right, `compile` fails at an --out that is a file."""
    (folder / "taken").write_text("a file")
    model = rng.choice((str(workshop.root / "tiny.pt2"), str(workshop.root / "tiny.pt2"), rng.choice(TEXTS)))
    name = rng.choice(
        ("plan", "plan", "plan", "compile", "bench", "sparsify", "criteria-check", "report", "list", "x")
    )
    chosen = []
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        option = rng.choice(_OPTIONS)
        value = rng.choice(rng.choice((NUMBERS, TEXTS)))
        if option == "--seconds":  # nobody waits for a thousand
            value = rng.choice(("nan", "inf", "-inf", "-1", "0", "1", "1e999", "x", ""))
        chosen += [option] if option in _FLAGS else [option, value]
    chosen = [part for part in chosen if part != "--time"]  # seconds of timing, and nothing read
    last = ["--out", "taken"] if name == "compile" else []
    if name == "bench":  # a second for whoever is accepted
        model, last = rng.choice((model, "taken", "taken")), ["--seconds", "1"] if "--seconds" not in chosen else []
    words = [name, *([model] if rng.random() < 0.9 else []), *chosen, *last]
    return Case(command(*words), " ".join(map(repr, words)))


def recipe(rng: Random, workshop: Workshop, folder: Path) -> Case:
    """A resolved recipe with other values, or with damaged text."""
    if rng.random() < 0.3:
        text = damaged_text(rng, workshop.recipe)
    else:
        lines = workshop.recipe.splitlines()
        assigned = [i for i, line in enumerate(lines) if " = " in line]
        for _ in range(rng.choice((1, 1, 2, 3))):
            at = rng.choice(assigned)
            key = lines[at].partition(" = ")[0]
            value = rng.choice((_toml_text, _toml_number, _toml_other))(rng)
            lines[at] = f"{key} = {value}"
        text = "\n".join(lines).encode(errors="replace")
    (folder / "r.toml").write_bytes(text)
    data = ["--data", str(workshop.root / "labelled.npz")] if rng.random() < 0.2 else []
    return Case(command("plan", str(workshop.root / "tiny.pt2"), "--recipe", "r.toml", *data), "recipe")


def _toml_text(rng: Random) -> str:
    return json.dumps(rng.choice([text for text in TEXTS if text != "\udcff"]))


def _toml_number(rng: Random) -> str:
    return rng.choice([number for number in NUMBERS if number != "²"])


def _toml_other(rng: Random) -> str:
    many = "[" * 200 + "]" * 200
    return rng.choice(("[]", "{}", "true", "[1, 2]", "[-1]", "['a']", "{a = 1}", "2026-01-01", "[nan]", many, "''"))


def npz(rng: Random, workshop: Workshop, folder: Path) -> Case:
    """Arrays of other types and shapes, damaged archives, headers that lie, bombs."""
    path = folder / "x.npz"
    match rng.randrange(5):
        case 0:
            path.write_bytes(mutated(rng, workshop.arrays))
        case 1:
            path.write_bytes(rezipped(rng, workshop.arrays, lambda name, held: mutated(rng, held[:256]) + held[256:]))
        case 2:
            path.write_bytes(
                rng.choice((bomb("x.npy"), bomb("y.npy", 1 << 30), b"PK\5\6" + b"\0" * 18, b"\x1f\x8b" * 9))
            )
        case 3:
            shape = rng.choice(
                ("(99999999999,)", "(-1,)", "(1,)*99", "(4294967296, 4294967296)", "(3, 3, 16", "()", "1")
            )
            kind = rng.choice(("'<f4'", "'|O'", "'<U5'", "'>f8'", "[('a', '<f4')]", "'|V0'", "3", "'<c8'"))
            header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".encode() + b"\n"
            npy = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 64
            made = io.BytesIO()
            with zipfile.ZipFile(made, "w") as archive:
                archive.writestr("x.npy", npy)
            path.write_bytes(made.getvalue())
        case _:
            _odd_arrays(rng, path)
    data = ["--data", "x.npz", "--criterion", rng.choice(("magnitude", "taylor"))]
    return Case(command("plan", str(workshop.root / "tiny.pt2"), "--macs", "0.6", "--step", "1", *data), "npz")


def _odd_arrays(rng: Random, path: Path) -> None:
    kinds = ("f2", "f4", "f8", "i1", "u1", "i4", "i8", "u8", "?", "c8", "U3", "S2", "M8[s]", "V4", "O", ">f4")
    shapes = ((), (0,), (1,), (24,), (24, *IMAGE), (24, 16, 16, 3), (24, 16, 16), (23, *IMAGE), (24, 1), (24, 4))
    names = ("x", "y", "x_val", "y_val", "z", "X", "\x1b[31m")
    arrays = {}
    for name in rng.sample(names, rng.choice((1, 2, 4))):
        kind = np.dtype(rng.choice(kinds))
        values = np.zeros(rng.choice(shapes), kind)
        if kind.kind in "fiu" and values.size:
            values.flat[rng.randrange(values.size)] = rng.choice((0, 1, 3, 100))
        if kind.kind == "f" and rng.random() < 0.2 and values.size:
            values.flat[0] = rng.choice((np.nan, np.inf))
        arrays[name] = values
    np.savez(path, **arrays)


class _Runs:
    """Unpickling it would call something."""

    def __init__(self, what: Any, *arguments: Any) -> None:
        self._reduced = what, arguments

    def __reduce__(self) -> Any:
        return self._reduced


def weights(rng: Random, workshop: Workshop, folder: Path) -> Case:
    """Damaged and lying safetensors, state dicts of both formats, other things that torch.save writes."""
    name = "w.safetensors" if rng.random() < 0.4 else "w.pt"
    path = folder / name
    if name == "w.safetensors":
        path.write_bytes(_safetensors(rng, workshop.safetensors))
    else:
        match rng.randrange(4):
            case 0:
                path.write_bytes(mutated(rng, rng.choice((workshop.state, workshop.old_state))))
            case 1:
                path.write_bytes(rezipped(rng, workshop.state, lambda name, held: mutated(rng, held)))
            case 2:
                path.write_bytes(rng.choice((bomb("archive/data.pkl"), b"\x1f\x8b\x08\0" * 20, _tar(), b"\x80\x02.")))
            case _:
                _saved(rng, path)
    (folder / "factories.py").write_text(FACTORIES)
    return Case(command("plan", "factories:tiny", "--weights", name, "--input-shape", "1,3,16,16"), "weights")


def _safetensors(rng: Random, data: bytes) -> bytes:
    if rng.random() < 0.5:
        return mutated(rng, data)
    size = int.from_bytes(data[:8], "little")
    header = json_text(rng, json.loads(data[8 : 8 + size]))
    said = rng.choice((len(header), len(header), 2**63, 0))
    return said.to_bytes(8, "little") + header + data[8 + size :]


def _saved(rng: Random, path: Path) -> None:
    state = dict(tiny().state_dict())
    first = next(iter(state))
    odd = rng.choice(
        (
            torch.zeros(1).as_strided((1 << 20, 1 << 20), (0, 0)),
            torch.zeros(state[first].shape, dtype=torch.complex64),
            torch.zeros(state[first].shape, dtype=torch.int8),
            torch.full_like(state[first], float("nan")),
            torch.zeros(16, 3, 3, 3).to_sparse(),
            torch.zeros(state[first].shape, device="meta"),
            torch.quantize_per_tensor(torch.zeros(state[first].shape), 0.1, 0, torch.qint8),
            *("text", 3, None, [1], {"a": 1}, _Runs(bytearray, 1 << 33), _Runs(print, "ran"), torch.nn.Linear(2, 2)),
        )
    )
    state[rng.choice((first, "\x1b[31m", "extra", first + "." * 9))] = odd
    held = rng.choice(
        (state, OrderedDict(state), {"state_dict": state}, {"model": {"a": state}}, [state], odd, (state,))
    )
    try:
        torch.save(held, path, _use_new_zipfile_serialization=rng.random() < 0.7)
    except (RuntimeError, NotImplementedError, TypeError, AttributeError, pickle.PicklingError):
        path.write_bytes(pickle.dumps({"a": 1}))


def _tar() -> bytes:
    import tarfile

    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    return made.getvalue()


def pt2(rng: Random, workshop: Workshop, folder: Path) -> Case:
    """A program with damaged bytes, or with a member edited and sound checksums."""

    def change(name: str, held: bytes) -> bytes:
        if name.endswith(".json") and rng.random() < 0.8:
            return json_text(rng, json.loads(held))
        return mutated(rng, held) if held else b"x"

    kind = rng.random()
    data = mutated(rng, workshop.program) if kind < 0.3 else rezipped(rng, workshop.program, change)
    if kind > 0.95:
        data = bomb("tiny/models/model.json")
    (folder / "x.pt2").write_bytes(data)
    return Case(command("plan", "x.pt2"), "pt2")


def small_onnx(*, zeros: bool) -> onnx.ModelProto:
    """A convolution, a ReLU and a matrix product, the convolution's weights mostly zero."""
    rng = np.random.default_rng(0)
    conv, dense = rng.standard_normal((8, 4, 1, 1)), rng.standard_normal((8, 4))
    if zeros:
        conv[rng.random(conv.shape) < 0.8] = 0
    initial = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in (("c", conv), ("d", dense))]
    nodes = [
        helper.make_node("Conv", ["x", "c"], ["a"], name="conv"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("ReduceMean", ["b"], ["m"], name="mean", axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["m", "d"], ["y"], name="matmul"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        initial,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def onnx_file(rng: Random, workshop: Workshop, folder: Path) -> Case:
    """A damaged or an edited file, tried as `bench` opens it in its workers, or given to `sparsify`."""
    path = folder / "m.onnx"
    if rng.random() < 0.3:
        path.write_bytes(mutated(rng, workshop.onnx.SerializeToString()))
    else:
        model = onnx.ModelProto()
        model.CopyFrom(workshop.onnx)
        for _ in range(rng.choice((1, 1, 2))):
            _edit_onnx(rng, model)
        path.write_bytes(model.SerializeToString())
    os.mkfifo(folder / "pipe")
    if rng.random() < 0.6:
        runtime = rng.choice(("onnxruntime", "openvino"))
        return Case(api(lambda: trial.check_runs(Path("m.onnx"), [runtime])), f"open in {runtime}")
    return Case(command("sparsify", "m.onnx", "--seconds", "1", "--out", "out"), "sparsify")


def _edit_onnx(rng: Random, model: onnx.ModelProto) -> None:
    graph, node = model.graph, rng.choice(model.graph.node)
    tensor = rng.choice(graph.initializer)
    match rng.randrange(14):
        case 0:
            node.op_type = rng.choice(
                ("Nothing", "Loop", "If", "Identity", "ConstantOfShape", "\x1b[31m", "Gemm", "")
            )
        case 1:
            node.domain = rng.choice(("x.y", "deploypruner", "\x1b[31m"))
        case 2:
            node.input[:] = rng.choice(([], ["nothing"], ["x", "x", "x"], list(node.output), ["", ""]))
        case 3:
            node.output[:] = rng.choice(([], ["x"], ["y", "y"], ["z"] * 5))
        case 4:
            tensor.dims[:] = rng.choice(([], [-1, 4], [1 << 40, 1 << 40], [0], [8], [8, 4, 1, 1, 1, 1, 1, 1, 1]))
        case 5:
            tensor.raw_data = rng.choice((b"", b"\xff" * 7, b"\xff" * len(tensor.raw_data), tensor.raw_data * 2))
        case 6:
            tensor.data_type = rng.choice((0, 8, 10, 11, 16, 17, 22, 99))
        case 7:
            shape = graph.input[0].type.tensor_type.shape
            shape.dim[rng.randrange(len(shape.dim))].dim_value = rng.choice((0, -1, 1, 1 << 40, 7))
        case 8:
            graph.input[0].type.tensor_type.elem_type = rng.choice((0, 2, 7, 8, 10, 11, 14, 16, 99))
        case 9:
            tensor.data_location = TensorProto.EXTERNAL
            place = rng.choice(("nothing", "../../../etc/passwd", "/dev/zero", "pipe", "m.onnx", "\x1b[31m", ""))
            tensor.external_data.add(key="location", value=place)
            tensor.external_data.add(key="length", value=rng.choice(("-1", "99999999999", "x", "0")))
        case 10:
            model.opset_import[0].version = rng.choice((0, 1, 6, 12, 99, -1))
        case 11:
            model.ir_version = rng.choice((0, 3, 99, -1))
        case 12:
            node.attribute.append(
                helper.make_attribute(rng.choice(("group", "axes", "pads", "x")), rng.choice((0, [1 << 40] * 4, -1)))
            )
        case _:
            graph.name = node.name = rng.choice(("", "\x1b[31m", "a" * 1000))
            rng.shuffle(list(graph.node))


def plan(rng: Random, workshop: Workshop, folder: Path) -> Case:
    """An edited or damaged plan.json, and weights, for `dp.restore`."""
    (folder / "plan.json").write_bytes(json_text(rng, workshop.plan))
    held = (workshop.root / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(mutated(rng, held) if rng.random() < 0.15 else held)
    return Case(api(lambda: dp.restore(tiny(), folder)), "restore")


def report(rng: Random, workshop: Workshop, folder: Path) -> Case:
    """An edited or damaged report.json."""
    (folder / "build").mkdir()
    (folder / "build" / "report.json").write_bytes(json_text(rng, rng.choice(workshop.reports)))
    return Case(command("report", "build"), "report", pages=("build/report.html",))


def images(rng: Random, workshop: Workshop, folder: Path) -> Case:
    """Image folders with odd names, links, pipes, formats and damage."""
    root = folder / "images"
    splits = rng.choice((("",), ("train", "val"), ("Train", "Val"), ("train",), ("train", "test"), ("\x1b[31m",)))
    classes = rng.choice(
        (("",), ("a", "b", "c", "d"), ("\x1b[31m", "b"), ("é", "<script>fuzz"), ("a\udcff", "b"), ("a",))
    )
    for split in splits:
        for label in classes:
            where = root / split / label
            where.mkdir(parents=True, exist_ok=True)
            for number in range(2):
                Image.new("RGB", (16, 16), (number, 9, 9)).save(where / f"{number}.png")
    every = sorted(path for path in root.rglob("*") if path.is_file())
    for _ in range(rng.choice((1, 1, 2))):
        _spoil(rng, rng.choice(every), root)
    size = rng.choice((["--input-shape", "1,3,16,16"], [], ["--mean", "0,0,0", "--std", "1,1,1"]))
    words = ["plan", str(workshop.root / "tiny.pt2"), "--data", "images", "--macs", "0.6", "--step", "1", *size]
    return Case(command(*words), "images")


def _spoil(rng: Random, path: Path, root: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    held = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
    if path.is_dir():
        return
    path.unlink(missing_ok=True)
    match rng.randrange(13):
        case 0:
            path.write_bytes(mutated(rng, held or b"x"))
        case 1:
            os.mkfifo(path)
        case 2:
            path.symlink_to(rng.choice(("/dev/zero", "/dev/null", "nothing", path.name, "/proc/self/mem")))
        case 3:
            for name in ("again", "once more"):
                (path.parent / name).unlink(missing_ok=True)
                (path.parent / name).symlink_to(root.resolve())
        case 4:
            form = rng.choice(("GIF", "TIFF", "PPM", "ICO", "PCX", "TGA", "BMP", "WEBP", "JPEG", "EPS"))
            Image.new("RGB", (16, 16)).save(path, format=form)
        case 5:
            mode = rng.choice(("1", "L", "P", "RGBA", "I;16", "LA"))
            Image.new(mode, (16, 16)).save(path)
        case 6:
            size = rng.choice(((1, 60000), (60000, 1), (1, 1), (15, 17)))
            Image.new("L", size).save(path)
        case 7:
            path.write_bytes(_huge_png(rng))
        case 8:
            os.rename(_written(path), os.fsencode(path.parent) + b"/\xff\xfe.png")
        case 9:
            os.rename(_written(path), path.parent / "\x1b[31m\n.png")
        case 10:
            path.mkdir()
        case 11:
            shutil.rmtree(path.parent)
        case _:
            path.write_bytes(
                rng.choice((b"", b"GIF89a" + b"\xff" * 99, b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"))
            )


def _written(path: Path) -> Path:
    Image.new("RGB", (16, 16)).save(path)
    return path


def _huge_png(rng: Random) -> bytes:
    """A few bytes that say they are a large image."""
    import struct
    import zlib

    wide, high = rng.choice(((100_000, 100_000), (2**31 - 1, 2**31 - 1), (12_000, 12_000), (0, 5)))

    def chunk(kind: bytes, held: bytes) -> bytes:
        return struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held))

    head = struct.pack(">IIBBBBB", wide, high, 8, 6, 0, 0, 0)
    pixels = zlib.compress(b"\0" * (1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


KINDS: dict[str, Callable[[Random, Workshop, Path], Case]] = {
    "arguments": arguments,
    "recipe": recipe,
    "npz": npz,
    "weights": weights,
    "pt2": pt2,
    "onnx": onnx_file,
    "plan": plan,
    "report": report,
    "images": images,
}
