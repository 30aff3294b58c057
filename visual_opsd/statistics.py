"""How sure a number is: 95 % intervals and paired tests over problems; rates are fractions 0..1."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import binomtest, false_discovery_control, norm, t
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW, ttost_paired

CONFIDENCE = 0.95
RESAMPLES = 10_000

# Rows drawn at a time: an index table of this many entries stays within a processor's cache.
_ENTRIES_AT_A_TIME = 500_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its interval: 95 %, where nothing else is said."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Whether two paired sides differ by less than a margin, by two one-sided tests (TOST)."""

    difference: Estimate
    """Mean of ``a - b`` with its 90 % interval, which lies within the margin where p < 0.05."""
    margin: float
    p_value: float

    @property
    def is_equivalent(self) -> bool:
        """At the 5 % level; if not, the sides may differ, or there were too few problems to say."""
        return self.p_value < 0.05


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


def seeds_bootstrap_difference(
    a: ArrayLike,
    b: ArrayLike,
    seed: int,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Mean of ``a`` minus mean of ``b``, each [seeds, problems], sure over both levels.

    A resample draws problems, the same for both arms, and for each arm, by itself, how far the mean
    of its seeds may lie from that of all seeds. One seed spreads not at all: that is right for what
    was not trained, and too narrow for what was.
    """
    arms = _arms(a, b)
    # No mean leaves the values that it is of: a share stays one.
    bounds = min(arm.min() for arm in arms), max(arm.max() for arm in arms)
    means = _resampled_arms(arms, seed, resamples, bounds)
    value = float(arms[0].mean() - arms[1].mean())
    return _estimate(value, means[:, 0] - means[:, 1], confidence)


def seeds_difference(a: ArrayLike, b: ArrayLike) -> Estimate:
    """Mean of ``a`` minus mean of ``b``, a value a seed, with Welch's interval over seeds.

    For what has no problems to resample: the bootstrap of three seeds ends at their extremes.
    """
    value, error, freedom = _welch(a, b)
    reach = float(t.isf((1 - CONFIDENCE) / 2, freedom)) * error if error else 0.0
    return Estimate(value, value - reach, value + reach)


def welch(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p-value that the sides of :func:`seeds_difference` have one mean.

    1 without any spread, where there is no t: seeds that all agree are too few to say.
    """
    value, error, freedom = _welch(a, b)
    return float(2 * t.sf(abs(value) / error, freedom)) if error else 1.0


def _welch(a: ArrayLike, b: ArrayLike) -> tuple[float, float, float]:
    """Difference of two means, its standard error and Welch's degrees of freedom."""
    sides = [np.asarray(side, dtype=np.float64) for side in (a, b)]
    if any(side.ndim != 1 or side.size < 2 for side in sides):
        raise ValueError(f"an interval over seeds takes 2 a side, got {[s.shape for s in sides]}")
    value = float(sides[0].mean() - sides[1].mean())
    parts = [float(side.var(ddof=1)) / side.size for side in sides]
    if sum(parts) == 0:  # no spread, no t
        return value, 0.0, np.inf
    freedom = sum(parts) ** 2 / sum(
        part**2 / (side.size - 1) for part, side in zip(parts, sides, strict=True)
    )
    return value, sum(parts) ** 0.5, freedom


def seeds_bootstrap_closure(
    before: ArrayLike, after: ArrayLike, seed: int, resamples: int = RESAMPLES
) -> Estimate:
    """:func:`bootstrap_closure` of several students, over completions and seeds.

    ``before`` holds the KL sum a completion of the weights that all of them started from, ``after``
    theirs, [seeds, completions].
    """
    arms = _arms(before, after)
    if arms[0].sum() == 0:
        raise ValueError("the gap before sums to 0")
    means = _resampled_arms(arms, seed, resamples, (0.0, np.inf))
    return _estimate(1 - float(arms[1].mean() / arms[0].mean()), 1 - means[:, 1] / means[:, 0])


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


def problem_differences(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Mean over seeds of ``a`` minus that of ``b``, a value a problem, over as many seeds of both.

    As many, the first ones: of two equal arms, the one with fewer seeds more often solves an easy
    problem in all of them.
    """
    left, right = _arms(a, b)
    count = min(len(left), len(right))
    return np.asarray(left[:count].mean(axis=0) - right[:count].mean(axis=0))


def wins_and_losses(a: ArrayLike, b: ArrayLike) -> tuple[int, int]:
    """How many problems each side solves more often, over as many seeds of both.

    With one seed these are McNemar's discordant pairs. With more, :func:`mcnemar_exact` of them is
    the sign test over problems: it speaks of these seeds, not of others.
    """
    differences = problem_differences(a, b)
    return int((differences > 0).sum()), int((differences < 0).sum())


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


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that bound the share of false discoveries, in the given order."""
    if not p_values:
        return []
    return [float(p) for p in false_discovery_control(list(p_values))]


def equivalence(a: ArrayLike, b: ArrayLike, margin: float) -> Equivalence:
    """Paired TOST of ``-margin < mean(a - b) < margin`` by Student's t over problems.

    Takes a value a problem and side; over seeds, hold the 90 % interval of
    :func:`seeds_bootstrap_difference` against the margin.
    """
    if not margin > 0:
        raise ValueError(f"margin must be positive, got {margin}")
    columns = _paired(a, b)
    differences = columns[:, 0] - columns[:, 1]
    mean = float(differences.mean())
    if len(differences) < 2:
        raise ValueError("a test needs at least 2 problems, got 1")
    if np.ptp(differences) == 0:  # no spread, no t
        return Equivalence(Estimate(mean, mean, mean), margin, float(abs(mean) >= margin))
    p_value = ttost_paired(columns[:, 0], columns[:, 1], -margin, margin)[0]
    low, high = DescrStatsW(differences).tconfint_mean(alpha=0.1)
    return Equivalence(Estimate(mean, float(low), float(high)), margin, float(p_value))


def smallest_detectable_difference(
    num_problems: int, discordant: float, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """Smallest difference of two paired rates that McNemar's test finds with the given power.

    ``discordant`` is the share of problems that one side alone solves. None: not even if they all
    fell on one side. Source: Connor 1987 (Biometrics 43, p. 207), solved for the difference.
    """
    if num_problems < 1 or not 0 < discordant <= 1:
        raise ValueError(
            "needs at least 1 problem and a discordant share in (0, 1], "
            f"got {num_problems} and {discordant}"
        )
    missed, found = norm.isf(alpha / 2), norm.isf(1 - power)

    def surplus(difference: float) -> float:
        spread = (discordant - difference**2) ** 0.5
        return float(num_problems**0.5 * difference - missed * discordant**0.5 - found * spread)

    return float(brentq(surplus, 0, discordant)) if surplus(discordant) >= 0 else None


def _arms(*arms: ArrayLike) -> list[NDArray[np.float64]]:
    """Each as [seeds, problems] over the same problems; a single row of values has one seed."""
    found = [np.atleast_2d(np.asarray(arm, dtype=np.float64)) for arm in arms]
    shapes = [arm.shape for arm in found]
    if any(len(shape) != 2 or 0 in shape for shape in shapes) or len({s[1] for s in shapes}) != 1:
        raise ValueError(f"arms must be [seeds, problems] over the same problems, got {shapes}")
    return found


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


def _resampled_arms(
    arms: Sequence[NDArray[np.float64]], seed: int, resamples: int, bounds: tuple[float, float]
) -> NDArray[np.float64]:
    """Means of arms [seeds, problems] over drawn problems and likely seeds, [resamples, arms].

    The mean of n seeds plus the standard error that is theirs times Student's t with n - 1 degrees
    of freedom, as drawing among few seeds again spreads too little; within the bounds of any mean.
    """
    means = _resampled_means(np.stack([arm.mean(axis=0) for arm in arms], axis=1), seed, resamples)
    generator = np.random.default_rng((seed, 1))  # not the stream that draws problems
    for column, arm in enumerate(arms):
        if len(arm) > 1:
            shifts = _seeds_error(arm) * generator.standard_t(len(arm) - 1, size=resamples)
            means[:, column] = np.clip(means[:, column] + shifts, *bounds)
    return means


def _seeds_error(arm: NDArray[np.float64]) -> float:
    """Standard error of an arm's mean that drawn problems do not show: 0 if seeds spread no more.

    Means of seeds differ by what a seed does on all problems and by what it does on single ones.
    Two-way analysis of variance takes off the latter, which resampled problems hold already.
    """
    num_seeds, num_problems = arm.shape
    of_seeds = arm.mean(axis=1, keepdims=True)
    single = arm - of_seeds - arm.mean(axis=0) + arm.mean()
    freedom = (num_seeds - 1) * max(num_problems - 1, 1)
    variance = of_seeds.var(ddof=1) - (single**2).sum() / freedom / num_problems
    return float(np.sqrt(max(variance, 0.0) / num_seeds))


def _estimate(
    value: float, resampled: NDArray[np.float64], confidence: float = CONFIDENCE
) -> Estimate:
    """The value with the middle of its resamples."""
    margin = (1 - confidence) / 2
    low, high = np.quantile(resampled, [margin, 1 - margin])
    return Estimate(value, float(low), float(high))
