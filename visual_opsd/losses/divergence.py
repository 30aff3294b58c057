"""How far the student's next-token distribution is from the teacher's, token by token.

Shape suffixes: T = completion tokens, V = vocabulary, K = compared entries (kept ids and tail).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

# What stands for -inf: its probability is exactly 0 in float32, and 0 times it is not NaN.
LOGIT_FLOOR = -1e9


@dataclass(frozen=True, kw_only=True)
class DivergenceConfig:
    """Knobs of :func:`divergence`; the defaults are the exact form of the paper's Eq. 7.

    ``DivergenceConfig.PAPER`` holds what the official release trains with.
    """

    PAPER: ClassVar["DivergenceConfig"]

    kind: Literal["jsd", "forward_kl", "reverse_kl"] = "jsd"
    """``forward_kl``, KL(teacher || student), and ``reverse_kl`` name the two ends of the family:
    ``teacher_weight`` 0 and 1."""
    teacher_weight: float = 0.5
    """Share of the teacher in the mixture, written beta in the papers; 0 and 1 are allowed."""
    temperature: float = 1.0
    """Divides both sides' logits."""
    top_k: int | None = None
    """Compare only the teacher's K likeliest entries; None keeps the whole vocabulary."""
    tail: bool = True
    """Count the mass outside the top K as one more entry, instead of renormalising without it."""
    token_clip: float | None = None
    """Upper bound on a token's divergence; a clipped token keeps its gradient's direction."""
    legacy: bool = False
    """The official release's numbers: renormalised top K, full KL at both ends, times T squared."""
    entry_clip: float | None = None
    """Upper bound on one vocabulary entry's contribution, without gradient above; legacy only."""

    def __post_init__(self) -> None:
        if not 0 <= self.teacher_weight <= 1:
            raise ValueError(f"teacher_weight must lie in [0, 1], got {self.teacher_weight}")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1 or None, got {self.top_k}")
        for name, clip in (("token_clip", self.token_clip), ("entry_clip", self.entry_clip)):
            if clip is not None and not clip > 0:
                raise ValueError(f"{name} must be positive or None, got {clip}")
        self._check_what_excludes_each_other()

    def _check_what_excludes_each_other(self) -> None:
        if self.kind != "jsd" and self.teacher_weight != 0.5:
            raise ValueError(
                f"teacher_weight belongs to kind jsd: {self.kind} has its own, got "
                f"{self.teacher_weight}"
            )
        if self.legacy:
            if self.top_k is not None and self.tail:
                raise ValueError(
                    "legacy renormalises the top K: it needs tail=False, got tail=True"
                )
            if self.token_clip is not None:
                raise ValueError(
                    f"legacy clips entries, not tokens: got token_clip={self.token_clip}"
                )
        elif self.entry_clip is not None:
            raise ValueError(
                f"entry_clip belongs to legacy=True (else use token_clip), got {self.entry_clip}"
            )

    @property
    def beta(self) -> float:
        """The teacher's share in the mixture, by whichever name."""
        return {"jsd": self.teacher_weight, "forward_kl": 0.0, "reverse_kl": 1.0}[self.kind]


# Appendix C and the launch script of the official release.
DivergenceConfig.PAPER = DivergenceConfig(top_k=256, tail=False, legacy=True, entry_clip=0.05)


class TeacherScores(NamedTuple):
    """What is left of the teacher outside its weight context: log-probabilities, no gradient."""

    log_probs: Float[Tensor, "tokens kept"]
    """Normalised over the whole vocabulary, at the configured temperature."""
    ids: Int[Tensor, "tokens kept"] | None = None
    """Which vocabulary entries were kept, likeliest first; None: all, in order."""
    log_tail: Float[Tensor, " tokens"] | None = None
    """Log of the probability outside ``ids``."""

    def rows(self, part: slice) -> "TeacherScores":
        """The scores of some of the tokens."""
        return TeacherScores(
            self.log_probs[part],
            None if self.ids is None else self.ids[part],
            None if self.log_tail is None else self.log_tail[part],
        )


@torch.no_grad()
def teacher_scores(
    logits: Float[Tensor, "tokens vocab"], config: DivergenceConfig
) -> TeacherScores:
    """Reduce the teacher's logits to what :func:`divergence` needs, detached."""
    if config.top_k is None or config.top_k >= logits.shape[-1]:
        return TeacherScores(_floored(logits, config).log_softmax(dim=-1))
    ids = logits.topk(config.top_k, dim=-1).indices
    return TeacherScores(*_kept_and_tail(_floored(logits, config), ids))


Pooling = Literal["mean", "log_mean"]


def pooled(
    views: Sequence[TeacherScores], pooling: Pooling, config: DivergenceConfig
) -> TeacherScores:
    """One teacher out of its scores of the same tokens in several contexts.

    ``mean`` averages distributions, an expectation over visual thoughts (paper, Theorem 1);
    ``log_mean`` their logarithms: what one context all but rules out stays unlikely. Several views
    are scored on the whole vocabulary, and the top K is that of the pooled teacher.
    """
    if len(views) == 1:
        return views[0]
    log_probs = torch.stack([view.log_probs for view in views])
    joint = log_probs.logsumexp(dim=0) if pooling == "mean" else log_probs.mean(dim=0)
    # Normalises; the temperature is in the views already.
    return teacher_scores(joint, replace(config, temperature=1.0))


def divergence(
    student_logits: Float[Tensor, "tokens vocab"],
    teacher: TeacherScores,
    config: DivergenceConfig,
) -> Float[Tensor, " tokens"]:
    """Generalised Jensen-Shannon divergence per token, in nats; gradient to the student only.

    With b = ``config.beta`` and mixture ``m = b * teacher + (1 - b) * student``, returns
    ``[b * KL(teacher || m) + (1 - b) * KL(student || m)] / (4 b (1 - b))``.
    At b = 1/2 this is the paper's Eq. 7 (GKD, Agarwal et al. 2024, https://arxiv.org/abs/2306.13649).
    The divisor, absent there, makes the family continuous: without it the value falls to 0 at both
    ends; with it the limits are ``KL(teacher || student) / 4`` at b = 0 and
    ``KL(student || teacher) / 4`` at b = 1, and near agreement every b has the same curvature, so
    that b says which mistakes cost more and leaves the learning rate alone.

    Legacy follows the official code instead (no divisor, full KL at b = 0 and 1, entries clamped
    from above, times the squared temperature), bit for bit up to float32 rounding.
    """
    _check_pair(student_logits, teacher, config)
    if config.legacy:
        return _legacy_divergence(student_logits, teacher, config)
    student_TK, teacher_TK = _on_same_entries(student_logits, teacher, config)
    per_token = _skewed_entries(student_TK, teacher_TK, config.beta).sum(dim=-1)
    if config.token_clip is not None:
        # A factor without gradient, not a clamp: the most informative tokens keep teaching.
        per_token = per_token * (
            config.token_clip / per_token.detach().clamp(min=config.token_clip)
        )
    return per_token


def generalized_jsd(
    student_logits: Float[Tensor, "tokens vocab"],
    teacher_logits: Float[Tensor, "tokens vocab"],
    config: DivergenceConfig,
) -> Float[Tensor, " tokens"]:
    """:func:`divergence` where both sides' logits are at hand."""
    return divergence(student_logits, teacher_scores(teacher_logits, config), config)


def kl_divergence_per_token(
    teacher_logprobs: Float[Tensor, "tokens vocab"],
    student_logprobs: Float[Tensor, "tokens vocab"],
) -> Float[Tensor, " tokens"]:
    """KL(teacher || student) per token in nats: a summand of the paper's Eq. 4.

    An entry the teacher gives no probability adds nothing, whatever the student says; an entry
    only the student rules out makes the value infinite, as it should be.
    """
    possible = teacher_logprobs.exp() > 0
    teacher_TV = teacher_logprobs.where(possible, 0.0)
    student_TV = student_logprobs.where(possible, 0.0)
    return (teacher_logprobs.exp() * (teacher_TV - student_TV)).sum(dim=-1)


def _check_pair(student_logits: Tensor, teacher: TeacherScores, config: DivergenceConfig) -> None:
    """Refuse sides of different lengths, vocabularies or settings instead of aligning them."""
    num_tokens, num_entries = student_logits.shape
    if teacher.log_probs.shape[0] != num_tokens:
        raise ValueError(f"student has {num_tokens} tokens, teacher {teacher.log_probs.shape[0]}")
    kept = num_entries if config.top_k is None else min(config.top_k, num_entries)
    if teacher.log_probs.shape[1] != kept or (teacher.ids is None) != (kept == num_entries):
        raise ValueError(
            f"teacher was scored on {teacher.log_probs.shape[1]} entries, but top_k={config.top_k} "
            f"of a vocabulary of {num_entries} asks for {kept}"
        )


def _floored(logits: Tensor, config: DivergenceConfig) -> Tensor:
    """Logits in float32 at the temperature, with a finite stand-in for -inf."""
    at_least_float32 = torch.promote_types(logits.dtype, torch.float32)
    return (logits.to(at_least_float32) / config.temperature).clamp(min=LOGIT_FLOOR)


def _kept_and_tail(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities at ``ids``, the ids, and the log of the probability elsewhere."""
    log_sum_T1 = logits.logsumexp(dim=-1, keepdim=True)
    # Summed over what is left, not 1 minus what was kept: that difference is all rounding error
    # where the top K hold nearly everything.
    rest = logits.scatter(-1, ids, LOGIT_FLOOR)
    log_tail_T1 = rest.logsumexp(dim=-1, keepdim=True) - log_sum_T1
    return logits.gather(-1, ids) - log_sum_T1, ids, log_tail_T1.squeeze(-1)


def _on_same_entries(
    student_logits: Tensor, teacher: TeacherScores, config: DivergenceConfig
) -> tuple[Tensor, Tensor]:
    """Both sides' log-probabilities: the whole vocabulary, top K and tail, or the top K alone."""
    if teacher.ids is None:
        return _floored(student_logits, config).log_softmax(dim=-1), teacher.log_probs
    if not config.tail:
        # Gather before the float32 upcast: at 152k vocabulary this is the memory peak.
        kept = _floored(student_logits.gather(-1, teacher.ids), config)
        return kept.log_softmax(dim=-1), teacher.log_probs.log_softmax(dim=-1)
    assert teacher.log_tail is not None, "teacher_scores gives a tail with every top K"
    student_TK, _, student_tail_T = _kept_and_tail(_floored(student_logits, config), teacher.ids)
    return (
        torch.cat([student_TK, student_tail_T.unsqueeze(-1)], dim=-1),
        torch.cat([teacher.log_probs, teacher.log_tail.unsqueeze(-1)], dim=-1),
    )


def _skewed_entries(student_TK: Tensor, teacher_TK: Tensor, teacher_weight: float) -> Tensor:
    """Summands of the generalised JSD over ``4 b (1 - b)``, each at least 0 for 0 < b < 1.

    ``KL(student || m) / b`` is 0 at b = 0, and ``KL(teacher || m) / (1 - b)`` at b = 1.
    """
    gap_TK = teacher_TK - student_TK
    entries = torch.zeros_like(gap_TK)
    if teacher_weight > 0:
        entries = entries - student_TK.exp() * _log_mean_exp(gap_TK, teacher_weight)
    if teacher_weight < 1:
        entries = entries - teacher_TK.exp() * _log_mean_exp(-gap_TK, 1 - teacher_weight)
    return entries / 4


def _log_mean_exp(gap: Tensor, weight: float) -> Tensor:
    """``log(1 - weight + weight * exp(gap)) / weight``, exact also where the weight is tiny."""
    if weight > 0.5:
        rest = gap.new_tensor(1 - weight).log()
        return torch.logaddexp(rest, gap + math.log(weight)) / weight
    # Beyond a gap of 60 the factor in front, a probability, is under exp(-60).
    return torch.log1p(weight * gap.clamp(-60, 60).expm1()) / weight


def _legacy_divergence(
    student_logits: Tensor, teacher: TeacherScores, config: DivergenceConfig
) -> Tensor:
    """The official release's loss, row by row (``opsd_loss.py``; written anew from its formula)."""
    student_TK, teacher_TK = _on_same_entries(student_logits, teacher, config)
    beta = config.beta
    if beta == 0:
        entries = _kl_entries(teacher_TK, student_TK)
    elif beta == 1:
        entries = _kl_entries(student_TK, teacher_TK)
    else:
        mixture_TK = torch.logaddexp(teacher_TK + math.log(beta), student_TK + math.log(1 - beta))
        of_teacher, of_student = (
            _kl_entries(side, mixture_TK) for side in (teacher_TK, student_TK)
        )
        entries = beta * of_teacher + (1 - beta) * of_student
    if config.entry_clip is not None:
        entries = entries.clamp(max=config.entry_clip)
    return entries.sum(dim=-1) * config.temperature**2


def _kl_entries(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Summands of KL(p || q)."""
    return log_p.exp() * (log_p - log_q)
