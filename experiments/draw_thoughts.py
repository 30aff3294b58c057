"""Fill the cache of drawn visual thoughts before a run that shows them (``drawn_vt``).

``python -m experiments.draw_thoughts experiments/NAME.yaml [key=value ...]``
"""

import sys
from pathlib import Path

from rich.progress import track

from datamodules.mazes import BatchPlan, FixedBatches
from experiments import build, run_data
from experiments.schema import ExperimentConfig, load_experiment
from visual_opsd.models.bagel import checkpoints
from visual_opsd.models.bagel.config import BagelConfig
from visual_opsd.rollouts.visual_thoughts import Illustrator

TINY_BATCH_SIZE = 256
"""Of the tiny model; any other draws as many at once as it trains on."""


def batch_size(config: ExperimentConfig, model: BagelConfig) -> int:
    """Drawings at once."""
    is_tiny = model.latent.codec == "patch_pca"
    return TINY_BATCH_SIZE if is_tiny else config.data.batch_size


def fill(config: ExperimentConfig) -> Illustrator:
    """Draw what the cache lacks of a run's visual thoughts; the illustrator knows how many."""
    found = checkpoints.open_folder(config.model)
    artist = build.illustrator(config, found.tokenizer)
    plan = BatchPlan(batch_size=batch_size(config, found.config))
    batches = FixedBatches(run_data.data(config).train, plan, donors=None)
    for batch in track(batches, description="drawing", total=len(batches)):
        for number in range(config.rollout.num_drawings):
            artist.illustrate(batch.problems, number)
    return artist


def main() -> None:
    """Command line; a second run draws nothing."""
    if len(sys.argv) < 2:
        raise SystemExit("usage: python -m experiments.draw_thoughts experiments/NAME.yaml [...]")
    artist = fill(load_experiment(Path(sys.argv[1]), sys.argv[2:]))
    print(f"{artist.num_drawn} drawn, the rest was there, in {artist.cache.folder}")


if __name__ == "__main__":
    main()
