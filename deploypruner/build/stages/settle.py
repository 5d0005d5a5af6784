"""settle: how many threads the model is to run with, and with which instructions, where that is open."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from deploypruner.build.dense_setting import settled
from deploypruner.build.open_setting import SettingTried
from deploypruner.build.register import stages
from deploypruner.build.stage import Stage, stage_file
from deploypruner.build.state import Build


@stages.register("settle")
class Settle(Stage):
    """Try the dense model with every number of threads and instruction set that the recipe and the CPU leave open."""

    name: ClassVar[str] = "settle"
    needs: ClassVar[tuple[str, ...]] = ("trace",)
    reads: ClassVar[tuple[str, ...]] = (
        *(f"measure.{name}" for name in ("threads", "runtimes", "allow_bf16", "precision")),
        *("quantize", "target", "seed"),
    )
    # A build that goes on with a budget for another precision keeps the number, and so all that was timed with it.
    outlives: ClassVar[tuple[str, ...]] = ("measure.precision",)
    saves: ClassVar[tuple[str, ...]] = (stage_file("settled.json"),)

    def run(self, build: Build) -> Build:
        """Give what was tried, and save it."""
        build = settled(build)
        build.folder.write_json(self.saves[0], None if build.tried is None else build.tried.to_json())
        return build

    def restore(self, build: Build) -> Build:
        """Read what was tried."""
        found = build.folder.read_json(self.saves[0])
        return build if found is None else replace(build, tried=SettingTried.from_json(found))

    def document(self, build: Build) -> str | None:
        """The number, the instructions and the times; nothing where nothing was open."""
        return None if build.tried is None else build.tried.sentence
