"""Model and data together: whose labels are whose, and whether the dense model knows them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from deploypruner.build.answering import Runner
from deploypruner.build.feeds import evaluated_at_once, verification_feeds
from deploypruner.build.fitting import Said, fit, require_better_than_chance, tasks_without_data
from deploypruner.errors import InputError, RecipeError
from deploypruner.recipe.data import DataSettings
from deploypruner.sources.adapted import Targeted, Unlabelled
from deploypruner.sources.data import as_data, load_data
from deploypruner.tasks.recognise import parse_tasks

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 4)).astype(np.float32)
CLASS = X.argmax(axis=1)


class Scores(nn.Module):
    """The inputs, ten times, as scores of their four classes."""

    def forward(self, x: Tensor) -> Tensor:
        return 10 * x


class Heads(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"size": x.sum(dim=1, keepdim=True), "kind": 10 * x}


class OneAtATime(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 10 * x.reshape(1, 4)


def runner(net: nn.Module, batch: int = 2) -> Runner:
    return Runner(net.eval(), (torch.zeros(batch, 4),))


def fitted(net: nn.Module, y: np.ndarray, said: Said | None = None):
    return fit(as_data([(torch.from_numpy(X), torch.from_numpy(y))]), runner(net), said)


def test_class_numbers_and_other_labels_that_fit_train():
    found = fitted(Scores(), CLASS)
    assert found.data.labelled
    assert [(o.task, o.label) for o in found.tasks] == [("classification", 0)]
    assert found.remarks == ()
    numbers = fitted(Scores(), X * 10)
    assert numbers.tasks[0].task == "regression"
    ((inputs, labels),) = numbers.data.train.epoch(batch_size=60)
    torch.testing.assert_close(labels[0], torch.from_numpy(10 * X).double(), check_dtype=False)
    assert numbers.loss.of_batch([10 * inputs[0]], [], labels, distill=0.0).item() == pytest.approx(0, abs=1e-9)
    # The mean of the labels is off by their whole variance, whatever their unit.
    mean = torch.from_numpy(10 * X).mean(dim=0).expand(60, 4)
    assert numbers.loss.of_batch([mean], [], labels, distill=0.0).item() == pytest.approx(1)


def test_each_output_is_trained_by_its_own_labels():
    data = [(torch.from_numpy(X), (torch.from_numpy(X.sum(axis=1)), torch.from_numpy(CLASS)))]
    found = fit(as_data(data), runner(Heads()))
    assert [(o.kind, o.label) for o in found.loss.outputs] == [("values", 0), ("classes", 1)]
    ((inputs, labels),) = found.data.train.epoch(batch_size=60)
    outputs = [inputs[0].sum(dim=1, keepdim=True), 10 * inputs[0]]
    wanted = torch.nn.functional.cross_entropy(outputs[1], labels[1]) / 2  # the sum is right, and half of the loss
    assert found.loss.of_batch(outputs, [], labels, distill=0.0).item() == pytest.approx(wanted.item())
    assert found.loss.trained_by(labelled=True, taught=False) == "output_0: squared error, output_1: cross-entropy"


def test_a_split_that_hides_its_labels_does_not_train_by_them():
    whole = as_data([(torch.from_numpy(X), torch.from_numpy(CLASS))])
    found = fit(replace(whole, train=Unlabelled(whole.train)), runner(Scores()))
    assert [(o.task, o.label) for o in found.tasks] == [("classification", 0)]
    assert (found.data.train.labelled, found.data.val.labelled) == (False, True)
    assert [labels for _, labels in found.data.train.epoch(batch_size=60)] == [None]


@pytest.mark.parametrize(
    ("device", "shapes", "batch"),
    [
        ("cpu", [(3, 32, 32)], 64),
        ("cpu", [(3, 224, 224)], 6),
        ("cpu", [(3, 224, 224), (1, 224, 224)], 5),
        ("cpu", [(3, 2048, 2048)], 2),
        ("meta", [(3, 224, 224)], 64),
    ],
)
def test_fewer_large_images_are_evaluated_at_once_on_a_cpu(device, shapes, batch):
    inputs = tuple(torch.zeros(4, *shape, device="meta") for shape in shapes)
    traced = SimpleNamespace(example_inputs=inputs, module=nn.Linear(1, 1, device=device))
    assert evaluated_at_once(SimpleNamespace(traced=traced), 64) == batch


def test_images_with_masks_are_not_augmented_and_the_build_says_so():
    x = torch.rand(12, 3, 8, 8)
    masks = (x[:, 0] > 0.5).long()
    net = torch.nn.Conv2d(3, 2, 1)
    found = fit(as_data([(x, masks)]), Runner(net.eval(), (x[:2],)))
    assert [(o.kind, o.label) for o in found.loss.outputs] == [("classes", 0)]
    ((inputs, labels),) = found.data.train.epoch(batch_size=12, augment=True)
    assert torch.equal(inputs[0], x)
    assert torch.equal(labels[0], masks)
    assert "judge and train output (segmentation); images are not augmented" in found.remarks[0]


def test_a_later_batch_without_labels_is_said():
    data = [(torch.from_numpy(X), torch.from_numpy(10 * X)), torch.from_numpy(X)]
    with pytest.raises(InputError, match="a batch of the data has no labels"):
        list(Targeted(as_data(data).train, (0,)).epoch(batch_size=60))


def test_labels_that_fit_nothing_are_said():
    (remark,) = fitted(Scores(), RNG.standard_normal((60, 7))).remarks
    assert "(float64, shape [batch, 7]) fit no output of the model ([batch, 4]): treated as unlabelled" in remark


def test_a_label_that_is_no_output_is_an_error_unless_the_output_is_no_class():
    with pytest.raises(InputError, match=r"label 7 of .* is outside the model's 4 outputs"):
        fitted(Scores(), CLASS + 4)
    found = fitted(Scores(), CLASS + 4, Said(parse_tasks(["embedding"])))
    assert found.tasks[0].task == "embedding"
    assert not found.data.labelled
    assert "are not used" in found.remarks[0]


def test_outputs_are_named_as_in_the_files_or_as_in_the_model():
    found = fitted(Heads(), CLASS)
    assert [(o.output, o.task, o.label) for o in found.tasks] == [
        ("output_0", "regression", None),
        ("output_1", "classification", 0),
    ]
    for name in ("output_1", "1", "kind"):
        assert fitted(Heads(), CLASS, Said(parse_tasks([f"{name}=embedding"]))).tasks[1].task == "embedding"
    with pytest.raises(RecipeError, match="the model has no output 'weight'"):
        fitted(Heads(), CLASS, Said(parse_tasks(["weight=values"])))


def test_a_model_of_one_sample_at_a_time_is_fed_one_at_a_time():
    found = fit(as_data([(torch.from_numpy(X), torch.from_numpy(CLASS))]), runner(OneAtATime(), batch=1))
    assert found.tasks[0].task == "classification"
    require_better_than_chance(found.data, runner(OneAtATime(), batch=1), found.tasks)


def test_labels_that_the_dense_model_does_not_know_stop_the_build():
    known = fitted(Scores(), CLASS)
    require_better_than_chance(known.data, runner(Scores()), known.tasks)
    wrong = fitted(Scores(), (CLASS + 1) % 4)
    with pytest.raises(InputError, match=r"no better than chance on the labels of .* accuracy 0\.0 % on 60") as error:
        require_better_than_chance(wrong.data, runner(Scores()), wrong.tasks)
    assert "--allow-chance" in error.value.hint


def test_without_data_answers_to_noise_say_what_an_output_is():
    found = tasks_without_data(runner(Heads()), Said({}), seed=0)
    assert [o.task for o in found] == ["regression", "classification"]
    assert tasks_without_data(runner(Heads()), Said(parse_tasks(["kind=embedding"])), seed=0)[1].task == "embedding"


def test_four_folders_for_a_model_of_ten_classes_are_an_error_and_names_mend_it(tmp_path: Path):
    names = ("frog", "horse", "ship", "truck")
    for split in ("train", "test"):
        for number, name in enumerate(names):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(6):
                shade = np.full((2, 2), 20 * (number + 6) + i, dtype=np.uint8)
                Image.fromarray(shade).save(tmp_path / split / name / f"{i}.png")

    class Shade(nn.Module):
        """Ten classes: the brightness in steps of 20."""

        def forward(self, x: Tensor) -> Tensor:
            level = x.mean(dim=(1, 2, 3))[:, None] * 255 / 20
            return -((level - torch.arange(10) - 0.2) ** 2) * 20

    settings = DataSettings(size=(2, 2), channels=1, mean=(0.0,), std=(1.0,))
    ten = Runner(Shade(), (torch.zeros(2, 1, 2, 2),))
    data = load_data(str(tmp_path), settings)
    with pytest.raises(InputError, match=r"4 class folders \(frog, horse, ship, truck\), and the model 10 outputs"):
        fit(data, ten)
    every = ("airplane", "automobile", "bird", "cat", "deer", "dog", *names)
    found = fit(data, ten, Said({}, classes=every))
    require_better_than_chance(found.data, ten, found.tasks)
    assert sorted(set(found.data.val.known_labels().tolist())) == [6, 7, 8, 9]


@pytest.mark.parametrize("own", [3, 8, 30])
def test_files_are_verified_on_real_samples_whatever_size_a_loader_has(own: int):
    """Int8 ranges come from the data: on noise a sound file may be far off."""
    batches = [(torch.from_numpy(X[i : i + own]),) for i in range(0, 30, own)]
    build = SimpleNamespace(
        traced=SimpleNamespace(dynamic_batch=True, example_inputs=(torch.zeros(2, 4),)),
        data=as_data(batches),
        recipe=SimpleNamespace(seed=0),
    )
    feeds = verification_feeds(build)
    assert [len(batch) for (batch,) in feeds] == [3, 3]
    assert all(any(np.array_equal(row, known) for known in X) for (batch,) in feeds for row in batch)
