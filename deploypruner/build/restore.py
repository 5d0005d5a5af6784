"""A compiled model from its build folder and fresh code: a plan and weights, no pickle."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from deploypruner.atomic import file_sha256
from deploypruner.build.folder import BuildFolder
from deploypruner.channels.own_class import in_place_of_part, own_class
from deploypruner.channels.plan import Plan
from deploypruner.channels.retrace import retrace
from deploypruner.errors import InputError, PlanError, said_by
from deploypruner.reading import check_present, read_json


def restore(model: nn.Module, folder: str | Path, *, as_graph: bool = False) -> nn.Module:
    """Rebuild the compiled model.

    The result is of the user's own class where that class can take the pruned sizes and then computes what the
    compiled model does, on two batch sizes and in training mode; else it is the traced graph, which always works.
    What the build does not hold comes from `model`: batch-norm counters, and layers that inference never runs, such
    as auxiliary heads. A model that was traced in part is put together again around that part.

    Args:
        model: Dense model the build started from; its weights do not matter, and it is not changed.
        folder: Build folder with `plan.json` and `weights.safetensors`.
        as_graph: Whether the traced graph is given in any case.

    Returns:
        The pruned and recovered module in eval mode, trainable.

    Raises:
        InputError: A file is missing or damaged.
        PlanError: The plan was made for another model; the first difference is named.
    """
    root = Path(folder)
    _check_unchanged(root)
    plan = Plan.from_json(_read_json(root / "plan.json"))
    state = _read_state(root / "weights.safetensors")
    try:
        graph = retrace(plan, model)
        removed = graph.removed(plan.keep)
        pruned = graph.cut(removed)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        raise PlanError(
            f"{root / 'plan.json'} cannot be applied to this model: {said_by(error)}", hint="compile again"
        ) from error
    _load(pruned, state, root / "weights.safetensors")
    if graph.part:
        return in_place_of_part(graph, removed, pruned, as_graph=as_graph).eval()
    if not as_graph:
        try:
            return own_class(graph, removed, model, pruned).eval()
        except PlanError:
            pass  # the class cannot have these sizes
    return pruned.eval()


def _check_unchanged(root: Path) -> None:
    """Compare plan and weights with the manifest, where the folder has one: both were written by one build."""
    listed = BuildFolder(root).manifest().get("sha256", {})
    for name in ("plan.json", "weights.safetensors"):
        told = listed.get(name)
        if told is not None and (root / name).is_file() and file_sha256(root / name) != told:
            raise InputError(
                f"{root / name} is not what its build wrote: its sha256 differs from the manifest's",
                hint="copy the whole build folder again, or compile again",
            )


def _load(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise PlanError(f"{path} does not fit the pruned model: {first}", hint="compile again") from error


def _read_state(path: Path) -> dict[str, Tensor]:
    missing = f"{path.parent} is not a finished build folder"
    check_present(path, what="weights", hint=missing, native=True, empty="compile again")
    try:
        state: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is truncated or corrupt: {error}", hint="compile again") from error
    return state


def _read_json(path: Path) -> dict[str, object]:
    found = read_json(path, what="plan", hint="compile again", missing=f"{path.parent} is not a build folder")
    if not isinstance(found, dict):
        raise InputError(f"plan '{path}' is damaged: it is no JSON object", hint="compile again")
    return found
