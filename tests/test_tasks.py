"""What an output is, and each task's numbers by hand or against another implementation."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, jaccard_score, mean_absolute_error, r2_score

from deploypruner.errors import RecipeError
from deploypruner.tasks import in_order, tasks
from deploypruner.tasks.classification import is_luck
from deploypruner.tasks.recognise import OutputTask, parse_tasks, recognise
from deploypruner.tasks.relative import r2, relative_error

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 5, 200)
SURE = (8 * np.eye(5)[LABELS] + RNG.standard_normal((200, 5))).astype("f")
PER_PIXEL = RNG.integers(0, 3, (20, 6, 7))
PIXELS = (8 * np.moveaxis(np.eye(3)[PER_PIXEL], -1, 1) + RNG.standard_normal((20, 3, 6, 7))).astype("f")
UNIT = RNG.standard_normal((50, 16)).astype("f")
UNIT /= np.linalg.norm(UNIT, axis=1, keepdims=True)
BOX = (RNG.random((200, 4)) * 0.1 + [0.2, 0.2, 0.7, 0.8]).astype("f")
CENTRED = np.concatenate([RNG.random((200, 2)), 0.3 * RNG.random((200, 2))], axis=1).astype("f")


def task_of(answer, labels=None, **more):
    (found,) = recognise(["y"], [answer], [] if labels is None else [labels], **more)
    return found.task, found.label is not None


@pytest.mark.parametrize(
    ("answer", "labels", "wanted"),
    [
        (SURE, LABELS, ("classification", True)),
        (RNG.standard_normal((200, 5)).astype("f"), LABELS, ("classification", True)),  # labels decide, not values
        (SURE, np.eye(5)[LABELS], ("classification", True)),
        (SURE, RNG.integers(0, 2, (200, 5)), ("multilabel", True)),
        (SURE[:, :1], LABELS % 2, ("binary", True)),
        (SURE[:, :1], LABELS, ("regression", True)),
        (SURE[:, :1], RNG.standard_normal(200), ("regression", True)),
        (SURE, RNG.standard_normal((200, 5)), ("regression", True)),
        (PIXELS, PER_PIXEL, ("segmentation", True)),
        (PIXELS, PER_PIXEL[:, None], ("segmentation", True)),
        (PIXELS, np.where(PER_PIXEL == 2, 255, PER_PIXEL), ("segmentation", True)),
        (PIXELS, RNG.standard_normal((20, 3, 6, 7)), ("regression", True)),
        (np.moveaxis(PIXELS, 1, -1), PER_PIXEL, ("tokens", True)),
        (LABELS, LABELS, ("ids", True)),
        (SURE, RNG.standard_normal((200, 3)), ("classification", False)),
        (SURE, LABELS + 3, ("classification", False)),
    ],
)
def test_labels_say_what_an_output_is(answer, labels, wanted):
    assert task_of(answer, labels) == wanted


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (SURE, "classification"),
        (np.exp(SURE) / np.exp(SURE).sum(axis=1, keepdims=True), "classification"),
        (BOX, "values"),
        (CENTRED, "values"),
        (RNG.standard_normal((200, 128)).astype("f"), "values"),
        (np.tile(np.eye(5, dtype="f")[:1] * 9, (200, 1)), "values"),  # one answer for every sample
        (UNIT, "embedding"),
        (SURE[:, 0], "regression"),
        (SURE[:, :1], "regression"),
        (PIXELS, "segmentation"),
        (RNG.random((20, 3, 6, 7)).astype("f"), "values"),  # an image
        (RNG.random((20, 6, 4)).astype("f"), "values"),
        (LABELS, "ids"),
    ],
)
def test_without_labels_the_answers_do(answer, wanted):
    assert task_of(answer) == (wanted, False)


def test_boxes_and_scores_of_the_same_candidates_are_detections():
    outputs = [RNG.random((8, 30, 4)), RNG.random((8, 30, 80)), RNG.random((8, 30)), SURE[:8]]
    names = ["boxes", "scores", "objectness", "weather"]
    assert [o.task for o in recognise(names, outputs)][:3] == ["detection"] * 3
    assert recognise(names, outputs)[3].task != "detection"


def test_labels_belong_to_the_first_output_they_fit_or_each_to_its_own():
    answers = [BOX, SURE, SURE[:, 0]]
    found = recognise(["boxes", "scores", "size"], answers, [LABELS])
    assert [(o.task, o.label) for o in found] == [("values", None), ("classification", 0), ("regression", None)]
    found = recognise(["boxes", "scores", "size"], answers, [BOX * 2, LABELS, None])
    assert [o.label for o in found] == [0, 1, None]


def test_the_user_and_then_the_source_decide():
    assert task_of(BOX, asked={"": "classification"}) == ("classification", False)
    assert task_of(BOX, expected="classification") == ("classification", False)
    assert task_of(SURE, LABELS, expected="embedding") == ("classification", True)
    found = recognise(["a", "b"], [BOX, SURE], asked=parse_tasks(["values", "b=embedding"]))
    assert found == (OutputTask("a", "values", None, True), OutputTask("b", "embedding", None, True))
    assert recognise(["a", "b"], [BOX, SURE], asked=parse_tasks(["1=embedding"]))[1].task == "embedding"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (["regresion"], "no task called 'regresion'"),
        (["y=values", "y=regression"], "the task of output 'y' is given twice"),
        (["z=values"], "the model has no output 'z'"),
        (["segmentation"], r"output 'y' \(float32, \[batch, 4\]\) cannot be segmentation"),
    ],
)
def test_a_task_that_cannot_be_is_an_error(said, message):
    with pytest.raises(RecipeError, match=message):
        recognise(["y"], [BOX], asked=parse_tasks(said))


# ---------------------------------------------------------------------- numbers


def test_relative_error_by_hand():
    wanted = np.array([[48.0], [50.0], [52.0]])
    assert relative_error(wanted, wanted) == 0
    assert relative_error(np.full((3, 1), 50.0), wanted) == 1  # as good as the mean, however large the numbers
    assert relative_error(wanted + 2, wanted) == pytest.approx(np.sqrt(12 / 8))
    assert relative_error(np.array([[3.0]]), np.array([[4.0]])) == 0.25  # one sample: against the number itself
    assert relative_error(np.array([[np.nan]]), np.array([[4.0]])) == float("inf")


def test_r2_and_mae_are_sklearns():
    answer, wanted = RNG.standard_normal((2, 50, 3))
    assert r2(answer, wanted) == pytest.approx(r2_score(wanted, answer, multioutput="variance_weighted"))
    scores = tasks.get("regression")().scores(answer, wanted)
    assert scores["MAE"] == pytest.approx(mean_absolute_error(wanted, answer))
    assert scores["relative error"] == pytest.approx(np.sqrt(1 - scores["R2"]))


def test_miou_is_sklearns_macro_jaccard_and_ignored_pixels_do_not_count():
    noisy = PIXELS + 5 * RNG.standard_normal(PIXELS.shape).astype("f")
    segmentation = tasks.get("segmentation")()
    found = segmentation.scores(noisy, PER_PIXEL)
    flat = noisy.argmax(axis=1).ravel()
    assert found["mIoU"] == pytest.approx(100 * jaccard_score(PER_PIXEL.ravel(), flat, average="macro"))
    assert found["pixel accuracy"] == pytest.approx(100 * np.mean(flat == PER_PIXEL.ravel()))
    holes = np.where(RNG.random(PER_PIXEL.shape) < 0.3, 255, PER_PIXEL)
    kept = holes.ravel() != 255
    wanted = 100 * jaccard_score(PER_PIXEL.ravel()[kept], flat[kept], average="macro")
    assert segmentation.scores(noisy, holes)["mIoU"] == pytest.approx(wanted)
    broken = noisy.copy()
    broken[:, 0] = np.nan
    assert segmentation.scores(broken, PER_PIXEL)["mIoU"] == 0


def test_f1_is_sklearns_micro_average():
    scores, wanted = RNG.standard_normal((60, 4)), RNG.integers(0, 2, (60, 4))
    found = tasks.get("multilabel")().scores(scores, wanted)["F1"]
    assert found == pytest.approx(100 * f1_score(wanted, scores > 0, average="micro"))


def test_a_probability_is_a_yes_from_a_half_on_and_the_dense_model_says_which():
    binary = tasks.get("binary")()
    chances, wanted = np.array([0.2, 0.6, 0.9, 0.4]), np.array([0, 1, 1, 1])
    assert binary.scores(chances, wanted)["accuracy"] == 75
    logits = np.array([-2.0, 1.0, 0.3, 2.0])  # 0.3 is a yes of logits
    assert binary.agreement(np.array([0.1, 0.1, 0.2, 0.2]), logits) == 0.75


def test_the_cosine_comes_with_its_spread_and_a_model_that_ignores_its_input_agrees_by_nothing():
    embedding = tasks.get("embedding")()
    turned = UNIT.copy()
    turned[:10] = -turned[:10]
    assert embedding.agreement(turned, UNIT) == pytest.approx((40 - 10) / 50)
    details = embedding.details(turned, UNIT)
    assert (details["cosine min"], details["cosine sd"]) == (pytest.approx(-1), pytest.approx(0.8))
    alike = UNIT + 5  # the cosine of any two is nearly 1
    assert embedding.agreement(np.tile(alike[:1], (50, 1)), alike) == 0


def test_positions_that_are_not_labelled_do_not_count():
    scores = np.zeros((1, 3, 2))
    scores[0, :, 1] = [1, -1, 1]
    assert tasks.get("tokens")().scores(scores, np.array([[1, 1, -100]]))["accuracy"] == 50


@pytest.mark.parametrize("name", list(tasks))
def test_every_task_agrees_with_itself_and_says_what_agreement_is(name):
    task = tasks.get(name)()
    answers = [a for a in (SURE, SURE[:, :1], PIXELS, UNIT, LABELS, BOX) if task.takes(a)]
    assert answers
    for answer in answers:
        assert task.agreement(answer, answer) == pytest.approx(1)
    assert task.agreement_kind
    assert list(in_order()) == sorted(tasks, key=lambda other: tasks.get(other).order)


# ---------------------------------------------------------------------- chance


def test_guessing_by_hand():
    assert not is_luck(15, 20, 0.5)  # 2.07 % of coins do as well
    assert is_luck(14, 20, 0.5)  # 5.77 %
    assert not is_luck(0, 19, 0.5)  # too few to say


@pytest.mark.parametrize(
    ("task", "answer", "labels", "said"),
    [
        ("classification", SURE, (LABELS + 1) % 5, "accuracy 0.0 % on 200 samples, where guessing has 20 %"),
        ("classification", SURE, RNG.permutation(LABELS), "where guessing has 20 %"),
        ("binary", SURE[:, 0] - 4, LABELS % 2, "where guessing has 50 %"),
        ("regression", SURE[:, :1], 100 + SURE[:, :1] * 3, "where always answering the labels' mean has 0"),
        ("segmentation", PIXELS, (PER_PIXEL + 1) % 3, "mIoU 0.0 % on 20 samples, where guessing has 20 %"),
    ],
)
def test_a_dense_model_that_does_not_know_the_labels_is_found_out(task, answer, labels, said):
    assert said in tasks.get(task)().by_chance(answer, labels)


@pytest.mark.parametrize(
    ("task", "answer", "labels"),
    [
        ("classification", SURE, LABELS),
        ("classification", SURE[:10], (LABELS[:10] + 1) % 5),  # ten samples show nothing
        ("binary", SURE[:, 0] - 4, LABELS == 0),
        ("regression", SURE[:, :1], SURE[:, :1] + RNG.standard_normal((200, 1))),
        ("segmentation", PIXELS, PER_PIXEL),
        ("multilabel", SURE - 4, np.eye(5)[LABELS]),
    ],
)
def test_one_that_knows_them_is_not(task, answer, labels):
    assert tasks.get(task)().by_chance(answer, labels) == ""
