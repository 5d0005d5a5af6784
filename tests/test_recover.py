from __future__ import annotations

import copy
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploypruner.errors import InputError, RecipeError
from deploypruner.progress import BarProgress, LineProgress, progress_for
from deploypruner.recover.batches import Batch
from deploypruner.recover.batchnorm import reestimate_batchnorm
from deploypruner.recover.finetune import FinetuneSettings, finetune
from deploypruner.recover.hook import load_hook, run_hook
from deploypruner.recover.losses import distillation_loss, first_output, label_loss, recovery_loss
from deploypruner.recover.settings import learning_rate
from deploypruner.recover.validate import top1_percent

CLASSES = 3


class Net(nn.Module):
    def __init__(self, dropout: float = 0.25) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(F.relu(self.bn(self.conv(x)))).mean(dim=(2, 3)))


@dataclass
class Images:
    """Pictures whose brightness tells the class."""

    count: int = 40
    labelled: bool = True
    poison: int | None = None  # the epoch seed whose data is NaN

    @property
    def samples(self) -> int:
        return self.count

    def epoch(self, *, batch_size: int, seed: int, shuffle: bool, augment: bool) -> Iterator[Batch]:
        fixed = torch.Generator().manual_seed(0)
        y = torch.randint(0, CLASSES, (self.count,), generator=fixed)
        x = torch.randn(self.count, 1, 5, 5, generator=fixed) * 0.3 + y.view(-1, 1, 1, 1)
        varied = torch.Generator().manual_seed(seed)
        order = torch.randperm(self.count, generator=varied) if shuffle else torch.arange(self.count)
        if shuffle and self.poison == seed:
            x = x * math.nan
        for rows in order.split(batch_size):
            yield (x[rows],), y[rows] if self.labelled else None


def net(seed: int = 0, dropout: float = 0.25) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(dropout)


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


QUICK = FinetuneSettings(epochs=3, batch_size=8, lr=0.05)


# --- batch-norm statistics ---------------------------------------------------------------------------------


def test_statistics_of_two_batches_by_hand() -> None:
    bn = nn.BatchNorm1d(1)
    batches = [((torch.tensor([[0.0], [2.0]]),), None), ((torch.tensor([[4.0], [10.0]]),), None)]
    assert reestimate_batchnorm(bn, batches, max_batches=8) == 1
    assert bn.running_mean is not None
    assert bn.running_var is not None
    assert bn.running_mean.item() == pytest.approx((1 + 7) / 2)
    assert bn.running_var.item() == pytest.approx((2 + 18) / 2)  # unbiased: divided by one
    assert bn.num_batches_tracked == 2


def cumulative(model: Net, batches: list[Batch]) -> Net:
    """PyTorch's own cumulative average, dropout off."""
    reference = copy.deepcopy(model).eval()
    reference.bn.momentum = None
    reference.bn.reset_running_stats()
    reference.bn.train()
    with torch.no_grad():
        for inputs, _ in batches:
            reference(*inputs)
    return reference


@pytest.mark.parametrize("momentum", [0.1, 0.003, 1.0, None])
def test_statistics_equal_the_cumulative_average_whatever_the_momentum(momentum: float | None) -> None:
    model = net()
    model.bn.momentum = momentum
    batches = list(Images().epoch(batch_size=10, seed=1, shuffle=True, augment=False))
    reference = cumulative(model, batches)
    assert reestimate_batchnorm(model, batches, max_batches=4) == 1
    torch.testing.assert_close(model.state_dict(), reference.state_dict(), rtol=2e-6, atol=2e-6)


def traced(model: nn.Module, x: Tensor) -> nn.Module:
    """The exported training graph, whose batch norm is a function call and not a module."""
    batch = torch.export.Dim("batch", min=2, max=4096)
    return torch.export.export(model.train(), (x,), dynamic_shapes=({0: batch},)).module()


def test_batch_norm_inside_an_exported_graph_is_measured_alike() -> None:
    model = net()
    model.bn.momentum = 0.03
    batches = list(Images().epoch(batch_size=10, seed=1, shuffle=True, augment=False))
    reference = cumulative(model, batches)
    graph = traced(model, batches[0][0][0])
    # An exported module refuses train(); the pruned module of this package has its own.
    graph.train = lambda mode=True: graph  # type: ignore[method-assign, assignment]
    assert not any(isinstance(part, nn.BatchNorm2d) for part in graph.modules())
    assert reestimate_batchnorm(graph, batches, max_batches=4) == 1
    for name in ("bn.running_mean", "bn.running_var", "bn.num_batches_tracked"):
        torch.testing.assert_close(
            graph.state_dict()[name], reference.state_dict()[name], rtol=2e-6, atol=2e-6, msg=name
        )


def test_measuring_statistics_leaves_parameters_mode_and_random_state_alone() -> None:
    model = net().eval()
    model.drop.train()
    before = copy.deepcopy(model)
    state = torch.get_rng_state()
    data = Images().epoch(batch_size=10, seed=1, shuffle=True, augment=False)
    reestimate_batchnorm(model, data, max_batches=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in model.modules()] == [part.training for part in before.modules()]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    assert model.bn.num_batches_tracked == 2


class Fixed(nn.Module):
    """Uses its running statistics but never updates them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.tensor([3.0]))
        self.register_buffer("running_var", torch.tensor([4.0]))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, training=False)


def test_frozen_statistics_are_kept_and_used() -> None:
    model = nn.Sequential(Fixed(), nn.BatchNorm1d(1))
    batch = ((torch.tensor([[1.0], [5.0]]),), None)  # the frozen layer makes -1 and 1 of it
    assert reestimate_batchnorm(model, [batch], max_batches=1) == 1
    assert model[0].running_mean.item() == 3.0
    assert model[1].running_mean.item() == pytest.approx(0.0, abs=1e-5)
    assert model[1].running_var.item() == pytest.approx(2.0, rel=1e-5)


def test_a_network_whose_statistics_are_all_frozen_changes_nothing() -> None:
    model = Fixed()
    assert reestimate_batchnorm(model, [((torch.ones(2, 1),), None)], max_batches=1) == 0
    assert (model.running_mean.item(), model.running_var.item()) == (3.0, 4.0)


def test_a_network_without_batch_norm_changes_nothing() -> None:
    model = nn.Linear(2, 2)
    before = copy.deepcopy(model)
    assert reestimate_batchnorm(model, [((torch.ones(2, 2),), None)], max_batches=1) == 0
    assert same(model, before)


@pytest.mark.parametrize("batches", [[], [((torch.full((2, 1), math.nan),), None)]])
def test_statistics_that_cannot_be_measured_are_an_error_and_keep_the_old(batches: list[Batch]) -> None:
    bn = nn.BatchNorm1d(1)
    before = copy.deepcopy(bn)
    with pytest.raises(InputError, match=r"no batch|'running_mean' is not finite"):
        reestimate_batchnorm(bn, batches, max_batches=1)
    assert same(bn, before)


# --- losses ------------------------------------------------------------------------------------------------


def test_distillation_by_hand() -> None:
    # T = 2: the teacher's odds are 3 : 1, the student's 1 : 1.
    teacher = torch.tensor([[2 * math.log(3.0), 0.0]])
    student = torch.tensor([[5.0, 5.0]])
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert distillation_loss(student, teacher, temperature=2.0).item() == pytest.approx(4 * kl, rel=1e-5)


@pytest.mark.parametrize("shape", [(4, 3), (4, 1), (4, 3, 2, 2), (4,)])
def test_distillation_is_zero_only_where_both_agree(shape: tuple[int, ...]) -> None:
    teacher = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert distillation_loss(teacher.clone(), teacher).item() == pytest.approx(0.0, abs=1e-6)
    assert distillation_loss(teacher.flip(0), teacher).item() > 1e-3


def test_distillation_of_other_outputs_does_not_depend_on_their_unit() -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 5, 4, 4, generator=generator)
    in_metres, in_millimetres = distillation_loss(student, teacher), distillation_loss(student * 1000, teacher * 1000)
    assert in_metres.item() == pytest.approx(in_millimetres.item(), rel=1e-5)


def test_distillation_gradient_keeps_its_size_when_the_temperature_rises() -> None:
    student = torch.zeros(1, 3, requires_grad=True)
    teacher = torch.tensor([[0.3, -0.1, 0.2]])
    sizes = []
    for temperature in (20.0, 40.0):
        (gradient,) = torch.autograd.grad(distillation_loss(student, teacher, temperature=temperature), student)
        sizes.append(gradient.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 4, CLASSES, generator=generator)
    labels = torch.tensor([0, 1, 2, 0])
    both = recovery_loss(student, teacher, labels, distill=0.25, temperature=3.0, smoothing=0.1)
    by_label = label_loss(student, labels, smoothing=0.1)
    by_teacher = distillation_loss(student, teacher, temperature=3.0)
    torch.testing.assert_close(both, 0.75 * by_label + 0.25 * by_teacher)
    alone = recovery_loss(student, teacher, None, distill=0.25, temperature=3.0, smoothing=0.1)
    torch.testing.assert_close(alone, by_teacher)


def test_label_smoothing_by_hand() -> None:
    # Scores that give 3/4 and 1/4; a tenth of the label's weight is spread over both classes.
    loss = label_loss(torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([0]), smoothing=0.1)
    assert loss.item() == pytest.approx(-0.95 * math.log(0.75) - 0.05 * math.log(0.25), rel=1e-6)


def test_messages_about_outputs_name_the_shapes() -> None:
    with pytest.raises(InputError, match=r"labels of shape \[4\] do not fit a model output of shape \[4\]"):
        label_loss(torch.zeros(4), torch.zeros(4, dtype=torch.long))
    with pytest.raises(InputError, match=r"pruned model returns shape \[2, 3\], the dense model \[2, 4\]"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(InputError, match="returned str, which holds no tensor"):
        first_output("logits")


def test_the_first_tensor_is_found_in_tuples_and_mappings() -> None:
    one = torch.ones(1)
    assert all(first_output(output) is one for output in (one, (None, one), [one], {"loss": None, "logits": one}))


# --- fine-tuning -------------------------------------------------------------------------------------------


def test_finetuning_learns_from_labels() -> None:
    model = net()
    before = top1_percent(model, Images())
    history = finetune(model, None, Images(), QUICK, validate=lambda module: top1_percent(module, Images()))
    assert history.score is not None
    assert history.score > before + 20
    assert history.score == top1_percent(model, Images())  # the last epoch's weights, not the best's
    assert [record.epoch for record in history.epochs] == [1, 2, 3]


def test_finetuning_without_labels_approaches_the_teacher() -> None:
    teacher = net(seed=1, dropout=0.0)
    finetune(teacher, None, Images(), QUICK)
    student, frozen = net(seed=2, dropout=0.0), copy.deepcopy(teacher)
    history = finetune(student, teacher, Images(labelled=False), QUICK)
    assert history.epochs[-1].loss < 0.5 * history.epochs[0].loss
    assert same(teacher, frozen)
    assert teacher.training


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    first, again, other = net(), net(), net()
    torch.manual_seed(1)
    history = finetune(first, None, Images(), QUICK)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert finetune(again, None, Images(), QUICK) == history
    assert torch.equal(torch.get_rng_state(), state)
    assert same(first, again)
    finetune(other, None, Images(), FinetuneSettings(epochs=3, batch_size=8, lr=0.05, seed=100))
    assert not same(first, other)


class StopAfter:
    """Interrupts the run, as Ctrl-C would, at the given step."""

    def __init__(self, steps: int) -> None:
        self.left, self.closed = steps, False

    def start(self, total: int, label: str) -> None: ...

    def advance(self, n: int = 1, text: str = "") -> None:
        self.left -= n
        if self.left <= 0:
            raise KeyboardInterrupt

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("steps", [3, 7, 12])  # five steps an epoch
def test_an_interrupted_run_ends_in_the_bits_of_an_uninterrupted_one(tmp_path: Path, steps: int) -> None:
    teacher, whole, resumed = net(seed=5), net(), net()
    expected = finetune(whole, teacher, Images(), QUICK)
    stop = StopAfter(steps)
    with pytest.raises(KeyboardInterrupt):
        finetune(net(), teacher, Images(), QUICK, checkpoint=tmp_path / "run.safetensors", progress=stop)
    assert stop.closed
    history = finetune(resumed, teacher, Images(), QUICK, checkpoint=tmp_path / "run.safetensors")
    assert history.resumed == (steps - 1) // 5
    assert history == expected
    assert same(whole, resumed)


def test_a_finished_run_is_read_back_without_training(tmp_path: Path) -> None:
    first, again = net(), net()
    history = finetune(first, None, Images(), QUICK, checkpoint=tmp_path / "run")
    repeated = finetune(again, None, Images(), QUICK, checkpoint=tmp_path / "run")
    assert (repeated, repeated.resumed) == (history, 3)
    assert same(first, again)


def another_rate(path: Path) -> None:
    finetune(net(), None, Images(), FinetuneSettings(epochs=3, batch_size=8, lr=0.01), checkpoint=path)


def another_start(path: Path) -> None:
    finetune(net(seed=9), None, Images(), QUICK, checkpoint=path)


def half_a_file(path: Path) -> None:
    finetune(net(), None, Images(), QUICK, checkpoint=path)
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize("leave", [another_rate, another_start, half_a_file])
def test_a_checkpoint_of_another_run_or_a_damaged_one_is_not_used(
    tmp_path: Path, leave: Callable[[Path], None]
) -> None:
    path = tmp_path / "run"
    leave(path)
    expected, model = net(), net()
    history = finetune(expected, None, Images(), QUICK)
    again = finetune(model, None, Images(), QUICK, checkpoint=path)
    assert (again, again.resumed) == (history, 0)
    assert same(model, expected)


def test_the_learning_rate_rises_to_its_peak_and_falls_by_half_a_cosine() -> None:
    settings = FinetuneSettings(lr=1.0, warmup=0.2)
    rates = [learning_rate(settings, step, 10) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5)  # half-way through the eight falling steps
    assert rates[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))


def test_weight_decay_shrinks_matrices_and_not_norms_or_biases() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, CLASSES))
    nn.init.zeros_(model[2].weight)  # no gradient reaches the first two layers through zeros
    teacher = copy.deepcopy(model)
    before = copy.deepcopy(model)

    class Points(Images):
        def epoch(self, *, batch_size: int, seed: int, shuffle: bool, augment: bool) -> Iterator[Batch]:
            yield (torch.tensor([[1.0, 2.0], [3.0, -1.0]]),), None

    settings = FinetuneSettings(epochs=1, lr=0.1, warmup=0.0, weight_decay=0.5, momentum=0.5)
    finetune(model, teacher, Points(labelled=False), settings)
    assert torch.equal(model[1].weight, before[1].weight)
    assert torch.equal(model[0].bias, before[0].bias)
    # Nesterov's first step: lr * (1 + momentum) * decay * weight.
    torch.testing.assert_close(model[0].weight, before[0].weight * (1 - 0.1 * 1.5 * 0.5))


def test_a_loss_that_is_not_finite_names_epoch_and_batch_and_keeps_the_epoch_before() -> None:
    model, expected = net(), net()
    settings = FinetuneSettings(epochs=2, batch_size=8, lr=0.05, seed=10)
    with pytest.raises(InputError, match=r"loss became nan in epoch 2, batch 1[\s\S]*lower the learning rate"):
        finetune(model, None, Images(poison=11), settings)
    with pytest.raises(InputError, match="epoch 2"):
        finetune(expected, None, Images(poison=11), settings)
    assert same(model, expected)
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
    assert not same(model, net())
    assert model.training


def test_a_last_batch_of_one_sample_is_skipped() -> None:
    with_one, without = net(), net()
    assert finetune(with_one, None, Images(count=17), QUICK).epochs[0].epoch == 1
    assert int(with_one.bn.num_batches_tracked) == 3 * 2
    finetune(without, None, Images(count=18), QUICK)
    assert int(without.bn.num_batches_tracked) == 3 * 3


def test_memory_order_changes_the_result_by_rounding_only() -> None:
    rows, columns = net(dropout=0.0), net(dropout=0.0)
    finetune(rows, None, Images(), QUICK)
    finetune(columns, None, Images(), FinetuneSettings(epochs=3, batch_size=8, lr=0.05, channels_last=True))
    torch.testing.assert_close(rows.state_dict(), columns.state_dict(), rtol=1e-3, atol=1e-4)
    assert columns.conv.weight.is_contiguous()


def test_frozen_parameters_stay() -> None:
    model = net()
    model.conv.requires_grad_(False)
    before = copy.deepcopy(model)
    finetune(model, None, Images(), QUICK)
    assert torch.equal(model.conv.weight, before.conv.weight)
    assert not torch.equal(model.fc.weight, before.fc.weight)


def test_learning_from_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match="no labels and no dense model to learn from"):
        finetune(net(), None, Images(labelled=False), QUICK)
    with pytest.raises(InputError, match="training data has no samples"):
        finetune(net(), None, Images(count=0), QUICK)
    with pytest.raises(InputError, match="no parameter that requires a gradient"):
        finetune(net().requires_grad_(False), None, Images(), QUICK)
    with pytest.raises(InputError, match="accuracy needs labels"):
        top1_percent(net(), Images(labelled=False))


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", 0), ("lr", 0.0), ("lr", math.nan), ("distill", 1.5), ("warmup", 1.0)]
)
def test_a_setting_out_of_range_is_named_with_its_value(name: str, value: float) -> None:
    with pytest.raises(RecipeError, match=rf"{name} must be .*, got {value}"):
        FinetuneSettings(**{name: value})


# --- the user's own training function ----------------------------------------------------------------------


@pytest.fixture
def training_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "my_training.py").write_text(
        "import torch\n"
        "RATE = 1\n"
        "def train(student, teacher, data):\n"
        "    with torch.no_grad():\n"
        "        student.fc.bias.fill_(data)\n"
    )
    (tmp_path / "my_broken.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name in ("my_training", "my_broken"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("training_module")
def test_a_function_from_the_working_folder_trains_the_student() -> None:
    student, teacher = net().eval(), net()
    run_hook(load_hook("my_training:train"), student, teacher, 2.5)
    assert student.fc.bias.tolist() == [2.5] * CLASSES
    assert not student.training


@pytest.mark.usefixtures("training_module")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("my_training", r"not of the form package.module:function[\s\S]*train\(student, teacher, data\)"),
        ("my_trainin:train", r"no module called 'my_trainin'[\s\S]*run from the folder"),
        ("my_training:trian", r"has no function 'trian'[\s\S]*did you mean 'train'\?"),
        ("my_training:RATE", r"is a int, not a function"),
    ],
)
def test_a_mistyped_training_function_is_explained(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_hook(spec)


@pytest.mark.usefixtures("training_module")
def test_an_import_error_inside_the_users_module_is_theirs_to_see() -> None:
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        load_hook("my_broken:train")


def test_a_training_function_that_breaks_the_model_is_refused() -> None:
    def widen(student: nn.Module, teacher: nn.Module, data: object) -> None:
        student.fc = nn.Linear(6, 7)

    def explode(student: nn.Module, teacher: nn.Module, data: object) -> None:
        next(student.parameters()).data.fill_(math.inf)

    with pytest.raises(InputError, match=r"changed 'fc.bias' from shape \[3\] to shape \[7\]"):
        run_hook(widen, net(), net(), None)
    with pytest.raises(InputError, match=r"'conv.weight' holds values that are not finite"):
        run_hook(explode, net(), net(), None)


# --- progress ----------------------------------------------------------------------------------------------


def test_a_log_gets_one_plain_line_an_epoch() -> None:
    stream = io.StringIO()
    finetune(net(), None, Images(), QUICK, progress=LineProgress(stream), validate=lambda module: 97.5)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("recover: epoch 2 of 3, loss ")
    assert lines[1].endswith(", validation 97.50")
    assert stream.getvalue().isprintable() is False  # only because of the line ends
    assert all(line.isprintable() for line in lines)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_and_everything_else_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    assert isinstance(progress_for(Terminal()), BarProgress)
    assert isinstance(progress_for(io.StringIO()), LineProgress)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(progress_for(Terminal()), LineProgress)


@pytest.mark.parametrize("plain", [True, False])
def test_the_bar_reaches_its_end_and_has_no_colour_where_none_is_wanted(
    monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    if plain:
        monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    bar = BarProgress(terminal)
    bar.start(2, "recover")
    bar.advance(1, "epoch 1 of 2")
    bar.advance(1, "[bold]epoch 2")
    bar.close()
    shown = terminal.getvalue()
    assert "2/2" in shown
    assert "[bold]epoch 2" in shown
    colours = [code for code in shown.split("\x1b[")[1:] if "m" in code and code.split("m")[0].startswith("3")]
    assert bool(colours) is not plain


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    path = tmp_path / "run"
    finetune(net(), None, Images(), QUICK, checkpoint=path)
    size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + size])  # the safetensors header
    assert json.loads(header["__metadata__"]["epochs"])[2]["epoch"] == 3
    assert os.listdir(tmp_path) == ["run"]
