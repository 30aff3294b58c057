"""A first run on one's own problems, and what is to be said of it."""

from pathlib import Path

from matplotlib.figure import Figure

from experiments import run_files
from experiments.exhibits import nats
from experiments.figures import WIDTH_INCHES, in_style
from experiments.looking import TokenGaps
from experiments.report import DIVERGENCE, read_curve
from experiments.respond import is_tiny
from experiments.schema import ExperimentConfig, load_experiment
from experiments.side_by_side import train_all
from experiments.watch import LOG_EVERY
from visual_opsd.models.bagel import checkpoints


def train_on(experiment: str, model: str, data: Path, num_steps: int) -> ExperimentConfig:
    """Train on a folder, from a shipped experiment; what is finished is not trained again."""
    keys = [
        "name=first_run",
        f"output_dir={data.parent}",
        f"model={model}",
        f"data.source={data}",
        f"trainer.max_steps={num_steps}",
    ]
    if is_tiny(checkpoints.open_folder(Path(model)).config):  # few problems of a size
        keys += ["data.batch_size=4", "trainer.num_threads=1"]
        keys += ["held_out.num_problems=32", f"held_out.every={num_steps}"]
    config = load_experiment(Path("experiments") / f"{experiment}.yaml", keys)
    run_files.prepare_folder(config)
    train_all({config.name: config})
    return config


@in_style
def draw_loss(config: ExperimentConfig) -> Figure:
    """Divergence of student and teacher by step.

    Raises:
        ValueError: The run was too short to log any.
    """
    curve = read_curve(config.folder, DIVERGENCE)
    if not curve.steps:
        raise ValueError(
            f"{config.folder} logged no step: it is logged every {LOG_EVERY} steps, and "
            f"trainer.max_steps is {config.trainer.max_steps}"
        )
    figure = Figure(figsize=(WIDTH_INCHES / 2, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve.steps, curve.values, marker="o", markersize=4)
    axes.set(xlabel="optimiser step", ylabel="Jensen-Shannon divergence (nats a token)")
    axes.set_ylim(bottom=0)
    return figure


def seen(gaps: TokenGaps, config: ExperimentConfig) -> str:
    """The last words on one's own data; ``gaps`` has the student of the run as ``after``."""
    before, noise = gaps.mean(), gaps.mean("matched_noise")
    after = gaps.mean(student="after")
    says = "say more than" if before.low > noise.high else "are not shown to say more than"
    return (
        f"On {len(gaps.problems)} problems the visual thoughts move the base by {nats(before)} "
        f"nats a token, noise in their place by {nats(noise)}: they {says} noise. After "
        f"{config.trainer.max_steps} steps {nats(after)} are left, on problems that were trained "
        "on: keep some out before you believe it."
    )
