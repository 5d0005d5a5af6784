from __future__ import annotations

import math

import pytest
import torch

from deploypruner.errors import InputError
from deploypruner.recover.losses import distillation_loss, first_output, label_loss, recovery_loss
from tests.recover_models import CLASSES


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
