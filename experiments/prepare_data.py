"""Fetch ThinkMorph's four training sets, or say what to fetch by hand where there is no network.

``python -m experiments.prepare_data [--to data/ThinkMorph] [--sets NAME ...] [--only-check]``

A download that was stopped goes on when the command is run again; every file is held against the
hub's checksum, and one row of each is opened. ``HF_ENDPOINT`` names another hub.
"""

import argparse
import os
from pathlib import Path

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from datamodules.thinkmorph import ThinkMorphFolder

NUM_ROWS = {
    "Visual_Search": 6990,
    "Spatial_Navigation": 6000,
    "Jigsaw_Assembly": 6000,
    "Chart_Refocus": 6000,
}
"""Of the four published sets."""
SIZES = {
    "Visual_Search": "1.3 GB",
    "Spatial_Navigation": "0.1 GB",
    "Jigsaw_Assembly": "size not known here",
    "Chart_Refocus": "0.6 GB",
}


def fetch(name: str, folder: Path) -> None:
    """Download one set into ``folder``, or go on with it, and check what came.

    Raises:
        ConnectionError: The hub is out of reach.
        ValueError: A file is not what the hub says it is; it is named.
    """
    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    repository = f"ThinkMorph/{name}"
    try:
        revision = hub.dataset_info(repository).sha
        hub.snapshot_download(repository, repo_type="dataset", revision=revision, local_dir=folder)
        found = hub.verify_repo_checksums(
            repository, repo_type="dataset", revision=revision, local_dir=folder
        )
    except (httpx2.HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ConnectionError(f"{repository}: {error}") from error
    wrong = [f"{folder / bad['path']}: wrong {bad['algorithm']}" for bad in found.mismatches]
    wrong += [f"{folder / path}: missing" for path in found.missing_paths]
    if wrong:
        raise ValueError(f"{'; '.join(wrong)}. Remove what is wrong and run this again")


def check(name: str, folder: Path) -> str:
    """Open every file of a set and count its rows.

    Raises:
        ValueError: There is no file, or one cannot be read; it is named.
    """
    rows = ThinkMorphFolder(folder, cell=None)
    known = NUM_ROWS.get(name)
    note = "" if known in (None, rows.num_rows) else f"; {known} were published"
    return f"{name}: {len(rows.paths)} files, {rows.num_rows} rows{note}"


def by_hand(names: list[str], folder: Path) -> str:
    """What to fetch on another machine, and where to put it."""
    wanted = "\n".join(
        f"  https://huggingface.co/datasets/ThinkMorph/{name} ({SIZES[name]}): "
        f"data/train-*.parquet -> {folder / name / 'data'}"
        for name in names
    )
    return (
        f"Fetch these on a machine with a network, and put them below {folder}:\n{wanted}\n"
        "There, for each of them:\n"
        f"  hf download ThinkMorph/NAME --repo-type dataset --local-dir {folder}/NAME\n"
        "Then: python -m experiments.prepare_data --only-check"
    )


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.prepare_data", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--to", type=Path, default=Path("data/ThinkMorph"), help="folder")
    parser.add_argument("--sets", nargs="+", choices=list(NUM_ROWS), default=list(NUM_ROWS))
    parser.add_argument("--only-check", action="store_true", help="open what is there, fetch none")
    chosen = parser.parse_args(arguments)
    for place, name in enumerate(chosen.sets):
        folder = chosen.to / name
        try:
            if not chosen.only_check:
                fetch(name, folder)
            print(check(name, folder))
        except ConnectionError as error:
            raise SystemExit(
                f"error: {error}\n\n{by_hand(chosen.sets[place:], chosen.to)}"
            ) from error
        except ValueError as error:
            raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
