"""Schedules fill a pattern while training: exact in the end, held, reproducible, and resumable to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deploypruner.errors import RecipeError
from deploypruner.recipe.sparse import SparseSettings
from deploypruner.registries import schedules
from deploypruner.schedules import sparse_regime
from deploypruner.schedules.dtp import DtpMasks
from deploypruner.schedules.pdp import PdpMasks
from deploypruner.sparsity.patterns import make_pattern
from deploypruner.sparsity.patterns.distribution import units_to_keep
from deploypruner.sparsity.training import Assigned, SparseRegime
from deploypruner.train.finetune import finetune
from tests.recover_models import QUICK, Images, interrupted_at, same

pytestmark = pytest.mark.slow

PATTERNS = ("unstructured", "1x4", "2x4", "4x4", "nm64", "2:4")
LAYERS = ("body.weight", "wide.weight")
SCHEDULES = tuple(schedules.describe(to="weights"))
QUICKLY = SparseSettings(every=2)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 1), nn.BatchNorm2d(8)
        self.body, self.wide, self.head = nn.Conv2d(8, 16, 3, padding=1), nn.Linear(16, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head(self.wide(self.body(x).relu().mean((2, 3))).relu())


def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


def regime(schedule: str, pattern: str = "unstructured", settings: SparseSettings = QUICKLY) -> SparseRegime:
    return sparse_regime(schedule)(LAYERS, make_pattern(pattern), settings)


def wanted(pattern: str) -> dict[str, int]:
    saliencies = [net().get_parameter(name).detach().square() for name in LAYERS]
    counts = units_to_keep(make_pattern(pattern), saliencies, 0.8, distribution="global")
    return dict(zip(LAYERS, counts, strict=True))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_training_ends_with_exactly_the_units_decided_before_it(schedule: str, pattern: str) -> None:
    student, chosen = net(), regime(schedule, pattern)
    finetune(student, None, Images(), QUICK, regime=chosen)
    for name, keep in wanted(pattern).items():
        weight = student.get_parameter(name).detach()
        mask = chosen.masks[name]
        whole = make_pattern(pattern).units(mask.float()).total(mask.float())
        assert torch.equal((whole > 0).sum(dim=1), torch.full((len(whole),), keep))
        assert torch.equal(weight != 0, mask)
        assert not torch.signbit(weight[~mask]).any()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_layer_may_have_a_pattern_and_a_share_of_its_own(schedule: str) -> None:
    own = {
        "body.weight": Assigned(make_pattern("1x4"), 0.5),
        "wide.weight": Assigned(make_pattern("unstructured"), 0.9),
    }
    student = net()
    chosen = sparse_regime(schedule)(LAYERS, own, QUICKLY)
    finetune(student, None, Images(), QUICK, regime=chosen)
    body, wide = (student.get_parameter(name).detach() for name in LAYERS)
    blocks = (body != 0).permute(0, 2, 3, 1).reshape(-1, 4)
    assert set(blocks.sum(dim=1).tolist()) == {0, 4}
    assert int((body == 0).sum()) == body.numel() // 2
    assert int((wide != 0).sum()) == round(wide.numel() * 0.1)
    assert [chosen.sparsity_of(name) for name in LAYERS] == [0.5, 0.9]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_validation_sees_the_final_sparsity_from_the_first_epoch_on(schedule: str) -> None:
    seen: list[int] = []

    def validate(module: nn.Module) -> float:
        seen.append(sum(int(torch.count_nonzero(module.get_parameter(name))) for name in LAYERS))
        return 0.0

    finetune(net(), None, Images(), QUICK, validate=validate, regime=regime(schedule))
    assert seen == [sum(wanted("unstructured").values())] * QUICK.epochs


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_masks_stay_as_they_are_in_the_last_part(schedule: str) -> None:
    student, chosen = net(), regime(schedule)
    chosen.begin(student, 10)
    masks = []
    for step in range(10):
        chosen.weights(step)
        with torch.no_grad():
            for name in LAYERS:
                student.get_parameter(name).copy_(torch.randn(student.get_parameter(name).shape))
        masks.append({name: mask.clone() for name, mask in chosen.masks.items()} if chosen.held else {})
    assert masks[8] != {}
    assert all(torch.equal(masks[8][name], masks[9][name]) for name in LAYERS)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_can_be_repeated_and_resumed_to_the_bit(schedule: str, pattern: str, tmp_path: Path) -> None:
    whole, parts, again, file = net(), net(), net(), tmp_path / "c.safetensors"
    finetune(whole, None, Images(), QUICK, regime=regime(schedule, pattern))
    with pytest.raises(KeyboardInterrupt):
        finetune(
            parts,
            None,
            Images(),
            QUICK,
            regime=regime(schedule, pattern),
            checkpoint=file,
            validate=interrupted_at(3),
        )
    history = finetune(
        again, None, Images(), QUICK, regime=regime(schedule, pattern), checkpoint=file, validate=lambda m: 0.0
    )
    assert history.resumed == 2
    assert same(whole, again)


def along(gradient: Tensor, direction: Tensor) -> float:
    return float((gradient * direction).sum())


def noise(like: Tensor, seed: int) -> Tensor:
    return torch.randn(like.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_gradients_of_dtp_scores_are_those_of_finite_differences(pattern: str) -> None:
    chosen = DtpMasks(LAYERS, make_pattern(pattern), SparseSettings(hardness=5.0))
    chosen.begin(net(), 100)
    kept, step = chosen.state(), 1e-2
    towards = noise(chosen.weight("body.weight"), 2)

    def value(score: Tensor) -> Tensor:
        chosen.load_state({**kept, "dtp.body.weight.score": score})
        return (chosen.soft("body.weight", 0.5) * towards).sum()

    start = kept["dtp.body.weight.score"].clone()
    direction = start * 0 + start  # scales all scores alike, so that no unit changes its members
    (gradient,) = torch.autograd.grad(value(start), chosen._scores["body.weight"])
    numeric = float((value(start + step * direction) - value(start - step * direction)).detach()) / (2 * step)
    assert numeric == pytest.approx(along(gradient, direction), rel=1e-2)
    assert numeric != 0


@pytest.mark.parametrize("pattern", PATTERNS)
def test_gradients_of_pdp_are_those_of_its_formula_with_a_fixed_threshold(pattern: str) -> None:
    student = net().double()
    chosen = PdpMasks(LAYERS, make_pattern(pattern), SparseSettings(temperature=2.0))
    chosen.begin(student, 100)
    weight, units = student.body.weight, chosen.units("body.weight")
    values = (units.total(weight.detach().square()) / units.sizes()).sqrt()
    order = values.sort(dim=1, descending=True).values
    share = 1.0 if pattern == "2:4" else 0.5
    keep = units.per_row - int(share * (units.per_row - chosen.keep["body.weight"]))
    threshold = (order[:, keep - 1] + order[:, keep])[:, None] / 2
    heat = 2.0 * float(values.square().std(correction=0)) / 2**0.5
    halfway = 0.35 - 1e-9  # of a ramp from 0.1 to 0.6; rounds down where half a unit would go

    def formula(at: Tensor) -> Tensor:
        soft = torch.sigmoid((units.total(at.square()) / units.sizes() - threshold**2) / heat)
        return torch.lerp(at, units.spread(soft) * at, 0.5 if pattern == "2:4" else 1.0)

    towards, direction, step = noise(weight, 2), noise(weight, 3), 1e-6
    soft = chosen.soft("body.weight", halfway)
    torch.testing.assert_close(soft, formula(weight))
    (gradient,) = torch.autograd.grad((soft * towards).sum(), weight)
    start = weight.detach()
    numeric = along(formula(start + step * direction) - formula(start - step * direction), towards) / (2 * step)
    assert numeric == pytest.approx(along(gradient, direction), rel=1e-5)


def test_the_gradual_ramp_goes_down_as_one_minus_the_cube() -> None:
    student = net()
    chosen = regime("gradual", "unstructured", SparseSettings(start=0.0, reached=0.5, held=0.5, every=1))
    chosen.begin(student, 40)
    total = sum(student.get_parameter(name).numel() for name in LAYERS)
    zeros = [sum(int((w == 0).sum()) for w in chosen.weights(step).values()) / total for step in range(21)]
    assert zeros[0] == 0
    assert zeros == sorted(zeros)
    assert zeros[10] == pytest.approx(0.8 * (1 - 0.5**3), abs=2 / total)
    assert zeros[20] == pytest.approx(0.8, abs=2 / total)


def test_two_of_four_goes_down_one_weight_of_four_at_a_time() -> None:
    chosen = regime("gradual", "2:4", SparseSettings(start=0.0, reached=0.5, held=0.5, every=1))
    chosen.begin(net(), 40)
    kept = [int((chosen.weights(step)["body.weight"] != 0).sum()) / 1152 for step in range(21)]
    assert list(dict.fromkeys(kept)) == [1.0, 0.75, 0.5]


def test_dtp_learns_to_keep_what_the_loss_needs_and_decides() -> None:
    # Magnitudes say nothing here: the first half of the inputs matters, whatever their weights.
    torch.manual_seed(0)
    student = nn.Linear(16, 1, bias=False)
    student.weight.data.fill_(1.0).add_(0.01 * torch.randn(1, 16))
    chosen = DtpMasks(("weight",), make_pattern("unstructured"), SparseSettings(sparsity=0.5, start=0.0, reached=0.1))
    chosen.begin(student, 400)
    for step in range(400):
        x = torch.randn(32, 16)
        loss = (x @ chosen.weights(step)["weight"].T - x[:, :8].sum(1, keepdim=True)).square().mean()
        for group in chosen.parameter_groups():
            for parameter in group["params"]:
                parameter.grad = None
        loss.backward()
        student.weight.grad = None
        chosen.after_step(step)
    assert chosen.masks["weight"].tolist() == [[True] * 8 + [False] * 8]
    assert chosen.undecided() == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sparsity": 1.0}, r"--sparsity is the share of weights that become zero, between 0 and 1, got 1"),
        ({"sparsity": 0.0}, r"got 0"),
        ({"distribution": "globl"}, r"no distribution called 'globl'[\s\S]*did you mean 'global'"),
        ({"layers": ("1x1", "convs")}, r"no kind of layer called 'convs'[\s\S]*did you mean 'conv'"),
        ({"layers": ()}, r"--sparse-layers names nothing"),
        ({"start": 0.7}, r"shares of the training in this order, got 0.7, 0.6 and 0.8"),
        ({"every": 0}, r"sparse.every must be positive, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        SparseSettings(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"ema": 0.9}, {"amp": "bf16"}, {"devices": 2, "ema": 0.9, "amp": "fp16"}])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_masks_stay_exact_with_averaged_weights_16_bits_and_two_processes(
    schedule: str, change: dict[str, object]
) -> None:
    if "devices" in change:
        pytest.importorskip("lightning_fabric")
    student, chosen = net(), regime(schedule)
    finetune(student, None, Images(), replace(QUICK, **change), regime=chosen)
    for name, keep in wanted("unstructured").items():
        weight = student.get_parameter(name).detach()
        assert int(torch.count_nonzero(weight)) == keep
        assert torch.equal(weight != 0, chosen.masks[name])
