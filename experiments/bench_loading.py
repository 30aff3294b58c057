"""How much host memory loading takes: the peak of anonymous pages against the bytes loaded.

``python -m experiments.bench_loading [--gigabytes 2]`` prints the measurement as JSON; as
``load_rss_ratio`` it is one of ``experiments.bench``. Mapped file pages do not count.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from experiments.schema import TINY_BASE
from visual_opsd.models.bagel import checkpoints
from visual_opsd.models.bagel.config import BagelConfig
from visual_opsd.models.bagel.model import BagelModel
from visual_opsd.models.bagel.vision import PositionTable


def load_rss_ratio(gigabytes: float = 2.0) -> dict[str, Any]:
    """Write a checkpoint, load it in a process of its own, and report that process's peak."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_bytes = write_checkpoint(folder, gigabytes)
        answer = subprocess.run(  # noqa: S603 - our own module
            [sys.executable, "-m", "experiments.bench_loading", "--load", name],
            capture_output=True,
            text=True,
            check=True,
        )
    peak = json.loads(answer.stdout)["peak"]
    return {"ratio": peak / num_bytes, "peak_bytes": peak, "loaded_bytes": num_bytes}


def write_checkpoint(folder: Path, gigabytes: float) -> int:
    """A model of about so many bytes in float32; returns the exact number."""
    found = checkpoints.open_folder(TINY_BASE)
    with torch.device("meta"):
        model = BagelModel(_of_size(found.config, gigabytes))
    model.to_empty(device="cpu")
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(0.5)
    for module in model.modules():
        if isinstance(module, PositionTable):
            module.reset()
    checkpoints.save(model, found.tokenizer, folder)
    return sum(weight.nbytes for weight in checkpoints.weights(model).values())


def _of_size(config: BagelConfig, gigabytes: float) -> BagelConfig:
    """Wider feed-forwards until the float32 weights fill ``gigabytes``."""
    decoder = config.decoder
    # Three maps a layer and expert, of hidden_size x intermediate_size each.
    per_width = 2 * 3 * decoder.hidden_size * decoder.num_layers * 4
    width = int(gigabytes * 1e9) // per_width
    return replace(config, decoder=replace(decoder, intermediate_size=width))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--load", type=Path, help="load this folder and print the peak")
    arguments = parser.parse_args()
    if arguments.load is None:
        print(json.dumps(load_rss_ratio(arguments.gigabytes), indent=2))
        return
    with peak_of_anonymous_memory() as peak:
        model, _ = checkpoints.load(arguments.load)
    assert not any(weight.is_meta for weight in model.state_dict().values())
    print(json.dumps({"peak": peak[0]}))


@contextmanager
def peak_of_anonymous_memory() -> Iterator[list[int]]:
    """The largest RssAnon in bytes while the block runs, looked at every two milliseconds."""
    peak, is_over = [anonymous_memory()], threading.Event()

    def watch() -> None:
        while not is_over.wait(0.002):
            peak[0] = max(peak[0], anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        is_over.set()
        watcher.join()
        peak[0] = max(peak[0], anonymous_memory())


def anonymous_memory() -> int:
    """RssAnon of this process in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon: this measurement needs Linux")


if __name__ == "__main__":
    main()
