"""What builds of one model under several budgets have in common: their first stages, and files of later ones."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from deploypruner.build.folder import BuildFolder
from deploypruner.build.resume import begun
from deploypruner.build.stage import Stage, chain
from deploypruner.build.state import Build, Given
from deploypruner.latency.clock import Clock, current_clock
from deploypruner.logbook import Logbook
from deploypruner.progress import Progress, SilentProgress
from deploypruner.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class CommonRequest:
    """What is asked of several builds, or trials, of one model together.

    Args:
        recipe: Everything that they have in common.
        out: Their folder.
        command: Command line or call.
        given: Objects from the Python API.
        resume: Whether what is begun in `out` is gone on with.
        progress: Told about long work.
        log: Of everything that is said.
        say: Called with one line per stage or step.
        detail: Called with a line about what a stage is doing.
        clock: Says how long things take.
    """

    recipe: Recipe
    out: Path
    command: str
    given: Given = field(default_factory=Given)
    resume: bool = False
    progress: Progress = field(default_factory=SilentProgress)
    log: Logbook = field(default_factory=Logbook)
    say: Callable[[str], None] = lambda line: None
    detail: Callable[[str], None] = lambda line: None
    clock: Clock = field(default_factory=current_clock)

    def shared_build(self, folder: BuildFolder, recipe: Recipe) -> Build:
        """The build whose first stages all of them share, before any stage; says so where nothing can be resumed.

        Args:
            folder: At `out`.
            recipe: Of these stages.
        """
        if self.resume and not begun(folder):
            self.say(f"there is nothing to resume in {self.out}: this {folder.kind} starts at the beginning")
        return Build(
            recipe=recipe,
            folder=folder,
            command=self.command,
            given=self.given,
            progress=self.progress,
            log=self.log,
            say=self.detail,
            clock=self.clock,
        )


@dataclass(frozen=True)
class Common:
    """The stages that no key decides about in which the builds differ.

    Args:
        build: As it is after them, with a folder of its own.
        stages: Their names.
    """

    build: Build
    stages: tuple[str, ...]

    def give(self, build: Build) -> Build:
        """Another build after these stages: its own recipe and folder, the model, data, graph and scores of all."""
        return replace(
            self.build,
            recipe=build.recipe,
            folder=build.folder,
            command=build.command,
            progress=build.progress,
            log=build.log,
            say=build.say,
            remarks=tuple(dict.fromkeys((*self.build.remarks, *build.remarks))),
            seconds=build.seconds,
        )

    def seconds(self, stage: str) -> float:
        """How long one of these stages took."""
        return dict(self.build.seconds)[stage]

    def lend(self, folder: BuildFolder) -> None:
        """Give another build's folder the files that serve it as well, where it has none of that name."""
        for stage in chain():
            for name in stage.saves if stage.name in self.stages else stage.lends:
                if not folder.has(name):
                    folder.borrow(name, self.build.folder)

    def take(self, folder: BuildFolder) -> None:
        """Keep such files of a build that has made, or gone on with, them, for the next one."""
        for stage in chain():
            for name in stage.lends:
                self.build.folder.borrow(name, folder)


def common_stages(keys: Collection[str]) -> tuple[type[Stage], ...]:
    """The first stages, up to the one that depends on one of these keys of the recipe."""
    order = chain()
    end = next(i for i, stage in enumerate(order) if any(stage.depends_on(key) for key in keys))
    return order[:end]
