"""Properties of the divergence, checked against textbook formulas and the official numbers."""

from dataclasses import asdict, replace
from itertools import pairwise

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from tests.oracle import load_oracle, oracle_files
from visual_opsd.losses.divergence import (
    DivergenceConfig,
    divergence,
    generalized_jsd,
    kl_divergence_per_token,
    pooled,
    teacher_scores,
)

EXACT = DivergenceConfig()
EVERY_KIND = [
    EXACT,
    DivergenceConfig(teacher_weight=0.0),
    DivergenceConfig(teacher_weight=1.0),
    DivergenceConfig(teacher_weight=0.2, temperature=2.0, token_clip=0.1),
    DivergenceConfig(top_k=4),
    DivergenceConfig(top_k=4, tail=False),
    DivergenceConfig(top_k=4, teacher_weight=0.9, token_clip=0.1),
    DivergenceConfig(legacy=True, entry_clip=0.05),
    DivergenceConfig(legacy=True, teacher_weight=0.0, top_k=4, tail=False, temperature=0.7),
    DivergenceConfig(legacy=True, teacher_weight=1.0),
    replace(DivergenceConfig.PAPER, top_k=4),
]


def difference(config):
    """What sets a configuration apart from the default, as a test's id."""
    settings = {k: v for k, v in asdict(config).items() if v != getattr(EXACT, k)}
    return ",".join(f"{name}={value}" for name, value in settings.items()) or "default"


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, 11, generator=generator) * 2


def gradient(loss_of, student):
    student = student.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss_of(student).sum(), student)
    return grad


def with_weight(logits, weight):
    return generalized_jsd(*logits, DivergenceConfig(teacher_weight=weight))


def test_agreeing_distributions_do_not_diverge(logits):
    student, _ = logits
    for config in EVERY_KIND:
        per_token = generalized_jsd(student, student, config)
        torch.testing.assert_close(per_token, torch.zeros(5), atol=1e-6, rtol=0)


def test_the_default_is_the_textbook_jensen_shannon_divergence(logits):
    student, teacher = (Categorical(logits=x) for x in logits)
    mixture = Categorical(probs=(student.probs + teacher.probs) / 2)
    expected = (kl_divergence(teacher, mixture) + kl_divergence(student, mixture)) / 2
    torch.testing.assert_close(generalized_jsd(*logits, EXACT), expected)


@pytest.mark.parametrize("weight", [0.01, 0.3, 0.7, 0.99])
def test_inside_the_family_is_the_textbook_formula_over_its_curvature(logits, weight):
    student, teacher = (Categorical(logits=x.double()) for x in logits)
    mixture = Categorical(probs=weight * teacher.probs + (1 - weight) * student.probs)
    plain = weight * kl_divergence(teacher, mixture) + (1 - weight) * kl_divergence(
        student, mixture
    )
    expected = (plain / (4 * weight * (1 - weight))).float()
    torch.testing.assert_close(with_weight(logits, weight), expected)


def test_the_ends_are_quarters_of_the_two_kl_divergences(logits):
    student, teacher = (Categorical(logits=x) for x in logits)
    torch.testing.assert_close(with_weight(logits, 0.0), kl_divergence(teacher, student) / 4)
    torch.testing.assert_close(with_weight(logits, 1.0), kl_divergence(student, teacher) / 4)


@pytest.mark.parametrize(("end", "beside"), [(0.0, 1e-6), (1.0, 1 - 1e-6)])
def test_the_family_is_continuous_at_both_ends(logits, end, beside):
    """The official code jumps from 0.017 at beta = 0.01 to 1.758 at beta = 0 on one pair."""
    student, teacher = logits
    torch.testing.assert_close(
        with_weight(logits, end), with_weight(logits, beside), rtol=1e-3, atol=0
    )
    grads = [gradient(lambda x, w=w: with_weight((x, teacher), w), student) for w in (end, beside)]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)


def test_near_agreement_every_weight_has_the_same_curvature(logits):
    student = logits[0].double()
    nearby = student + 1e-3 * logits[1].double()
    values = [with_weight((student, nearby), weight) for weight in (0.0, 0.1, 0.5, 0.9, 1.0)]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=1e-2, atol=0)


def test_swapping_the_sides_is_swapping_the_weights(logits):
    student, teacher = logits
    for weight in (0.0, 0.3, 0.5):
        torch.testing.assert_close(
            with_weight((student, teacher), weight), with_weight((teacher, student), 1 - weight)
        )


@pytest.mark.parametrize("config", EVERY_KIND, ids=difference)
def test_gradient_is_the_slope(logits, config):
    student, teacher = (x.double() for x in logits)
    if config.token_clip is not None or config.entry_clip is not None:
        config = replace(config, token_clip=None, entry_clip=None)
    student.requires_grad_()
    scores = teacher_scores(teacher, config)
    assert torch.autograd.gradcheck(lambda x: divergence(x, scores, config), student)


def test_a_tail_sees_what_the_student_puts_outside_the_teachers_top_k():
    """Renormalised, this pair agrees perfectly; the first release's loss is blind to it."""
    teacher = torch.tensor([[0.49, 0.49, 0.02]]).log()
    student = torch.tensor([[0.25, 0.25, 0.50]]).log()
    top2 = DivergenceConfig(top_k=2)
    exact = generalized_jsd(student, teacher, EXACT)
    assert generalized_jsd(student, teacher, replace(top2, tail=False)).item() == pytest.approx(0)
    # One entry is outside the top two, so its bucket loses nothing.
    torch.testing.assert_close(generalized_jsd(student, teacher, top2), exact)
    assert exact.item() == pytest.approx(0.177, abs=5e-4)


def test_top_k_with_tail_grows_to_the_exact_value_from_below(logits):
    values = [generalized_jsd(*logits, DivergenceConfig(top_k=k)) for k in range(1, 13)]
    for fewer, more in pairwise(values):
        assert (fewer <= more + 1e-6).all()
    torch.testing.assert_close(values[-1], generalized_jsd(*logits, EXACT))


def test_top_k_scores_are_shares_of_the_whole_vocabulary(logits):
    scores = teacher_scores(logits[1], DivergenceConfig(top_k=3))
    whole = logits[1].log_softmax(-1)
    torch.testing.assert_close(scores.log_probs, whole.gather(-1, scores.ids))
    kept = scores.log_probs.exp().sum(-1) + scores.log_tail.exp()
    torch.testing.assert_close(kept, torch.ones(5))


def test_the_tail_is_exact_where_the_top_k_hold_nearly_everything():
    """One minus the kept mass would be 0 in float32, and its logarithm lost."""
    logits = torch.tensor([[30.0, 0.0, 0.0, 0.0]])
    scores = teacher_scores(logits, DivergenceConfig(top_k=1))
    assert scores.log_tail.item() == pytest.approx(-30 + torch.tensor(3.0).log().item(), abs=1e-5)


def test_no_gradient_reaches_the_teacher(logits):
    student, teacher = (x.clone().requires_grad_() for x in logits)
    for config in EVERY_KIND:
        generalized_jsd(student, teacher, config).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_a_clipped_token_keeps_the_direction_of_its_gradient(logits):
    """The official clamp gives the entries with most to teach no gradient at all."""
    student, teacher = logits
    clipped = DivergenceConfig(token_clip=0.05)
    plain = generalized_jsd(student, teacher, EXACT)
    assert (plain > 0.05).any()
    torch.testing.assert_close(generalized_jsd(student, teacher, clipped), plain.clamp(max=0.05))
    grads = gradient(lambda x: generalized_jsd(x, teacher, clipped), student)
    expected = gradient(lambda x: generalized_jsd(x, teacher, EXACT), student)
    torch.testing.assert_close(grads, expected * (0.05 / plain).clamp(max=1).unsqueeze(-1))


def test_the_official_entry_clip_silences_the_most_informative_entries():
    """Worked example: both entries contribute .184, are cut to .05, and teach nothing."""
    student = torch.tensor([[0.1, 0.9]]).log()
    teacher = torch.tensor([[0.9, 0.1]]).log()
    legacy = DivergenceConfig(legacy=True, entry_clip=0.05)
    assert generalized_jsd(student, teacher, legacy).item() == pytest.approx(0.1)
    assert not gradient(lambda x: generalized_jsd(x, teacher, legacy), student).any()
    at_zero = replace(legacy, teacher_weight=0.0)
    free = replace(at_zero, entry_clip=None)
    assert generalized_jsd(student, teacher, free).item() == pytest.approx(1.758, abs=5e-4)
    assert generalized_jsd(student, teacher, at_zero).item() == pytest.approx(-0.170, abs=5e-4)


@pytest.mark.parametrize("masked", [float("-inf"), -1e9, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("config", EVERY_KIND, ids=difference)
def test_masked_tokens_change_nothing(logits, config, masked):
    """Also when the top K reach into them: 4 of 3 possible tokens."""
    allowed = [1, 5, 6]
    student, teacher = (torch.full_like(x, masked) for x in logits)
    student[:, allowed], teacher[:, allowed] = logits[0][:, allowed], logits[1][:, allowed]
    per_token = generalized_jsd(student, teacher, config)
    expected = generalized_jsd(logits[0][:, allowed], logits[1][:, allowed], config)
    torch.testing.assert_close(per_token, expected)
    grad = gradient(lambda x: generalized_jsd(x, teacher, config), student)
    assert grad.isfinite().all()
    assert not grad[:, [0, 2, 3, 4, 7, 8, 9, 10]].any()


@pytest.mark.parametrize("config", EVERY_KIND, ids=difference)
def test_certain_and_opposed_sides_stay_finite(config):
    student = torch.tensor([[200.0, 0.0, 0.0, 0.0, -50.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    teacher = student.flip(-1) * torch.tensor([[1.0], [3.0]])
    assert generalized_jsd(student, teacher, config).isfinite().all()
    grad = gradient(lambda x: generalized_jsd(x, teacher, config), student)
    assert grad.isfinite().all()


def test_no_tokens_diverge_by_nothing():
    for config in EVERY_KIND:
        nothing = torch.zeros(0, 11)
        assert generalized_jsd(nothing, nothing, config).shape == (0,)


def test_bfloat16_logits_are_compared_in_float32(logits):
    student, teacher = logits.bfloat16()
    for config in EVERY_KIND:
        per_token = generalized_jsd(student, teacher, config)
        assert per_token.dtype == torch.float32
        torch.testing.assert_close(
            per_token, generalized_jsd(student.float(), teacher.float(), config)
        )


def test_kl_matches_the_textbook(logits):
    student, teacher = (Categorical(logits=x) for x in logits)
    kl = kl_divergence_per_token(teacher.logits, student.logits)
    torch.testing.assert_close(kl, kl_divergence(teacher, student))


@pytest.mark.parametrize("masked", [float("-inf"), -1e9])
def test_kl_ignores_what_both_sides_mask(logits, masked):
    student, teacher = (x[:, :6].log_softmax(-1) for x in logits)
    unmasked = kl_divergence_per_token(teacher, student)
    nothing = torch.full((5, 5), masked)
    student = torch.cat([student, nothing], dim=-1).requires_grad_()
    kl = kl_divergence_per_token(torch.cat([teacher, nothing], dim=-1), student)
    torch.testing.assert_close(kl, unmasked)
    kl.sum().backward()
    assert student.grad.isfinite().all()


def test_kl_is_infinite_where_only_the_student_rules_a_token_out():
    teacher = torch.tensor([[0.5, 0.5]]).log()
    student = torch.tensor([[1.0, 0.0]]).log()
    assert kl_divergence_per_token(teacher, student).isposinf().all()
    assert kl_divergence_per_token(student, teacher).isfinite().all()


def test_sides_of_different_lengths_are_refused(logits):
    student, teacher = logits
    scores = teacher_scores(teacher[:-1], EXACT)
    with pytest.raises(ValueError, match="student has 5 tokens, teacher 4"):
        divergence(student, scores, EXACT)


def test_scores_of_other_settings_are_refused(logits):
    student, teacher = logits
    for scored, compared in ((3, None), (None, 3), (3, 4)):
        scores = teacher_scores(teacher, DivergenceConfig(top_k=scored))
        with pytest.raises(ValueError, match=f"top_k={compared}"):
            divergence(student, scores, DivergenceConfig(top_k=compared))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_weight": 1.5}, "got 1.5"),
        ({"teacher_weight": float("nan")}, "got nan"),
        ({"temperature": 0.0}, "got 0.0"),
        ({"temperature": float("inf")}, "got inf"),
        ({"top_k": 0}, "got 0"),
        ({"token_clip": 0.0}, "got 0.0"),
        ({"entry_clip": -1.0, "legacy": True}, "got -1.0"),
        ({"entry_clip": 0.05}, "legacy=True"),
        ({"token_clip": 0.05, "legacy": True}, "token_clip=0.05"),
        ({"top_k": 5, "legacy": True}, "tail=False"),
    ],
)
def test_nonsense_is_refused_by_value(settings, message):
    with pytest.raises(ValueError, match=message):
        DivergenceConfig(**settings)


def oracle_cases():
    """Every setting the official loss was run with; one skipped case where no vectors lie."""
    cases = [
        pytest.param(path, index, id=f"{path.stem}-jsd-{index}")
        for path in oracle_files()
        for index in range(len(load_oracle(path)[1]["cases"]["jsd"]["grid"]))
    ]
    absent = pytest.mark.skip(reason="no oracle_*.safetensors in VISUAL_OPSD_ORACLE")
    return cases or [pytest.param(None, 0, marks=absent, id="absent-jsd")]


@pytest.mark.oracle
@pytest.mark.parametrize(("path", "index"), oracle_cases())
def test_legacy_equals_the_official_numbers(path, index):
    tensors, described = load_oracle(path)
    setting = described["cases"]["jsd"]["grid"][index]
    config = DivergenceConfig(
        legacy=True,
        teacher_weight=setting["beta"],
        temperature=setting["temperature"],
        top_k=setting["top_k"],
        tail=False,
        entry_clip=setting["token_clip"],
    )
    student, teacher = tensors["student/out/logits"], tensors["teacher/out/logits"]
    per_token = generalized_jsd(student, teacher, config)
    torch.testing.assert_close(
        per_token, tensors[f"jsd/out/per_token_{index}"], atol=1e-5, rtol=1e-5
    )
    assert per_token.mean().item() == pytest.approx(setting["loss"], abs=1e-5)
    grad = gradient(lambda x: generalized_jsd(x, teacher, config).mean(), student)
    torch.testing.assert_close(
        grad, tensors[f"jsd/out/grad_student_logits_{index}"], atol=1e-6, rtol=1e-4
    )


def test_the_ends_of_the_family_have_names(logits):
    """They are a quarter of the textbook's KL, and where the family leads to."""
    student, teacher = (Categorical(logits=x) for x in logits)
    textbook = {
        "forward_kl": (0.0, kl_divergence(teacher, student)),
        "reverse_kl": (1.0, kl_divergence(student, teacher)),
    }
    for kind, (weight, expected) in textbook.items():
        named = generalized_jsd(*logits, DivergenceConfig(kind=kind))
        torch.testing.assert_close(named, expected / 4)
        assert torch.equal(named, with_weight(logits, weight))
        torch.testing.assert_close(
            with_weight(logits, abs(weight - 1e-6)), named, rtol=1e-3, atol=0
        )
        legacy = generalized_jsd(*logits, DivergenceConfig(kind=kind, legacy=True))
        torch.testing.assert_close(legacy, expected)
    with pytest.raises(ValueError, match=r"forward_kl has its own, got 0\.3"):
        DivergenceConfig(kind="forward_kl", teacher_weight=0.3)


@pytest.mark.parametrize("pooling", ["mean", "log_mean"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_several_views_become_one_teacher(logits, pooling, temperature):
    """Their mean, or their normalised geometric mean; the likeliest are those of the pool."""
    config = DivergenceConfig(temperature=temperature)
    probs = (logits / temperature).softmax(dim=-1)
    joint = probs.mean(dim=0) if pooling == "mean" else probs.log().mean(dim=0).softmax(dim=-1)
    views = [teacher_scores(view, config) for view in logits]
    found = pooled(views, pooling, config)
    torch.testing.assert_close(found.log_probs.exp(), joint)
    top = pooled(views, pooling, replace(config, top_k=3))
    torch.testing.assert_close(top.log_probs.exp(), joint.topk(3).values)
    assert torch.equal(top.ids, joint.topk(3).indices)
    assert pooled(views[:1], pooling, config) is views[0]


def test_views_that_agree_are_one_view_and_what_one_rules_out_is_unlikely_to_both():
    sure, open_ = torch.tensor([[0.0, -60.0, -60.0]]), torch.zeros(1, 3)
    views = [teacher_scores(view, EXACT) for view in (sure, open_)]
    mean, log_mean = (pooled(views, how, EXACT).log_probs.exp()[0] for how in ("mean", "log_mean"))
    torch.testing.assert_close(mean, torch.tensor([4 / 6, 1 / 6, 1 / 6]))
    assert log_mean[0] > 0.999
    twice = pooled([views[1], views[1]], "mean", EXACT)
    torch.testing.assert_close(twice.log_probs, views[1].log_probs)
