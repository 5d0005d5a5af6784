"""The driver: every stage in the order that needs give, timed, documented, checked, and resumed where it may be.

It knows no stage by name. What it does with one follows from what that stage declares, see `Stage`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from safetensors import SafetensorError

from deploypruner.atomic import ANOTHER_OUT
from deploypruner.build.common import Common, common_stages
from deploypruner.build.folder import BuildFolder
from deploypruner.build.resume import Marks, open_folder
from deploypruner.build.stage import Stage, chain
from deploypruner.build.state import Build
from deploypruner.channels.remove import require
from deploypruner.errors import InputError, said_by
from deploypruner.logbook import LOG
from deploypruner.progress import StageProgress

Say = Callable[[str], None]


def run(build: Build, *, resume: bool, overwrite: bool = False, common: Common | None = None, say: Say) -> Build:
    """Run every stage.

    Args:
        build: Recipe, folder and what the Python API gave; everything else empty.
        resume: Continue the build in the folder instead of replacing it.
        overwrite: Whether a finished build that is continued may become another one.
        common: Stages that were run for several builds together, from `begin`; None for none.
        say: Called with one line per finished stage that had something to do.

    Returns:
        The finished build.

    Raises:
        RecipeError: The build to resume was made by another recipe.
        BudgetError: The budget is out of reach; reachable.json says what is in reach. An earlier build stays.
        VerificationError: Two forms of the model disagree; everything is written all the same.
        DeployPrunerError: Whatever a stage finds wrong; finished files stay.
    """
    try:
        return _run(build, chain(), resume=resume, overwrite=overwrite, common=common, say=say)
    finally:
        build.folder.release()


def begin(build: Build, keys: Collection[str], *, resume: bool, say: Say) -> Common:
    """Run the stages that builds have in common which differ in `keys` of the recipe; the folder stays locked.

    Args:
        build: As for `run`; its folder holds what all of them share.
        keys: Dotted.
        resume: Go on with what an earlier run began there.
        say: As for `run`.

    Raises:
        DeployPrunerError: As `run`.
    """
    stages = common_stages(keys)
    done = _run(build, stages, resume=resume, overwrite=False, common=None, say=say)
    return Common(done, tuple(stage.name for stage in stages))


def _run(
    build: Build,
    stages: Sequence[type[Stage]],
    *,
    resume: bool,
    overwrite: bool,
    common: Common | None,
    say: Say,
) -> Build:
    order = chain()
    marks: Marks | None = None
    resumable = True  # until the first saved stage that has to run again: later files came from its old result
    begun: dict[str, Build] = {}
    left = list(stages)
    while left:
        stage_class = left.pop(0)
        stage = stage_class()
        if isinstance(build.progress, StageProgress):
            build.progress.stage(1 + order.index(stage_class), len(order), stage.name)
        # What cannot even be loaded leaves no folder behind, and what is refused for a finished build none beside it.
        if len(begun) == 1 and (build.folder.replaces is None or overwrite):
            _keep_log(build, resume=resume)
        if stage.saves and marks is None:  # all before it is known to be good, so that bad input costs no old build
            marks = open_folder(build, order, resume=resume, overwrite=overwrite)
            _keep_log(build, resume=resume)
            if build.folder.remark:
                say(f"remark: {build.folder.remark}")
                build = replace(build, remarks=(*build.remarks, build.folder.remark))
        begun[stage.name] = build
        started = build.clock.monotonic()
        finished = resumable and marks is not None and marks.finished(stage)
        if stage.saves and not finished and resumable:
            _discard_from(build.folder, stage_class, order)
        resumable = resumable and (finished or not stage.saves)
        shared = common is not None and stage.name in common.stages
        if common is not None and marks is not None:
            common.lend(build.folder)
        if common is not None and shared:
            build = common.give(build)
        else:
            build = _restored(stage, build) if finished else stage.run(build)
        if stage_class is order[-1]:
            build = _put_in_place(build)
        seconds = common.seconds(stage.name) if common is not None and shared else build.clock.monotonic() - started
        if marks is not None and stage.saves:
            seconds = marks.seconds(stage) if finished else marks.add(stage, seconds)
        build = replace(build, seconds=(*build.seconds, (stage.name, seconds)))
        note = stage.document(build)
        if note is not None and not shared:
            say(f"{stage.name:9} {'(done before)' if finished else f'{seconds:6.1f} s'}  {note}".rstrip())
        for warning in () if shared else stage.warnings(build):
            say(f"warning: {warning}")
        if stage.fatal:  # everything after a wrong graph or a wrong removal is worthless
            require(build.checks)
        again = stage.sends_back(build)
        if again is not None:
            say(f"again from {again.stage}: {again.why}")
            left = _from(again.stage, order)
            _discard_from(build.folder, left[1], order)  # what it writes itself it replaces
            changed = {**again.changes, "seconds": build.seconds}  # what a pass took stays in the report
            build, resumable = replace(begun[again.stage], **changed), False
            continue
        stage.validate(build)
    return build


def _keep_log(build: Build, *, resume: bool) -> None:
    """Write the log to the build's folder, if it is not yet, behind what earlier runs of this build said."""
    folder = build.folder
    try:
        folder.prepare()
    except InputError:  # which is said before anything is made there; first what is wrong with the model
        return
    if resume and folder.replaces is not None and not folder.has(LOG):
        folder.borrow(LOG, folder.replaces)
    build.log.keep_in(folder.claim(LOG), instead=ANOTHER_OUT)


def _put_in_place(build: Build) -> Build:
    """Let the folder take the place of the one that it replaces; the artifacts are in it, wherever it is."""
    made = build.folder.root
    build.folder.put_in_place()
    artifacts = (
        replace(artifact, path=build.folder.path(str(artifact.path.relative_to(made))))
        if artifact.path.is_relative_to(made)
        else artifact
        for artifact in build.artifacts
    )
    return replace(build, artifacts=tuple(artifacts))


def _from(name: str, order: Sequence[type[Stage]]) -> list[type[Stage]]:
    """That stage and all after it."""
    place = next(place for place, stage in enumerate(order) if stage.name == name)
    return list(order[place:])


def _restored(stage: Stage, build: Build) -> Build:
    """What the stage saved; its checksums fit, and whoever can write there can write those, too.

    Raises:
        InputError: The files do not say what the stage writes.
    """
    try:
        return stage.restore(build)
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"what '{stage.name}' saved in {build.folder.root} cannot be read: {said_by(error)}",
            hint="leave out --resume and add --overwrite to start over",
        ) from error


def _discard_from(folder: BuildFolder, stage: type[Stage], order: Sequence[type[Stage]]) -> None:
    """Delete what this stage and those after it once made: where they now make nothing, nothing may be left of it.

    All at once, because some make files of later stages early: the dense model that a budget of time is measured by.
    """
    place = order.index(stage)
    earlier = {name for cls in order[:place] for name in cls.saves}
    for name in {name for cls in order[place:] for name in cls.saves} - earlier:
        folder.discard(name)
