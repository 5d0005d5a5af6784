"""How many images and threads a sparse model is made for: timed, proved and measured with those, and no others."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import pytest
import torch

from deploypruner.latency import sparse_costs
from deploypruner.latency.clock import current_clock, using
from deploypruner.latency.sparse_costs import MeasuredCosts, measure_costs
from deploypruner.measure.worker import WorkerState
from deploypruner.runtime import NodeTime
from deploypruner.runtime.on_openvino import OpenVino
from deploypruner.sparse import library
from deploypruner.sparse.convert import sparsify
from deploypruner.sparse.cost import Rates
from deploypruner.sparse.verify import verify_operations
from tests.builds import IMAGE, known_rates, pretended_timings, run_cli, save_program, tiny
from tests.qdq import chain, images

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not library.is_built(), reason="the package was installed without its sparse kernels"),
]


def of_batch(size):
    """`chain` with a fixed batch."""
    model = chain()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = size
    return model


@contextmanager
def watched():
    """Everything goes sparse; gives the shapes and threads that layers were timed with."""
    seen = []

    def costs(_, __, layers, *, feeds, threads, rates):
        seen.append(([array.shape for array in feeds], threads))
        names = [layer.name for layer in layers]
        return MeasuredCosts(dict.fromkeys(names, 1.0), dict.fromkeys(names, 1e9))

    with using(replace(current_clock(), layer_costs=costs)), known_rates(), pretended_timings():
        yield seen


def test_a_file_whose_batch_is_fixed_is_timed_proved_and_measured_with_that_batch(tmp_path):
    onnx.save(of_batch(5), tmp_path / "m.onnx")
    with watched() as seen:
        outcome = run_cli("sparsify", "m.onnx", "--out", "s", "--threads", "2", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert seen == [([(5, 8, 6, 6)], 2)]
    made = json.loads((tmp_path / "s" / "sparsify.json").read_text())
    assert made["chosen"] == 4
    assert made["check"]["passed"]


def test_layers_of_a_file_whose_batch_is_fixed_are_timed_for_real(tmp_path):
    onnx.save(of_batch(5), tmp_path / "m.onnx")
    with known_rates(), pretended_timings():
        outcome = run_cli("sparsify", "m.onnx", "--out", "s", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    made = json.loads((tmp_path / "s" / "sparsify.json").read_text())
    assert (made["batch"], made["threads"]) == (5, 1)


@pytest.mark.parametrize(("options", "batch"), [((), 1), (("--batch", "11"), 11)])
def test_an_open_batch_is_timed_with_one_image_or_as_many_as_asked_for(options, batch, tmp_path):
    onnx.save(chain(), tmp_path / "m.onnx")
    with watched() as seen:
        outcome = run_cli("sparsify", "m.onnx", "--out", "s", *options, folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert seen == [([(batch, 8, 6, 6)], 1)]
    assert f"batch {batch}, threads 1" in outcome.err


def test_another_batch_than_the_file_is_fixed_at_is_refused_with_both_numbers(tmp_path):
    onnx.save(of_batch(5), tmp_path / "m.onnx")
    outcome = run_cli("sparsify", "m.onnx", "--batch", "4", "--out", "s", folder=tmp_path)
    outcome.assert_error(2, "the batch of the model is fixed at 5, and --batch asks for 4")


def test_data_that_does_not_fill_a_fixed_batch_is_repeated(tmp_path):
    onnx.save(of_batch(5), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=images(7), y=np.arange(7) % 2)
    with watched() as seen:
        outcome = run_cli("sparsify", "m.onnx", "--data", "d.npz", "--out", "s", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert seen == [([(5, 8, 6, 6)], 1)]


@pytest.mark.parametrize(("dynamic", "batch"), [(True, 1), (False, 2)])
def test_a_build_times_one_image_or_the_batch_its_model_was_exported_with(dynamic, batch, tmp_path):
    save_program(tiny(), tmp_path / "t.pt2", torch.randn(2, *IMAGE), dynamic=dynamic)
    options = ("--pattern", "1x4", "--sparsity", "0.5", "--seconds", "1", "--runtime", "openvino")
    with watched() as seen:
        outcome = run_cli("compile", "t.pt2", *options, "--out", "b", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert seen == [([(batch, *IMAGE)], 1)]


def test_operations_of_a_fixed_batch_agree_with_the_qdq_model(tmp_path):
    model = of_batch(5)
    made = sparsify(model, every=True)
    dense, sparse = tmp_path / "d.onnx", tmp_path / "s.onnx"
    onnx.save(model, dense)
    onnx.save(made.model, sparse)
    check = verify_operations(dense, sparse, [choice.layer for choice in made.choices], [[images(5)]])
    assert check.passed, check
    found = OpenVino().open(sparse).run([images(5)])[0]
    np.testing.assert_allclose(found, OpenVino().open(dense).run([images(5)])[0], atol=0.05)


@pytest.mark.parametrize("threads", [1, 2])
def test_costs_are_those_of_the_batch_and_the_threads_that_were_passed(threads, tmp_path):
    """A runtime that takes 1 us an image and thread: what is passed is what arrives, in every round of both."""

    class Counted:
        def __init__(self, path, feeds, threads):
            self._nodes, self._ns = onnx.load(path).graph.node, 1000.0 * len(feeds[0]) * threads

        def node_times(self, feeds, *, calls):
            assert calls > 0
            return tuple(NodeTime(node.name, node.op_type, (), "", self._ns) for node in self._nodes)

    def counted(_, path, feeds, *, threads):
        return Counted(path, feeds, threads)

    class InProcess:
        """A worker that answers here."""

        def __init__(self, artifact, runtime, **_):
            self._state = WorkerState()

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def revive(self):
            raise AssertionError("nothing was lost")

        def ask(self, **message):
            there = {key: str(value) if isinstance(value, Path) else value for key, value in message.items()}
            return {} if message["do"] == "pin" else json.loads(json.dumps(self._state.answer(there)))

    onnx.save(chain(), tmp_path / "d.onnx")
    made = sparsify(chain(), every=True)
    onnx.save(made.model, tmp_path / "s.onnx")
    layers = [choice.layer for choice in made.choices]
    for count in (1, 3):
        with mock.patch.object(OpenVino, "counted", counted), mock.patch.object(sparse_costs, "Worker", InProcess):
            found = measure_costs(
                tmp_path / "d.onnx", tmp_path / "s.onnx", layers, feeds=[images(count)], threads=threads
            )
        assert set(found.sparse_ns.values()) == {1000.0 * count * threads}
        assert found.rates.images == count


def test_the_profile_runs_with_as_many_threads_as_it_is_told_and_there_are_cores(tmp_path):
    onnx.save(chain(), tmp_path / "d.onnx")
    told = []
    opened = OpenVino._compile

    def compiling(self, path, **settings):
        session = opened(self, path, **settings)
        told.append(session._compiled.get_property("INFERENCE_NUM_THREADS"))
        return session

    with mock.patch.object(OpenVino, "_compile", compiling):
        for threads in (1, 2):
            OpenVino().profile(tmp_path / "d.onnx", [images(1)], threads=threads, calls=1)
    assert told == [1, min(2, len(os.sched_getaffinity(0)))]


def test_the_formula_counts_every_image_and_the_call_once():
    layer = sparsify(chain(), every=True).choices[0].layer
    one = Rates(call=0, dense_call=0, border_call=0)
    eight = replace(one, images=8)
    assert eight.sparse(layer) == pytest.approx(8 * one.sparse(layer))
    assert eight.dense(layer) == pytest.approx(8 * one.dense(layer))
    assert eight.enter(layer.x) == pytest.approx(8 * one.enter(layer.x))
    assert replace(eight, border_call=7).leave(layer.y) == pytest.approx(7 + eight.leave(layer.y))
