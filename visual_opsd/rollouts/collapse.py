"""Signs that a student's completions degenerate: they repeat themselves, or lose their form."""

from collections.abc import Iterable, Sequence

from visual_opsd.benchmarks.answers import extract_answer


def distinct_ngrams(completions: Iterable[Sequence[int]], n: int) -> float:
    """How many of all runs of ``n`` tokens are different ones, a share; 1 where there is none.

    Distinct-n of Li et al. 2016 (https://arxiv.org/abs/1510.03055), over completions together.
    """
    runs = [tuple(ids[i : i + n]) for ids in completions for i in range(len(ids) - n + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0


def format_rate(texts: Sequence[str]) -> float:
    """Share of the texts that answer between answer tags."""
    return sum(extract_answer(text).rule == "answer_tag" for text in texts) / len(texts)
