"""A .pt2 file is data: nothing in it runs whatever opens it, and what torch writes is read as torch reads it."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from deploypruner.errors import InputError
from deploypruner.pt2 import read_program
from deploypruner.pt2.expressions import guard, size_expression
from deploypruner.pt2.refusal import Refusal
from deploypruner.runtime import runtimes
from tests.builds import run_cli, workshop
from tests.hostile_programs import (
    INPUTS,
    MARK,
    PROGRAM,
    ROUTES,
    Net,
    Runs,
    earlier,
    edited,
    members,
    saved,
    torch_runs,
    write,
    write_earlier,
)

pytestmark = pytest.mark.slow

FOUR = ("pickled sample inputs", "a pickled weight", "a size expression", "a guard")
COMMANDS = {
    "plan": ("plan", "evil.pt2"),
    "compile": ("compile", "evil.pt2", "--out", "build", "--epochs", "1"),
    "criteria-check": ("criteria-check", "evil.pt2", "--data", str(workshop() / "labelled.npz")),
}


@pytest.fixture(autouse=True)
def no_mark() -> Any:
    """The mark is of this test alone."""
    MARK.unlink(missing_ok=True)
    yield
    MARK.unlink(missing_ok=True)


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("route", ROUTES)
def test_no_route_into_python_runs_and_each_is_named(tmp_path: Path, route: str) -> None:
    make, place = ROUTES[route]
    with pytest.raises(InputError, match=r"evil\.pt2' is not read: [\s\S]*hint: ") as refused:
        read_program(write(tmp_path / "evil.pt2", make()))
    assert place in str(refused.value)
    assert not MARK.exists()


@pytest.mark.parametrize("route", FOUR)
def test_the_payloads_are_live(tmp_path: Path, route: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch_runs(ROUTES[route][0](), tmp_path / "evil.pt2")


@pytest.mark.parametrize("route", FOUR)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_what_a_program_holds(tmp_path: Path, route: str, command: str) -> None:
    write(tmp_path / "evil.pt2", ROUTES[route][0]())
    done = run_cli(*COMMANDS[command], folder=tmp_path)
    assert done.code == 2, done.err
    assert "is not read: " in done.out + done.err
    assert "Traceback" not in done.err
    assert not MARK.exists()
    assert not (tmp_path / "build").exists()


def test_bench_and_a_builds_own_program_are_no_exception(tmp_path: Path) -> None:
    """The model of a folder, opened by a worker process, and what such a process calls for every file."""
    write(tmp_path / "model.pt2", ROUTES["a guard"][0]())
    done = run_cli("bench", str(tmp_path), "--runtime", "torch", "--seconds", "1")
    assert done.code == 2
    assert "is not read" in done.out + done.err
    for route in FOUR:
        with pytest.raises(InputError, match="is not read"):
            runtimes.get("torch")().open(write(tmp_path / "model.pt2", ROUTES[route][0]()))
    assert not MARK.exists()


def test_earlier_archives_are_no_more_trusted(tmp_path: Path) -> None:
    for name in ("serialized_state_dict__pt", "serialized_constants__pt", "serialized_example_inputs__pt"):
        held = earlier(**{name: saved({"first.weight": Runs()})})
        with pytest.raises(InputError, match=name.replace("__", r"\.")):
            read_program(write_earlier(tmp_path / "evil.pt2", held))
    assert not MARK.exists()


def _swap(held: dict[str, bytes], name: str, content: bytes) -> dict[str, bytes]:
    return {**held, name: content}


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (lambda: _swap(members(), PROGRAM, b"[" * 100_000), "nested too deeply"),
        (lambda: _swap(members(), PROGRAM, b'{"a": '), "is no JSON"),
        (lambda: _swap(members(), PROGRAM, b"[]"), "format 'None'"),
        (lambda: _swap(members(), "other/../../x", b""), "other/../../x"),
        (lambda: _swap(members(), "byteorder", b"big"), "big-endian"),
        (lambda: {k: v for k, v in members().items() if k != INPUTS[:4] and "weight_0" not in k}, "is missing"),
        (lambda: edited(PROGRAM, lambda d: d["schema_version"].update(major=5)), "has format '5'"),
        (lambda: edited(PROGRAM, lambda d: d["graph_module"].pop("graph")), "'graph' is missing"),
        (lambda: edited(PROGRAM, lambda d: d.update(opset_version={"aten": "ten"})), "'ten' is no int"),
        (lambda: edited(PROGRAM, lambda d: d["range_constraints"].update(s1={"min_val": 10**30})), "too large"),
    ],
)
def test_what_is_no_program_is_refused_by_its_place(
    tmp_path: Path, held: Callable[[], dict[str, bytes]], said: str
) -> None:
    with pytest.raises(InputError, match=r"is not read: ") as refused:
        read_program(write(tmp_path / "odd.pt2", held()))
    assert said in str(refused.value)


def test_nothing_unfolds(tmp_path: Path) -> None:
    packed = write(tmp_path / "packed.pt2", members(), zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="is compressed, which torch does not do"):
        read_program(packed)
    bomb = {**members(), "data/weights/weight_0": bytes(30_000_000)}
    write(tmp_path / "bomb.pt2", bomb, zipfile.ZIP_DEFLATED)
    run_cli("plan", "bomb.pt2", folder=tmp_path).assert_error(2, "could unfold to any size")


def test_a_cut_or_flipped_archive_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.pt2", members()).read_bytes()
    for end in range(0, len(whole) - 1, len(whole) // 9):
        (tmp_path / "cut.pt2").write_bytes(whole[:end])
        with pytest.raises(InputError, match="is not read"):
            read_program(tmp_path / "cut.pt2")


def test_mutated_programs_are_read_or_refused(tmp_path: Path) -> None:
    """Every value of the JSON replaced once by something else: no exception but ours."""
    outcomes = {"read": 0, "refused": 0}
    document = json.loads(members()[PROGRAM])
    places = [path for path in _places(document) if "metadata" not in path]
    others = (None, -1, 2**70, "x' + 1", [], {}, [[1]], {"as_name": "q"}, True, 0.5)
    for number, path in enumerate(places[:: max(1, len(places) // 60)]):
        changed = json.loads(members()[PROGRAM])
        inner = changed
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = others[number % len(others)]
        try:
            read_program(write(tmp_path / "m.pt2", {**members(), PROGRAM: json.dumps(changed).encode()}))
            outcomes["read"] += 1
        except InputError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 30
    assert not MARK.exists()


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in [(*path, key), *_places(item, (*path, key))]]


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('x')",
        "Symbol('s0').__class__",
        "Symbol('s0', cls=1)",
        "(lambda: 1)()",
        "[x for x in (1,)]",
        "f'{1}'",
        "S('x')",
        "sympify('1')",
        "Lambda(s0, 1)",
        "s0.subs",
        "Integer(s0 := 1)",
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "9**9**9",
        "Integer(2)**Integer(10000)",
        "Symbol('Integer')",
        "Float('0x1', precision=53)",
        "Integer('3')",
        "1" * 60_000,
        "(" * 300 + "1" + ")" * 300,
        "",
        "\0",
        "s0; s1",
        "globals",
    ],
)
def test_sizes_are_arithmetic_and_nothing_else(text: str) -> None:
    with pytest.raises(Refusal):
        size_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "Add(FloorDiv(Add(Symbol('s53', positive=True, integer=True), Integer(-1)), Integer(2)), Integer(1))",
        "StrictGreaterThan(Symbol('u0', integer=True), Integer(4))",
        "Mul(Float('0.5', precision=53), ToFloat(Symbol('s7', integer=True)))",
        "Max(Integer(1), Mod(Symbol('s7', integer=True), Integer(8)), Pow(Symbol('s7', integer=True), Integer(2)))",
        "Piecewise(ExprCondPair(Integer(1), true))",
        "2 * s0 + s1 // 4",
    ],
)
def test_sizes_that_torch_writes_are_kept(text: str) -> None:
    assert size_expression(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "open('x')",
        "L['x'].data",
        "L['x'].size.__self__",
        "torch.hub.os.system('x')",
        "math.__dict__",
        "L['x'].size()[__import__('os')]",
        "L['a\"b'].size()[0] == 1",
        "(L['x'].size()[0] == 1) if open('x') else 2",
        "max(L['x'].size()[0], *[1])",
        "L['x'].size(**{}) == 1",
        "args[0]",
        "print",
    ],
)
def test_guards_are_conditions_on_sizes_and_nothing_else(text: str) -> None:
    with pytest.raises(Refusal):
        guard(text)


def test_guards_that_torch_writes_are_kept() -> None:
    for text in (
        "L['x'].size()[0] == L['y'][0]['k'].size()[1]",
        "1 + (-1 + L['x'].size()[3]) // 2 != 1",
        "max(1, math.floor(L['x'].size()[2] / 4)) % 2 == 0 and (not L['x'].stride()[0] > 7)",
    ):
        assert guard(text) == text


# ---------------------------------------------------------------------- what is read


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(10, 6), nn.Linear(6, 10, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("scale", torch.full((6,), 3.0), persistent=False)
        self.offset = torch.arange(6.0)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.embed(tokens) * self.scale + self.offset)


class _Nested(nn.Module):
    def forward(self, a: torch.Tensor, b: Any, *, c: torch.Tensor) -> Any:
        return OrderedDict(y=a + b[0], z=(b[1]["k"] * 2, [c - a]))


class _Chooses(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.shape[0] > 4, lambda t: t + 1, lambda t: t * 2, (x,))


class _Strided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x))
        return nn.functional.interpolate(y, size=x.shape[-2:]).reshape(x.shape[0], -1)[:, ::2]


class _Counts(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = x.nonzero()
        torch._check(found.shape[0] <= 8)
        return found[:, 0].sum() + found.shape[0]


PROGRAMS: dict[str, tuple[nn.Module, tuple[Any, ...], dict[str, Any], Any]] = {
    "tied weights, buffer and constant": (_Tied(), (torch.randint(0, 10, (2, 4)),), {}, ({1: Dim("t", max=99)},)),
    "nested inputs": (
        _Nested(),
        (torch.ones(2, 3), (torch.ones(2, 3), {"k": torch.full((2, 3), 5.0)})),
        {"c": torch.zeros(3)},
        None,
    ),
    "branches": (_Chooses(), (torch.ones(3, 4),), {}, ({0: Dim("b", min=2, max=64)},)),
    "open height and width": (
        _Strided(),
        (torch.randn(2, 3, 8, 12),),
        {},
        ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},),
    ),
    "sizes from data": (_Counts(), (torch.tensor([1.0, 0.0, 2.0]),), {}, None),
    "keywords and a text": (Net(), (), {"x": torch.ones(2, 6), "name": "plain"}, None),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_read_as_torch_reads_it(tmp_path: Path, name: str) -> None:
    net, args, kwargs, shapes = PROGRAMS[name]
    path = tmp_path / "net.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(net.eval(), args, kwargs, dynamic_shapes=shapes), path)
        ours, theirs = read_program(path), torch.export.load(path)
    assert str(ours.graph) == str(theirs.graph)
    assert str(ours.range_constraints) == str(theirs.range_constraints)
    assert len(ours._guards_code) == len(theirs._guards_code)
    assert ours.call_spec == theirs.call_spec
    found = torch.utils._pytree.tree_leaves(ours.module()(*args, **kwargs))
    expected = torch.utils._pytree.tree_leaves(theirs.module()(*args, **kwargs))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    pointers = {tensor.untyped_storage().data_ptr() for tensor in ours.state_dict.values()}
    assert len(pointers) == len({tensor.untyped_storage().data_ptr() for tensor in theirs.state_dict.values()})


def test_a_program_of_torch_2_7_or_2_8_is_read(tmp_path: Path) -> None:
    net = Net().eval()
    x = torch.ones(2, 6)
    whole = {"data/weights/model.pt": saved(dict(net.named_parameters())), "data/constants/model.pt": saved({})}
    for path in (
        write_earlier(tmp_path / "old.pt2", earlier(serialized_state_dict__pt=saved(dict(net.named_parameters())))),
        write(tmp_path / "newer.pt2", {**members(), **whole}),
    ):
        assert torch.equal(read_program(path).module()(x, name="plain"), net(x))


def test_the_guards_of_a_file_still_hold(tmp_path: Path) -> None:
    net, args, _, shapes = PROGRAMS["open height and width"]
    torch.export.save(torch.export.export(net.eval(), args, dynamic_shapes=shapes), tmp_path / "net.pt2")
    module = read_program(tmp_path / "net.pt2").module()
    assert module(torch.ones(1, 3, 10, 6)).shape == (1, 120)
    with pytest.raises(AssertionError, match="Guard failed"):
        module(torch.ones(1, 3, 1, 6))


def test_a_program_for_another_device_is_read_for_the_cpu(tmp_path: Path) -> None:
    held = {name: content.replace(b'"type": "cpu"', b'"type": "cuda"') for name, content in members().items()}
    program = read_program(write(tmp_path / "cuda.pt2", held))
    assert program.module()(torch.ones(2, 6), name="plain").device.type == "cpu"


def test_the_hint_names_the_file_to_load(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dp\.compile\(torch\.export\.load\('.*net\.pt2'\), example_inputs"):
        read_program(write(tmp_path / "net.pt2", ROUTES["a guard"][0]()))
