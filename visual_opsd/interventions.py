"""What the visual thoughts are replaced by: the ladder of controls, from the truth to nothing.

``blurred:0.03`` is ``blurred`` at another strength than its default: a rung of its own ladder.
Randomness is the problem's own, from (seed, problem id): the batch around it changes nothing.
A picture keeps its size, its role and how it is shown; where it comes in a second size for latents,
that one is changed in the same way.
"""

import difflib
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from visual_opsd.contexts import Image, Problem
from visual_opsd.seeds import row_seed

PATCH_PIXELS = 16
"""Side of the squares that ``patch_shuffled`` moves: a cell of the tiny preset's mazes."""
BLUR_SHARE = 1 / 16
"""Standard deviation of ``blurred``, as a share of the picture's shorter side."""
MARKED = 0.25
"""How far a pixel value must be from the problem's for ``region_crop`` to take it as marked: an
eighth of the range, beyond what JPEG and resizing change."""

Intervention = Callable[[Problem, Problem | None, torch.Generator], Problem]
Pixels = Float[Tensor, "3 height width"]


def intervene(name: str, problem: Problem, donor: Problem | None, seed: int) -> Problem:
    """The problem with its visual thoughts replaced as ``name`` says.

    ``donor`` is whose thoughts ``other_vt`` and ``wrong_vt`` show: another problem, or this one
    wrongly solved. The rest do not look at it.
    """
    change = intervention(name)
    if name not in WITHOUT_VISUAL_THOUGHTS and not problem.visual_thoughts:
        raise ValueError(
            f"{name} needs a visual thought, and problem {problem.problem_id} has none"
        )
    generator = torch.Generator().manual_seed(row_seed("intervention", seed, problem.problem_id))
    return change(problem, donor, generator)


def intervention(name: str) -> Intervention:
    """The function behind a name; ``blurred`` may carry its strength behind a colon.

    Raises:
        ValueError: An unknown name, or a strength where none belongs or that is none.
    """
    kind, colon, strength = name.partition(":")
    if kind not in INTERVENTIONS:
        close = difflib.get_close_matches(kind, INTERVENTIONS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"unknown intervention {name!r}: {hint}known are {', '.join(INTERVENTIONS)}"
        )
    if not colon:
        return INTERVENTIONS[kind]
    if kind != "blurred":
        raise ValueError(f"intervention {name!r}: only blurred has a strength, as blurred:0.03")
    try:
        share = float(strength)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ValueError(
            f"intervention {name!r}: the strength is a share of the picture's shorter side, above "
            f"0 and at most 1, got {strength!r}"
        )
    return partial(blurred, share=share)


def true_vt(problem: Problem, donor: Problem | None, generator: torch.Generator) -> Problem:
    """The data set's own visual thoughts."""
    return problem


def drawn_vt(problem: Problem, donor: Problem | None, generator: torch.Generator) -> Problem:
    """The model's own drawing, which the rollout has already put in place of the data set's."""
    return problem


def other_vt(problem: Problem, donor: Problem | None, generator: torch.Generator) -> Problem:
    """Another problem's visual thoughts: a real picture, the wrong content."""
    if donor is None:
        raise ValueError(f"other_vt needs a donor for problem {problem.problem_id}, got None")
    if donor.problem_id == problem.problem_id:
        raise ValueError(f"other_vt needs another problem's thoughts: {donor.problem_id} is itself")
    if not donor.visual_thoughts:
        raise ValueError(f"other_vt needs a visual thought, and donor {donor.problem_id} has none")
    return replace(problem, visual_thoughts=donor.visual_thoughts)


def wrong_vt(problem: Problem, donor: Problem | None, generator: torch.Generator) -> Problem:
    """A wrong solution of the same problem, drawn as right ones are: the data makes the donor."""
    if donor is None or donor.problem_id != problem.problem_id:
        found = None if donor is None else donor.problem_id
        raise ValueError(
            f"wrong_vt needs problem {problem.problem_id} itself, wrongly solved, as its donor "
            f"(data.donors=wrong); got {found}"
        )
    if donor.answer == problem.answer:
        raise ValueError(f"wrong_vt needs a wrong donor: {donor.problem_id} has the true answer")
    return replace(problem, visual_thoughts=donor.visual_thoughts)


def patch_shuffled(problem: Problem, donor: Problem | None, generator: torch.Generator) -> Problem:
    """The true pictures cut into squares and put together at random: content without layout."""
    return _repainted(problem, lambda pixels: shuffle_patches(pixels, PATCH_PIXELS, generator))


def blurred(
    problem: Problem,
    donor: Problem | None,
    generator: torch.Generator,
    share: float = BLUR_SHARE,
) -> Problem:
    """The true pictures out of focus: layout without detail."""
    return _repainted(problem, lambda pixels: blur(pixels, share * min(pixels.shape[1:])))


def matched_noise(problem: Problem, donor: Problem | None, generator: torch.Generator) -> Problem:
    """Noise a camera could have made: in range, with each channel's mean and deviation."""
    return _repainted(problem, lambda pixels: noise_like(pixels, generator))


def legacy_noise(problem: Problem, donor: Problem | None, generator: torch.Generator) -> Problem:
    """The first release's placebo: N(0, 1) per value, a third of it outside the pixel range."""
    return _repainted(problem, lambda pixels: _normal(pixels, generator))


def blank(problem: Problem, donor: Problem | None, generator: torch.Generator) -> Problem:
    """Mid-grey, the middle of the pixel range: a picture without content."""
    return _repainted(problem, torch.zeros_like)


def problem_copy(problem: Problem, donor: Problem | None, generator: torch.Generator) -> Problem:
    """The problem's picture once more: nothing the student does not see."""
    original = problem.image
    return _with_thoughts(
        problem,
        lambda thought: replace(
            thought, pixels=original.pixels, latent_pixels=original.latent_pixels
        ),
    )


def region_crop(problem: Problem, donor: Problem | None, generator: torch.Generator) -> Problem:
    """Where the true thought draws, the problem's picture enlarged, and nothing drawn in it.

    What Vision-OPD's teacher sees (arXiv 2605.18740), whose data sets say where to look.
    """
    image = problem.image

    def enlarge(thought: Image) -> Image:
        latents = thought.latent_pixels
        return replace(
            thought,
            pixels=marked_region(image.pixels, thought.pixels),
            latent_pixels=None if latents is None else marked_region(image.drawn_pixels, latents),
        )

    try:
        return _with_thoughts(problem, enlarge)
    except ValueError as error:
        raise ValueError(f"region_crop of problem {problem.problem_id}: {error}") from error


def no_vt(problem: Problem, donor: Problem | None, generator: torch.Generator) -> Problem:
    """No picture: the teacher keeps only the sentences that announce one."""
    return replace(problem, visual_thoughts=())


def answer_text(problem: Problem, donor: Problem | None, generator: torch.Generator) -> Problem:
    """The answer in words instead of a picture: all that a solution drawn could give away."""
    return replace(problem, visual_thoughts=(), hints=(problem.tagged_answer,))


def solution_text(problem: Problem, donor: Problem | None, generator: torch.Generator) -> Problem:
    """The solution in words, its answer included: what OPSD's teacher sees (arXiv 2601.18734)."""
    return replace(problem, visual_thoughts=(), hints=(problem.solution,))


INTERVENTIONS: dict[str, Intervention] = {
    "true_vt": true_vt,
    "drawn_vt": drawn_vt,
    "other_vt": other_vt,
    "wrong_vt": wrong_vt,
    "patch_shuffled": patch_shuffled,
    "blurred": blurred,
    "matched_noise": matched_noise,
    "legacy_noise": legacy_noise,
    "blank": blank,
    "problem_copy": problem_copy,
    "region_crop": region_crop,
    "no_vt": no_vt,
    "answer_text": answer_text,
    "solution_text": solution_text,
}
WITHOUT_VISUAL_THOUGHTS = frozenset({"no_vt", "answer_text", "solution_text"})
"""Those that show no picture, and need none."""


def marked_region(original: Pixels, marked: Pixels) -> Pixels:
    """What ``marked`` changes of ``original``, cut out of the latter, in the size of the former.

    The smallest rectangle of the picture's own proportions around every changed pixel.
    """
    size = original.shape[1:]
    resized = F.interpolate(marked.unsqueeze(0), size, mode="bilinear", antialias=True)[0]
    is_marked = ((resized - original).abs() > MARKED).any(dim=0)
    if not is_marked.any():
        raise ValueError("the visual thought marks nothing in the problem's picture")
    ends = [places[[0, -1]].tolist() for places in map(_where_any, (is_marked, is_marked.T))]
    share = max((last + 1 - first) / side for (first, last), side in zip(ends, size, strict=True))
    part = original
    for axis, ((first, last), side) in enumerate(zip(ends, size, strict=True), start=1):
        length = math.ceil(share * side)
        start = min(max((first + last + 1 - length) // 2, 0), side - length)
        part = part.narrow(axis, start, length)
    return F.interpolate(part.unsqueeze(0), marked.shape[1:], mode="bilinear")[0].clamp(-1, 1)


def _where_any(mask: Bool[Tensor, "rows columns"]) -> Int[Tensor, " found"]:
    """The rows in which anything is true."""
    return mask.any(dim=1).nonzero()[:, 0]


def shuffle_patches(pixels: Pixels, patch: int, generator: torch.Generator) -> Pixels:
    """Permute the whole squares of ``patch`` pixels; what is left at the right and below stays."""
    rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
    if rows * columns < 2:
        raise ValueError(f"no two patches of {patch} px in {tuple(pixels.shape[1:])} px to shuffle")
    order = torch.randperm(rows * columns, generator=generator).to(pixels.device)
    whole = pixels[:, : rows * patch, : columns * patch]
    squares = whole.unflatten(2, (columns, patch)).unflatten(1, (rows, patch))
    squares = squares.permute(1, 3, 0, 2, 4).flatten(0, 1)[order]
    moved = squares.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4)
    shuffled = pixels.clone()
    shuffled[:, : rows * patch, : columns * patch] = moved.reshape(whole.shape)
    return shuffled


def blur(pixels: Pixels, sigma: float) -> Pixels:
    """Gaussian blur with a standard deviation of ``sigma`` pixels; the edge's colour goes on."""
    reach = max(1, round(3 * sigma))
    offsets = torch.arange(-reach, reach + 1, device=pixels.device, dtype=pixels.dtype)
    kernel = (-0.5 * (offsets / sigma) ** 2).softmax(dim=0)
    padded = F.pad(pixels.unsqueeze(1), (reach, reach, reach, reach), mode="replicate")
    across = F.conv2d(padded, kernel.view(1, 1, 1, -1))
    return F.conv2d(across, kernel.view(1, 1, -1, 1)).squeeze(1).clamp(-1, 1)


def noise_like(pixels: Pixels, generator: torch.Generator, num_rounds: int = 40) -> Pixels:
    """Gaussian noise clamped to [-1, 1], with each channel's mean and standard deviation.

    The clamp pulls both towards the middle, so shift and scale before the clamp are corrected until
    mean and deviation after it are the picture's to 2e-3 (judged on quantiles of at most 65,536
    pixels), and each channel keeps the best it had. A channel of two colours at the ends of the
    range has the most deviation that its mean allows; no clamped Gaussian reaches it, and the noise
    stays a few hundredths short.
    """
    noise = _normal(pixels, generator)
    mean, deviation = _moments(pixels.flatten(1))
    judged = _quantiles(noise.flatten(1)[:, :65_536])
    shift, scale = best_shift, best_scale = mean, deviation
    best_error = torch.full_like(mean, torch.inf)
    for _ in range(num_rounds):
        clamped = (shift + scale * judged).clamp(-1, 1)
        got_mean, got_deviation = _moments(clamped)
        # Brightness before contrast, where not both can be had.
        error = torch.maximum(3 * (got_mean - mean).abs(), (got_deviation - deviation).abs())
        is_better = error < best_error
        best_error = error.where(is_better, best_error)
        best_shift = shift.where(is_better, best_shift)
        best_scale = scale.where(is_better, best_scale)
        if best_error.max() < 2e-3:
            break
        # Only unclamped values follow a shift: their share is the slope of the mean.
        follow = (clamped.abs() < 1).to(clamped).mean(1, keepdim=True).clamp(min=0.1)
        shift = shift + 0.7 * (mean - got_mean) / follow
        growth = deviation / got_deviation.clamp(min=1e-6)
        scale = (scale * growth.clamp(0.8, 1.25)).clamp(max=10)
    return (best_shift.unsqueeze(-1) + best_scale.unsqueeze(-1) * noise).clamp(-1, 1)


def _quantiles(channels: Float[Tensor, "3 pixels"], count: int = 1024) -> Tensor:
    """At most ``count`` of each channel's values, evenly spread over their order."""
    num_pixels = channels.shape[1]
    count = min(count, num_pixels)
    places = ((torch.arange(count, device=channels.device) + 0.5) * num_pixels / count).long()
    return channels.sort(dim=1).values[:, places]


def _moments(channels: Float[Tensor, "3 pixels"]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel."""
    return channels.mean(1, keepdim=True), channels.std(1, correction=0, keepdim=True)


def _normal(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, 1) in the shape of ``pixels``, drawn on the CPU: the same on every device."""
    return torch.randn(pixels.shape, generator=generator).to(pixels)


def _repainted(problem: Problem, paint: Callable[[Tensor], Tensor]) -> Problem:
    """The problem with the pixels of every visual thought replaced by ``paint`` of them."""

    def repaint(thought: Image) -> Image:
        latents = thought.latent_pixels
        return replace(
            thought,
            pixels=paint(thought.pixels),
            latent_pixels=None if latents is None else paint(latents),
        )

    return _with_thoughts(problem, repaint)


def _with_thoughts(problem: Problem, change: Callable[[Image], Image]) -> Problem:
    return replace(problem, visual_thoughts=tuple(map(change, problem.visual_thoughts)))
