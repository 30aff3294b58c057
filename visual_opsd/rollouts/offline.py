"""Offline distillation: what was written, and how the teacher scored it, once a problem, on disk.

Off-policy, with a teacher that stays where it is, neither depends on the student. A run that reads
both from here neither samples nor asks the teacher.
"""

import hashlib
import json
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from visual_opsd.contexts import (
    REFERENCE_INTRO,
    SYSTEM_PROMPT_TRAIN,
    TRANSITION,
    Image,
    Problem,
)
from visual_opsd.losses.divergence import TeacherScores
from visual_opsd.models.interface import Completions
from visual_opsd.rollouts.cache import written_whole


class Kept(NamedTuple):
    """Completions with the teacher's scores of them."""

    completions: Completions
    scores: TeacherScores


class OfflineCache:
    """A folder of safetensors files, one a problem as student and teacher see it.

    What is there first stays, whatever batch a problem comes in later: a run that was killed and
    goes on trains on the same bits.
    """

    def __init__(self, folder: Path, **identity: object) -> None:
        """``identity``: all that completions and scores depend on beside the problem.

        That is the weights, who wrote and how, and what is kept of the teacher's distribution.
        """
        self.folder = folder
        prompts = (SYSTEM_PROMPT_TRAIN, REFERENCE_INTRO, TRANSITION)
        self.identity = json.dumps([identity, prompts], sort_keys=True)

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

    def rows(self, paths: Sequence[Path], device: torch.device) -> list[Kept | None]:
        """A batch, each problem by itself; None where an entry is missing or damaged."""
        return [_read(path, device) for path in paths]

    def keep(
        self, paths: Sequence[Path], completions: Completions, scores: TeacherScores
    ) -> TeacherScores:
        """Keep of a batch what is not there; returns the scores as they are kept.

        Where nothing can be written, a warning says so, and training goes on.
        """
        ends = torch.tensor([0, *completions.lengths]).cumsum(0).tolist()
        found = []
        for row, (path, part) in enumerate(zip(paths, pairwise(ends), strict=True)):
            mine = Kept(_row(completions, row), scores.rows(slice(*part)))
            kept = _read(path, scores.log_probs.device)
            if kept is None:
                try:
                    _write(path, mine)
                except OSError as error:
                    warnings.warn(f"{path}: not kept: {error}", stacklevel=2)
            elif torch.equal(kept.completions.ids[0], mine.completions.ids[0]):
                mine = kept
            found.append(mine)
        return joined(found).scores


def replaced(completions: Completions, rows: Sequence[Kept | None]) -> Completions:
    """The completions, with those that are kept in the place of what was sampled anew."""
    return _together(
        [
            _row(completions, number) if kept is None else kept.completions
            for number, kept in enumerate(rows)
        ]
    )


def joined(rows: Sequence[Kept]) -> Kept:
    """One batch of several rows."""
    parts = [row.scores for row in rows]
    has_top_k = parts[0].ids is not None
    scores = TeacherScores(
        torch.cat([part.log_probs for part in parts]),
        torch.cat([part.ids for part in parts if part.ids is not None]) if has_top_k else None,
        torch.cat([part.log_tail for part in parts if part.log_tail is not None])
        if has_top_k
        else None,
    )
    return Kept(_together([row.completions for row in rows]), scores)


def _row(completions: Completions, number: int) -> Completions:
    """One of them."""
    return Completions(
        completions.ids[number : number + 1],
        completions.is_sampled[number : number + 1],
        completions.log_probs[number : number + 1],
        completions.is_cut[number : number + 1],
    )


def _together(parts: Sequence[Completions]) -> Completions:
    return Completions(
        tuple(ids for part in parts for ids in part.ids),
        tuple(mask for part in parts for mask in part.is_sampled),
        tuple(log_probs for part in parts for log_probs in part.log_probs),
        tuple(cut for part in parts for cut in part.is_cut),
    )


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


def _write(path: Path, kept: Kept) -> None:
    completions, scores = kept
    tensors = {
        "ids": completions.ids[0],
        "is_sampled": completions.is_sampled[0],
        "log_probs": completions.log_probs[0],
        "is_cut": torch.tensor(completions.is_cut[0]),
        "teacher_log_probs": scores.log_probs,
        "teacher_ids": scores.ids,
        "teacher_log_tail": scores.log_tail,
    }
    whole = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in tensors.items()
        if tensor is not None
    }
    with written_whole(path) as file:
        file.write(save(whole, {"sha256": _digest(whole)}))


def _read(path: Path, device: torch.device) -> Kept | None:
    """An entry; None where there is none or a damaged one."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
            digest = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    if digest != _digest(tensors):
        return None
    found = {name: tensor.to(device) for name, tensor in tensors.items()}
    completions = Completions(
        (found["ids"],), (found["is_sampled"],), (found["log_probs"],), (bool(found["is_cut"]),)
    )
    scores = TeacherScores(
        found["teacher_log_probs"], found.get("teacher_ids"), found.get("teacher_log_tail")
    )
    return Kept(completions, scores)
