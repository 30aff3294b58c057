"""How the next token is chosen, and when a completion that asked for a drawing goes on without."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from visual_opsd.models.interface import Completions, Sampling


def row_noise(seeds: Sequence[int], num_positions: int) -> Float[Tensor, "rows positions"]:
    """Uniform noise by row and position: other rows, or when they finish, change nothing."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack(
        [torch.rand(num_positions, generator=g, dtype=torch.float32) for g in generators]
    )


def choose(
    logits: Float[Tensor, "rows vocabulary"],
    temperature: float,
    noise: Float[Tensor, " rows"],
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Draw by inverting the cumulative distribution; greedy at temperature 0.

    Returns ids and their log-probabilities under the distribution they were drawn from (under
    temperature 1 if greedy), float32.
    """
    log_probs = (logits.float() / (temperature or 1.0)).log_softmax(dim=-1)
    if temperature == 0:
        ids = log_probs.argmax(dim=-1)
    else:
        cumulative = log_probs.exp().cumsum(dim=-1)
        # Scaled to the sum actually reached, so that rounding never points past the vocabulary.
        threshold = noise.to(cumulative)[:, None] * cumulative[:, -1:]
        ids = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
        ids = ids.clamp(max=logits.shape[-1] - 1)
    return ids, log_probs.gather(-1, ids[:, None])[:, 0]


def decode_rows(
    step: Callable[[Int[Tensor, " rows"]], Float[Tensor, "rows vocabulary"]],
    keep_rows: Callable[[Int[Tensor, " kept"]], None],
    *,
    begin: int,
    end: int,
    sampling: Sampling,
    seeds: Sequence[int],
    asks_for_drawing: Callable[[list[int]], bool],
    device: torch.device,
    goes_on: Callable[[bool], bool] = bool,
) -> Completions:
    """Sample every row until its end mark or budget.

    ``step`` appends one token a row and returns the logits of the next; ``keep_rows`` drops all
    other rows from its state. ``goes_on`` hears before every step whether one is wanted here, and
    says whether one is taken: others who decode in step may need more of them.

    A row that ends after asking for a drawing goes on without one: its end mark stays as sampled, a
    begin mark is injected, and a new round starts (the drawing-skipped rule; the official sampler's
    seam is the same pair of marks).
    """
    num_rows, budget = len(seeds), sampling.max_tokens
    noise = row_noise(seeds, budget).to(device)
    ids = torch.full((num_rows, budget), end, dtype=torch.long)
    log_probs = torch.zeros(num_rows, budget)
    is_sampled = torch.ones(num_rows, budget, dtype=torch.bool)
    lengths = [budget] * num_rows
    is_cut = [True] * num_rows
    skips = [0] * num_rows
    round_starts = [0] * num_rows

    alive = torch.arange(num_rows)
    token = torch.full((num_rows,), begin, dtype=torch.long, device=device)
    forced: dict[int, int] = {}
    for position in range(budget):
        goes_on(True)  # noqa: FBT003 - the answer is yes
        logits = step(token)
        token, chosen = choose(logits, sampling.temperature, noise[alive.to(device), position])
        for slot, row in enumerate(alive.tolist() if forced else ()):
            if row in forced:
                token[slot] = forced.pop(row)
                chosen[slot] = 0.0
                is_sampled[row, position] = False
                round_starts[row] = position + 1
        ids[alive, position] = token.cpu()
        log_probs[alive, position] = chosen.cpu()

        is_finished = torch.zeros(len(alive), dtype=torch.bool)
        for slot in (token == end).nonzero()[:, 0].tolist():
            row = int(alive[slot])
            written = ids[row, round_starts[row] : position].tolist()
            if (
                skips[row] < sampling.max_drawings_skipped
                and position + 2 < budget
                and asks_for_drawing(written)
            ):
                skips[row] += 1
                forced[row] = begin
                continue
            is_finished[slot] = True
            lengths[row], is_cut[row] = position + 1, False
        if is_finished.any():
            kept = (~is_finished).nonzero()[:, 0]
            if not len(kept):
                break
            alive, token = alive[kept], token[kept.to(device)]
            keep_rows(kept.to(device))
    while goes_on(False):  # noqa: FBT003
        step(token)
    return Completions(
        ids=tuple(row[:n].to(device) for row, n in zip(ids, lengths, strict=True)),
        is_sampled=tuple(row[:n].to(device) for row, n in zip(is_sampled, lengths, strict=True)),
        log_probs=tuple(row[:n].to(device) for row, n in zip(log_probs, lengths, strict=True)),
        is_cut=tuple(is_cut),
    )
