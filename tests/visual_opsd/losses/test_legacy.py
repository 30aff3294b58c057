"""The first release's sampled-token loss."""

import pytest
import torch

from tests.oracle import cases, close, load_oracle
from visual_opsd.losses.legacy import sampled_token_loss_legacy


@pytest.mark.oracle
@pytest.mark.parametrize("path", cases("jsd-tinker"))
def test_the_sampled_token_loss_equals_the_official_one(path):
    tensors, description = load_oracle(path)
    student = tensors["student/out/logits"].requires_grad_()
    ids = tensors["jsd/in/sampled_ids"]
    loss = sampled_token_loss_legacy(student, tensors["teacher/out/logits"], ids).mean()
    close(loss, torch.tensor(description["cases"]["jsd"]["tinker_loss"]))
    (grad,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(
        grad, tensors["jsd/out/grad_student_logits_tinker"], atol=1e-6, rtol=1e-4
    )


def test_its_gradient_is_that_of_the_reverse_divergence_on_average():
    """Over all tokens, weighted by the student: the gradient of KL(student || teacher)."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 1, 6, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    every = torch.arange(6)
    losses = sampled_token_loss_legacy(student.expand(6, -1), teacher.expand(6, -1), every)
    weights = student.detach().softmax(dim=-1)[0]
    (sampled,) = torch.autograd.grad((weights * losses).sum(), student)
    p, q = student.log_softmax(dim=-1), teacher.log_softmax(dim=-1)
    (exact,) = torch.autograd.grad((p.exp() * (p - q)).sum(), student)
    torch.testing.assert_close(sampled, exact, atol=1e-6, rtol=1e-5)
