from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from deploypruner.errors import InputError
from deploypruner.measure import evaluate, outputs
from deploypruner.measure.own_metric import OwnMetric
from deploypruner.records import TensorSpec
from deploypruner.runtime import Array, Session, check_feeds


class Doubles(Session):
    """y = 2x, with a batch dimension that is dynamic or fixed; remembers the batches it was given."""

    def __init__(self, batch: int | None = None, width: int = 3) -> None:
        self.inputs = self.outputs = (TensorSpec("x", (batch, width), "float32"),)
        self.settings = {}
        self.seen: list[list[float]] = []

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        check_feeds(self.inputs, feeds)
        self.seen.append(feeds[0][:, 0].tolist())
        return [2 * feeds[0]]

    def prepare(self, feeds: Sequence[Array]) -> Callable[[], None]:
        raise AssertionError("quality does not time")


def scores(*rows: Sequence[float]) -> Array:
    return np.array(rows, dtype=np.float32)


FIRST, SECOND, THIRD = (1, 0, 0), (0, 1, 0), (0, 0, 1)


def test_accuracy_and_agreement_by_hand() -> None:
    batches = [([scores(FIRST, SECOND)], np.array([0, 1])), ([scores(THIRD, THIRD)], np.array([2, 0]))]
    reference = [[scores(FIRST, FIRST)], [scores(FIRST, THIRD)]]
    quality = evaluate(Doubles(), batches, reference=reference)
    assert quality.accuracy == 75.0
    assert quality.agreement == 0.5
    assert quality.agreement_kind == "top-1"
    assert quality.samples == 4


def test_without_labels_or_reference_nothing_is_claimed() -> None:
    quality = evaluate(Doubles(), [([scores(FIRST)], None)])
    assert quality.accuracy is None
    assert quality.agreement is None
    assert quality.samples == 1


def test_a_model_agrees_fully_with_itself() -> None:
    rng = np.random.default_rng(0)
    batches = [([rng.standard_normal((n, 3), dtype=np.float32)], None) for n in (4, 2)]
    assert evaluate(Doubles(), batches, reference=outputs(Doubles(), batches)).agreement == 1.0


def test_nan_is_never_right_and_never_agrees() -> None:
    nan = scores((np.nan, 0, 0), FIRST)
    quality = evaluate(Doubles(), [([nan], np.array([0, 0]))], reference=[[2 * nan]])
    assert quality.accuracy == 50.0
    assert quality.agreement == 0.5


def test_a_fixed_batch_is_fed_in_pieces_padded_and_trimmed() -> None:
    session = Doubles(batch=2)
    x = np.arange(15, dtype=np.float32).reshape(5, 3)
    ((output,),) = outputs(session, [([x], None)])
    assert np.array_equal(output, 2 * x)
    assert session.seen == [[0, 3], [6, 9], [12, 12]]


@pytest.mark.parametrize("batch", [1, 2, 5, 8, None])
def test_the_batch_dimension_does_not_change_the_outputs(batch: int | None) -> None:
    x = np.random.default_rng(1).standard_normal((5, 3), dtype=np.float32)
    assert np.array_equal(outputs(Doubles(batch=batch), [([x], None)])[0][0], 2 * x)


@pytest.mark.parametrize(
    ("batches", "reference", "message"),
    [
        ([], None, "no validation inputs"),
        ([([scores(FIRST)], np.array([0])), ([scores(FIRST)], None)], None, "1 of 2 validation batches have"),
        ([([scores(FIRST)], np.array([0, 1]))], None, r"labels have shape \[2\], expected \[1\]"),
        ([([scores(FIRST)], None)], [[scores(FIRST, FIRST)]], r"shape \[2, 3\] against \[1, 3\]"),
        ([([scores(FIRST)], None)], [], "0 batches against 1"),
    ],
)
def test_data_that_does_not_fit_together_is_refused(batches: list, reference: list | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(Doubles(), batches, reference=reference)


# ---------------------------------------------------------------------- several outputs, labels of other kinds


class Answers(Session):
    """Gives the same outputs whatever it is fed."""

    def __init__(self, **outputs: Array) -> None:
        self.inputs = (TensorSpec("x", (None, 1), "float32"),)
        self.outputs = tuple(TensorSpec(name, (None, *a.shape[1:]), str(a.dtype)) for name, a in outputs.items())
        self.settings = {}
        self.answers = list(outputs.values())

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        return self.answers

    def prepare(self, feeds: Sequence[Array]) -> Callable[[], None]:
        raise AssertionError("quality does not time")


RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, 40)
SCORES = (8 * np.eye(4)[LABELS] + RNG.standard_normal((40, 4))).astype(np.float32)
AGES = (50 + 2 * RNG.standard_normal((40, 1))).astype(np.float32)
FEEDS = [np.zeros((40, 1), np.float32)]


def test_a_regressor_that_answers_always_the_same_does_not_agree() -> None:
    dense = [[AGES]]
    for constant, agreement in ((7.0, -14), (float(AGES.mean()), 0)):
        quality = evaluate(Answers(age=np.full_like(AGES, constant)), [(FEEDS, None)], reference=dense)
        assert quality.agreement_kind == "relative error"
        assert quality.agreement <= agreement + 1e-6


def test_every_output_is_looked_at_and_the_worst_one_counts() -> None:
    dense = [[AGES, SCORES]]
    quality = evaluate(Answers(age=AGES, scores=0 * SCORES), [(FEEDS, LABELS)], reference=dense)
    assert [(o.output, o.task) for o in quality.outputs] == [("age", "regression"), ("scores", "classification")]
    assert [o.agreement for o in quality.outputs] == [1.0, np.mean(SCORES.argmax(1) == 0)]
    assert (quality.agreement, quality.agreement_kind) == (np.mean(SCORES.argmax(1) == 0), "top-1")
    assert quality.accuracy == 100 * np.mean(LABELS == 0)


def test_each_head_has_its_own_labels() -> None:
    shifted = AGES + 1
    quality = evaluate(Answers(age=shifted, scores=SCORES), [(FEEDS, (AGES, LABELS))], reference=[[AGES, SCORES]])
    age, scores = quality.outputs
    assert age.scores["MAE"] == pytest.approx(1, rel=1e-5)
    assert age.scores["R2"] == pytest.approx(1 - 1 / AGES.var(), rel=1e-4)
    assert scores.accuracy == 100 * np.mean(SCORES.argmax(1) == LABELS)
    assert (quality.metric.name, quality.accuracy) == ("R2", age.scores["R2"])


def test_an_output_of_another_shape_agrees_by_nothing() -> None:
    quality = evaluate(Answers(boxes=SCORES[:, :2]), [(FEEDS, None)], reference=[[SCORES]])
    assert quality.agreement == 0


def test_a_metric_of_ones_own_gets_all_outputs_and_the_labels_as_they_are() -> None:
    seen = []

    def wer(outputs, labels):
        seen.append((len(outputs), labels))
        return 0.25

    wer.higher_is_better = False
    metric = OwnMetric(wer, "wer")
    texts = [f"word {i}" for i in range(40)]
    quality = evaluate(Answers(age=AGES, scores=SCORES), [(FEEDS, texts)], metric=metric)
    assert seen == [(2, texts)]
    assert (quality.accuracy, quality.metric.name, quality.metric.higher_is_better) == (0.25, "wer", False)
    assert quality.metric.lost(0.2, 0.25) == pytest.approx(25)  # percent of the dense model's
    one = OwnMetric(lambda outputs, labels: float((outputs.argmax(1) == labels).mean()), "mine")
    assert evaluate(Answers(scores=SCORES), [(FEEDS, LABELS)], metric=one).accuracy == 1.0


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda outputs, labels: labels["boxes"], "metric 'mine' raised"),
        (lambda outputs, labels: None, "metric 'mine' raised TypeError"),
        (lambda outputs, labels: float("inf"), "returned inf"),
    ],
)
def test_a_metric_that_fails_is_named(function: Callable, said: str) -> None:
    with pytest.raises(InputError, match=said):
        evaluate(Answers(scores=SCORES), [(FEEDS, LABELS)], metric=OwnMetric(function, "mine"))
