"""Fill the cache of drawn visual thoughts before a run that shows them (``drawn_vt``).

``python -m experiments.draw_thoughts experiments/NAME.yaml [key=value ...]``
"""

import sys
from pathlib import Path

from rich.progress import track

from datamodules.mazes import BatchPlan, FixedBatches
from experiments import build
from experiments.schema import load_experiment
from visual_opsd.models.bagel import checkpoints

BATCH_SIZE = 256


def main() -> None:
    """Command line; a second run draws nothing."""
    if len(sys.argv) < 2:
        raise SystemExit("usage: python -m experiments.draw_thoughts experiments/NAME.yaml [...]")
    config = load_experiment(Path(sys.argv[1]), sys.argv[2:])
    artist = build.illustrator(config, checkpoints.open_folder(config.model).tokenizer)
    plan = BatchPlan(batch_size=BATCH_SIZE)
    batches = FixedBatches(build.data(config).train, plan, with_donors=False)
    for batch in track(batches, description="drawing", total=len(batches)):
        artist.illustrate(batch.problems)
    print(f"{artist.num_drawn} drawn, the rest was there, in {artist.cache.folder}")


if __name__ == "__main__":
    main()
