"""Inputs in every form a forward takes: by position, by name, nested, with flags; and outputs of every form."""

from __future__ import annotations

import dataclasses
import json
from collections import namedtuple
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import deploypruner as dp
from deploypruner.channels.allocate import allocate
from deploypruner.channels.criteria import criteria
from deploypruner.channels.plan import Plan
from deploypruner.channels.remove import remove_and_prove
from deploypruner.channels.statistics import score_groups
from deploypruner.errors import InputError
from deploypruner.export import exporters
from deploypruner.graph import trace
from deploypruner.graph.inputs import (
    as_inputs,
    batch_size,
    call,
    described,
    filled,
    from_json,
    resized,
    tensors,
    to_json,
)
from deploypruner.recipe.budget import Budget
from tests.builds import pretended_timings

pytestmark = pytest.mark.slow

Pair = namedtuple("Pair", "score features")


@dataclasses.dataclass
class Answer:
    """What a detector returns."""

    score: Tensor
    boxes: list[Tensor]


class Text(nn.Module):
    """Tokens and a mask, in an order of names that is not the example's."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.hidden, self.out = nn.Embedding(20, 12), nn.Linear(12, 32), nn.Linear(32, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, double: bool = False) -> Tensor:
        x = self.hidden(self.table(input_ids)).relu()
        if attention_mask is not None:
            x = x * attention_mask.unsqueeze(-1)
        return self.out(x.mean(1)) * (2 if double else 1)


class Many(nn.Module):
    """A dict inside a list, and outputs of the form `kind`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.a, self.b, self.o = kind, nn.Linear(6, 16), nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, parts: list[dict[str, Tensor]], scale: float):
        h = (self.a(parts[0]["left"]) + self.b(parts[1]["right"])).relu()
        score = self.o(h) * scale
        return {
            "tensor": score,
            "tuple": (score, score.softmax(-1)),
            "dict": {"score": score, "nothing": None, "steps": 3},
            "namedtuple": Pair(score, score.sum(-1)),
            "dataclass": Answer(score, [score[:, :1], score[:, 1:]]),
        }[self.kind]


KINDS = ["tensor", "tuple", "dict", "namedtuple", "dataclass"]


def text() -> tuple[Text, dict[str, Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ids = torch.randint(0, 20, (3, 7))
        return Text().eval(), {"attention_mask": (torch.rand(3, 7) > 0.3).float(), "input_ids": ids}


def halved(graph: dp.Graph) -> Plan:
    scores = score_groups(graph, criteria.get("magnitude")(), None)
    return allocate(graph, scores, Budget(macs=0.6), criterion="magnitude", scope="uniform", normalizer="sum", step=1)


def many(kind: str) -> tuple[Many, tuple[object, ...]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Many(kind).eval(), ([{"left": torch.randn(4, 6)}, {"right": torch.randn(4, 4)}], 0.5)


def test_keyword_inputs_are_traced_removed_and_proved():
    net, inputs = text()
    graph = trace(net, inputs)
    assert graph.dynamic_batch
    assert [g.id for g in graph.groups if not g.changes_statistics]
    torch.testing.assert_close(graph.module(**inputs), net(**inputs))
    module, checks = remove_and_prove(graph, halved(graph))
    assert all(check.passed for check in checks)
    assert module(**inputs).shape == (3, 5)
    assert sum(p.numel() for p in module.parameters()) < sum(p.numel() for p in net.parameters())


def test_a_traced_module_takes_keyword_inputs_in_any_order_and_by_position():
    net, inputs = text()
    module = trace(net, inputs).module
    wanted = net(**inputs)
    torch.testing.assert_close(module(**dict(reversed(inputs.items()))), wanted)
    torch.testing.assert_close(module(*inputs.values()), wanted)


def test_flags_and_absent_inputs_are_part_of_the_trace():
    net, inputs = text()
    given = {"input_ids": inputs["input_ids"], "attention_mask": None, "double": True}
    graph = trace(net, given)
    assert graph.dynamic_batch
    torch.testing.assert_close(graph.module(**given), net(**given))


@pytest.mark.parametrize("kind", KINDS)
def test_nested_inputs_go_in_and_the_models_own_form_of_output_comes_out(kind):
    net, inputs = many(kind)
    graph = trace(net, inputs)
    module, checks = remove_and_prove(graph, halved(graph))
    assert all(check.passed for check in checks)
    wanted = net(*inputs)
    for traced in (graph.module, module):
        got = traced(*inputs)
        assert type(got) is type(wanted)
        assert [t.shape for t in tensors(got)] == [t.shape for t in tensors(wanted)]
    torch.testing.assert_close(tensors(graph.module(*inputs)), tensors(wanted))


def test_the_exported_files_have_the_arguments_names(tmp_path: Path):
    net, inputs = text()
    graph = trace(net, inputs)
    module, _ = remove_and_prove(graph, halved(graph))
    for name in ("onnx", "pt2"):
        exporters.get(name)().write(module, graph.example_inputs, tmp_path / f"m.{name}", dynamic_batch=True)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert [i.name for i in session.get_inputs()] == ["attention_mask", "input_ids"]
    wanted = module(**inputs)
    got = session.run(None, {key: value.numpy() for key, value in inputs.items()})[0]
    np.testing.assert_allclose(got, wanted.detach().numpy(), rtol=1e-4, atol=1e-5)
    archive = torch.export.load(tmp_path / "m.pt2").module()
    torch.testing.assert_close(archive(**inputs), wanted)


def test_a_program_with_keyword_inputs_keeps_its_call():
    net, inputs = text()
    dynamic = {key: {0: torch.export.Dim.DYNAMIC} for key in inputs}
    program = torch.export.export(net, (), inputs, dynamic_shapes=dynamic, strict=False)
    graph = trace(program, inputs)
    assert graph.dynamic_batch
    torch.testing.assert_close(graph.module(**inputs), net(**inputs))
    assert {g.id for g in graph.groups} == {g.id for g in trace(net, inputs).groups}


@pytest.mark.parametrize("make", [text, lambda: many("tensor")])
def test_a_plan_can_rebuild_inputs_it_was_made_with(make):
    net, inputs = make()
    graph = trace(net, inputs)
    plan = Plan.from_json(json.loads(json.dumps(halved(graph).to_json())))
    again = trace(net, from_json(plan.inputs, batch=2))
    plan.check(again)
    wanted, got = (torch.utils._pytree.tree_structure(i) for i in (graph.example_inputs, again.example_inputs))
    assert got == wanted
    assert [t.dtype for t in tensors(again.example_inputs)] == [t.dtype for t in tensors(graph.example_inputs)]


def test_inputs_as_json_by_hand():
    inputs = {"x": torch.zeros(4, 3), "more": (torch.zeros(2, dtype=torch.int64), None, [0.5, True])}
    document = to_json(inputs, dynamic_batch=True)
    assert document == {
        "dict": {
            "x": {"shape": [None, 3], "dtype": "float32"},
            "more": {"tuple": [{"shape": [2], "dtype": "int64"}, None, [0.5, True]]},
        }
    }
    back = from_json(document, batch=2)
    assert back["x"].shape == (2, 3)
    assert back["more"][1:] == (None, [0.5, True])


def test_an_input_that_json_cannot_hold_says_so_when_it_is_needed():
    document = to_json((torch.zeros(2), object()), dynamic_batch=False)
    with pytest.raises(InputError, match=r"input of type object, which a plan cannot rebuild[\s\S]*hint"):
        from_json(document, batch=2)


def test_resizing_cuts_and_repeats_only_what_has_the_batch():
    inputs = (torch.arange(3), {"table": torch.arange(5), "x": torch.arange(6).reshape(3, 2)})
    two, five = resized(inputs, 2), resized(inputs, 5)
    assert [t.tolist() for t in tensors(two)] == [[0, 1], [0, 1, 2, 3, 4], [[0, 1], [2, 3]]]
    assert tensors(five)[0].tolist() == [0, 1, 2, 0, 1]
    assert (batch_size(five), described(two)) == (5, "[2] int64 and [5] int64 and [2, 2] int64")


def test_inputs_are_filled_in_order_and_counted():
    inputs = {"a": torch.zeros(2), "flag": True, "b": torch.zeros(2)}
    assert filled(inputs, [torch.ones(2), torch.full((2,), 2.0)])["b"].tolist() == [2, 2]
    with pytest.raises(InputError, match="1 tensors were given to a model that takes 2"):
        filled(inputs, [torch.ones(2)])


class Encoding:
    """Like a tokenizer's: keys and items, and no dict."""

    def __init__(self, **values: Tensor) -> None:
        self.values = values

    def keys(self):
        return self.values.keys()

    def __getitem__(self, key: str) -> Tensor:
        return self.values[key]


def test_a_mapping_that_is_no_dict_counts_as_keywords():
    net, inputs = text()
    assert as_inputs(Encoding(**inputs)).keys() == inputs.keys()
    torch.testing.assert_close(call(trace(net, Encoding(**inputs)).module, inputs), net(**inputs))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [((), "hold no tensor"), ((torch.zeros(0, 6),), "hold no sample"), ((3,), "hold no tensor")],
)
def test_example_inputs_without_a_sample_are_refused(inputs, said):
    with pytest.raises(InputError, match=said):
        trace(nn.Linear(6, 5), inputs)


def test_a_whole_build_takes_keyword_inputs(tmp_path: Path):
    net, inputs = text()
    with pretended_timings():
        build = dp.compile(net, inputs, out=tmp_path / "build", macs=0.6, step=1, runtimes=("onnxruntime",))
    session = onnxruntime.InferenceSession(tmp_path / "build" / "model.fp32.onnx")
    assert [i.name for i in session.get_inputs()] == ["attention_mask", "input_ids"]
    assert build.report.verification
    assert all(check.passed for check in build.report.verification)
    restored = dp.restore(net, tmp_path / "build")
    torch.testing.assert_close(restored(**inputs), build.module(**inputs))
