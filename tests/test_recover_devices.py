"""Several processes train as one process on the joined batch does; the caller goes on once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from deploypruner.errors import InputError, RecipeError
from deploypruner.progress import Progress
from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.train.batches import Batch
from deploypruner.train.finetune import finetune
from deploypruner.train.launch import run_together
from deploypruner.train.process_group import Team
from deploypruner.train.regime import Regime
from tests.recover_models import CLASSES, Images, net, same

pytestmark = pytest.mark.slow

pytest.importorskip("lightning_fabric")

TOGETHER = FinetuneSettings(epochs=2, batch_size=8, lr=0.05, amp="off", devices=2)
ALONE = FinetuneSettings(epochs=2, batch_size=8, lr=0.05, amp="off")


def plain(seed: int = 0) -> nn.Sequential:
    """No batch norm and no dropout: nothing depends on how a batch is shared out."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(25, 12), nn.ReLU(), nn.Linear(12, CLASSES))


class Scaled(Regime):
    """Learns a common scale of the first layer, and counts what it saw."""

    def begin(self, student: nn.Module, steps: int) -> None:
        self.weight = student.get_parameter("1.weight")
        self.scale = nn.Parameter(torch.ones(()))
        self.seen = torch.zeros(())

    def parameter_groups(self) -> list[dict[str, object]]:
        return [{"params": [self.scale], "weight_decay": 0.0}]

    def weights(self, step: int) -> dict[str, Tensor]:
        return {"1.weight": self.weight * self.scale}

    def after_backward(self, step: int) -> None:
        assert self.scale.grad is not None, "the scale has a gradient"
        self.seen += self.scale.grad.abs()

    def hard_weights(self) -> dict[str, Tensor]:
        return {"1.weight": (self.weight * self.scale).detach()}

    def state(self) -> dict[str, Tensor]:
        return {"scale": self.scale, "seen": self.seen}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.scale.data.copy_(state["scale"])
        self.seen.copy_(state["seen"])


class Told:
    def __init__(self) -> None:
        self.steps, self.lines, self.closed = 0, [], False

    def start(self, total: int, label: str) -> None:
        self.lines.append(f"{label} {total}")

    def advance(self, n: int = 1, text: str = "") -> None:
        self.steps += n
        self.lines += [text] if text else []

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("count", [40, 37])  # 37: the last batch of five is shared out unequally
def test_two_processes_end_where_one_on_the_joined_batch_does(count: int) -> None:
    alone, together, teacher = plain(), plain(), plain(1)
    one, two, told = Scaled(), Scaled(), Told()
    expected = finetune(alone, teacher, Images(count), ALONE, regime=one)
    before = dict(os.environ), torch.get_rng_state(), torch.get_num_threads()
    history = finetune(together, teacher, Images(count), TOGETHER, regime=two, progress=told)
    torch.testing.assert_close(together.state_dict(), alone.state_dict(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(two.state(), one.state(), rtol=1e-4, atol=1e-6)
    assert [e.loss for e in history.epochs] == pytest.approx([e.loss for e in expected.epochs], rel=1e-5)
    assert float(two.scale.detach()) != 1
    assert (told.steps, told.closed, told.lines[0]) == (10, True, "recover 10")
    assert told.lines[-1].startswith("epoch 2 of 2, loss")
    assert dict(os.environ) == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert torch.get_num_threads() == before[2]


class SameEverywhere(Regime):
    """Writes each rank's weights into a file after every step; finished in the caller, once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.finished = folder, 0

    def begin(self, student: nn.Module, steps: int) -> None:
        self.student = student

    def after_step(self, step: int) -> None:
        weights = {name: p.detach() for name, p in self.student.named_parameters()}
        torch.save(weights, self.folder / f"{os.environ['LOCAL_RANK']}.pt")

    def finish(self, student: nn.Module) -> None:
        self.finished += 1


def test_every_process_ends_with_the_same_bits_and_only_the_first_validates_and_writes(tmp_path: Path) -> None:
    def validate(module: nn.Module) -> float:
        (tmp_path / f"validated by {os.environ['LOCAL_RANK']}").touch()
        return 12.0

    student, regime = net(), SameEverywhere(tmp_path)
    settings = FinetuneSettings(epochs=2, batch_size=8, lr=0.05, amp="off", devices=2, optimizer="adamw")
    history = finetune(
        student,
        None,
        Images(),
        settings,
        validate=validate,
        regime=regime,
        checkpoint=tmp_path / "run",
    )
    assert regime.finished == 1
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(first[name], p.detach()) for name, p in student.named_parameters())
    assert history.score == 12.0
    assert {p.name for p in tmp_path.iterdir()} == {"0.pt", "1.pt", "run", "validated by 0"}
    again = net()
    repeated = finetune(
        again,
        None,
        Images(),
        settings,
        validate=validate,
        regime=SameEverywhere(tmp_path),
        checkpoint=tmp_path / "run",
    )
    assert (repeated, repeated.resumed) == (history, 2)
    assert same(again, student)


class Fails(Images):
    def epoch(self, *, batch_size: int, seed: int, shuffle: bool, augment: bool) -> Iterator[Batch]:
        if shuffle and os.environ.get("LOCAL_RANK") == "1":
            raise InputError("image 7 cannot be read", hint="remove it")
        return super().epoch(batch_size=batch_size, seed=seed, shuffle=shuffle, augment=augment)


class Dies(Images):
    def epoch(self, *, batch_size: int, seed: int, shuffle: bool, augment: bool) -> Iterator[Batch]:
        if shuffle and os.environ.get("LOCAL_RANK") == "1":
            os._exit(9)
        return super().epoch(batch_size=batch_size, seed=seed, shuffle=shuffle, augment=augment)


def test_what_goes_wrong_in_any_process_reaches_the_caller() -> None:
    with pytest.raises(InputError, match=r"loss became nan in epoch 1, batch 1"):
        finetune(plain(), None, Images(poison=0), TOGETHER)
    with pytest.raises(InputError, match=r"image 7 cannot be read[\s\S]*remove it"):
        finetune(plain(), None, Fails(), TOGETHER)
    with pytest.raises(InputError, match="a training process ended before its work was done"):
        finetune(plain(), None, Dies(), TOGETHER)


def test_a_process_killed_while_it_reports_does_not_hang_the_caller() -> None:
    def job(team: Team, progress: Progress) -> bytes:
        if team.rank == 0:
            progress.advance(1, "half of it")
        os._exit(9)

    class Unheard(Told):
        def advance(self, n: int = 1, text: str = "") -> None:
            raise AssertionError("half a message is none")

    def killed_half_way(end: object, message: object) -> None:
        os.write(end.fileno(), (100).to_bytes(4, "big") + b"half")
        os._exit(9)

    with (
        mock.patch("multiprocessing.connection.Connection.send", killed_half_way),
        pytest.raises(InputError, match="ended before its work was done"),
    ):
        run_together(job, accelerator="cpu", devices=2, hosts=1, progress=Unheard())


def test_shares_weigh_what_they_hold() -> None:
    second = Team()
    second.rank, second.size = 1, 2
    (inputs, labels), weight = second.share(((torch.arange(5),), torch.arange(5) + 10))
    assert labels is not None
    assert (inputs[0].tolist(), labels.tolist(), weight) == ([3, 4], [13, 14], 0.8)
    assert Team().share(((torch.arange(5),), None))[1] == 1.0


def test_devices_that_cannot_be_used_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(RecipeError, match="training on 3 hosts needs MASTER_ADDR, MASTER_PORT, NODE_RANK"):
        finetune(plain(), None, Images(), FinetuneSettings(hosts=3))
    if not torch.cuda.device_count():
        with pytest.raises(InputError, match="this machine has no CUDA device to train on"):
            finetune(plain(), None, Images(), FinetuneSettings(accelerator="cuda"))
    with pytest.raises(InputError, match="fewer than 2 samples a batch"):
        finetune(plain(), None, Images(1), TOGETHER)
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(InputError, match=r"needs Lightning Fabric[\s\S]*deploypruner\[distributed\]"):
        finetune(plain(), None, Images(), TOGETHER)


def test_two_hosts_end_with_the_weights_of_one(tmp_path: Path) -> None:
    from lightning_fabric.plugins.environments.lightning import find_free_network_port

    port = find_free_network_port()

    def host(rank: int) -> None:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": str(rank)}
        student = plain()
        finetune(student, None, Images(), FinetuneSettings(epochs=1, batch_size=8, lr=0.05, amp="off", hosts=2))
        torch.save(student.state_dict(), tmp_path / f"{rank}.pt")

    forked = get_context("fork")
    hosts = [forked.Process(target=host, args=(rank,)) for rank in (0, 1)]
    for process in hosts:
        process.start()
    for process in hosts:
        process.join(timeout=120)
    assert [process.exitcode for process in hosts] == [0, 0]
    expected = plain()
    finetune(expected, None, Images(), FinetuneSettings(epochs=1, batch_size=8, lr=0.05, amp="off"))
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, dict(expected.state_dict()), rtol=1e-4, atol=1e-6)


def test_one_process_does_without_fabric(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    assert len(finetune(plain(), None, Images(), ALONE).epochs) == 2
