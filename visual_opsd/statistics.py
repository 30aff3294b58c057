"""How sure a number is: 95 % intervals and paired tests over problems; rates are fractions 0..1."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

CONFIDENCE = 0.95
RESAMPLES = 10_000

# Rows drawn at a time: an index table of this many entries stays within a processor's cache.
_ENTRIES_AT_A_TIME = 500_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def wilson(successes: int, n: int) -> Estimate:
    """The rate of ``successes`` in ``n`` trials with its Wilson score interval."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a rate needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    low, high = proportion_confint(successes, n, alpha=1 - CONFIDENCE, method="wilson")
    rate = successes / n
    # Rounding puts the upper end of 10 of 10 at 1 - 1e-16, below the rate.
    return Estimate(rate, min(float(low), rate), max(float(high), rate))


def weighted_rates(rates: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """``sum(weights * rates)`` of independent rates, its interval made of theirs (MOVER).

    Of one rate with weight 1 it is that rate's own interval.
    Source: Zou, Huang and Zhang 2009, A note on confidence interval estimation for a linear
    function of binomial proportions, Computational Statistics & Data Analysis 53.
    """
    if not rates or len(rates) != len(weights) or min(weights) < 0:
        raise ValueError(f"{len(rates)} rates need as many weights >= 0, got {list(weights)}")
    pairs = list(zip(rates, weights, strict=True))
    value = sum(weight * rate.value for rate, weight in pairs)
    below = sum((weight * (rate.value - rate.low)) ** 2 for rate, weight in pairs) ** 0.5
    above = sum((weight * (rate.high - rate.value)) ** 2 for rate, weight in pairs) ** 0.5
    return Estimate(value, value - below, value + above)


def paired_bootstrap_difference(
    a: ArrayLike, b: ArrayLike, seed: int, resamples: int = RESAMPLES
) -> Estimate:
    """Mean of ``a - b``, a value a problem on each side; percentile bootstrap over problems."""
    columns = _paired(a, b)
    difference = columns[:, :1] - columns[:, 1:]
    means = _resampled_means(difference, seed, resamples)[:, 0]
    return _estimate(float(difference.mean()), means)


def bootstrap_ratio(
    numerator: ArrayLike, denominator: ArrayLike, seed: int, resamples: int = RESAMPLES
) -> Estimate:
    """``sum(numerator) / sum(denominator)``, resampled over rows.

    The KL gap is this ratio of each completion's KL sum and its number of tokens: long completions
    weigh more, as in the paper's Eq. 4, and tokens of one completion are never taken apart.
    """
    columns = _paired(numerator, denominator)
    if columns[:, 1].sum() == 0:
        raise ValueError("the denominator sums to 0")
    means = _resampled_means(columns, seed, resamples)
    return _estimate(float(columns[:, 0].sum() / columns[:, 1].sum()), means[:, 0] / means[:, 1])


def bootstrap_closure(
    before: ArrayLike, after: ArrayLike, seed: int, resamples: int = RESAMPLES
) -> Estimate:
    """KL-gap closure ``1 - sum(after) / sum(before)``, resampled over completions.

    Takes each completion's KL sum on both sides. Both score the same tokens, so their counts
    cancel out of the ratio of the means.
    """
    ratio = bootstrap_ratio(after, before, seed, resamples)
    return Estimate(1 - ratio.value, 1 - ratio.high, 1 - ratio.low)


def bootstrap_statistic(
    statistic: Callable[..., float],
    *arrays: ArrayLike,
    seed: int,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Any ``statistic(*arrays)``; a resample takes the same problems (rows) from every array."""
    sides = [np.asarray(array) for array in arrays]
    lengths = {len(side) for side in sides}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"arrays must share one length of at least 1, got {sorted(lengths)}")
    generator = np.random.default_rng(seed)
    size = lengths.pop()
    values = np.empty(resamples)
    for row in range(resamples):
        drawn = generator.integers(size, size=size)
        values[row] = statistic(*(side[drawn] for side in sides))
    return _estimate(float(statistic(*sides)), values)


def mcnemar_exact(wins: int, losses: int) -> float:
    """Two-sided p-value that problems only one side solves fall on either side alike."""
    if wins < 0 or losses < 0:
        raise ValueError(f"counts must be at least 0, got {wins} and {losses}")
    if wins + losses == 0:
        return 1.0
    return float(binomtest(wins, wins + losses).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the given order."""
    if not p_values:
        return []
    return [float(p) for p in multipletests(list(p_values), method="holm")[1]]


def _paired(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Two values a row, as [rows, 2]."""
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.ndim != 1 or left.shape != right.shape or left.size == 0:
        raise ValueError(f"sides must pair one by one, got shapes {left.shape} and {right.shape}")
    return np.stack([left, right], axis=1)


def _resampled_means(
    columns: NDArray[np.float64], seed: int, resamples: int
) -> NDArray[np.float64]:
    """Column means of ``resamples`` draws of rows with replacement, as [resamples, columns]."""
    generator = np.random.default_rng(seed)
    size = len(columns)
    kinds, occurrences = np.unique(columns, axis=0, return_counts=True)
    if len(kinds) <= 16:
        # Wins, draws and losses: how often each kind is drawn is all that matters.
        counts = generator.multinomial(size, occurrences / size, size=resamples)
        return counts @ kinds / size
    means = np.empty((resamples, columns.shape[1]))
    step = max(1, _ENTRIES_AT_A_TIME // size)
    for start in range(0, resamples, step):
        part = means[start : start + step]
        drawn = generator.integers(size, size=(len(part), size), dtype=np.int32)
        for column, values in enumerate(columns.T):
            part[:, column] = np.take(values, drawn).mean(axis=1)
    return means


def _estimate(value: float, resampled: NDArray[np.float64]) -> Estimate:
    """The value with the middle 95 % of its resamples."""
    margin = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [margin, 1 - margin])
    return Estimate(value, float(low), float(high))
