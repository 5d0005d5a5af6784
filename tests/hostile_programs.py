"""Programs with a payload: each would create the file `mark` if anything of it were run."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import pickle  # noqa: TID251 - written here, never read
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

MARK = Path(tempfile.gettempdir()) / "deploypruner-payload-ran"


class Net(nn.Module):
    """Two layers; the second argument is a constant of the program."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, name: str = "plain") -> torch.Tensor:
        """[N, 6] -> [N, 4]."""
        return self.second(torch.relu(self.first(x)))


class Runs:
    """Unpickling it writes the mark."""

    def __init__(self, inner: object = None) -> None:
        self.inner = inner

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return exec, (f"open({str(MARK)!r}, 'w').close()",)


@functools.cache
def members() -> dict[str, bytes]:
    """The members of a program that torch wrote."""
    file = io.BytesIO()
    shapes: Any = {"x": {0: Dim("rows", max=64)}, "name": None}
    program = torch.export.export(
        Net().eval(),
        (torch.zeros(2, 6),),
        {"name": "plain"},
        dynamic_shapes=shapes,
    )
    torch.export.save(program, file)
    with zipfile.ZipFile(file) as archive:
        return {info.filename.split("/", 1)[1]: archive.read(info) for info in archive.infolist()}


def write(path: Path, held: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """Put members back into an archive."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in held.items():
            archive.writestr(f"m/{name}", content)
    return path


def saved(value: object) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


CODE = f"open({str(MARK)!r},'w').close()"
QUOTED = f"__import__('pathlib').Path({str(MARK)!r}).touch()"
PROGRAM, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
CONSTANTS, INPUTS = "data/constants/model_constants_config.json", "data/sample_inputs/model.pt"


def edited(member: str, edit: Callable[[Any], None]) -> dict[str, bytes]:
    """The archive with one JSON member changed."""
    document = json.loads(members()[member])
    edit(document)
    return {**members(), member: json.dumps(document).encode()}


def renamed(old: str, new: str) -> dict[str, bytes]:
    """The program with every value called `old` called `new`."""
    return {**members(), PROGRAM: members()[PROGRAM].replace(json.dumps(old).encode(), json.dumps(new).encode())}


def _program(document: Any) -> Any:
    return document["graph_module"]


def _call(document: Any, target: str, *texts: str, name: str = "") -> None:
    """One more node at the front, which calls `target` with texts."""
    inputs = [{"name": name, "arg": {"as_string": text}, "kind": 2 if name else 1} for text in texts]
    node = {"target": target, "inputs": inputs, "outputs": [], "metadata": {}, "is_hop_single_tensor_return": None}
    _program(document)["graph"]["nodes"].insert(0, {**node, "name": "called"})


def _pickled_weight() -> dict[str, bytes]:
    held = edited(WEIGHTS, lambda d: d["config"]["first.weight"].update(use_pickle=True))
    file = json.loads(members()[WEIGHTS])["config"]["first.weight"]["path_name"]
    return {**held, f"data/weights/{file}": saved(Runs())}


def _object(prefix: str) -> dict[str, bytes]:
    meta = {"path_name": f"{prefix}_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    held = edited(CONSTANTS, lambda d: d["config"].update(thing=meta))
    return {**held, f"data/constants/{prefix}_0": pickle.dumps(Runs())}


def _expression(document: Any) -> None:
    for meta in _program(document)["graph"]["tensor_values"].values():
        for size in meta["sizes"]:
            if "as_expr" in size:
                size["as_expr"]["expr_str"] = f"{QUOTED} or 2"


def _tree(kind: str, context: str) -> Callable[[Any], None]:
    def edit(document: Any) -> None:
        leaf = {"type": None, "context": None, "children_spec": []}
        spec = [1, {"type": kind, "context": context, "children_spec": [leaf]}]
        _program(document)["module_call_graph"][0]["signature"]["out_spec"] = json.dumps(spec)

    return edit


def _constant(document: Any) -> None:
    text = {"as_string": f"x' or {QUOTED} or '"}
    specs = _program(document)["signature"]["input_specs"]
    next(s for s in specs if "constant_input" in s)["constant_input"]["value"] = text
    inputs = _program(document)["graph"]["inputs"]
    inputs[next(i for i, value in enumerate(inputs) if "as_string" in value)] = text


def _key(document: Any) -> None:
    signature = _program(document)["module_call_graph"][0]["signature"]
    signature["in_spec"] = signature["in_spec"].replace("name", '\\\\\\"+' + QUOTED + '+\\\\\\"')


def earlier(**replaced: bytes) -> dict[str, bytes]:
    """The same program in the format of torch 2.7, with other content for some members."""
    parts = {
        "version": b"8.8",
        "serialized_exported_program.json": members()[PROGRAM],
        "serialized_state_dict.pt": saved(Net().state_dict()),
        "serialized_constants.pt": saved({}),
        "serialized_example_inputs.pt": members()[INPUTS],
    }
    return {**parts, **{name.replace("__", "."): content for name, content in replaced.items()}}


def write_earlier(path: Path, held: dict[str, bytes]) -> Path:
    """Put members into an archive without a folder."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in held.items():
            archive.writestr(name, content)
    return path


# Route -> members of the archive, and the member or place that the refusal names.
ROUTES: dict[str, tuple[Callable[[], dict[str, bytes]], str]] = {
    "pickled sample inputs": (lambda: {**members(), INPUTS: saved(Runs())}, INPUTS),
    "a pickled input among tensors": (lambda: {**members(), INPUTS: saved(((Runs(),), {"name": "plain"}))}, INPUTS),
    "a plain pickle for inputs": (lambda: {**members(), INPUTS: pickle.dumps(Runs())}, INPUTS),
    "a pickled weight": (_pickled_weight, "first.weight"),
    "a state dict in one pickle": (
        lambda: {**members(), "data/weights/model.pt": saved({"first.weight": Runs()})},
        "data/weights/model.pt",
    ),
    "a pickled constant": (lambda: _object("tensor"), "thing"),
    "an opaque object": (lambda: _object("opaque_obj"), "thing"),
    "a script object": (lambda: _object("custom_obj"), "thing"),
    "a size expression": (lambda: edited(PROGRAM, _expression), "expr_str"),
    "a guard": (lambda: edited(PROGRAM, lambda d: d["guards_code"].append(f"{QUOTED} or True")), "guards_code"),
    "a call of os.system": (
        lambda: edited(PROGRAM, lambda d: _call(d, "torch.hub.os.system", f"touch {MARK}")),
        "torch.hub.os.system",
    ),
    "a library to load": (
        lambda: edited(PROGRAM, lambda d: _call(d, "torch.ops.load_library", str(MARK))),
        "torch.ops.load_library",
    ),
    "an operator that writes files": (
        lambda: edited(PROGRAM, lambda d: _call(d, "torch.ops.aten.save.default", "x", str(MARK))),
        "torch.ops.aten.save",
    ),
    "an operator that makes files": (
        lambda: edited(PROGRAM, lambda d: _call(d, "torch.ops.aten.from_file.default", str(MARK))),
        "torch.ops.aten.from_file",
    ),
    "the name of an argument": (
        lambda: edited(PROGRAM, lambda d: _call(d, "torch.ops.higher_order.cond", "x", name=f"a={CODE},b")),
        "inputs[0].name",
    ),
    "the name of a value": (lambda: renamed("relu", f"relu={CODE};relu"), "name"),
    "the name of a parameter": (lambda: renamed("first.weight", f'a").b,{QUOTED}#'), "name"),
    "the name of forward's argument": (
        lambda: edited(
            PROGRAM,
            lambda d: _program(d)["module_call_graph"][0]["signature"].update(forward_arg_names=["x", f"n={CODE}"]),
        ),
        "forward_arg_names",
    ),
    "a constant input": (lambda: edited(PROGRAM, _constant), "constant_input"),
    "a key of a dict": (lambda: edited(PROGRAM, _key), "in_spec"),
    "a type to import": (
        lambda: edited(PROGRAM, _tree("collections.defaultdict", '{"default_factory_module": "antigravity"}')),
        "out_spec",
    ),
    "an enum to import": (
        lambda: edited(PROGRAM, _tree("builtins.dict", '[{"__enum__": true, "fqn": "antigravity:a", "name": "b"}]')),
        "out_spec",
    ),
    "a compiled library": (
        lambda: {**members(), "data/aotinductor/model/wrapper.so": b"\x7fELF"},
        "data/aotinductor",
    ),
}


def torch_runs(held: dict[str, bytes], path: Path) -> bool:
    """Does torch.export.load, then a call, write the mark?"""
    MARK.unlink(missing_ok=True)
    with contextlib.suppress(Exception):
        program = torch.export.load(write(path, held))
        program.module()(torch.zeros(2, 6), name="plain")
    ran = MARK.exists()
    MARK.unlink(missing_ok=True)
    return ran
