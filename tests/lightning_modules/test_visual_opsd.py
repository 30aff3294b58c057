"""Algorithm 1 on a real model."""

import copy
from dataclasses import replace

import lightning as L
import pytest
import torch

from callbacks.rollout import RolloutCallback, RolloutConfig
from lightning_modules.optimisation import OptimiserConfig
from lightning_modules.visual_opsd import VisualOPSD, VisualOPSDConfig
from tests import tiny
from visual_opsd.contexts import ProblemBatch, student_context, teacher_context
from visual_opsd.interventions import intervene
from visual_opsd.losses.divergence import DivergenceConfig
from visual_opsd.losses.tokens import entropy, most_uncertain, token_weights
from visual_opsd.models.interface import Sampling
from visual_opsd.rollouts.trajectories import (
    Rollout,
    log_probs,
    rescoring_error,
    sample_trajectories,
)
from visual_opsd.trainable import LoRAConfig

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to .self.log")
QUICK = OptimiserConfig(learning_rate=1e-2, final_learning_rate=1e-2, num_warmup_steps=0)


@pytest.fixture
def module_of(base, tokenizer):
    def make(**settings):
        config = VisualOPSDConfig(**{"optimiser": QUICK, **settings})
        return VisualOPSD(lambda: copy.deepcopy(base), tokenizer.encode, config)

    return make


@pytest.fixture
def module(module_of):
    found = module_of()
    found.configure_model()
    return found


@pytest.fixture
def rollout_callback(tokenizer):
    return RolloutCallback(RolloutConfig(sampling=Sampling(max_tokens=8)), tokenizer.encode)


def rolled_out(model, tokenizer, problems, seed=0):
    """A batch as the callback leaves it."""
    sampling = Sampling(max_tokens=16)
    batch = ProblemBatch(problems)
    seeds = range(seed, seed + len(problems))
    completions = sample_trajectories(model, problems, tokenizer.encode, sampling, seeds)
    batch.rollout = Rollout(completions, tuple(problems))
    return batch


def test_without_the_rollout_callback_it_fails_and_names_it(module_of):
    with pytest.raises(RuntimeError, match=r"callbacks\.rollout\.RolloutCallback"):
        tiny.fit(module_of())


def test_the_loss_is_the_papers(module, tokenizer, problems):
    """Eq. 7 written out: the mean over tokens, then completions, of half the KL of either side to
    their mixture; tokens that were injected do not count.
    """
    (asks,) = tokenizer.encode(tiny.ASKS)
    contexts = [student_context(problem, tokenizer.encode) for problem in problems]
    tiny.inclined(module.model, contexts, {tokenizer.marks.end: 0.15, asks: 0.3})
    batch = rolled_out(module.model, tokenizer, problems, seed=3)
    completions = batch.rollout.completions
    assert not torch.cat(completions.is_sampled).all()

    student = log_probs(module.model, contexts, completions)
    teacher_sees = [teacher_context(problem, tokenizer.encode) for problem in problems]
    with module.teacher_weights() as weights:
        teacher = log_probs(weights, teacher_sees, completions)
    p, q = teacher.exp(), student.exp()
    mixture = ((p + q) / 2).log()
    per_token = 0.5 * (p * (teacher - mixture)).sum(-1) + 0.5 * (q * (student - mixture)).sum(-1)
    rows = [
        part[is_sampled].mean()
        for part, is_sampled in zip(
            per_token.split(list(completions.lengths)), completions.is_sampled, strict=True
        )
    ]
    expected = torch.stack(rows).mean()
    assert expected > 1e-3
    torch.testing.assert_close(module.training_step(batch), expected, atol=1e-6, rtol=1e-4)


def test_a_teacher_that_sees_several_drawings_pools_what_it_says(module_of, tokenizer, problems):
    """By hand: half the KL of either side to the mixture with the mean of two distributions."""
    module = module_of(pooling="mean")
    module.configure_model()
    batch = rolled_out(module.model, tokenizer, problems[:4])
    one = batch.rollout
    other = tuple(intervene("blank", problem, None, 0) for problem in problems[:4])
    alone = module.training_step(batch)
    batch.rollout = replace(one, also_shown=(one.shown,))
    torch.testing.assert_close(module.training_step(batch), alone, atol=1e-6, rtol=1e-5)

    batch.rollout = replace(one, also_shown=(other,))
    ids = one.completions
    student = log_probs(
        module.model, [student_context(p, tokenizer.encode) for p in problems[:4]], ids
    )
    p = (
        sum(
            log_probs(
                module.model, [teacher_context(p, tokenizer.encode) for p in shown], ids
            ).exp()
            for shown in (one.shown, other)
        )
        / 2
    )
    q = student.exp()
    mixture = ((p + q) / 2).log()
    expected = 0.5 * (p * (p.log() - mixture)).sum(-1) + 0.5 * (q * (student - mixture)).sum(-1)
    expected = (expected * token_weights(ids.is_sampled)).sum()
    pooled = module.training_step(batch)
    torch.testing.assert_close(pooled, expected, atol=1e-6, rtol=1e-4)
    assert not torch.isclose(pooled, alone, rtol=1e-3)


def test_the_uncertain_share_counts_where_the_student_hesitates(module_of, tokenizer, problems):
    """The gradient of a fifth of the tokens, each completion's least certain ones."""
    module = module_of(uncertain_share=0.2)
    module.configure_model()
    batch = rolled_out(module.model, tokenizer, problems)
    completions = batch.rollout.completions
    contexts = [student_context(problem, tokenizer.encode) for problem in problems]
    entropies = entropy(log_probs(module.model, contexts, completions))
    counts = torch.cat(most_uncertain(completions.is_sampled, entropies, 0.2))
    assert 0.15 < counts.float().mean() < 0.4
    changed = replace(
        completions,
        is_sampled=tuple(counts.split(list(completions.lengths))),
    )
    whole = module_of()
    whole.configure_model()
    told = ProblemBatch(problems)
    told.rollout = replace(batch.rollout, completions=changed)
    torch.testing.assert_close(module.training_step(batch), whole.training_step(told))
    with pytest.raises(ValueError, match="uncertain_share must lie in"):
        VisualOPSDConfig(uncertain_share=0.0)


@pytest.mark.parametrize(
    "divergence",
    [
        DivergenceConfig(),
        DivergenceConfig(teacher_weight=0.0),
        DivergenceConfig(teacher_weight=1.0),
        DivergenceConfig(top_k=16),
        DivergenceConfig.PAPER,
    ],
    ids=["jsd", "forward", "reverse", "top-k", "paper"],
)
def test_steps_on_one_rollout_pull_the_student_over(module_of, tokenizer, problems, divergence):
    module = module_of(divergence=divergence)
    module.configure_model()
    batch = rolled_out(module.model, tokenizer, problems)
    weights = [w for w in module.parameters() if w.requires_grad]
    optimiser = torch.optim.SGD(weights, lr=0.003)
    losses = []
    for _ in range(4):
        loss = module.training_step(batch)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.95 * losses[0]


def test_only_what_reads_and_writes_learns(module, tokenizer, problems):
    module.training_step(rolled_out(module.model, tokenizer, problems)).backward()
    draws = ("_moe_gen", "vae2llm", "llm2vae", "time_embedder", "codec")
    for name, weight in module.model.named_parameters():
        is_moving = weight.requires_grad and not any(part in name for part in draws)
        assert (weight.grad is not None) == is_moving, name


def test_no_gradient_flows_into_the_teacher(module_of, tokenizer, problems):
    """Even where it is the very same weights: at the start, all three pull alike."""
    gradients = {}
    for teacher in ("fixed", "ema", "current"):
        module = module_of(teacher=teacher)
        module.configure_model()
        module.training_step(rolled_out(module.model, tokenizer, problems)).backward()
        gradients[teacher] = module.model.language_model.lm_head.weight.grad
        assert gradients[teacher].abs().sum() > 0
    assert torch.equal(gradients["fixed"], gradients["ema"])
    assert torch.equal(gradients["fixed"], gradients["current"])


def test_a_token_counts_by_its_completion():
    """Worked by hand: three sampled of four tokens, one of one, none of two."""
    masks = (
        torch.tensor([True, True, False, True]),
        torch.tensor([True]),
        torch.tensor([False, False]),
    )
    third, whole = 1 / 9, 1 / 3
    expected = torch.tensor([third, third, 0, third, whole, 0, 0])
    torch.testing.assert_close(token_weights(masks), expected)
    assert token_weights(masks[:2]).sum() == pytest.approx(1)


@pytest.mark.parametrize(("teacher", "decay"), [("fixed", 1.0), ("ema", 0.995), ("current", 0.0)])
def test_the_three_teachers_are_one_number(teacher, decay):
    assert VisualOPSDConfig(teacher=teacher).teacher_decay == decay


def test_without_adapters_there_is_none_to_switch_off():
    with pytest.raises(ValueError, match=r"visual_opsd\.teacher=adapter_off .* visual_opsd\.lora"):
        VisualOPSDConfig(teacher="adapter_off")


def test_what_only_draws_is_neither_optimised_nor_remembered(module_of, rollout_callback):
    module = module_of()
    tiny.fit(module, rollout_callback, max_steps=1)
    (group,) = module.trainer.optimizers[0].param_groups
    trained = {id(weight) for weight in group["params"]}
    drawing = {id(weight) for weight in module.model.drawing_parameters()}
    assert drawing
    assert not trained & drawing
    assert trained == {id(weight) for weight in module.parameters() if weight.requires_grad}
    assert len(module.teacher.state_dict()) == len(trained)
    assert trained == {id(weight) for weight in module.trainer.optimizers[0].state}  # all moved


@pytest.mark.parametrize("teacher", ["adapter_off", "fixed"])
def test_a_run_with_adapters_trains_them_alone(
    module_of, rollout_callback, base, tokenizer, problems, teacher
):
    """And its teacher is the start to the bit, whether it is remembered or found underneath."""
    module = module_of(teacher=teacher, lora=LoRAConfig(rank=4, alpha=8))
    tiny.fit(module, rollout_callback, max_steps=3)
    start = dict(base.named_parameters())
    for name, weight in module.model.named_parameters():
        if "lora_B" in name:
            assert weight.abs().sum() > 0, name
        elif "lora_A" not in name:
            assert torch.equal(weight, start[name.replace("base_layer.", "")]), name
    batch = rolled_out(base, tokenizer, problems)
    contexts = [teacher_context(problem, tokenizer.encode) for problem in problems]
    expected = log_probs(base, contexts, batch.rollout.completions)
    assert not torch.equal(log_probs(module.model, contexts, batch.rollout.completions), expected)
    with module.teacher_weights() as model:
        assert torch.equal(log_probs(model, contexts, batch.rollout.completions), expected)
    remembered = {"adapter_off": 0, "fixed": len(list(module.model.parameters())) - len(start)}
    assert len(module.teacher.state_dict()) == remembered[teacher]


def test_a_checkpoint_holds_what_trains(module_of, rollout_callback, tmp_path):
    """The base is in the folder that the run starts from: 29 GB at 7B."""
    module = module_of(teacher="adapter_off", lora=LoRAConfig(rank=4, alpha=8))
    tiny.fit(module, rollout_callback, max_steps=1)
    module.trainer.save_checkpoint(tmp_path / "one.ckpt")
    saved = torch.load(tmp_path / "one.ckpt", weights_only=False)
    assert saved["teacher"] == {}
    assert saved["state_dict"].keys() == {
        name for name, weight in module.named_parameters() if weight.requires_grad
    }
    assert all("lora_" in name for name in saved["state_dict"])


def test_layers_that_run_again_give_the_same_loss_and_gradients(module_of, tokenizer, problems):
    found = []
    for recomputes in (False, True):
        module = module_of()
        module.configure_model()
        batch, calls = rolled_out(module.model, tokenizer, problems), []
        module.model.language_model.model.layers[0].mlp.register_forward_pre_hook(
            lambda *_, calls=calls: calls.append(torch.is_grad_enabled())
        )
        module.model.run_with(recomputes_layers=recomputes)
        loss = module.training_step(batch)
        loss.backward()
        gradients = [w.grad for w in module.parameters() if w.requires_grad]
        found.append((loss, gradients, sum(calls)))
    (loss, gradients, num_once), (again, same, num_twice) = found
    assert num_twice == 2 * num_once
    assert torch.equal(loss, again)
    assert all(torch.equal(one, other) for one, other in zip(gradients, same, strict=True))


def test_in_bfloat16_the_loss_is_float32_and_close(module_of, tokenizer, problems):
    """Weights and products are rounded; log-probabilities, divergence and its mean are not."""
    losses = []
    for is_rounded in (False, True):
        module = module_of()
        module.configure_model()
        batch = rolled_out(module.model, tokenizer, problems)
        if is_rounded:
            tiny.rounded(module.model)
        losses.append(module.training_step(batch))
    exact, rounded = losses
    assert rounded.dtype == torch.float32
    assert exact > 1e-3
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0)


def test_under_autocast_sampling_is_scored_as_it_was_sampled(module_of, rollout_callback):
    """Both round where autocast rounds; scored in float32 it would be another distribution."""
    seen = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(outputs["loss"].dtype)
            contexts = [student_context(p, pl_module.encode) for p in batch.problems]
            with pl_module.rollout_weights() as model:
                assert torch.is_autocast_enabled("cpu")
                completions = model.sample(contexts, Sampling(max_tokens=8), range(len(contexts)))
                error = rescoring_error(model, contexts, completions)
            assert completions.log_probs[0].dtype == torch.float32
            seen.append(error)

    tiny.fit(module_of(), rollout_callback, Look(), max_steps=1, precision="bf16-mixed")
    dtype, error = seen
    assert dtype == torch.float32
    assert error < 0.05


class Recorder(L.Callback):
    """The student's and the teacher's weights around every batch."""

    def __init__(self):
        self.student, self.teacher, self.steps = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.steps.append(trainer.global_step)
        self.student.append(pl_module.model.language_model.lm_head.weight.detach().clone())
        with pl_module.teacher_weights() as model:
            self.teacher.append(model.language_model.lm_head.weight.detach().clone())


@pytest.mark.parametrize(("teacher", "decay"), [("fixed", 1), ("ema", 0.9), ("current", 0)])
def test_the_teacher_follows_once_an_optimiser_step(module_of, rollout_callback, teacher, decay):
    """Two batches a step: within a step it stands still, then it takes one step of its own."""
    seen = Recorder()
    module = module_of(teacher=teacher, ema_decay=0.9)
    tiny.fit(module, rollout_callback, seen, max_steps=3, accumulate_grad_batches=2)
    assert seen.steps == [0, 0, 1, 1, 2, 2]
    expected = seen.student[0]
    for index, (student, found) in enumerate(zip(seen.student, seen.teacher, strict=True)):
        is_new_step = index and seen.steps[index] != seen.steps[index - 1]
        if is_new_step:
            assert not torch.equal(student, seen.student[index - 1])
            expected = decay * expected + (1 - decay) * student
        torch.testing.assert_close(found, expected)


def test_a_checkpoint_holds_the_teacher_of_its_own_step(module_of, rollout_callback, tmp_path):
    """It did not: ModelCheckpoint runs before the module's own hook, so what it saved was the
    average before the last step, and a resumed run never caught up.
    """
    module = module_of(teacher="ema", ema_decay=0.5)

    class Save(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    tiny.fit(module, rollout_callback, Save(), max_steps=2)
    saved = torch.load(tmp_path / "2.ckpt", weights_only=False)["teacher"]
    for name, weight in module.teacher.weights.items():
        assert torch.equal(weight, saved[name]), name


def test_a_rollout_of_another_length_is_refused(module, tokenizer, problems):
    """Student and teacher score the very same tokens, or nobody does."""
    batch = rolled_out(module.model, tokenizer, problems)
    batch.rollout = replace(batch.rollout, shown=batch.rollout.shown[:-1])
    with pytest.raises(ValueError, match="7 contexts for 8 completions"):
        module.training_step(batch)
