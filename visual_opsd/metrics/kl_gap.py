"""What the visual thoughts tell the teacher and not yet the student, in nats per token (Eq. 4)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat


def sum_per_completion(
    per_token: Float[Tensor, " tokens"], lengths: Int[Tensor, " completions"]
) -> Float[Tensor, " completions"]:
    """Add up flat tokens of ragged completions, in float64."""
    if lengths.sum() != per_token.shape[0]:
        raise ValueError(f"lengths add up to {lengths.sum()}, but {per_token.shape[0]} tokens came")
    owners = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    sums = torch.zeros(len(lengths), dtype=torch.float64, device=per_token.device)
    return sums.index_add(0, owners.to(per_token.device), per_token.double())


class KLGap(Metric):
    """Mean over tokens of KL(teacher || student) on completions both sides score.

    ``update`` takes the per-token values of ``kl_divergence_per_token``. ``compute`` returns

    - ``kl_gap``: mean over all tokens, as in Eq. 4;
    - ``kl_gap_completion_mean``: mean over completions of each one's mean, so that length is no
      weight;
    - ``kl_gap/<category>``: mean over the category's tokens, NaN where none came.
    """

    higher_is_better = False
    full_state_update = False
    sums: list[Tensor]
    lengths: list[Tensor]
    categories: list[Tensor]

    def __init__(self, categories: Sequence[str] = ()) -> None:
        """Know the ``categories`` beforehand, so that every rank reports the same keys."""
        super().__init__()
        self.names = tuple(categories)
        for state in ("sums", "lengths", "categories"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(
        self,
        kl: Float[Tensor, " tokens"],
        lengths: Int[Tensor, " completions"],
        categories: Sequence[str] | None = None,
    ) -> None:
        """Take the tokens of some completions, one after another, and each one's category."""
        self.sums.append(sum_per_completion(kl, lengths))
        self.lengths.append(lengths.to(kl.device))
        self.categories.append(self._indices(categories, len(lengths)).to(kl.device))

    def compute(self) -> dict[str, Tensor]:
        """Means over tokens, over completions, and by category."""
        sums, lengths = _joined(self.sums), _joined(self.lengths)
        categories = _joined(self.categories)
        means = {
            "kl_gap": sums.sum() / lengths.sum(),
            "kl_gap_completion_mean": (sums / lengths)[lengths > 0].mean(),
        }
        for index, name in enumerate(self.names):
            chosen = categories == index
            means[f"kl_gap/{name}"] = sums[chosen].sum() / lengths[chosen].sum()
        return means

    def completions(self) -> dict[str, Tensor]:
        """Every completion's ``kl_sum`` and ``num_tokens``, of all ranks: what intervals need."""
        with self.sync_context():
            return {"kl_sum": _joined(self.sums), "num_tokens": _joined(self.lengths)}

    def _indices(self, categories: Sequence[str] | None, num_completions: int) -> Tensor:
        if categories is None:
            return torch.full((num_completions,), -1)
        if len(categories) != num_completions:
            raise ValueError(f"{len(categories)} categories for {num_completions} completions")
        unknown = set(categories) - set(self.names)
        if unknown:
            raise ValueError(f"unknown categories {sorted(unknown)}, known are {list(self.names)}")
        return torch.tensor([self.names.index(name) for name in categories], dtype=torch.long)


class KLGapClosure(Metric):
    """How much of the KL gap a training closed, and which side moved to close it.

    With K(T || S) the gap on one fixed set of completions, and 0 and 1 the weights before and after
    training, closure is ``1 - K(T1 || S1) / K(T0 || S0)``. A teacher that drifts to the student
    closes the gap too, so the start's teacher splits it into two parts that add up:

    - ``closure_student_moved``: ``(K(T0 || S0) - K(T0 || S1)) / K(T0 || S0)``, what was learnt;
    - ``closure_teacher_moved``: ``(K(T0 || S1) - K(T1 || S1)) / K(T0 || S0)``.
    """

    higher_is_better = True
    full_state_update = False
    before: list[Tensor]
    student_moved: list[Tensor]
    after: list[Tensor]
    lengths: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for state in ("before", "student_moved", "after", "lengths"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(
        self,
        before: Float[Tensor, " tokens"],
        student_moved: Float[Tensor, " tokens"],
        after: Float[Tensor, " tokens"],
        lengths: Int[Tensor, " completions"],
    ) -> None:
        """Take per-token K(T0 || S0), K(T0 || S1) and K(T1 || S1) of the same completions."""
        self.before.append(sum_per_completion(before, lengths))
        self.student_moved.append(sum_per_completion(student_moved, lengths))
        self.after.append(sum_per_completion(after, lengths))
        self.lengths.append(lengths.to(before.device))

    def compute(self) -> dict[str, Tensor]:
        """The three gaps in nats per token, closure and its two parts; NaN without a gap."""
        num_tokens = _joined(self.lengths).sum()
        before, moved, after = (
            _joined(sums).sum() / num_tokens
            for sums in (self.before, self.student_moved, self.after)
        )
        return {
            "kl_gap_before": before,
            "kl_gap_student_moved": moved,
            "kl_gap_after": after,
            "closure": 1 - after / before,
            "closure_student_moved": (before - moved) / before,
            "closure_teacher_moved": (moved - after) / before,
        }

    def completions(self) -> dict[str, Tensor]:
        """Every completion's three KL sums and ``num_tokens``, of all ranks."""
        with self.sync_context():
            return {
                "before": _joined(self.before),
                "student_moved": _joined(self.student_moved),
                "after": _joined(self.after),
                "num_tokens": _joined(self.lengths),
            }


def _joined(state: list[Tensor] | Tensor) -> Tensor:
    """A list state as one tensor, before and after ranks were joined."""
    if isinstance(state, list) and not state:
        return torch.zeros(0, dtype=torch.float64)
    return dim_zero_cat(state)
