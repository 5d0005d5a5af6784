"""What builds of one model under several budgets have in common: their first stages, and files of later ones."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from deploypruner.build.folder import BuildFolder
from deploypruner.build.stage import Stage, chain
from deploypruner.build.state import Build


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
