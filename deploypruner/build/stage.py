"""What a stage is: what it does, and what it declares so that the driver can order, resume and check it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any, ClassVar

from deploypruner.build.register import stages
from deploypruner.build.state import Build


@dataclass(frozen=True)
class Again:
    """What an earlier stage has to know, and had no way to know, to decide better.

    Args:
        stage: Where the build goes on from.
        changes: Fields of the build there, and what they are now.
        why: For the user.
    """

    stage: str
    changes: Mapping[str, Any]
    why: str


class Stage(ABC):
    """One step of a build. It unpacks the build so far, calls pure functions, and puts the result back.

    A stage that takes long saves what it made, so that a killed build resumes after it; the others are run again,
    which gives the same result because everything is seeded.

    Attributes:
        name: A verb, shown to the user.
        needs: Stages that have to come before this one; all others may come after it.
        reads: Keys of the recipe that its result depends on, such as "prune.step", or whole tables of it. A
            resumed build runs it and all after it again where one of them changed. What `validate` alone looks at is
            not among them.
        outlives: Those of them whose change an earlier result is kept for all the same.
        changeable: Keys that a resumed build may be given another value of; any other key has to stay as it was.
        saves: Files that let a resumed build skip this stage, relative to the build folder; empty for a stage
            that is always run again.
        writes: Other files, and folders that end in "/", that it may leave.
        lends: Files of it that serve builds with other values of `changeable` keys as well; each tells by itself
            whether it fits.
        fatal: Does a check of its own that fails end the build at once? Else all of them are reported first.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[tuple[str, ...]] = ()
    outlives: ClassVar[tuple[str, ...]] = ()
    changeable: ClassVar[tuple[str, ...]] = ()
    saves: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ()
    lends: ClassVar[tuple[str, ...]] = ()
    fatal: ClassVar[bool] = False

    @abstractmethod
    def run(self, build: Build) -> Build:
        """Do the work and return the build with its result."""

    def restore(self, build: Build) -> Build:
        """Return the build with the result that `run` saved earlier."""
        return self.run(build)

    def document(self, build: Build) -> str | None:
        """One line for the user about what this stage found, None where there was nothing to do."""
        return ""

    def sends_back(self, build: Build) -> Again | None:
        """Does this stage's result show that an earlier one went by a wrong assumption? At most once for each.

        Whatever it says has to be so that the stage, run again after that, does not say it again.
        """
        del build  # most results cannot show that
        return None

    def warnings(self, build: Build) -> tuple[str, ...]:
        """What the user should know before the work that follows; the report has it, too."""
        del build  # most results cast no doubt on what follows
        return ()

    def validate(self, build: Build) -> None:
        """Refuse to go on where this stage's result shows that the build cannot be what was asked for.

        Raises:
            DeployPrunerError: What the user has to change.
        """
        del build  # most results cannot show that

    @classmethod
    def depends_on(cls, key: str) -> bool:
        """Does a result of this stage lose its worth where this key of the recipe changes?"""
        return _within(key, cls.reads) and not _within(key, cls.outlives)

    @classmethod
    def lets_change(cls, key: str) -> bool:
        """May a resumed build have another value of this key?"""
        return _within(key, cls.changeable)


def chain() -> tuple[type[Stage], ...]:
    """Every registered stage, each after those it needs, by name where that leaves a choice."""
    found: dict[str, type[Stage]] = {name: stages.get(name) for name in stages}
    order = TopologicalSorter({name: stage.needs for name, stage in found.items()})
    order.prepare()
    ready, done = list(order.get_ready()), []
    heapify(ready)
    while ready:
        name = heappop(ready)
        assert name in found, f"a stage needs '{name}', which there is not"
        done.append(found[name])
        order.done(name)
        for other in order.get_ready():
            heappush(ready, other)
    return tuple(done)


def stage_file(name: str) -> str:
    """Resume state lives under stages/."""
    return str(Path("stages") / name)


def _within(key: str, declared: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in declared)
