"""What a run ran on: versions, devices, backends. Written into its folder at every start."""

import json
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PACKAGES = (
    *("torch", "lightning", "deepspeed", "transformers", "diffusers", "safetensors", "tokenizers"),
    *("torchmetrics", "omegaconf", "numpy"),
)
VARIABLES = ("OMP_NUM_THREADS", "RANK", "WORLD_SIZE", "MASTER_ADDR", "CUDA_VISIBLE_DEVICES")
PREFIXES = ("SLURM_JOB", "SLURM_NNODES", "SLURM_NTASKS", "NCCL_", "DS_", "VISUAL_OPSD_")


def environment() -> dict[str, Any]:
    """Facts about this process' machine."""
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "cpu_cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpus": [{"name": d.name, "memory_gb": round(d.total_memory / 1e9, 1)} for d in devices],
        "cuda": torch.version.cuda,
        "backends": [b for b in ("gloo", "nccl", "mpi") if dist.is_backend_available(b)],
        "attention": {
            "flash": torch.backends.cuda.flash_sdp_enabled(),
            "memory_efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        },
        "variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if name in VARIABLES or name.startswith(PREFIXES)
        },
    }


def note_environment(folder: Path) -> None:
    """Add this start to ``environment.jsonl`` of a run folder."""
    with (folder / "environment.jsonl").open("a") as file:
        file.write(json.dumps(environment()) + "\n")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
