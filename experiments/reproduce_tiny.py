"""The long version, up to the real VSP mazes: ``make reproduce-tiny``, at most two hours.

``python -m experiments.reproduce_tiny [key=value ...]``, with the keys of :mod:`experiments.demo`;
keys below ``base.`` go to the base that all arms start from: the shipped one, trained further until
it reads the sizes of VSP. ``data.sizes`` is the key that ``true_vt_3to6`` is about: overriding it
makes all arms alike.
"""

import sys
import time
from pathlib import Path

from experiments.demo import tell
from experiments.schema import load_experiment
from experiments.side_by_side import is_finished, train_all

ARMS = Path("experiments/reproduce_tiny")
NAMES = ("true_vt", "matched_noise", "sft", "true_vt_3to6", "true_vt_forward_kl")
BASE_PREFIX = "base."


def main() -> None:
    """Command line."""
    of_base = [a.removeprefix(BASE_PREFIX) for a in sys.argv[1:] if a.startswith(BASE_PREFIX)]
    of_story = [a for a in sys.argv[1:] if not a.startswith(BASE_PREFIX)]
    started = time.perf_counter()
    try:
        base = load_experiment(ARMS / "base.yaml", of_base)
        if not is_finished(base):
            train_all({"base": base})
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    tell(ARMS, NAMES, of_story, seconds_before=time.perf_counter() - started)


if __name__ == "__main__":
    main()
