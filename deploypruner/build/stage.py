"""What a stage of a build is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from deploypruner.build.state import Build


class Stage(ABC):
    """One step of a build.

    Attributes:
        name: A verb, shown to the user.
        saves: Files that let a resumed build skip this stage, relative to the build folder; empty for a stage
            that is always run again.
    """

    name: ClassVar[str]
    saves: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def run(self, build: Build) -> Build:
        """Do the work and return the build with its result."""

    def restore(self, build: Build) -> Build:
        """Return the build with the result that `run` saved earlier."""
        return self.run(build)

    def document(self, build: Build) -> str | None:
        """One line for the user about what this stage found, None where there was nothing to do."""
        return ""


def stage_file(name: str) -> str:
    """Resume state lives under stages/."""
    return str(Path("stages") / name)
