"""What the visual thoughts tell the teacher and not yet the student, in nats per token (Eq. 4)."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from visual_opsd.metrics.rows import RowsMetric


def sum_per_completion(
    per_token: Float[Tensor, " tokens"], lengths: Int[Tensor, " completions"]
) -> Float[Tensor, " completions"]:
    """Add up flat tokens of ragged completions, in float64."""
    if lengths.sum() != per_token.shape[0]:
        raise ValueError(f"lengths add up to {lengths.sum()}, but {per_token.shape[0]} tokens came")
    owners = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    sums = torch.zeros(len(lengths), dtype=torch.float64, device=per_token.device)
    return sums.index_add(0, owners.to(per_token.device), per_token.double())


class _Gaps(RowsMetric):
    """KL sums of the same completions in one or more pairs of sides, by category and token class.

    Both are groups of tokens: all of some completions, or some of all completions.
    """

    def __init__(
        self, gaps: Sequence[str], categories: Sequence[str], token_classes: Sequence[str]
    ) -> None:
        both = set(categories) & set(token_classes)
        if both:
            raise ValueError(f"names of categories and token classes at once: {sorted(both)}")
        super().__init__(
            **dict.fromkeys(gaps, torch.float64), num_tokens=torch.long, category=torch.long
        )
        self.gaps = tuple(gaps)
        self.categories = tuple(categories)
        self.token_classes = tuple(token_classes)

    def completions(self) -> dict[str, Tensor]:
        """Every completion's KL sums and ``num_tokens``, of all ranks: what intervals need.

        Also ``<name>/<token class>`` for each token class.
        """
        rows = self.gathered()
        tables = {name: self._by_class(rows[name]) for name in (*self.gaps, "num_tokens")}
        found = {name: table.sum(dim=1) for name, table in tables.items()}
        for index, token_class in enumerate(self.token_classes):
            found |= {f"{name}/{token_class}": table[:, index] for name, table in tables.items()}
        return found

    def _add(
        self,
        gaps: Sequence[Tensor],
        lengths: Tensor,
        categories: Sequence[str] | None,
        token_classes: Tensor | None,
    ) -> None:
        classes = self._checked_classes(token_classes, len(gaps[0])).to(lengths.device)
        indices = range(max(1, len(self.token_classes)))

        def table(per_token: Tensor) -> Tensor:
            is_in = classes.to(per_token.device)
            rows = [
                sum_per_completion(per_token.where(is_in == index, 0), lengths) for index in indices
            ]
            return torch.stack(rows, dim=1)

        self.append(
            **{name: table(gap) for name, gap in zip(self.gaps, gaps, strict=True)},
            num_tokens=table(torch.ones(len(classes), device=classes.device)),
            category=self._indices(categories, len(lengths)),
        )

    def _means(self) -> Iterator[tuple[str, list[Tensor]]]:
        """The mean over tokens of every gap: of all tokens, then of each group, by its suffix."""
        num_tokens = self._by_class(self.column("num_tokens"))
        categories = self.column("category")
        groups = {"": torch.ones_like(num_tokens, dtype=torch.bool)}
        for index, name in enumerate(self.categories):
            groups[f"/{name}"] = (categories == index)[:, None].expand_as(num_tokens)
        for index, name in enumerate(self.token_classes):
            groups[f"/{name}"] = torch.zeros_like(num_tokens, dtype=torch.bool)
            groups[f"/{name}"][:, index] = True
        sums = [self._by_class(self.column(gap)) for gap in self.gaps]
        for suffix, chosen in groups.items():
            yield suffix, [table[chosen].sum() / num_tokens[chosen].sum() for table in sums]

    def _by_class(self, column: Tensor) -> Tensor:
        """A flat column as [completions, token classes]."""
        return column.view(-1, max(1, len(self.token_classes)))

    def _indices(self, categories: Sequence[str] | None, num_completions: int) -> Tensor:
        if categories is None:
            return torch.full((num_completions,), -1)
        if len(categories) != num_completions:
            raise ValueError(f"{len(categories)} categories for {num_completions} completions")
        unknown = set(categories) - set(self.categories)
        if unknown:
            raise ValueError(
                f"unknown categories {sorted(unknown)}, known are {list(self.categories)}"
            )
        return torch.tensor([self.categories.index(name) for name in categories], dtype=torch.long)

    def _checked_classes(self, token_classes: Tensor | None, num_tokens: int) -> Tensor:
        if token_classes is None and not self.token_classes:
            return torch.zeros(num_tokens, dtype=torch.long)
        if token_classes is None or len(token_classes) != num_tokens:
            count = None if token_classes is None else len(token_classes)
            raise ValueError(f"token classes of {count} tokens, and {num_tokens} tokens came")
        outside = (token_classes < 0) | (token_classes >= len(self.token_classes))
        if outside.any():
            raise ValueError(
                f"token class {int(token_classes[outside][0])} is none of the "
                f"{len(self.token_classes)}: {list(self.token_classes)}"
            )
        return token_classes


class KLGap(_Gaps):
    """Mean over tokens of KL(teacher || student) on completions both sides score.

    ``update`` takes the per-token values of ``kl_divergence_per_token``. ``compute`` returns

    - ``kl_gap``: mean over all tokens, as in Eq. 4;
    - ``kl_gap_completion_mean``: mean over completions of each one's mean, so that length is no
      weight;
    - ``kl_gap/<category>`` and ``kl_gap/<token class>``: mean over their tokens, NaN where none
      came.
    """

    higher_is_better = False

    def __init__(self, categories: Sequence[str] = (), token_classes: Sequence[str] = ()) -> None:
        """Know the names beforehand, so that every rank reports the same keys."""
        super().__init__(("kl_sum",), categories, token_classes)

    def update(
        self,
        kl: Float[Tensor, " tokens"],
        lengths: Int[Tensor, " completions"],
        categories: Sequence[str] | None = None,
        token_classes: Int[Tensor, " tokens"] | None = None,
    ) -> None:
        """Take the tokens of some completions, one after another.

        ``categories`` names one a completion, ``token_classes`` is an index a token.
        """
        self._add((kl,), lengths, categories, token_classes)

    def compute(self) -> dict[str, Tensor]:
        """Means over tokens, over completions, by category and by token class."""
        means = {f"kl_gap{suffix}": mean for suffix, (mean,) in self._means()}
        sums = self._by_class(self.column("kl_sum")).sum(dim=1)
        lengths = self._by_class(self.column("num_tokens")).sum(dim=1)
        means["kl_gap_completion_mean"] = (sums / lengths)[lengths > 0].mean()
        return means


class KLGapClosure(_Gaps):
    """How much of the KL gap a training closed, and which side moved to close it.

    With K(T || S) the gap on one fixed set of completions, and 0 and 1 the weights before and after
    training, closure is ``1 - K(T1 || S1) / K(T0 || S0)``. A teacher that drifts to the student
    closes the gap too, so the start's teacher splits it into two parts that add up:

    - ``closure_student_moved``: ``(K(T0 || S0) - K(T0 || S1)) / K(T0 || S0)``, what was learnt;
    - ``closure_teacher_moved``: ``(K(T0 || S1) - K(T1 || S1)) / K(T0 || S0)``.
    """

    higher_is_better = True

    def __init__(self, categories: Sequence[str] = (), token_classes: Sequence[str] = ()) -> None:
        """Know the names beforehand, so that every rank reports the same keys."""
        super().__init__(("before", "student_moved", "after"), categories, token_classes)

    def update(
        self,
        before: Float[Tensor, " tokens"],
        student_moved: Float[Tensor, " tokens"],
        after: Float[Tensor, " tokens"],
        lengths: Int[Tensor, " completions"],
        categories: Sequence[str] | None = None,
        token_classes: Int[Tensor, " tokens"] | None = None,
    ) -> None:
        """Take per-token K(T0 || S0), K(T0 || S1) and K(T1 || S1) of the same completions."""
        self._add((before, student_moved, after), lengths, categories, token_classes)

    def compute(self) -> dict[str, Tensor]:
        """The three gaps in nats per token, closure and its two parts; NaN without a gap.

        Each also as ``<name>/<category>`` and ``<name>/<token class>``.
        """
        found: dict[str, Tensor] = {}
        for suffix, (before, moved, after) in self._means():
            values = {
                "kl_gap_before": before,
                "kl_gap_student_moved": moved,
                "kl_gap_after": after,
                "closure": 1 - after / before,
                "closure_student_moved": (before - moved) / before,
                "closure_teacher_moved": (moved - after) / before,
            }
            found |= {f"{name}{suffix}": value for name, value in values.items()}
        return found
