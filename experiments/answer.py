"""One question about one picture: thoughts, drawings, answer, and what they cost.

``python -m experiments.answer --image FILE [--model FOLDER] [--question TEXT] [--draw]``
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image as PILImage
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from experiments.respond import is_tiny, second_look
from experiments.schema import TINY_BASE
from visual_opsd.benchmarks.answers import extract_answer
from visual_opsd.benchmarks.maze_pictures import reduce_picture
from visual_opsd.benchmarks.mazes import NAVIGATION_QUESTION
from visual_opsd.contexts import (
    SYSTEM_PROMPT_EVAL,
    SYSTEM_PROMPT_TRAIN,
    Image,
    Text,
    start_drawing,
)
from visual_opsd.models.bagel import checkpoints
from visual_opsd.models.bagel.config import BagelConfig
from visual_opsd.models.bagel.model import BagelModel
from visual_opsd.models.bagel.preprocessing import PROTOCOLS, open_picture, to_picture
from visual_opsd.models.bagel.tokenizer import Tokenizer
from visual_opsd.models.interface import Drawing, Sampling, StepCache, Watch
from visual_opsd.rollouts.interleaved import (
    Interleaving,
    Look,
    Outcome,
    Reasoning,
    reason,
    show_as_drawn,
)

ENDINGS = {
    Outcome.ANSWERED: "ended by the model",
    Outcome.CUT: "cut by the budget (--max-tokens): it may have no answer",
    Outcome.OUT_OF_ROUNDS: "no answer: it asked for one drawing more than --max-rounds allows, or "
    "the official protocol ended there (--mend asks for a last word)",
}


def main(command: Sequence[str] | None = None) -> None:
    """Command line; what a user got wrong is one line."""
    arguments = parse(command)
    console = Console()
    try:
        if arguments.question is not None and not arguments.question.strip():
            raise ValueError("--question is empty")
        settings, picture = how_to(arguments), open_picture(arguments.image)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        question = question_for(checkpoints.open_folder(arguments.model).config, arguments.question)
        model, tokenizer = checkpoints.load(
            arguments.model, device, reading_only=not arguments.draw
        )
        found = ask(model.eval(), tokenizer, picture, question, settings, draw=arguments.draw)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    show(found, arguments.out, arguments.image.stem, console)


def parse(command: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.answer", description=__doc__)
    add = parser.add_argument
    add("--image", type=Path, required=True, help="a picture; mazes of 64 px a cell for the tiny")
    add("--model", type=Path, default=TINY_BASE, help="checkpoint folder (default: %(default)s)")
    add("--question", help="left out: the maze question, for the tiny model only")
    add("--draw", action="store_true", help="think, draw, look; else in text alone")
    add("--mend", action="store_true", help="a last word after the last drawing (not official)")
    add("--max-rounds", type=int, default=3, help="drawings, at most")
    add("--max-tokens", type=int, default=1024, help="of each text")
    add("--temperature", type=float, default=0.0, help="0 is greedy")
    add("--timesteps", type=int, default=50, help="of a drawing; the official 50 evaluate 49 times")
    add("--step-cache", type=int, default=1, help="evaluate every N-th step, foretell the others")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("runs/answer"), help="folder for drawings")
    return parser.parse_args(command)


def how_to(arguments: argparse.Namespace) -> tuple[Interleaving, int]:
    """Settings and seed."""
    interval = arguments.step_cache
    drawing = Drawing(
        num_timesteps=arguments.timesteps,
        step_cache=None if interval == 1 else StepCache(interval=interval),
    )
    sampling = Sampling(temperature=arguments.temperature, max_tokens=arguments.max_tokens)
    how = Interleaving(
        max_rounds=arguments.max_rounds,
        sampling=sampling,
        drawing=drawing,
        mends_faults=arguments.mend,
    )
    return how, arguments.seed


def question_for(config: BagelConfig, question: str | None) -> str:
    """What is asked; only the tiny model knows it by itself."""
    if question is not None:
        return question
    if not is_tiny(config):
        raise ValueError("this model answers any question: --question TEXT is needed")
    return NAVIGATION_QUESTION


def eyes_of(model: BagelModel, picture: PILImage.Image) -> tuple[Image, Look, str]:
    """The picture as the model sees it, how it looks at a drawing, and the prompt it knows."""
    if is_tiny(model.config):
        return Image(reduce_picture(picture)), show_as_drawn, SYSTEM_PROMPT_TRAIN

    image = PROTOCOLS["harness"].image(picture, with_latents=True)
    return image, second_look("harness"), SYSTEM_PROMPT_EVAL


def ask(
    model: BagelModel,
    tokenizer: Tokenizer,
    picture: PILImage.Image,
    question: str,
    settings: tuple[Interleaving, int],
    *,
    draw: bool,
    watch: Watch | None = None,
) -> Reasoning:
    """Answer drawn (ThinkMorph's loop) or in text alone (what a student is for)."""
    image, look, prompt = eyes_of(model, picture)
    how, seed = settings
    how = replace(how, system_prompt=prompt)
    words = Text(tokenizer.encode(question))
    if draw:
        inputs = (replace(image, with_latents=True), words)
        (found,) = reason(model, tokenizer, [inputs], how, [seed], look, watch)
        return found
    context = start_drawing(
        (replace(image, with_latents=False), words), Text(tokenizer.encode(prompt))
    )
    start = time.perf_counter()
    written = model.sample([context.main], how.sampling, [seed])
    return Reasoning(
        outputs=(tokenizer.decode(written.ids[0].tolist()),),
        outcome=Outcome.CUT if written.is_cut[0] else Outcome.ANSWERED,
        context=context,
        num_tokens=written.lengths[0],
        seconds=time.perf_counter() - start,
    )


def show(found: Reasoning, folder: Path, name: str, console: Console) -> list[Path]:
    """Print what was written, save what was drawn."""
    saved: list[Path] = []
    for output in found.outputs:
        if isinstance(output, str):
            console.print(Panel(escape(output), title="text", title_align="left"))
            continue
        folder.mkdir(parents=True, exist_ok=True)
        saved.append(folder / f"{name}-{len(saved) + 1}.png")
        to_picture(output.pixels).save(saved[-1])
        height, width = output.pixels.shape[1:]
        console.print(
            f"drawn: {saved[-1]} ({width} x {height} px)", highlight=False, soft_wrap=True
        )
    answer = extract_answer(found.texts[-1])
    if found.outcome is Outcome.OUT_OF_ROUNDS:
        console.print("answer: none", style="bold")
    else:
        console.print(f"answer: {escape(str(answer.value))} ({answer.rule})", style="bold")
    console.print(f"ending: {ENDINGS[found.outcome]}")
    console.print(f"{found.num_tokens} tokens, {len(saved)} drawings, {found.seconds:.2f} seconds")
    return saved


if __name__ == "__main__":
    main()
