"""VLMEvalKit asks our models, in a process of its own.

``python -m experiments.vlmevalkit_model MODEL=FOLDER run=VLMEvalKit/run.py data=[MMVP,BLINK]``

Never import this module in a process that trains: importing vlmeval turns off gradients, sets seeds
and ends the verification of certificates.
"""

import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import vlmeval.config
import vlmeval.vlm
from vlmeval.vlm.base import BaseModel

from experiments import command, respond
from experiments.schema import TINY_BASE
from visual_opsd.benchmarks.items import Wording
from visual_opsd.models.bagel.preprocessing import open_picture
from visual_opsd.seeds import row_seed

NAME = "visual_opsd"


@dataclass(frozen=True, kw_only=True)
class KitConfig:
    """What VLMEvalKit is to run."""

    model: str = str(TINY_BASE)
    run: str = "run.py"
    """Of a checkout of VLMEvalKit, or of ThinkMorph's fork."""
    data: tuple[str, ...] = ("MMVP",)
    """Names of data sets, as VLMEvalKit knows them."""
    protocol: Wording = "harness"
    way: Literal["text_only", "drawn"] = "text_only"
    max_tokens: int = 0
    seed: int = 42
    judge: str = "exact_matching"
    work_dir: str = "runs/vlmevalkit"


class VisualOPSD(BaseModel):  # type: ignore[misc]
    """Any checkpoint folder that ``make evaluate`` takes; the words are VLMEvalKit's."""

    INSTALL_REQ = False
    INTERLEAVE = True

    def __init__(self, config: KitConfig) -> None:
        super().__init__()
        found = respond.load(config.model, config.protocol, config.way)
        self.respondent = found.limited(config.max_tokens) if config.max_tokens else found
        self.seed = config.seed

    def generate_inner(self, message: Sequence[dict[str, str]], dataset: str | None = None) -> str:
        """The whole reply to pictures and words, pictures first."""
        paths = [Path(part["value"]) for part in message if part["type"] == "image"]
        pictures = tuple(map(open_picture, paths))
        prompt = "".join(part["value"] for part in message if part["type"] == "text")
        # All mazes share their words: without the names they would share their noise too.
        seed = row_seed(self.seed, dataset, prompt, *(path.name for path in paths))
        asked = respond.Asked(pictures=pictures, prompt=prompt, seed=seed)
        return self.respondent.answer([asked])[0].text


def register(config: KitConfig) -> None:
    """Make the model one of those that ``run.py --model`` knows."""
    vlmeval.vlm.VisualOPSD = VisualOPSD
    vlmeval.config.supported_VLM[NAME] = partial(VisualOPSD, config)


def main(arguments: Sequence[str]) -> None:
    """In the process that is VLMEvalKit's."""
    config = command.parse(arguments, KitConfig)
    register(config)
    own = ["--model", NAME, "--work-dir", config.work_dir, "--judge", config.judge]
    sys.argv = [config.run, "--data", *config.data, *own]
    sys.path.insert(0, str(Path(config.run).resolve().parent))
    runpy.run_path(config.run, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
