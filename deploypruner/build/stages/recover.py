"""recover: layers solved anew, batch-norm statistics for the narrower layers, then fine-tuning."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from safetensors.torch import load_file
from torch import nn

from deploypruner.build.artifacts import write_state
from deploypruner.build.evaluate import Validation, distance, validation
from deploypruner.build.feeds import training_batches
from deploypruner.build.judging import make_judge
from deploypruner.build.register import stages
from deploypruner.build.results import Recovery
from deploypruner.build.sparsity import existing_zeros, find_zeros, make_regime
from deploypruner.build.stage import Stage, stage_file
from deploypruner.build.state import Build
from deploypruner.errors import InputError
from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.records import ACCURACY, Cost
from deploypruner.sources.foreign import foreign
from deploypruner.sparsity.training import SparseRegime
from deploypruner.sparsity.training.existing import ExistingZeros
from deploypruner.sparsity.training.zeros import describe_zeros
from deploypruner.train.batchnorm import reestimate_batchnorm
from deploypruner.train.budget import recovery_defaults
from deploypruner.train.features import Features, find_features
from deploypruner.train.finetune import finetune
from deploypruner.train.hook import SIGNATURE, hook_name, load_hook, run_hook
from deploypruner.train.loop import steps_per_epoch
from deploypruner.train.reconstruct import can_reconstruct
from deploypruner.train.renormalise import renormalise_batchnorm

_CHECKPOINT = stage_file("finetune.safetensors")
_OUTLOOK = stage_file("finetune.json")
_BATCH = 64
_NO_BETTER = "training made it no better: the weights from before it stay"


@stages.register("recover")
class Recover(Stage):
    """Reconstruct layers, re-estimate batch norm, fine-tune with the dense model as teacher, re-estimate again."""

    name: ClassVar[str] = "recover"
    needs: ClassVar[tuple[str, ...]] = ("assign",)
    reads: ClassVar[tuple[str, ...]] = (
        *("prune.patterns", "recover", "sparse", "search.held_out", "measure.samples", "seed"),
    )
    # After training that diverged, or that was going to take too long.
    changeable: ClassVar[tuple[str, ...]] = ("recover.settings.lr", "recover.epochs")
    saves: ClassVar[tuple[str, ...]] = (stage_file("recovered.safetensors"), stage_file("recover.json"))

    def run(self, build: Build) -> Build:
        """Train the pruned module in place and save its weights."""
        module = build.compiled
        existing = existing_zeros(build)
        # Before any mask: solving a layer moves every weight of it.
        done = Recovery(*(_reconstruct(build, module) if _reconstructs(build, existing) else ()))
        regime = existing or make_regime(build, trains=_trains(build))
        if regime is not None and not regime.trains:
            regime.begin(module, 0)
            regime.finish(module)
        if build.data is not None:
            # What was solved fits the statistics in use, so that those are set anew without a change of the function;
            # zeros that came after it have changed the function already.
            keep = regime is None and done.reconstructed_layers is not None
            done = _recover(build, module, regime, done, keep=keep)
        if regime is not None:
            done = replace(done, sparse=find_zeros(build, regime))
        module.eval()
        write_state(build.folder, self.saves[0], module)
        build.folder.write_json(self.saves[1], done.to_json())
        return _with_cost(build, done)

    def restore(self, build: Build) -> Build:
        """Read the recovered weights of an earlier run."""
        build.compiled.load_state_dict(load_file(build.folder.path(self.saves[0])))
        build.compiled.eval()
        return _with_cost(build, Recovery.from_json(build.folder.read_json(self.saves[1])))

    def document(self, build: Build) -> str:
        """Accuracy along the way."""
        done = build.recovery
        sparse = [] if done.sparse is None else [describe_zeros(done.sparse)]
        if build.data is None:
            rest = "other weights" if sparse else "weights"
            return ", ".join([*sparse, f"no data: {rest} stay as they are, accuracy is not recovered"])
        steps = [
            *filter(None, [_solved(done)]),
            *sparse,
            f"batch norm re-estimated over {done.batchnorm_layers} layers",
        ]
        if done.epochs:
            by = f" by {done.loss}" if done.loss else ""
            steps.append(f"{done.epochs} epoch{'' if done.epochs == 1 else 's'}{by}")
        if done.best_epoch is not None:
            steps.append(f"the weights of epoch {done.best_epoch}" if done.best_epoch else _NO_BETTER)
        if done.mimicked:
            steps.append("dense features mimicked")
        if done.accuracy_dense is not None:
            metric = done.metric or ACCURACY
            shown = "{:.2f}" if metric.unit == "%" else "{:.4g}"
            values = (done.accuracy_dense, done.accuracy_removed, done.accuracy_recovered)
            path = " -> ".join(shown.format(value) for value in values if value is not None)
            steps.append(f"{metric.name} dense -> removed -> recovered: {path} {metric.unit}".rstrip())
        if done.distance is not None:
            path = f"{done.distance_removed:.4g} -> {done.distance_recovered:.4g}"
            steps.append(f"{done.distance}, removed -> recovered: {path}")
        return ", ".join(steps)


def _trains(build: Build) -> bool:
    """Will the built-in fine-tuning run?"""
    recipe = build.recipe.recover
    return build.data is not None and recipe.trains and not recipe.train and build.given.train is None


def _recover(build: Build, module: nn.Module, regime: SparseRegime | None, done: Recovery, *, keep: bool) -> Recovery:
    assert build.data is not None, "there is no data"
    recipe, data = build.recipe.recover, build.data
    done = replace(done, batchnorm_layers=reestimate(build, module, keep_function=keep))
    hook = load_hook(recipe.train) if build.given.train is None and recipe.train else build.given.train
    found = validation(build)
    if found is not None:
        done = replace(
            done,
            accuracy_dense=_value(build, found, build.traced.module, "dense"),
            accuracy_removed=_value(build, found, module, "removed"),
            metric=None if found.metric == ACCURACY else found.metric,
        )
    if hook is not None:
        name = recipe.train if build.given.train is None else hook_name(hook)
        with foreign(f"training function '{name}' raised", hint=f"expected {SIGNATURE}"):
            run_hook(hook, module, build.traced.module, data)
        if regime is not None:
            regime.finish(module)  # it may have brought weights back
        done = replace(done, train=name)
        reestimate(build, module)
    elif recipe.trains:
        return _train(build, module, regime, found, done)
    return done if found is None else replace(done, accuracy_recovered=_value(build, found, module, "recovered"))


def _value(build: Build, found: Validation, module: nn.Module, which: str) -> float:
    """What a module is judged at; the user sees what is waited for."""
    build.progress.start(0, f"{found.metric.name}, {which}")
    try:
        return found.value(module)
    finally:
        build.progress.close()


def _gap(found: Validation | None, done: Recovery) -> float | None:
    """Points between the dense model and the pruned one before training, None without labels."""
    if found is None or done.accuracy_dense is None or done.accuracy_removed is None:
        return None
    return found.metric.lost(done.accuracy_dense, done.accuracy_removed)


def _train(
    build: Build, module: nn.Module, regime: SparseRegime | None, found: Validation | None, done: Recovery
) -> Recovery:
    """Fine-tune; adds the epochs that ran, and whether features were mimicked in evaluation mode.

    A module that validates worse than before gets its old weights back, unless masks were trained with them.
    """
    assert build.data is not None, "there is no data"
    data, features = build.data, find_features(build.traced, build.planned.keep, module)
    settings = _settings(build, module, features, _gap(found, done))
    judged, weights = found or distance(build), {name: t.clone() for name, t in module.state_dict().items()}
    before = judged.value(module) if found is None or done.accuracy_removed is None else done.accuracy_removed
    start = judged.score(module, known=before)
    path = build.folder.claim(_CHECKPOINT)
    history = finetune(
        module,
        build.traced.module,
        data.train,
        settings,
        checkpoint=path,
        progress=build.progress,
        validate=judged.score,
        regime=regime,
        features=features,
        loss=build.loss,
    )
    path.unlink(missing_ok=True)
    build.folder.discard(_OUTLOOK)
    if not settings.freeze_batchnorm:
        reestimate(build, module)
    held, ran, after = history.held, len(history.epochs), _value(build, judged, module, "recovered")
    if regime is None and not judged.score(module, known=after) >= start:
        module.load_state_dict(weights)
        held, after = 0, before
    if found is None:
        name = judged.metric.name
        done = replace(done, distance=name, distance_removed=before, distance_recovered=after)
    else:
        done = replace(done, accuracy_recovered=after)
    return replace(
        done,
        epochs=ran,
        loss=build.loss.trained_by(labelled=data.train.labelled) or None,
        best_epoch=None if held == ran else held,
        mimicked=True if settings.freeze_batchnorm else None,
    )


def _settings(build: Build, module: nn.Module, features: Features | None, gap: float | None) -> FinetuneSettings:
    """Of the fine-tuning; what nobody said follows from the data, and is said before."""
    assert build.data is not None, "there is no data"
    recipe, train = build.recipe.recover, build.data.train
    asked = replace(recipe.settings, seed=build.recipe.seed)
    if recipe.epochs != "auto":
        return replace(asked, epochs=recipe.epochs)
    # A build that goes on keeps to what it said: a step may take another time now, but the checkpoint is for this.
    key = f"{asked} {recipe.minutes} {gap}"
    if build.folder.has(_OUTLOOK) and (said := build.folder.read_json(_OUTLOOK))["key"] == key:
        return replace(asked, **said["settings"])
    samples = train.samples or asked.batch_size * steps_per_epoch(train, asked)
    outlook = recovery_defaults(
        asked,
        samples=samples,
        labelled=train.labelled,
        gap=gap,
        seconds_per_step=lambda s: build.clock.training_step(
            module, build.traced.module, train, s, features=features
        ),
        minutes=recipe.minutes,
    )
    build.say(f"remark: training takes {outlook.text}; --epochs asks for more or less")
    changed = {k: v for k, v in vars(outlook.settings).items() if v != getattr(asked, k)}
    build.folder.write_json(_OUTLOOK, {"key": key, "settings": changed})
    return outlook.settings


def _reconstructs(build: Build, existing: ExistingZeros | None) -> bool:
    """Are the layers to be solved anew? Not where zeros are to stay: the solution needs all weights."""
    asked = build.recipe.recover.reconstruct
    if existing is not None and asked == "auto":
        return False
    return build.data is not None and (asked is True or (asked == "auto" and can_reconstruct(build.traced)))


def _solved(done: Recovery) -> str:
    """ "21 layers reconstructed, a half of the correction"; "" where none was tried."""
    if done.reconstructed_layers is None:
        return ""
    if done.reconstructed_part == 0:
        return f"no layer reconstructed: the {done.reconstructed_layers} that could be do better as they are"
    text = f"{done.reconstructed_layers} layers reconstructed"
    part = done.reconstructed_part
    return (
        text
        if part in (None, 1)
        else f"{text} (with {100 * part:.0f} % of the correction, which does better than all)"
    )


def _reconstruct(build: Build, module: nn.Module) -> tuple[int, float]:
    """Solve the layers anew on training data as training sees it; how many, and the part of the correction kept."""
    _, found = make_judge(build).repair(module, build.planned.keep, progress=build.progress)
    if found is None:
        raise InputError(
            "layers can be reconstructed in models that torch.export traces, and this one it could not trace",
            hint="leave reconstruct out; batch norm and fine-tuning work on every model",
        )
    return len(found.errors), found.part


def reestimate(build: Build, module: nn.Module, *, keep_function: bool = False) -> int:
    """Re-estimate batch norm on the data as training saw it; returns the number of layers.

    Augmented: the zero border of a random crop alone changed ResNet-20's first variance by 1.6x on CIFAR-10, and
    statistics of plain images cost a network trained on crops 3 to 4 points.
    """
    count, augment = build.recipe.recover.batchnorm_batches, build.recipe.recover.settings.augment
    batches = training_batches(build, batch_size=_BATCH, count=count, augment=augment)
    measure = renormalise_batchnorm if keep_function else reestimate_batchnorm
    return measure(module, batches, max_batches=count)


def _with_cost(build: Build, done: Recovery) -> Build:
    plan = build.planned
    parameters = {id(p): p for p in build.compiled.parameters()}.values()
    nonzero = sum(int(torch.count_nonzero(p)) for p in parameters)
    cost = Cost(plan.macs_after, plan.params_after, nonzero)
    return replace(build, pruned=cost, recovery=done)
