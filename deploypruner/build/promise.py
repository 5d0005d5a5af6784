"""Budget and quality that the user was promised, at the end of a build."""

from __future__ import annotations

import math
from pathlib import Path

from deploypruner.build.points import fastest_keeping, point_sentence, points_of
from deploypruner.build.sparsity import fewer_zeros
from deploypruner.build.state import Build
from deploypruner.build.timed import longer
from deploypruner.errors import BudgetError, VerificationError
from deploypruner.recipe.budget import Budget
from deploypruner.report.advice import milder
from deploypruner.report.units import quality_sentence
from deploypruner.search.certify import Certificate
from deploypruner.search.kept import Kept, quality_kept


def kept_of(build: Build) -> Kept | None:
    """Whether the artifact that the budget is about keeps the quality; None where nothing is known about it."""
    if build.data is None:
        return None
    found = build.found
    return quality_kept(
        build.rows,
        drop=build.recipe.measure.accuracy_drop,
        setting=None if found is None else found.setting,
        artifact="" if found is None else found.artifact,
    )


def require_verified(build: Build) -> None:
    """Refuse what failed a check, once everything is written.

    Raises:
        VerificationError: The first check that failed is named.
    """
    failed = [c for c in build.checks if not c.passed]
    if failed:
        first = failed[0]
        raise VerificationError(
            f"{first.name}: max |difference| {first.max_abs_diff:.2e}, allowed {first.tolerance:.2e} {first.detail}"
            + (f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""),
            hint=f"{build.folder.path('report.json')} lists every check; do not deploy these files",
            finished=True,
        )


def require_met(build: Build) -> None:
    """A budget of time that the final artifact does not keep, or that nobody could check, is a promise not kept."""
    certificate, budget = build.certificate, build.recipe.prune.budget
    kept = kept_of(build)
    if kept is not None and not kept.kept:
        raise BudgetError(
            f"{kept.artifact} on {kept.runtime} is refused: " + quality_sentence(kept.to_json()),
            hint=f"{_milder(build)}, train longer with --epochs, or allow --accuracy-drop {math.ceil(kept.lost):g}"
            + _kept_by(build, kept),
            finished=True,
        )
    if certificate is not None:
        require_certified(certificate, budget, build.folder.root)


def require_certified(certificate: Certificate, budget: Budget, root: Path) -> None:
    """Refuse a finished build whose budget of time is missed, or could not be certified.

    Args:
        certificate: What the measurement says.
        budget: What was asked for.
        root: Folder of the build.

    Raises:
        BudgetError: It is.
    """
    if certificate.met:
        return
    unit = "x" if budget.speedup is not None else " ms"
    value = "nothing" if certificate.measured is None else f"{certificate.measured:.3g}{unit}"
    measured = f"{certificate.artifact}: measured {value}"
    again = f"the files in {root} are finished; {longer(root, 0)} measures again"
    if certificate.met is None:
        raise BudgetError(
            f"{budget} cannot be certified: {certificate.doubt} ({measured})",
            hint=f"stop what else runs: {again}",
            finished=True,
        )
    raise BudgetError(
        f"{budget} is missed: {measured}, and its 95 % interval ends at {certificate.bound:.3g}{unit}, which counts",
        hint=f"{again}, or ask for a little more",
        finished=True,
    )


def _kept_by(build: Build, kept: Kept) -> str:
    """The fastest point that was measured and keeps it, in a clause; "" where none does."""
    found = fastest_keeping([point.document for point in points_of(build)], kept.allowed)
    return "" if found is None else f"; the fastest that was measured and keeps it: {point_sentence(found)}"


def _milder(build: Build) -> str:
    """A budget that is likelier to keep the quality, in the words of the command line."""
    budget, found = build.recipe.prune.budget, build.found
    if found is not None and found.judged is not None and found.judged.keeps is not None:
        keeps = found.judged.keeps
        reach = f"--speedup {found.dense_ms / keeps:.3g}" if budget.speedup else f"--latency {keeps:.3g}ms"
        return f"{reach} is predicted to keep it without any training"
    if zeros := fewer_zeros(build.recipe):
        return f"ask for fewer zeros, such as {zeros}"
    asked = found.goal(budget).requested if found is not None else budget.macs
    dense = {} if found is None else {"dense_ms": found.dense_ms, "quantile": budget.quantile}
    option, value = milder({"kind": budget.kind, "requested": asked, **dense})
    return f"ask for less, such as {option} {value}"
