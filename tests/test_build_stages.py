"""What a stage declares is all that the driver knows of it, and it is true."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar
from unittest import mock

import pytest
import torch

from deploypruner.build import pipeline
from deploypruner.build.folder import BuildFolder
from deploypruner.build.register import stages
from deploypruner.build.stage import Stage, chain
from deploypruner.build.stages.learn import Learn
from deploypruner.build.stages.load import Load
from deploypruner.build.stages.score import Score
from deploypruner.build.stages.trace import Trace
from deploypruner.build.state import Build, Given
from deploypruner.errors import InputError, RecipeError, VerificationError
from deploypruner.progress import SilentProgress
from deploypruner.recipe import PruneRecipe, Recipe
from deploypruner.records import Check
from tests.builds import IMAGE, known_rates, pretended_timings, run_cli, tiny
from tests.recorded import Seen, recording

pytestmark = pytest.mark.slow


def test_every_stage_comes_after_those_it_needs_and_there_are_no_others():
    order = [stage.name for stage in chain()]
    assert {"load", "recover", "report"} < set(order)
    for stage in chain():
        assert all(order.index(name) < order.index(stage.name) for name in stage.needs)
    folder = Path(pipeline.__file__).parent / "stages"
    assert {path.stem for path in folder.glob("*.py")} == {*order, "__init__"}


def test_the_driver_names_no_stage():
    for file in ("pipeline.py", "resume.py", "stage.py", "folder.py"):
        text = (Path(pipeline.__file__).parent / file).read_text()
        assert [name for name in stages if f'"{name}"' in text or f"stages.{name}" in text] == []


# ---------------------------------------------------------------------- a stage of one class


@contextlib.contextmanager
def only(*classes: type[Stage]) -> Iterator[None]:
    """Builds of these stages and those that the block registers."""
    assert list(stages)
    with mock.patch.multiple(stages, _read={}, _added={}, _found={}):
        for cls in classes:
            stages.register(cls.name)(cls)
        yield


def a_build(folder: Path, *, step: int = 8, samples: int = 512) -> Build:
    recipe = Recipe(prune=PruneRecipe(macs=0.5, step=step, samples=samples))
    given = Given(model=tiny(), example_inputs=(torch.zeros(2, *IMAGE),))
    return Build(recipe, BuildFolder(folder), "", given, SilentProgress())


def count_stage() -> type[Stage]:
    """Counts the groups of the traced model; `ran` says how often."""

    @stages.register("count")
    class Count(Stage):
        """Count groups."""

        name: ClassVar[str] = "count"
        needs: ClassVar[tuple[str, ...]] = ("trace",)
        reads: ClassVar[tuple[str, ...]] = ("prune.step",)
        changeable: ClassVar[tuple[str, ...]] = ("prune.step", "prune.samples")
        saves: ClassVar[tuple[str, ...]] = ("count.json",)
        writes: ClassVar[tuple[str, ...]] = ("notes/",)
        ran: ClassVar[list[int]] = []

        def run(self, build: Build) -> Build:
            self.ran.append(build.recipe.prune.step)
            build.folder.write_json("count.json", len(build.traced.groups))
            build.folder.write_text("notes/step.txt", str(build.recipe.prune.step))
            return self.restore(build)

        def restore(self, build: Build) -> Build:
            return replace(build, remarks=(f"{build.folder.read_json('count.json')} group",))

    return Count


def run(build: Build, *, resume: bool = False) -> Build:
    said: list[str] = []
    try:
        return pipeline.run(build, resume=resume, say=said.append)
    finally:
        build.log.close()


def test_a_stage_added_by_one_class_is_run_and_resumed_and_its_files_are_owned(tmp_path):
    with only(Load, Trace):
        count = count_stage()
        assert run(a_build(tmp_path)).remarks == ("1 group",)
        assert run(a_build(tmp_path), resume=True).remarks == ("1 group",)
        assert count.ran == [8]
        assert {"count.json", "notes/step.txt"} <= BuildFolder(tmp_path).own()
        run(a_build(tmp_path))  # a new build in place of the old one
        assert count.ran == [8, 8]
    with only(Load, Trace), pytest.raises(InputError, match="not a build's"):
        BuildFolder(tmp_path).prepare()


def test_a_resumed_build_keeps_what_does_not_read_the_key_that_changed(tmp_path):
    with only(Load, Trace):
        count = count_stage()
        run(a_build(tmp_path))
        run(a_build(tmp_path, samples=100), resume=True)
        assert count.ran == [8]
        run(a_build(tmp_path, samples=100, step=4), resume=True)
        assert count.ran == [8, 4]
        count.outlives = ("prune.step",)
        run(a_build(tmp_path, samples=100, step=2), resume=True)
        assert count.ran == [8, 4]
        count.changeable = ()
        with pytest.raises(RecipeError, match=r"made with prune\.step = 4, this command says 1"):
            run(a_build(tmp_path, samples=100, step=1), resume=True)


@pytest.mark.parametrize(
    ("key", "first"),
    [
        *((f"prune.{name}", "allocate") for name in ("macs", "latency", "speedup")),
        *((key, "allocate") for key in ("measure.precision", "measure.accuracy_drop", "search.minutes")),
        ("measure.seconds", "measure"),
        # Training that diverged, or that was going to take too long, does not cost the plan.
        ("recover.settings.lr", "recover"),
        ("recover.epochs", "recover"),
        *(
            (key, None)
            for key in ("prune.step", "prune.criterion", "recover.reconstruct", "seed", "target", "measure.threads")
        ),
    ],
)
def test_what_a_resumed_build_may_change_and_the_first_stage_that_runs_again(key, first):
    changeable = any(stage.lets_change(key) for stage in chain())
    assert changeable == (first is not None)
    if changeable:
        assert next(stage.name for stage in chain() if stage.depends_on(key)) == first


@pytest.mark.parametrize("fatal", [False, True])
def test_a_failed_check_of_a_fatal_stage_ends_the_build_before_it_is_validated(tmp_path, fatal):
    validated: list[bool] = []

    class Wrong(Stage):
        name: ClassVar[str] = "wrong"

        def run(self, build: Build) -> Build:
            return replace(build, checks=(Check("one = two", 1.0, 0.0, False),))

        def validate(self, build: Build) -> None:
            validated.append(True)

    Wrong.fatal = fatal
    with only(Wrong), pytest.raises(VerificationError) if fatal else contextlib.nullcontext():
        run(a_build(tmp_path))
    assert validated == ([] if fatal else [True])


# ---------------------------------------------------------------------- what the real ones declare


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Seen, list[Path]]]:
    """Small builds that together go through every stage; under a budget of time the dense model keeps it already."""
    common = ("compile", "tiny.pt2", "--data", "labelled.npz", "--epochs", "1", "--seconds", "1")
    folders = [tmp_path_factory.mktemp("seen") / name for name in ("learned", "timed", "zeros")]
    with recording() as found, pretended_timings(), known_rates():
        for folder, options in zip(
            folders,
            (
                ("--schedule", "iterative", "--learn-epochs", "1", "--runtime", "torch"),
                ("--latency", "5ms", "--runtime", "openvino"),
                ("--pattern", "auto", "--runtime", "openvino"),
            ),
            strict=True,
        ):
            outcome = run_cli(*common, *options, "--out", str(folder))
            assert outcome.code == 0, outcome.err
        outcome = run_cli(*common, *options, "--out", str(folder), "--resume")
        assert "(done before)" in outcome.err
    return found, folders


def undeclared(seen: Seen) -> list[str]:
    """Keys that stages read and do not declare."""
    return [
        f"{stage.name}: {key}"
        for stage in chain()
        for key in sorted(seen.keys[stage.name])
        if not any(key == name or key.startswith(f"{name}.") for name in stage.reads)
    ]


def unneeded(seen: Seen) -> list[str]:
    """Fields of the build that stages read and stages they do not need have given before."""
    order, found = chain(), []
    for place, stage in enumerate(order):
        needs, new = set[str](), set(stage.needs)
        while new - needs:
            needs |= new
            new = {name for other in order if other.name in needs for name in other.needs}
        for earlier in order[:place]:
            taken = seen.gave[earlier.name] & seen.fields[stage.name]
            if earlier.name not in needs and taken:
                found.append(f"{stage.name}: {sorted(taken)} of {earlier.name}")
    return found


def test_stages_declare_every_key_of_the_recipe_they_read(seen):
    assert undeclared(seen[0]) == []
    assert "prune.samples" in seen[0].keys["score"]


@pytest.mark.parametrize("key", ["prune.samples", "seed", "prune.criterion"])
def test_a_declaration_without_a_key_is_caught(seen, monkeypatch, key):
    monkeypatch.setattr(Score, "reads", tuple(name for name in Score.reads if name != key))
    assert undeclared(seen[0]) == [f"score: {key}"]


def test_stages_need_every_stage_whose_results_they_take(seen):
    assert unneeded(seen[0]) == []
    assert "scores" in seen[0].fields["allocate"] & seen[0].gave["score"]


def test_a_declaration_without_a_stage_it_takes_from_is_caught(seen, monkeypatch):
    monkeypatch.setattr(Learn, "needs", ("score", "settle"))
    assert any(line.startswith("learn: ") and line.endswith(" of allocate") for line in unneeded(seen[0]))


def test_every_file_of_a_build_is_declared_by_a_stage_or_is_a_record_of_the_driver(seen):
    declared = [name for stage in chain() for name in (*stage.saves, *stage.writes)]
    for folder in seen[1]:
        for path in (p for p in folder.rglob("*") if p.is_file()):
            name = str(path.relative_to(folder))
            told = name in declared or any(name.startswith(d) for d in declared if d.endswith("/"))
            assert told or name in ("log.txt", "stages/finished.json", "stages/written.json"), name
    marks = json.loads((seen[1][0] / "stages" / "finished.json").read_text())["stages"]
    assert list(marks) == [stage.name for stage in chain() if stage.saves]
