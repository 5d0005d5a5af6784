"""The recover stage composes re-estimation and fine-tuning the way training saw the data."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from deploypruner.build.choices import check_choices
from deploypruner.build.folder import BuildFolder
from deploypruner.build.stages import recover as stage
from deploypruner.build.stages.recover import Recover, reestimate
from deploypruner.build.state import Build, Given
from deploypruner.channels.plan import make_plan
from deploypruner.channels.remove import remove
from deploypruner.errors import RecipeError
from deploypruner.graph import Graph, trace
from deploypruner.latency.clock import Clock
from deploypruner.progress import SilentProgress
from deploypruner.recipe import DataRecipe, PruneRecipe, Recipe, RecoverRecipe
from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.sources.adapted import Unlabelled
from deploypruner.sources.data import as_data
from deploypruner.train.batchnorm import reestimate_batchnorm
from tests.nets import make

pytestmark = pytest.mark.slow


def test_statistics_are_those_of_the_batches_training_sees():
    images = np.random.default_rng(0).integers(0, 255, (96, 3, 16, 16), dtype=np.uint8)
    data = as_data((images, np.zeros(96, np.int64)))
    net, x = make("residual")
    found = {}
    for augment in (True, False):
        recover = RecoverRecipe(batchnorm_batches=1, settings=FinetuneSettings(augment=augment))
        recipe = Recipe(data=DataRecipe(), recover=recover)
        build = Build(recipe, BuildFolder(Path("unused")), "", Given(), SilentProgress(), data=data)
        module = trace(net, x).module
        assert reestimate(build, module) == 3
        found[augment] = module.state_dict()["stem.1.running_var"]

        expected = trace(net, x).module
        epoch = data.train.epoch(batch_size=64, seed=0, shuffle=True, augment=augment)
        reestimate_batchnorm(expected, epoch, max_batches=1)
        torch.testing.assert_close(found[augment], expected.state_dict()["stem.1.running_var"])
    assert not torch.allclose(found[True], found[False])


# ---------------------------------------------------------------------- the stage as a whole


@cache
def traced() -> Graph:
    return trace(*make("residual"))


def a_build(tmp_path: Path, recover: RecoverRecipe, *, labelled: bool = True, train: object = None) -> Build:
    """A build of a small residual net with half of each group removed, ready for recovery."""
    images = np.random.default_rng(0).integers(0, 255, (96, 3, 16, 16), dtype=np.uint8)
    data = as_data((images, np.arange(96) % 5))
    if not labelled:
        data = replace(data, train=Unlabelled(data.train), val=Unlabelled(data.val))
    graph = traced()
    plan = make_plan(graph, {g.id: list(range(g.size // 2)) for g in graph.groups})
    folder = BuildFolder(tmp_path)
    folder.prepare()
    folder.release()  # several builds of one test take turns in it
    recipe = Recipe(recover=recover)
    build = Build(recipe, folder, "", Given(train=train), SilentProgress(), data=data, graph=graph, plan=plan)
    return replace(build, module=remove(graph, plan))


QUICK = FinetuneSettings(batch_size=32)


@pytest.mark.parametrize("labelled", [True, False])
def test_without_labels_everything_but_the_labelled_loss_works(tmp_path: Path, labelled: bool) -> None:
    build = a_build(tmp_path, RecoverRecipe(epochs=1, reconstruct=True, settings=QUICK), labelled=labelled)
    dense = {name: tensor.clone() for name, tensor in build.traced.module.state_dict().items()}
    before = {name: tensor.clone() for name, tensor in build.compiled.state_dict().items()}
    done = Recover().run(build)
    assert (done.recovery.reconstructed_layers, done.recovery.batchnorm_layers, done.recovery.epochs) == (5, 3, 1)
    assert (done.recovery.accuracy_recovered is not None) == labelled
    after = done.compiled.state_dict()
    assert not any(torch.equal(before[name], after[name]) for name in before if name.endswith("weight"))
    assert all(torch.equal(dense[name], t) for name, t in build.traced.module.state_dict().items())
    assert (
        Recover().document(done).startswith("5 layers reconstructed, batch norm re-estimated over 3 layers, 1 epoch")
    )


def test_layers_are_reconstructed_with_data_unless_told_otherwise(tmp_path: Path) -> None:
    def reconstructed(recover: RecoverRecipe, **changes: object) -> bool:
        done = Recover().run(replace(a_build(tmp_path, recover), **changes))
        return done.recovery.reconstructed_layers is not None

    assert reconstructed(RecoverRecipe(epochs=0))
    assert not reconstructed(RecoverRecipe(epochs=0, reconstruct=False))
    assert not reconstructed(RecoverRecipe(epochs=0), data=None)


def test_masks_are_exact_after_layers_were_reconstructed(tmp_path: Path) -> None:
    build = a_build(tmp_path, RecoverRecipe(epochs=0))
    recipe = replace(build.recipe, prune=PruneRecipe(patterns=("channel", "2:4")))
    done = Recover().run(replace(build, recipe=recipe))
    assert done.recovery.reconstructed_layers == 5
    weight = done.compiled.state_dict()["a.0.weight"]
    assert float((weight == 0).float().mean()) == 0.5


def test_epochs_follow_from_the_data_and_are_said_before(tmp_path: Path) -> None:
    for labelled in (True, False):
        said: list[str] = []
        recover = RecoverRecipe(minutes=1e-6, settings=QUICK)
        build = replace(a_build(tmp_path / str(labelled), recover, labelled=labelled), say=said.append)
        done = Recover().run(build)
        assert said == ["remark: training takes 1 epoch x 3 steps, about 0 s; --epochs asks for more or less"]
        assert done.recovery.epochs == 1
        assert bool(done.recovery.mimicked) == (not labelled)  # a few images without labels


def test_a_build_that_goes_on_keeps_the_epochs_it_said(tmp_path: Path) -> None:
    recover = RecoverRecipe(minutes=1.0, settings=QUICK)
    said: list[str] = []

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    slow, fast = (Clock(training_step=lambda *_, seconds=seconds, **__: seconds) for seconds in (10.0, 1.0))
    build = replace(a_build(tmp_path, recover), say=said.append, clock=slow)
    with mock.patch.object(stage, "finetune", interrupted), pytest.raises(KeyboardInterrupt):
        Recover().run(build)
    done = Recover().run(replace(build, clock=fast))  # the machine is faster the second time
    assert done.recovery.epochs == 2
    assert said == ["remark: training takes 2 epochs x 3 steps, about 60 s; --epochs asks for more or less"]
    assert not list((tmp_path / "stages").glob("finetune.*"))


class Trainer:
    """A user's object that trains."""

    def __call__(self, student: torch.nn.Module, teacher: torch.nn.Module, data: object) -> None:
        with torch.no_grad():
            next(student.parameters()).zero_()


@pytest.mark.parametrize(("train", "name"), [(Trainer(), "Trainer"), (partial(Trainer()), "partial")])
def test_any_callable_object_trains(tmp_path: Path, train: object, name: str) -> None:
    done = Recover().run(a_build(tmp_path, RecoverRecipe(), train=train))
    assert done.recovery.train == name
    assert float(next(done.compiled.parameters()).detach().abs().max()) == 0


def test_a_trainer_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"train is a int, not a function[\s\S]*train\(student, teacher, data\)"):
        check_choices(Recipe(), Given(model=torch.nn.Linear(2, 2), data=(1, 2), train=3))


@pytest.mark.parametrize("labelled", [True, False])
def test_training_that_makes_it_worse_is_not_kept_and_said(tmp_path: Path, labelled: bool) -> None:
    recover = RecoverRecipe(epochs=2, reconstruct=True, settings=replace(QUICK, lr=20.0, clip_norm=1e9))
    build = a_build(tmp_path, recover, labelled=labelled)
    if labelled:  # by the dense model itself, so that there is something to lose
        images = np.random.default_rng(0).integers(0, 255, (96, 3, 16, 16), dtype=np.uint8)
        with torch.no_grad():
            labels = build.traced.module(torch.from_numpy(images).float() / 255).argmax(1).numpy()
        build = replace(build, data=as_data((images, labels)))
    before = {name: tensor.clone() for name, tensor in build.compiled.state_dict().items()}
    untrained = replace(build.recipe, recover=replace(recover, epochs=0))
    wanted = Recover().run(replace(build, recipe=untrained)).compiled.state_dict()
    wanted = {name: tensor.clone() for name, tensor in wanted.items()}
    build.compiled.load_state_dict(before)
    done = Recover().run(build)
    assert all(torch.equal(wanted[name], tensor) for name, tensor in done.compiled.state_dict().items())
    assert "2 epochs" in Recover().document(done)
    assert "training made it no better: the weights from before it stay" in Recover().document(done)
    found = done.recovery
    assert (found.epochs, found.best_epoch) == (2, 0)
    if labelled:
        assert found.accuracy_recovered == found.accuracy_removed
    else:
        assert found.distance == "KL to the dense outputs"
        assert found.distance_recovered == found.distance_removed > 0


def test_without_labels_the_distance_from_the_dense_outputs_is_said(tmp_path: Path) -> None:
    settings = replace(QUICK, lr=0.002, freeze_batchnorm=True, mimic=1.0)
    recover = RecoverRecipe(epochs=8, reconstruct=False, settings=settings)
    done = Recover().run(a_build(tmp_path, recover, labelled=False))
    found = done.recovery
    assert found.best_epoch is None
    assert 0 < found.distance_recovered < found.distance_removed
    ends = f"removed -> recovered: {found.distance_removed:.4g} -> {found.distance_recovered:.4g}"
    assert Recover().document(done).endswith(f"dense features mimicked, KL to the dense outputs, {ends}")


class Heard(SilentProgress):
    """Keeps what it is told: label and total of a job, then how many steps were counted."""

    def __init__(self) -> None:
        self.jobs: list[list] = []

    def start(self, total: int, label: str) -> None:
        self.jobs.append([label, total, 0])

    def advance(self, n: int = 1, text: str = "") -> None:
        self.jobs[-1][2] += n


def test_everything_that_takes_long_is_named_and_counted(tmp_path: Path) -> None:
    heard, recipe = Heard(), RecoverRecipe(epochs=1, reconstruct=True, settings=QUICK)
    Recover().run(replace(a_build(tmp_path, recipe), progress=heard))
    assert heard.jobs == [
        *(["reconstruct, way 1 of 2", 5, 5], ["reconstruct, way 2 of 2", 5, 5]),
        *(["accuracy, dense", 0, 0], ["accuracy, removed", 0, 0]),
        *(["recover", 3, 3], ["accuracy, recovered", 0, 0]),
    ]
