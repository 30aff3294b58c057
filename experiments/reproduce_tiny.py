"""The long version, up to the real VSP mazes: ``make reproduce-tiny``, at most two hours.

``python -m experiments.reproduce_tiny [key=value ...]``, with the keys of :mod:`experiments.demo`.
``data.sizes`` is the one that ``true_vt_3to6`` is about: overriding it makes all arms alike.
"""

import sys
from pathlib import Path

from experiments.demo import tell

ARMS = Path("experiments/reproduce_tiny")
NAMES = ("true_vt", "matched_noise", "sft", "true_vt_3to6")


def main() -> None:
    """Command line."""
    tell(ARMS, NAMES, sys.argv[1:])


if __name__ == "__main__":
    main()
