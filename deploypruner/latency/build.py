"""Build the latency model of a traced graph: export a few probes, time many, bind what was executed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deploypruner.device.machine import Machine
from deploypruner.graph import Graph
from deploypruner.graph.dependency import Keep
from deploypruner.latency.cache import Cache, fingerprint
from deploypruner.latency.model import LatencyModel
from deploypruner.latency.nodes import bind
from deploypruner.latency.overhead import NODE, find_overhead
from deploypruner.latency.plans import probe_plans, reference_plan
from deploypruner.latency.probes import ProbeFiles, ProbeTimer, Profile, one_sample, undisturbed_ns
from deploypruner.latency.quality import LatencyQuality
from deploypruner.progress import Progress, SilentProgress
from deploypruner.quantize.placement import placement_in
from deploypruner.records import Setting
from deploypruner.scratch import scratch

PROBES = 14
# Fewer tell too little about any layer; they are timed however little time is left.
FEWEST = 4
# A kind of operation with as many timings, from whatever models, needs no more.
ENOUGH = 6
_SECONDS_EACH = 0.35
# Probes between two lines of a log.
_MILESTONE = 5


def build_latency_model(
    graph: Graph,
    setting: Setting,
    *,
    cache: Path | None = None,
    seconds: float = 120.0,
    step: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
    machine: Machine | None = None,
) -> LatencyModel:
    """The latency model of one setting; see `build_latency_models`."""
    return build_latency_models(
        graph, [setting], cache=cache, seconds=seconds, step=step, seed=seed, progress=progress, machine=machine
    )[0]


def build_latency_models(
    graph: Graph,
    settings: Sequence[Setting],
    *,
    cache: Path | None = None,
    seconds: float = 120.0,
    step: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
    machine: Machine | None = None,
) -> list[LatencyModel]:
    """Time probes of a graph in several settings and model what any plan takes.

    Args:
        graph: The traced model.
        settings: What to predict; they share the exports.
        cache: Folder of earlier timings; None for the default one.
        seconds: About how long it may take; when that is short there are fewer probes, and the model says so.
        step: Probes have widths that are multiples of this, as plans will.
        seed: Of the probes' widths.
        progress: Told about every probe.
        machine: Whose time it is; this one where None.

    Raises:
        MeasureError: The model cannot be exported, a runtime does not tell what each operation takes, or a worker
            failed.
        RecipeError: No such runtime.
    """
    begin, bar, machine = time.monotonic(), progress or SilentProgress(), machine or Machine()
    caches = [Cache(cache, setting, machine) for setting in settings]
    names = [_name(fingerprint(graph), setting) for setting in settings]
    found = [one.model(name) for one, name in zip(caches, names, strict=True)]
    missing = [i for i, one in enumerate(found) if one is None]
    models = dict[int, LatencyModel]()
    bar.start(1 + len(missing) * PROBES, "latency model")
    try:
        for i, known in enumerate(found):
            if known is not None:
                nodes, quality = known
                models[i] = LatencyModel(graph, settings[i], nodes=nodes, points=caches[i].points, quality=quality)
        kinds = {i: (settings[i].floats, placement_in(settings[i].runtime)) for i in missing}
        for floats, placement in dict.fromkeys(kinds.values()):
            alike = [i for i in missing if kinds[i] == (floats, placement)]
            precisions = [settings[i].precision for i in alike]
            with scratch() as folder:
                files = ProbeFiles(graph, precisions, folder, seed=seed, floats=floats, placement=placement)
                bar.advance(1, "probes exported")
                plans = probe_plans(graph, PROBES, step=step, seed=seed)
                work = _Work(graph, files, plans, step, bar, machine)
                for i in alike:
                    left = sum(other not in models for other in missing)
                    share = (seconds - (time.monotonic() - begin)) / left
                    models[i] = _build(work, settings[i], caches[i], name=names[i], seconds=share)
    finally:
        bar.close()
    return [models[i] for i in range(len(settings))]


@dataclass(frozen=True)
class _Work:
    """What the settings of one call share."""

    graph: Graph
    files: ProbeFiles
    plans: Sequence[Keep]
    step: int
    bar: Progress
    machine: Machine


def _build(work: _Work, setting: Setting, cache: Cache, *, name: str, seconds: float) -> LatencyModel:
    """Learn the operations; time probes unless other models have had the same ones; keep what was found."""
    graph, files = work.graph, work.files
    probes = work.plans if files.drops(setting.precision) else [_whole(graph, keep) for keep in work.plans]
    plans, timed = [*files.learnt, *files.without(setting.precision)], list[Profile]()
    branches = files.lengths.branches
    with ProbeTimer(setting, one_sample(graph), work.machine.device) as timer:
        known = [_profile(timer, files.write(keep, setting.precision), seconds=0) for keep in plans]
        nodes = bind([profile.nodes for profile in known], files.counts(plans), branches)
        if any(cache.points.count(node.key) < ENOUGH for node in nodes):
            timed = _time(work, probes, setting, timer, end=time.monotonic() + seconds)
            plans += probes[: len(timed)]
            seen = [profile.nodes for profile in [*known, *timed]]
            nodes = bind(seen, files.counts(plans), branches, warm=len(known))
    points, ms = cache.points.copy(), list[float]()
    if timed:
        reference = undisturbed_ns(timed)
        ms = [profile.ms(reference) for profile in timed]
        overhead = find_overhead(timed, ms)
        points.add(NODE.key, (), max(round(overhead.call_ns, 1), 1.0))
        for profile, total in zip(timed, ms, strict=True):
            points.add_profile(nodes, overhead.shared_out(profile, total))
    for profile in known:
        points.add_profile(nodes, profile.nodes, only_new=True)
    nodes = (*nodes, NODE) if points.has(NODE.key) else nodes
    short = 0 < len(timed) < len(probes)
    remarks = [f"{len(timed)} of {len(probes)} probes fitted into the time"] if short else []
    model = LatencyModel(graph, setting, nodes=nodes, points=points, quality=LatencyQuality(None, 0, 0.0))
    quality = replace(model.judged(probes[: len(timed)], ms), remarks=tuple(remarks))
    if not short:
        cache.write(name, nodes, quality, points)
    if cache.remark:
        quality = replace(quality, remarks=(*quality.remarks, cache.remark))
    return LatencyModel(graph, setting, nodes=nodes, points=points, quality=quality)


def _name(model: str, setting: Setting) -> str:
    """Of a model in the cache of its setting; another one for other layers in float."""
    if not setting.floats:
        return model
    return hashlib.sha256("\n".join([model, *sorted(setting.floats)]).encode()).hexdigest()


def _whole(graph: Graph, keep: Keep) -> Keep:
    """A plan with all its branches."""
    gone = graph.dropped(keep)
    return {name: kept for name, kept in keep.items() if name not in gone}


def _profile(timer: ProbeTimer, path: Path, *, seconds: float) -> Profile:
    """Time a probe, of which nothing stays on the machine."""
    found = timer.profile(path, seconds=seconds)
    timer.drop(path)
    return found


def _time(work: _Work, plans: Sequence[Keep], setting: Setting, timer: ProbeTimer, *, end: float) -> list[Profile]:
    """Time probes until all are done or the time is over."""
    timer.refer_to(work.files.write(reference_plan(work.graph, work.step), setting.precision))
    timed: list[Profile] = []
    for keep in plans:
        if len(timed) >= FEWEST and time.monotonic() >= end:
            break
        timed.append(_profile(timer, work.files.write(keep, setting.precision), seconds=_SECONDS_EACH))
        milestone = len(timed) % _MILESTONE == 0 or len(timed) == len(plans)
        work.bar.advance(1, f"{setting}: probe {len(timed)} of {len(plans)}" if milestone else "")
    return timed
