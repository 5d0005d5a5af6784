"""The driver of a sweep: what is planned, in which order, and what is made of it.

    population ─► analysis ─► refined search: look at many, train a few ─► winners with new seeds ─► files

The driver alone writes `sweep.sqlite`; it plans trials there before they begin, and enters results as they are there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from deploypruner.atomic import SCRATCH
from deploypruner.build import pipeline
from deploypruner.build.choices import check_choices
from deploypruner.build.state import Build
from deploypruner.channels.feasible_widths import by_importance, find_room
from deploypruner.device.described import HERE
from deploypruner.errors import BudgetError, InputError, RecipeError
from deploypruner.graph import Keep
from deploypruner.progress import StageProgress
from deploypruner.ranges import SEEDS
from deploypruner.recipe import BUDGETS
from deploypruner.sweep.analysis import buckets_of, optimum_of
from deploypruner.sweep.beside import regimes_of
from deploypruner.sweep.conjectures import CostRegime, conjectures
from deploypruner.sweep.folder import DOCUMENT, JOURNAL, PAGE, STORE, TRIALS, WINNER, require_sweep_place
from deploypruner.sweep.on_ray import RayCluster
from deploypruner.sweep.page import sweep_html, sweep_json
from deploypruner.sweep.recipe_file import recipe_with, winner_text
from deploypruner.sweep.records import DenseModel, Sample, SweepFound, Winner
from deploypruner.sweep.refine import RefinedSpace, refined
from deploypruner.sweep.request import SweepRequest, short_recovery
from deploypruner.sweep.space import PruningSpace, SampledRecipe
from deploypruner.sweep.speed import PredictedSpeed, predicted_speed, speed_if_possible
from deploypruner.sweep.store import StoredTrial, TrialStore, read_store
from deploypruner.sweep.trial import TrialContext, identity_of, plan_of, run_trial
from deploypruner.sweep.trial_record import SweepTrial, TrialResult, result_json
from deploypruner.sweep.workers import read_result, run_in_workers

_KEYS = tuple(f"prune.{name}" for name in BUDGETS)
_STEPS = ("space", "look", "refined", "again")
# Numbers that keep the random recipes of the two spaces apart.
_POPULATION, _REFINED = 1, 2


def run_sweep(request: SweepRequest) -> SweepFound:
    """Sample, train, analyse, refine, and write sweep.json, sweep.html and winner.toml.

    Raises:
        DeployPrunerError: Bad input, a cost that cannot be reached, a folder that cannot be taken; or every trial
            failed.
    """
    if request.recipe.target != HERE:
        raise RecipeError(
            f"a sweep predicts times of this machine, and the recipe is for {request.recipe.target}",
            hint='sweep with target = "cpu" and --macs, then compile the winner for the machine',
        )
    folder = require_sweep_place(request.out, resume=request.resume)
    recipe, remarks = short_recovery(request.recipe, request.given)
    check_choices(recipe, request.given)
    others = [read_store(other / STORE) for other in request.beside]
    build = request.shared_build(folder, recipe)
    try:
        with ExitStack() as until_done:
            cluster = None
            if request.settings.ray:  # before anything that takes long
                cluster = until_done.enter_context(RayCluster(request.settings.ray, workers=request.settings.workers))
                request.say(cluster.text)
            common = pipeline.begin(build, _KEYS, resume=request.resume, say=request.say)
            folder.claim(JOURNAL)
            store = TrialStore(folder.claim(STORE))
            until_done.callback(store.close)
            sweep = _Sweep(request, common.build, store, remarks, cluster=cluster)
            found = sweep.found(regimes_of(others, common.build))
        _write(request, common.build, found)
    finally:
        folder.release()
    return found


class _Sweep:
    """One sweep while it runs."""

    def __init__(
        self,
        request: SweepRequest,
        build: Build,
        store: TrialStore,
        remarks: Sequence[str],
        *,
        cluster: RayCluster | None = None,
    ) -> None:
        self._request, self._build, self._store, self._cluster = request, build, store, cluster
        self._context = TrialContext.of(build)
        self._trials = build.folder.path(TRIALS)
        for left in (*self._trials.glob(".work-*"), *self._trials.glob(f"{SCRATCH}*")):  # of killed workers
            shutil.rmtree(left, ignore_errors=True)
        self._notes = list(remarks)
        self._speed = self._predicted()
        costs = build.traced.costs
        self._dense = DenseModel(costs.macs(), costs.params(), None if self._speed is None else self._speed.dense.ms)
        budget, workers = str(build.recipe.prune.budget), request.settings.workers
        store.tell({"budget": budget, "model": build.sha256, "dense": asdict(self._dense), "workers": workers})

    def found(self, others: Sequence[CostRegime]) -> SweepFound:
        """All that it finds."""
        settings, budget = self._request.settings, str(self._build.recipe.prune.budget)
        space = self._space()
        population = self._population(space)
        samples = tuple(self._sample(one) for one in population if one.kept)
        self._require_any(population)
        seed = self._build.recipe.seed
        optimum = optimum_of(samples, self._dense, seed=seed)
        said = conjectures(CostRegime(budget, samples, self._dense), others, seed=seed)
        trained = [one for one in population if one.kept]
        looks, finalists = self._refined(space, samples) if settings.candidates else ([], [])
        winners = [self._winner(_least(trained)), *([self._winner(_least(finalists))] if finalists else [])]
        first = trained[0].kept
        assert first is not None, "it is among those that are kept"
        labelled = not first.quality.endswith("with the dense model")
        if not labelled:
            self._notes.append(f"nothing is labelled: what is lost is counted in {first.quality}")
        every = [*population, *looks, *finalists]
        return SweepFound(
            model=self._build.name,
            command=self._request.command,
            budget=budget,
            quality=first.quality,
            labelled=labelled,
            dense_quality=first.dense,
            dense=self._dense,
            samples=samples,
            failed=tuple((one.id, one.result.why) for one in every if one.result is not None and one.result.why),
            buckets=buckets_of(samples),
            optimum=optimum,
            conjectures=said,
            looks=len(looks),
            winners=tuple(winners),
            recipe_file=WINNER,
            notes=(*self._build.remarks, *self._notes),
            speed={} if self._speed is None else self._speed.facts,
            seconds=sum({one.id: one.result.seconds for one in self._store.trials() if one.result}.values()),
        )

    # ---------------------------------------------------------------------- the space

    def _predicted(self) -> PredictedSpeed | None:
        """Predicted milliseconds: needed for a speed-up, recorded where that works for a share of the MACs.

        Kept with the sweep: recipes of equal milliseconds would be others after layers were timed anew.
        """
        known = self._store.about().get("predicted")
        if known is None:
            if (timed := self._timed()) is None:
                return None
            known = timed.to_json()
            self._store.tell({"predicted": known})
        speed = PredictedSpeed.from_json(known, self._build.traced)
        if doubt := speed.dense.doubt:
            self._request.say(f"warning: {doubt}")
            self._notes.append(doubt)
        return speed

    def _timed(self) -> PredictedSpeed | None:
        """The same, timed now."""
        if self._build.recipe.prune.speedup is not None:
            return predicted_speed(self._build)
        speed, why = speed_if_possible(self._build)
        if why:
            self._request.say(f"remark: {why}")
            self._notes.append(why)
        return speed

    def _space(self) -> PruningSpace:
        """All recipes that cost what was asked.

        Raises:
            BudgetError: Not even the narrowest does; of a speed-up, as predicted.
            InputError: The folder holds a sweep of another cost.
        """
        build, recipe = self._build, self._build.recipe.prune
        graph = build.traced
        cost, target = self._cost()
        room, least = find_room(
            graph,
            by_importance(self._context.scores),
            recipe.constraints,
            step=recipe.step,
            cost=lambda room: cost(room.narrowest),
            target=target,
        )
        if least > target:  # of a share of the MACs `trace` has said so
            assert self._speed is not None, "milliseconds are predicted"
            raise BudgetError(
                f"{recipe.budget} is out of reach: at its narrowest widths the model is predicted to reach "
                f"{self._speed.dense.ms / least:.2f}x as {self._speed.dense.setting}",
                hint=f"--speedup {max(1.0, int(98 * self._speed.dense.ms / least) / 100):g} can be reached; a larger "
                "--max-cut or a smaller --step may reach further",
            )
        self._require_same_space(target)
        return PruningSpace(graph, room, cost, target, self._request.settings.std)

    def _cost(self) -> tuple[Callable[[Keep], float], float]:
        graph, budget = self._build.traced, self._build.recipe.prune.budget
        if budget.macs is not None:
            return lambda keep: float(graph.costs.macs(graph.removed(keep))), budget.macs * graph.costs.macs()
        assert budget.speedup is not None, "a latency was refused"
        assert self._speed is not None, "milliseconds are predicted"
        return self._speed.ms, self._speed.dense.ms / budget.speedup

    def _require_same_space(self, target: float) -> None:
        recipe = self._build.recipe
        asked = {
            **{"budget": str(recipe.prune.budget), "std": list(self._request.settings.std)},
            # What a build may change when it goes on would mix trials that were trained otherwise.
            **{"epochs": recipe.recover.epochs, "lr": recipe.recover.settings.lr},
        }
        known = self._store.about().get("space")
        if known is None:
            self._store.tell({"space": asked, "target": target})
        elif known != asked:
            other = next(name for name in asked if asked[name] != known[name])
            raise InputError(
                f"the sweep in {self._request.out} has {other} {known[other]}, this command says {asked[other]}",
                hint="repeat the original options, or name another folder with --out",
            )

    def _population(self, space: PruningSpace) -> list[StoredTrial]:
        """The recipes of the population, trained."""
        count, known = self._request.settings.samples, len(self._store.trials("space"))
        recipe = self._build.recipe
        if known < count:
            self._request.say(f"sampling {count} recipes of {recipe.prune.budget}")
            drawn = space.sample(count, seed=(recipe.seed, _POPULATION), known=known)
            trials = [
                SweepTrial("space", known + place, one.widths, recipe.seed, self._epochs, one.std)
                for place, one in enumerate(drawn)
            ]
            self._plan(trials)
        planned = [one for one in self._store.trials("space") if one.trial.number < count]
        return self._run(planned, f"{len(planned)} recipes")

    @property
    def _epochs(self) -> int:
        epochs = self._build.recipe.recover.epochs
        assert epochs != "auto", "every trial trains alike"
        own = self._build.recipe.recover.train or self._build.given.train is not None
        return max(1, epochs) if own else epochs

    # ---------------------------------------------------------------------- the best

    def _refined(
        self, space: PruningSpace, samples: tuple[Sample, ...]
    ) -> tuple[list[StoredTrial], list[StoredTrial]]:
        """Candidates of the narrower space, each looked at, and the best of them, trained."""
        settings, recipe = self._request.settings, self._build.recipe
        seed = recipe.seed
        spaces = refined(
            space,
            dense=self._dense,
            optimum=optimum_of(samples, self._dense, seed=seed),
            buckets=buckets_of(samples),
        )
        drawn = self._candidates(spaces)
        trials = [SweepTrial("look", place, one.widths, seed, 0, one.std) for place, one in enumerate(drawn)]
        looks = self._run(self._plan(trials), f"{len(trials)} looks")
        best = sorted((one for one in looks if one.kept), key=_order)[: settings.finalists]
        finals = [replace(one.trial, phase="refined", number=n, epochs=self._epochs) for n, one in enumerate(best)]
        trained = self._run(self._plan(finals), f"{len(finals)} finalists")
        return looks, [one for one in trained if one.kept]

    def _candidates(self, spaces: Sequence[RefinedSpace]) -> list[SampledRecipe]:
        """Recipes of the narrowest space that has enough of them; of the widest as many as there are."""
        count, seed = self._request.settings.candidates, self._build.recipe.seed
        for narrow in spaces:
            drawn = narrow.space.sample(count, seed=(seed, _REFINED), fewer=True)
            if len(drawn) == count or narrow is spaces[-1]:
                break
        text = f"the refined search looks at {len(drawn)} recipes of {narrow.text}"
        self._notes.append(text)
        self._request.say(text)
        return drawn

    def _winner(self, best: StoredTrial) -> Winner:
        """A recipe that did best, trained again with other seeds."""
        seeds = [(best.trial.seed + 1 + n) % (SEEDS + 1) for n in range(self._request.settings.again)]
        trials = [replace(best.trial, phase="again", seed=seed) for seed in seeds]
        again = self._run(self._plan(trials), f"the winner of '{best.trial.phase}' with new seeds") if trials else []
        kept = best.kept
        assert kept is not None, "it is among those that are kept"
        return Winner(
            name=best.id,
            phase=best.trial.phase,
            drop=kept.drop,
            again=tuple(one.kept.drop for one in again if one.kept),
            macs=kept.macs,
            params=kept.params,
            ms=best.predicted_ms,
            widths=dict(best.trial.widths),
        )

    def _sample(self, one: StoredTrial) -> Sample:
        kept = one.kept
        assert kept is not None, "only those that are kept are analysed"
        return Sample(one.id, kept.drop, kept.macs, kept.params, one.trial.std, one.predicted_ms)

    # ---------------------------------------------------------------------- running

    def _plan(self, trials: Sequence[SweepTrial]) -> list[StoredTrial]:
        """Enter what is to be done; a trial that was done in another phase is on disk, and is not done again."""
        names = [identity_of(self._context, trial) for trial in trials]
        predicted = [None if self._speed is None else self._ms(trial) for trial in trials]
        self._store.plan(zip(names, trials, predicted, strict=True))
        known = {(one.id, one.trial.phase): one for one in self._store.trials()}
        return [known[name, trial.phase] for name, trial in zip(names, trials, strict=True)]

    def _ms(self, trial: SweepTrial) -> float:
        assert self._speed is not None, "milliseconds are predicted"
        return self._speed.ms(plan_of(self._context, trial.widths).keep)

    def _run(self, planned: Sequence[StoredTrial], label: str) -> list[StoredTrial]:
        """Run what is not finished, and give all of them with their results, in the same order."""
        left = [one for one in planned if one.result is None or self._may_be_repeated(one)]
        done = len(planned) - len(left)
        phase = planned[0].trial.phase if planned else _STEPS[0]
        self._request.say(f"{label}: {len(left)} to do" + (f", {done} done before" if done else ""))
        if isinstance(self._request.progress, StageProgress):
            step = 1 + _STEPS.index(phase)
            self._request.progress.stage(step, len(_STEPS), f"sweep: {phase}")
        self._request.progress.start(len(left), label)
        try:
            for name, result in self._results(left):
                self._store.finish(name, result)
                text = f"failed: {result.why}" if result.why else f"{result.drop:+.2f} points lost"
                self._request.progress.advance(1, f"trial {name}: {text}")
        finally:
            self._request.progress.close()
        known = {(one.id, one.trial.phase): one for one in self._store.trials()}
        return [known[one.id, one.trial.phase] for one in planned]

    def _results(self, left: Sequence[StoredTrial]) -> Iterator[tuple[str, TrialResult]]:
        if self._cluster is not None:
            return self._cluster.run([(one.id, one.trial) for one in left], self._context, self._trials)
        jobs = [(one.id, partial(self._document, one.trial, one.id)) for one in left]
        return run_in_workers(jobs, self._trials, workers=self._request.settings.workers)

    def _may_be_repeated(self, one: StoredTrial) -> bool:
        """Did something outside end it? What it refuses itself it would refuse again."""
        return bool(one.result and one.result.why) and read_result(self._trials, one.id) is None

    def _document(self, trial: SweepTrial, name: str) -> dict[str, Any]:
        """What a worker does."""
        return result_json(trial, run_trial(self._context, trial, work=self._trials / f".work-{name}"))

    def _require_any(self, population: Sequence[StoredTrial]) -> None:
        if not any(one.kept for one in population):
            why = next((one.result.why for one in population if one.result is not None), "")
            raise InputError(
                f"all {len(population)} trials failed, the first because {why}",
                hint="`compile` with the same options says more; --resume tries again what something else ended",
            )


def _order(one: StoredTrial) -> tuple[float, str]:
    assert one.kept is not None, "only those that are kept are ordered"
    return one.kept.drop, one.id


def _least(trials: Sequence[StoredTrial]) -> StoredTrial:
    return min(trials, key=_order)


def _write(request: SweepRequest, build: Build, found: SweepFound) -> None:
    folder, best = build.folder, found.best
    why = f"the winner of {request.command}: {best.expected:.2f} points of {found.quality} lost"
    folder.write_json(DOCUMENT, sweep_json(found))
    folder.write_text(PAGE, sweep_html(found))
    folder.write_text(WINNER, winner_text(recipe_with(request.recipe, build.traced, best.widths), why=why))
    folder.write_manifest({"command": found.command, "model_sha256": build.sha256})
