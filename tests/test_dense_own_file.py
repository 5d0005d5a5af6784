"""The dense int8 model that a runtime is compared in is as good as that runtime can have it."""

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from deploypruner.build.allocation import dense_jobs
from deploypruner.build.artifacts import DENSE_OWN, with_dense
from deploypruner.build.folder import BuildFolder
from deploypruner.build.stages.settle import Settle
from deploypruner.build.state import Build, Given
from deploypruner.build.timed import make_jobs
from deploypruner.graph import trace
from deploypruner.latency import write_candidate
from deploypruner.measure import Job
from deploypruner.onnx_graph import read_graph
from deploypruner.progress import SilentProgress
from deploypruner.quantize.placement import OWN_PLACEMENT, placement_in
from deploypruner.recipe import PruneRecipe, Recipe
from deploypruner.recipe.sections import MeasureRecipe

OWN = "dense.int8.onnxruntime.onnx"


def net(activation: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), activation(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(576, 2)).eval()


def written(folder: Path, activation: type[nn.Module], runtimes: tuple[str, ...]) -> Build:
    """A build that has written its dense files, and traced a network with this activation."""
    model, inputs = net(activation), (torch.zeros(2, 3, 16, 16),)
    recipe = Recipe(prune=PruneRecipe(macs=0.5), measure=MeasureRecipe(runtimes=runtimes))
    build = Build(recipe, BuildFolder(folder), "", Given(model=model, example_inputs=inputs), SilentProgress())
    build.folder.prepare()
    return with_dense(replace(build, graph=trace(model, inputs)))


def test_a_runtime_that_wants_pairs_elsewhere_is_compared_in_a_file_of_its_own(tmp_path):
    """Swish: ONNX Runtime computes the convolution before it in int8 only with a pair between."""
    build = written(tmp_path, nn.SiLU, ("onnxruntime", "openvino"))
    files = {(a.name, name): a.path.name for a, name in make_jobs(build.artifacts, ("onnxruntime", "openvino"))}
    assert files["dense int8", "onnxruntime"] == OWN
    assert files["dense int8", "openvino"] == "dense.int8.onnx"
    assert {a.path.name for a, name in dense_jobs(build) if name == "onnxruntime"} == {"dense.fp32.onnx", OWN}
    read = [
        [node.op_type for node in read_graph(onnx.load(tmp_path / name)).graph].count("QuantizeLinear")
        for name in (OWN, "dense.int8.onnx")
    ]
    assert read[0] > read[1]
    build.folder.release()


@pytest.mark.parametrize(("activation", "runtimes"), [(nn.ReLU, ("onnxruntime",)), (nn.SiLU, ("openvino",))])
def test_there_is_no_second_file_where_it_would_be_the_same_or_nothing_runs_it(activation, runtimes, tmp_path):
    build = written(tmp_path, activation, runtimes)
    assert DENSE_OWN == (OWN,)
    assert not build.folder.has(OWN)
    assert len(build.artifacts) == 2
    build.folder.release()


def test_candidates_are_timed_as_the_runtime_wants_them(tmp_path):
    graph = trace(net(nn.SiLU), (torch.zeros(2, 3, 16, 16),))
    pairs = []
    for runtime in ("onnxruntime", "openvino"):
        write_candidate(graph, {}, "int8", tmp_path / f"{runtime}.onnx", placement=placement_in(runtime))
        nodes = [node.op_type for node in read_graph(onnx.load(tmp_path / f"{runtime}.onnx")).graph]
        pairs.append(nodes.count("QuantizeLinear"))
    assert pairs[0] > pairs[1]
    assert placement_in("torch") == "openvino"
    assert set(OWN_PLACEMENT) == {"onnxruntime", "openvino-bf16"}


def test_open_setting_are_tried_with_the_file_that_each_runtime_is_compared_in(tmp_path):
    build = written(tmp_path, nn.SiLU, ("onnxruntime", "openvino"))
    tried: list[Job] = []

    def timed(jobs, **_):
        tried.extend(jobs)
        raise KeyboardInterrupt  # it is not about times

    open_build = replace(
        build,
        recipe=replace(build.recipe, measure=replace(build.recipe.measure, threads="auto")),
        clock=replace(build.clock, artifacts=timed),
    )
    with pytest.raises(KeyboardInterrupt):
        Settle().run(open_build)
    assert {(artifact.path.name, runtime) for artifact, runtime in tried} == {
        (OWN, "onnxruntime"),
        ("dense.int8.onnx", "openvino"),
    }
    build.folder.release()
