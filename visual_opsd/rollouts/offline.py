"""Offline distillation: what was written, and how the teacher scored it, once a problem, on disk.

Off-policy, with a teacher that stays where it is, neither depends on the student. A run that reads
both from here neither samples nor asks the teacher: it costs what SFT costs.
"""

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from visual_opsd.contexts import Image, Problem
from visual_opsd.losses.divergence import TeacherScores
from visual_opsd.models.interface import Completions
from visual_opsd.rollouts.cache import written_whole


class Kept(NamedTuple):
    """Completions with the teacher's scores of them."""

    completions: Completions
    scores: TeacherScores


class OfflineCache:
    """A folder of safetensors files, one a problem as student and teacher see it."""

    def __init__(self, folder: Path, **identity: object) -> None:
        """``identity``: all that completions and scores depend on beside the problem.

        That is the weights, who wrote and how, and what is kept of the teacher's distribution.
        """
        self.folder = folder
        self.identity = json.dumps(identity, sort_keys=True)

    def path(self, problem: Problem, *shown: Problem) -> Path:
        """Where an entry lies: its name is the digest of what it depends on.

        ``shown`` is the problem with what the teacher sees of it, in one view or several.
        """
        digest = hashlib.sha256(self.identity.encode())
        for view in (problem, *shown):
            words = [view.problem_id, view.question, view.solution, *view.hints]
            images = [view.image, *view.visual_thoughts]
            digest.update(json.dumps([words, [_described(image) for image in images]]).encode())
        key = digest.hexdigest()
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, paths: Sequence[Path], device: torch.device) -> Kept | None:
        """A batch; None where an entry is missing or damaged."""
        rows = [_read(path) for path in paths]
        found = [row for row in rows if row is not None]
        if len(found) < len(paths):
            return None
        column = {name: tuple(row[name].to(device) for row in found) for name in found[0] if found}
        completions = Completions(
            column["ids"],
            column["is_sampled"],
            column["log_probs"],
            tuple(bool(cut) for cut in column["is_cut"]),
        )
        of_teacher = (
            torch.cat(column[name]) if name in column else None
            for name in ("teacher_log_probs", "teacher_ids", "teacher_log_tail")
        )
        return Kept(completions, TeacherScores(*of_teacher))  # type: ignore[arg-type]

    def put(self, paths: Sequence[Path], completions: Completions, scores: TeacherScores) -> None:
        """Keep a batch, each problem by itself."""
        ends = torch.tensor([0, *completions.lengths]).cumsum(0).tolist()
        for row, (path, part) in enumerate(zip(paths, pairwise(ends), strict=True)):
            mine = scores.rows(slice(*part))
            tensors = {
                "ids": completions.ids[row],
                "is_sampled": completions.is_sampled[row],
                "log_probs": completions.log_probs[row],
                "is_cut": torch.tensor(completions.is_cut[row]),
                "teacher_log_probs": mine.log_probs,
                "teacher_ids": mine.ids,
                "teacher_log_tail": mine.log_tail,
            }
            whole = {
                name: tensor.detach().cpu().contiguous()
                for name, tensor in tensors.items()
                if tensor is not None
            }
            with written_whole(path) as file:
                file.write(save(whole, {"sha256": _digest(whole)}))


def _described(image: Image) -> list[str | bool | None]:
    """Digests of an image's pixels, and how it is shown."""
    pixels = _digest({"pixels": image.pixels})
    latents = None if image.latent_pixels is None else _digest({"pixels": image.latent_pixels})
    return [pixels, latents, image.with_latents, image.with_patches]


def _digest(tensors: dict[str, Tensor]) -> str:
    """Of names and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Tensor] | None:
    """An entry; None where there is none or a damaged one."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
            digest = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    return tensors if digest == _digest(tensors) else None
