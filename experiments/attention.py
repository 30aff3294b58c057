"""Where a model looks while it thinks, and what it would say if it could not (Fig. 3b, causal).

``python -m experiments.attention [--model FOLDER] [--problems N]`` writes ``runs/attention/``:
``summary.json`` and figures. Attention says where a thought looks, a knock-out what comes of it.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments import attention_figures, run_files
from experiments.attending import (
    CUTS,
    TARGETS,
    Reasoned,
    Shares,
    Written,
    answers,
    knock_out_kl,
    reasoners_view,
    shares,
    teachers_view,
)
from experiments.evaluation import FAST_DRAWING, GREEDY, answered
from experiments.figures import save_figure
from experiments.files import write
from experiments.looking import open_model, open_problems
from experiments.respond import is_tiny
from experiments.schema import TINY_BASE
from experiments.wording import difference, percent, words
from visual_opsd.contexts import Problem
from visual_opsd.models.bagel.model import BagelModel
from visual_opsd.models.bagel.tokenizer import Tokenizer
from visual_opsd.models.interface import Drawing, Sampling
from visual_opsd.statistics import Estimate, bootstrap_ratio, paired_bootstrap_difference, wilson

INTERVENTIONS = ("true_vt", "matched_noise", "patch_shuffled", "no_vt")
SUMMARY = "summary.json"
RESAMPLES = 2000
"""For each of a few hundred intervals."""


@dataclass(frozen=True, kw_only=True)
class LookingConfig:
    """How texts come about, and what their contexts show."""

    interventions: tuple[str, ...] = INTERVENTIONS
    """Beside ``drawn_vt``, what the model drew itself; ``no_vt`` is always among them."""
    sampling: Sampling = GREEDY
    """Of thoughts and answers in interleaved reasoning, and behind a knock-out."""
    trajectories: Sampling = Sampling(max_tokens=64)
    """Of the student's completions."""
    drawing: Drawing = FAST_DRAWING
    seed: int = 0

    def __post_init__(self) -> None:
        if "no_vt" not in self.interventions:
            raise ValueError(f"interventions need no_vt to compare with, got {self.interventions}")


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """All texts of a model that are looked into, written once."""

    completions: list[Written]
    """The student's, behind teacher contexts."""
    reasoned: Reasoned


def write_texts(
    model: Any, tokenizer: Any, problems: Sequence[Problem], config: LookingConfig
) -> Texts:
    """Complete in text alone, and reason with drawings."""
    without = [problem.problem_id for problem in problems if not problem.visual_thoughts]
    if without:
        raise ValueError(
            f"{len(without)} problems have no visual thought to look at, {without[0]} first: take "
            "mazes that are made here, or a ThinkMorph folder (--data)"
        )
    names, seed = config.interventions, config.seed
    completions = teachers_view(model, tokenizer, problems, names, config.trajectories, seed)
    reasoned = reasoners_view(
        model, tokenizer, problems, names, config.sampling, config.drawing, seed
    )
    if not reasoned.after:
        raise ValueError(
            f"none of {len(problems)} problems was drawn for and answered: a student that learnt "
            "to answer in text cannot be looked at here; name its base (--model)"
        )
    return Texts(completions, reasoned)


def measure(model: Any, tokenizer: Any, texts: Texts, config: LookingConfig) -> dict[str, Any]:
    """Shares of attention and knock-outs, as they go into ``summary.json``; fractions in 0..1."""
    kinds = {
        "thought_before": texts.reasoned.before,
        "thought_after": texts.reasoned.after,
        "completion": texts.completions,
    }
    looked_at = {
        kind: {
            name: by_layer(shares(model, written, name), config.seed)
            for name in written[0].contexts
        }
        for kind, written in kinds.items()
    }
    hidden = {"thought_after": "drawn_vt", "completion": "true_vt"}
    return {
        "problems": len(texts.completions),
        "left_out": texts.reasoned.num_left_out,
        "shares": looked_at,
        "knock_out": {
            kind: knock_out(model, tokenizer, kinds[kind], name, config)
            for kind, name in hidden.items()
            if name in kinds[kind][0].contexts
        },
    }


def by_layer(found: Shares, seed: int) -> dict[str, Any]:
    """Share of all tokens' attention to each target, problems resampled.

    ``per_token`` is a share divided by the target's own tokens: a large picture is no weight there.
    """
    num_tokens = found.num_tokens
    weight = (num_tokens / num_tokens.sum())[:, None, None, None]
    by_head, per_token = ((weight * x).sum(dim=0) for x in (found.share, found.per_token))
    sums = found.share.mean(dim=2) * num_tokens[:, None, None]  # over heads
    result: dict[str, Any] = {"texts": len(num_tokens), "tokens": int(num_tokens.sum())}
    for target, name in enumerate(TARGETS):
        result[name] = {
            "by_layer": [
                bootstrap_ratio(layer, num_tokens, seed, RESAMPLES).as_dict()
                for layer in sums[..., target].T
            ],
            "per_token_by_layer": per_token[..., target].mean(dim=1).tolist(),
            "by_head": by_head[..., target].tolist(),
        }
    return result


def knock_out(
    model: Any, tokenizer: Any, written: Sequence[Written], name: str, config: LookingConfig
) -> dict[str, Any]:
    """How far hiding the visual thought moves the next token, and what is still answered right."""
    kl = knock_out_kl(model, written, name)
    num_tokens = [len(text.ids) for text in written]
    result: dict[str, Any] = {
        "shown": name,
        "kl": {
            cut: bootstrap_ratio(
                [row[cut] for row in kl], num_tokens, config.seed, RESAMPLES
            ).as_dict()
            for cut in CUTS[1:]
        },
    }
    if is_tiny(model.config):  # the 7B model's answers are scored by `make evaluate`
        said = answers(model, tokenizer, written, name, config.sampling, config.seed)
        solved = {
            cut: [
                answered(text.problem, row[cut])[1] for text, row in zip(written, said, strict=True)
            ]
            for cut in CUTS
        }
        result["solved"] = {c: wilson(sum(s), len(s)).as_dict() for c, s in solved.items()}
        result["solved_less_shown"] = {
            cut: paired_bootstrap_difference(solved[cut], solved["shown"], config.seed).as_dict()
            for cut in CUTS[1:]
        }
    return result


def main(command: Sequence[str] | None = None) -> None:
    """Command line; what a user got wrong is one line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.attention", description=__doc__)
    add = parser.add_argument
    add("--model", type=Path, default=TINY_BASE, help="checkpoint folder (default: %(default)s)")
    add("--data", default="", help="a ThinkMorph folder; left out: held-out mazes")
    add("--problems", type=int, default=256, help="how many (default: %(default)s)")
    add("--max-tokens", type=int, default=64, help="of every text; 1024 for 7B")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("runs/attention"))
    arguments = parser.parse_args(command)
    try:
        model, tokenizer, texts, config = prepare(
            arguments.model,
            arguments.data,
            arguments.problems,
            max_tokens=arguments.max_tokens,
            seed=arguments.seed,
        )
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    made = {
        "model": str(arguments.model),
        "model_digest": run_files.digest(arguments.model),
        "commit": run_files.commit(),
        "seed": arguments.seed,
    }
    summary = {**made, **measure(model, tokenizer, texts, config)}
    path = write(arguments.out / SUMMARY, json.dumps(summary, indent=2) + "\n")
    for name, draw in attention_figures.FIGURES.items():
        save_figure(draw(summary), arguments.out / name)
    console = Console()
    show(summary, console)
    console.print(f"summary: {path}", soft_wrap=True)


def prepare(
    folder: Path | str, data: str, num_problems: int, *, max_tokens: int = 64, seed: int = 0
) -> tuple[BagelModel, Tokenizer, Texts, LookingConfig]:
    """A model, and texts of its own to look into."""
    model, tokenizer = open_model(folder)
    config = LookingConfig(
        sampling=replace(GREEDY, max_tokens=max_tokens),
        trajectories=Sampling(max_tokens=max_tokens),
        # The tiny model draws as well in eight plain steps as by the official protocol.
        drawing=FAST_DRAWING if is_tiny(model.config) else Drawing(),
        seed=seed,
    )
    problems = open_problems(folder, data, num_problems)
    return model, tokenizer, write_texts(model, tokenizer, problems, config), config


def load_summary(folder: Path | str) -> dict[str, Any]:
    """What the command wrote.

    Raises:
        FileNotFoundError: It did not; says what makes it.
    """
    path = Path(folder) / SUMMARY
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: make it with python -m experiments.attention --out {folder}"
        )
    return json.loads(path.read_text())


def show(summary: dict[str, Any], console: Console) -> None:
    """Two tables: shares at their highest layer, and knock-outs."""
    table = Table("text", "shown", *(name.replace("_", " ") for name in TARGETS))
    for kind, views in summary["shares"].items():
        for name, found in views.items():
            cells = [_at_highest(found[target]["by_layer"]) for target in TARGETS]
            table.add_row(kind.replace("_", " "), name, *cells)
    console.print(table, "share of attention in the layer where it is highest, 95 %", sep="\n")
    table = Table("text", "cut", "KL(shown || cut), nats/token", "solved")
    for kind, found in summary["knock_out"].items():
        for cut in CUTS:
            kl = found["kl"].get(cut)
            nats = f"{kl['value']:.4f} [{kl['low']:.4f}, {kl['high']:.4f}]" if kl else "0"
            solved = Estimate(**found["solved"][cut]) if "solved" in found else None
            cells = [kind, cut, nats, percent(solved, with_interval=True)]
            table.add_row(*(cell.replace("_", " ").replace("[", r"\[") for cell in cells))
    console.print(table)


def seen(summary: dict[str, Any]) -> str:
    """What the numbers say, in Markdown: shares where they are highest, and what hiding does."""
    after, completion = summary["shares"]["thought_after"], summary["shares"]["completion"]
    before = summary["shares"]["thought_before"]["drawn_vt"]
    lines = [
        f"The thought before a drawing gives the problem image {_highest(before, 'problem_image')};"
        f" the text after it gives the drawing {_highest(after['drawn_vt'], 'visual_thought')} and"
        f" the problem image {_highest(after['drawn_vt'], 'problem_image')}.",
        "A completion behind the teacher's context gives the visual thought "
        + ", ".join(
            f"{_highest(found, 'visual_thought')} where it is `{name}`"
            for name, found in completion.items()
            if name != "no_vt"
        )
        + ": a share says that a picture is looked at, not that its content is used.",
    ]
    for text, found in summary["knock_out"].items():
        nats = words(Estimate(**found["kl"]["all_behind"]), "nats")
        line = f"Hidden from a {text.replace('_', ' ')}, `{found['shown']}` moves the next token by"
        line += f" {nats} nats a token"
        if "solved" in found:
            less = difference(Estimate(**found["solved_less_shown"]["all_behind"]))
            line += f", and accuracy by {less}"
        lines.append(line + ".")
    made = f"{summary['problems']} problems, 95 % intervals over them; shares in the highest layer."
    return "\n".join(f"- {line}" for line in (*lines, made))


def _highest(found: dict[str, Any], target: str) -> str:
    """The share of a target in the layer that gives it most."""
    return words(Estimate(**max(found[target]["by_layer"], key=lambda x: x["value"])), "share")


def _at_highest(layers: Sequence[dict[str, float]]) -> str:
    layer = max(range(len(layers)), key=lambda index: layers[index]["value"])
    return f"{percent(Estimate(**layers[layer]), with_interval=True)} (layer {layer})".replace(
        "[", r"\["
    )


if __name__ == "__main__":
    main()
