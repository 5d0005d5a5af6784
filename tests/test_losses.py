"""The loss of each kind of output by hand, or against torch and numpy; several outputs all count."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from deploypruner.errors import InputError, RecipeError
from deploypruner.losses import BY_SHAPE, ModelLoss, OutputLoss
from deploypruner.tasks import tasks
from deploypruner.tasks.relative import r2, relative_error, variance
from deploypruner.train.losses import first_output
from tests.recover_models import CLASSES

CLASS, DECIDE, DIRECT = OutputLoss("y", "classes", 0), OutputLoss("y", "decisions", 0), OutputLoss("y", "direction")
VALUES = OutputLoss("y", "values", 0)


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_dense(student, teacher, loss=CLASS, **more) -> float:
    return loss.by_dense(student, teacher, **more).mean().item()


# ---------------------------------------------------------------------- towards the dense model


def test_distillation_by_hand() -> None:
    # T = 2: the teacher's odds are 3 : 1, the student's 1 : 1.
    teacher = torch.tensor([[2 * math.log(3.0), 0.0]])
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert by_dense(torch.tensor([[5.0, 5.0]]), teacher, temperature=2.0) == pytest.approx(4 * kl, rel=1e-5)
    # One decision with the same odds is the same pair of probabilities.
    logit = torch.tensor([[2 * math.log(3.0)]])
    assert by_dense(torch.zeros(1, 1), logit, DECIDE, temperature=2.0) == pytest.approx(4 * kl, rel=1e-5)
    shares = OutputLoss("y", "classes", probabilities=True)
    found = by_dense(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.75, 0.25]]), shares)
    assert found == pytest.approx(kl, rel=1e-5)
    chance = OutputLoss("y", "decisions", probabilities=True)
    assert by_dense(torch.tensor([[0.5]]), torch.tensor([[0.75]]), chance) == pytest.approx(kl, rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (CLASS, (4, 3)),
        (CLASS, (4, 3, 2, 2)),
        (OutputLoss("y", "classes", class_axis=-1), (4, 5, 3)),
        (DECIDE, (4,)),
        (DECIDE, (4, 1)),
        (DECIDE, (4, 3)),
        (DIRECT, (4, 8)),
        (VALUES, (4,)),
        (VALUES, (4, 6, 4)),
    ],
)
def test_distillation_is_zero_only_where_both_agree(loss, shape) -> None:
    teacher = drawn(*shape)
    assert by_dense(teacher.clone(), teacher, loss) == pytest.approx(0.0, abs=1e-6)
    assert by_dense(teacher.flip(0), teacher, loss) > 1e-3
    assert loss.by_dense(teacher, teacher).shape == (4,)


def test_the_softmax_of_a_regression_or_a_box_means_nothing() -> None:
    # Adding a number to all of them changes no class, and changes every number.
    teacher = drawn(8, 4)
    assert by_dense(teacher + 3, teacher, CLASS) == pytest.approx(0.0, abs=1e-6)
    assert by_dense(teacher + 3, teacher, VALUES) > 1
    assert by_dense(2 * teacher, teacher, DIRECT) == pytest.approx(0.0, abs=1e-6)


def test_distillation_of_values_does_not_depend_on_their_unit_and_is_the_relative_error_squared() -> None:
    student, teacher = drawn(2, 64, 3).numpy()
    teacher = teacher + 50
    known = OutputLoss("y", "values", spread=variance(teacher))
    found = by_dense(torch.from_numpy(student + 50), torch.from_numpy(teacher), known)
    assert found == pytest.approx(relative_error(student + 50, teacher) ** 2, rel=1e-4)
    millis = OutputLoss("y", "values", spread=variance(1000 * teacher))
    assert by_dense(torch.from_numpy(1000 * (student + 50)), torch.from_numpy(1000 * teacher), millis) == (
        pytest.approx(found, rel=1e-4)
    )


def test_distillation_gradient_keeps_its_size_when_the_temperature_rises() -> None:
    student = torch.zeros(1, 3, requires_grad=True)
    teacher = torch.tensor([[0.3, -0.1, 0.2]])
    sizes = []
    for temperature in (20.0, 40.0):
        loss = CLASS.by_dense(student, teacher, temperature=temperature).mean()
        (gradient,) = torch.autograd.grad(loss, student)
        sizes.append(gradient.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


# ---------------------------------------------------------------------- with labels


def test_label_smoothing_by_hand() -> None:
    # Scores that give 3/4 and 1/4; a tenth of the label's weight is spread over both classes.
    loss = CLASS.by_labels(torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([0]), smoothing=0.1)
    assert loss.item() == pytest.approx(-0.95 * math.log(0.75) - 0.05 * math.log(0.25), rel=1e-6)


@pytest.mark.parametrize("hole", [255, -1, -100])
def test_pixels_that_are_not_labelled_do_not_count(hole) -> None:
    scores, labels = drawn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5), generator=torch.Generator().manual_seed(0))
    labels[0, 1], labels[1] = hole, hole
    wanted = F.cross_entropy(scores[:1], labels[:1], ignore_index=hole)
    assert CLASS.by_labels(scores, labels).tolist() == pytest.approx([wanted.item(), 0.0])
    assert CLASS.by_labels(scores, labels[:, None]).tolist() == pytest.approx([wanted.item(), 0.0])


def test_positions_have_their_classes_on_the_last_axis() -> None:
    scores, labels = drawn(2, 5, 3), torch.tensor([[0, 1, 2, -100, 0], [1, 1, 1, 2, 0]])
    loss = OutputLoss("y", "classes", 0, class_axis=-1)
    each = [F.cross_entropy(scores[i], labels[i]).item() for i in range(2)]
    assert loss.by_labels(scores, labels).tolist() == pytest.approx(each)


def test_one_hot_rows_are_classes() -> None:
    scores = drawn(4, 3)
    wanted = CLASS.by_labels(scores, torch.tensor([0, 2, 1, 1]))
    torch.testing.assert_close(CLASS.by_labels(scores, torch.eye(3)[[0, 2, 1, 1]]), wanted)


def test_decisions_are_trained_by_binary_cross_entropy() -> None:
    logits, labels = drawn(4, 3), torch.tensor([[0, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 1]])
    wanted = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(dim=1)
    torch.testing.assert_close(DECIDE.by_labels(logits, labels), wanted)
    chances = OutputLoss("y", "decisions", 0, probabilities=True)
    torch.testing.assert_close(chances.by_labels(torch.sigmoid(logits), labels), wanted)
    torch.testing.assert_close(
        DECIDE.by_labels(logits[:, :1], labels[:, 0]), DECIDE.by_labels(logits[:, 0], labels[:, 0])
    )


def test_numbers_are_trained_by_one_minus_r2() -> None:
    answer, wanted = drawn(2, 64, 2).double().numpy()
    wanted = wanted * [1, 10] + 30
    loss = OutputLoss("y", "values", 0, label_spread=variance(wanted))
    found = loss.by_labels(torch.from_numpy(answer), torch.from_numpy(wanted)).mean().item()
    assert found == pytest.approx(1 - r2(answer, wanted))


# ---------------------------------------------------------------------- all outputs


def test_the_loss_of_training_is_the_weighted_sum_of_its_parts() -> None:
    student, teacher = drawn(2, 4, CLASSES)
    labels, loss = torch.tensor([0, 1, 2, 0]), ModelLoss((CLASS,))
    both = loss.of_batch([student], [teacher], labels, distill=0.25, temperature=3.0, smoothing=0.1)
    by_label = CLASS.by_labels(student, labels, smoothing=0.1).mean()
    by_teacher = CLASS.by_dense(student, teacher, temperature=3.0).mean()
    torch.testing.assert_close(both, 0.75 * by_label + 0.25 * by_teacher)
    torch.testing.assert_close(loss.of_batch([student], [teacher], None, distill=0.25, temperature=3.0), by_teacher)
    torch.testing.assert_close(loss.of_batch([student], [], labels, distill=0.25, smoothing=0.1), by_label)
    with pytest.raises(RecipeError, match="no labels and no dense model"):
        loss.of_batch([student], [], None, distill=0.5)


def test_several_outputs_all_count_each_by_its_own_loss() -> None:
    scores, numbers, boxes = drawn(6, 3), drawn(6, 1), drawn(6, 4)
    dense = [scores + 1, numbers * 2, boxes * 2]
    outputs = (OutputLoss("a", "classes", 1), OutputLoss("b", "values", 0), OutputLoss("c", "values"))
    loss = ModelLoss(outputs)
    size, kind = drawn(6, seed=2), torch.tensor([0, 1, 2, 0, 1, 2])
    found = loss.of_samples([scores, numbers, boxes], dense, (size, kind))
    a, b, c = (tensor.double() for tensor in (scores, numbers, boxes))
    parts = [
        F.cross_entropy(a, kind, reduction="none"),
        (b[:, 0] - size).square() / size.double().square().mean(),
        (c - 2 * c).square().mean(dim=1) / (2 * c).square().mean(),
    ]
    torch.testing.assert_close(found, torch.stack(parts).mean(dim=0), rtol=1e-5, atol=1e-7)
    assert loss.measured([scores, numbers, boxes], (size, kind)) == (
        "cross-entropy + squared error + relative error of the outputs"
    )
    trained = loss.of_batch([scores, numbers, boxes], dense, (size, kind), distill=0.0)
    assert trained.item() == pytest.approx(found.mean().item(), rel=1e-5)
    assert ModelLoss((DIRECT,)).trained_by(labelled=True) == "cosine distance to the dense outputs"
    assert loss.trained_by(labelled=True).startswith("a: cross-entropy and KL to the dense outputs, b: squared error")


@pytest.mark.parametrize("name", list(tasks))
def test_every_task_has_a_loss_that_falls_to_nothing_at_the_dense_answer(name) -> None:
    task = tasks.get(name)()
    loss = OutputLoss(name, task.loss, class_axis=task.class_axis)
    answer = next((a for a in (drawn(4, 3), drawn(4, 1), drawn(4, 3, 2, 2)) if task.takes(a.numpy())), None)
    if answer is None:
        assert name == "ids"
        return
    assert loss.by_dense(answer, answer).abs().max() < 1e-6
    assert (loss.by_dense(answer.flip(0), answer) > 1e-6).any()


def test_without_a_word_about_outputs_their_shapes_decide() -> None:
    scores, boxes = drawn(4, 3), drawn(4, 2, 4)
    found = BY_SHAPE.of_samples([scores, boxes], [scores + drawn(4, 3, seed=3), boxes], None)
    torch.testing.assert_close(found, CLASS.by_dense(scores, scores + drawn(4, 3, seed=3)).double() / 2)
    assert BY_SHAPE.measured([scores, boxes], None) == "KL to the dense outputs + relative error of the outputs"


# ---------------------------------------------------------------------- drawn for scoring


def test_what_is_drawn_has_the_models_own_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.tensor([[math.log(3.0), 0.0]]).expand(4000, 2)
    assert CLASS.drawn(scores, generator).double().mean().item() == pytest.approx(0.25, abs=0.02)
    pixels = scores.reshape(40, 100, 2).movedim(2, 1).reshape(40, 2, 10, 10)
    assert CLASS.drawn(pixels, generator).shape == (40, 10, 10)
    assert CLASS.drawn(pixels, generator).double().mean().item() == pytest.approx(0.25, abs=0.03)
    logit = torch.full((4000, 1), -math.log(3.0))
    assert DECIDE.drawn(logit, generator).mean().item() == pytest.approx(0.25, abs=0.02)
    wide = OutputLoss("y", "values", spread=9.0)
    assert (wide.drawn(torch.zeros(4000), generator)).std().item() == pytest.approx(3, rel=0.05)
    assert wide.against(torch.zeros(1, 2), torch.tensor([[3.0, 6.0]]), drawn=True).item() == pytest.approx(2.5)


# ---------------------------------------------------------------------- messages


def test_messages_about_outputs_name_the_shapes() -> None:
    with pytest.raises(InputError, match=r"labels of shape \[4\] do not fit a model output of shape \[4\]"):
        CLASS.by_labels(torch.zeros(4), torch.zeros(4, dtype=torch.long))
    with pytest.raises(InputError, match=r"labels of shape \[4, 3\] do not fit a model output of shape \[4, 2\]"):
        VALUES.by_labels(torch.zeros(4, 2), torch.zeros(4, 3))
    with pytest.raises(InputError, match=r"pruned model returns shape \[2, 3\], the dense model \[2, 4\]"):
        CLASS.by_dense(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(InputError, match="returned str, which holds no tensor"):
        first_output("logits")
    with pytest.raises(InputError, match="no floating-point number"):
        BY_SHAPE.of_samples([torch.zeros(2, dtype=torch.long)], [torch.zeros(2, dtype=torch.long)], None)


def test_the_first_tensor_is_found_in_tuples_and_mappings() -> None:
    one = torch.ones(1)
    assert all(first_output(output) is one for output in (one, (None, one), [one], {"loss": None, "logits": one}))


def test_variance_is_around_the_mean_of_each_position() -> None:
    assert variance(np.array([[1.0, 100.0], [3.0, 100.0]])) == 0.5
    assert variance(np.array([[2.0], [2.0]])) == 4.0  # nothing varies: the number itself
