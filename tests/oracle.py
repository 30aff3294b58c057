"""Where the reference vectors of the official model are, and how a test reads them."""

import json
import os
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).parents[1]


def oracle_files() -> list[Path]:
    """Every ``oracle_*.safetensors`` of the folder VISUAL_OPSD_ORACLE; empty when absent."""
    folder = Path(os.environ.get("VISUAL_OPSD_ORACLE", ROOT.parent / "shared" / "oracle"))
    return sorted(folder.glob("oracle_*.safetensors"))


def load_oracle(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors by name and the JSON beside them."""
    return load_file(path), json.loads(path.with_suffix(".json").read_text())
