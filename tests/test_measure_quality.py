from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from deploypruner.errors import InputError
from deploypruner.measure import evaluate, outputs
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
