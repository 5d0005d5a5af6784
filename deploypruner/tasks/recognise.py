"""Which task every output of a model has: as the user says, else by its labels, else by the dense model's answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deploypruner.errors import RecipeError, nearest
from deploypruner.tasks import Array, Task, in_order, tasks

EVERY = ""
"""Key of what was asked for all outputs that are not named themselves."""


@dataclass(frozen=True)
class OutputTask:
    """What one output is.

    Args:
        output: Its name.
        task: Registered name.
        label: Which of the given labels belong to it, None for none.
        asked: Did the user say so?
    """

    output: str
    task: str
    label: int | None = None
    asked: bool = False


def parse_tasks(said: Sequence[str]) -> dict[str, str]:
    """ "TASK" for all outputs, or "OUTPUT=TASK" for one, by its name or number -> output to task.

    Raises:
        RecipeError: A task that does not exist, or an output that is named twice.
    """
    asked: dict[str, str] = {}
    for text in said:
        output, _, task = text.rpartition("=")
        tasks.get(task.strip())
        if output.strip() in asked:
            where = f"of output '{output.strip()}'" if output else "for all outputs"
            raise RecipeError(f"the task {where} is given twice", hint="--task OUTPUT=TASK names one output")
        asked[output.strip()] = task.strip()
    return asked


def recognise(
    names: Sequence[str],
    answers: Sequence[Array],
    labels: Sequence[Array | None] = (),
    *,
    asked: Mapping[str, str] | None = None,
    expected: str = "",
) -> tuple[OutputTask, ...]:
    """Say what every output is.

    Labels decide before the values of the answers do. One array of labels belongs to the output that it fits best: of
    the task that is asked first (class numbers are classes before they are quantities), and of several such the first
    output; of several arrays, each belongs to the output in its place.

    Args:
        names: Of the outputs.
        answers: The dense model's, `[n, ...]` each, for the same samples.
        labels: For these samples: none, one array for any output, or one (or None) per output.
        asked: Output name, number or `EVERY` -> task, see `parse_tasks`.
        expected: What the model's source says the first output is, where labels do not decide; "" for nothing.

    Raises:
        RecipeError: An output that does not exist, or that cannot be of the task it was given.
    """
    wanted = _wanted(names, answers, asked or {})
    place = _placed(answers, labels, wanted)
    found: list[OutputTask] = []
    for number, (name, answer) in enumerate(zip(names, answers, strict=True)):
        named = wanted.get(number)
        label = place.get(number)
        fitting = None if label is None else _fitting(answer, labels[label], named)
        if fitting is not None:
            found.append(OutputTask(name, fitting, label, named is not None))
            continue
        known = named or ("" if number or not _can(expected, answer) else expected)
        found.append(OutputTask(name, known or _resembling(number, answers), None, named is not None))
    return tuple(found)


def _placed(answers: Sequence[Array], labels: Sequence[Array | None], wanted: Mapping[int, str]) -> dict[int, int]:
    """Number of an output -> which labels may be its own."""
    if len(labels) != 1:
        return dict(enumerate(range(min(len(labels), len(answers)))))
    order = {name: task.order for name, task in in_order().items()}
    fits = [
        (order[task], number)
        for number, answer in enumerate(answers)
        if (task := _fitting(answer, labels[0], wanted.get(number))) is not None
    ]
    return {min(fits)[1]: 0} if fits else {}


def _wanted(names: Sequence[str], answers: Sequence[Array], asked: Mapping[str, str]) -> dict[int, str]:
    """Number of an output -> the task that the user gave it."""
    wanted = {number: asked[EVERY] for number in range(len(names)) if EVERY in asked}
    for output, task in asked.items():
        if output == EVERY:
            continue
        if output not in names and not (output.isdigit() and int(output) < len(names)):
            raise RecipeError(f"the model has no output '{output}'", hint=nearest(output, names))
        wanted[names.index(output) if output in names else int(output)] = task
    for number, task in wanted.items():
        answer = answers[number]
        if not tasks.get(task)().takes(answer):
            shape = ["batch", *answer.shape[1:]]
            fits = [name for name, other in in_order().items() if other.takes(answer)]
            raise RecipeError(
                f"output '{names[number]}' ({answer.dtype}, [{', '.join(map(str, shape))}]) cannot be {task}",
                hint=f"it can be {', '.join(fits)}; --task OUTPUT=TASK names one output",
            )
    return wanted


def _fitting(answer: Array, labels: Array | None, named: str | None) -> str | None:
    """The first task that these labels are for, of those that may be asked."""
    if labels is None:
        return None
    candidates: Mapping[str, Task] = in_order() if named is None else {named: tasks.get(named)()}
    return next((name for name, task in candidates.items() if task.takes(answer) and task.fits(answer, labels)), None)


def _can(task: str, answer: Array) -> bool:
    return bool(task) and tasks.get(task)().takes(answer)


def _resembling(number: int, answers: Sequence[Array]) -> str:
    if _are_candidates(number, answers):
        return "detection"
    answer = answers[number]
    return next(name for name, task in in_order().items() if task.takes(answer) and task.resembles(answer))


def _are_candidates(number: int, answers: Sequence[Array]) -> bool:
    """Boxes `[N, A, 4]` and what else there is of the same candidates, `[N, A]` or `[N, A, K]`."""
    answer = answers[number]
    rows = answer.shape[:2]
    mine = [other for other in answers if other.ndim in (2, 3) and other.shape[:2] == rows]
    return answer.ndim in (2, 3) and len(mine) > 1 and any(o.ndim == 3 and o.shape[2] == 4 for o in mine)
