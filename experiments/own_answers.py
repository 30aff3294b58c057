"""Let the start weights draw and answer a run's problems: what label-free SFT then imitates.

``python -m experiments.own_answers experiments/NAME.yaml [key=value ...]``; a killed run goes on.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from rich.progress import track

from datamodules.sources import groups_of
from experiments import build, run_data
from experiments.draw_thoughts import batch_size
from experiments.schema import ExperimentConfig, load_experiment
from visual_opsd.models.bagel import checkpoints
from visual_opsd.rollouts.answering import answer
from visual_opsd.rollouts.own_answers import own_answer, read_answers, write_answers
from visual_opsd.seeds import row_seed


def collect(config: ExperimentConfig) -> Path:
    """Greedy words, one drawing a problem, each with the seed of its own; returns the file."""
    path = run_data.own_answers_path(config)
    source = run_data.data(replace(config, data=replace(config.data, answers="gold"))).train
    found = read_answers(path)
    path.unlink(missing_ok=True)
    write_answers(path, found)  # without the line that a kill has cut short
    known = {own.index for own in found}
    missing = [
        [index for index in members if index not in known] for members in groups_of(source).values()
    ]
    if not any(missing):
        return path
    model, tokenizer = checkpoints.load(config.model, build.own_device(config))
    at_once = batch_size(config, model.config)
    batches = [
        members[first : first + at_once]
        for members in missing
        for first in range(0, len(members), at_once)
    ]
    sampling = replace(config.rollout.sampling, temperature=0)
    for indices in track(batches, description="answering"):
        problems = [source.problem(index) for index in indices]
        seed = config.seed_of_drawings
        seeds = [row_seed(seed, "own answer", problem.problem_id) for problem in problems]
        with torch.no_grad():
            answers = answer(
                "drawn",
                model.eval(),
                tokenizer,
                problems,
                sampling=sampling,
                drawing=config.drawing,
                seeds=seeds,
            )
        write_answers(path, map(own_answer, indices, problems, answers))
    return path


def main() -> None:
    """Command line; a second run answers nothing."""
    if len(sys.argv) < 2:
        raise SystemExit("usage: python -m experiments.own_answers experiments/NAME.yaml [...]")
    path = collect(load_experiment(Path(sys.argv[1]), sys.argv[2:]))
    found = read_answers(path)
    num_failed = sum(own.answer is None for own in found)
    print(f"{len(found)} problems answered, {num_failed} of them out of form and left out: {path}")


if __name__ == "__main__":
    main()
