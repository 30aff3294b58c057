"""How much of a completion's attention goes where: by phase and layer, and per image token."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from visual_opsd.metrics.kl_gap import sum_per_completion
from visual_opsd.metrics.rows import RowsMetric


def attention_by_role(
    mass: Float[Tensor, "layers tokens segments"], roles: Sequence[str], names: Sequence[str]
) -> Float[Tensor, "layers tokens roles"]:
    """Add up the segments of every role in ``names``; a role that no segment has gets 0."""
    if len(roles) != mass.shape[2]:
        raise ValueError(f"{len(roles)} roles for {mass.shape[2]} segments")
    unknown = set(roles) - set(names)
    if unknown:
        raise ValueError(f"unknown roles {sorted(unknown)}, known are {list(names)}")
    is_of = torch.tensor([[role == name for name in names] for role in roles])
    return mass @ is_of.to(mass)


class AttentionShare(RowsMetric):
    """Mean share of attention of every role, and the same divided by the role's tokens.

    A role is what a segment is for: question, problem image, visual thought, the completion itself.
    Without the division a large image looks important for its size alone.
    """

    def __init__(self, num_layers: int, phases: Sequence[str], roles: Sequence[str]) -> None:
        """Name the phases of a completion and the roles of a context's segments."""
        super().__init__(share=torch.float64, per_token=torch.float64, num_tokens=torch.long)
        self.num_layers = num_layers
        self.phases = tuple(phases)
        self.roles = tuple(roles)

    def update(
        self,
        mass: Float[Tensor, "layers tokens segments"],
        roles: Sequence[str],
        sizes: Int[Tensor, "completions segments"],
        lengths: Int[Tensor, " completions"],
        phases: Int[Tensor, " tokens"],
    ) -> None:
        """Take what the tokens of some completions give to the segments of contexts of one layout.

        ``sizes`` counts the tokens of every segment, ``phases`` is an index a token.
        """
        if mass.shape[0] != self.num_layers:
            raise ValueError(f"{mass.shape[0]} layers came, expected {self.num_layers}")
        share = attention_by_role(mass, roles, self.roles)
        of_roles = attention_by_role(sizes[None].to(mass), roles, self.roles)[0]
        of_tokens = of_roles.repeat_interleave(lengths.to(mass.device), dim=0)
        per_token = torch.where(of_tokens > 0, share / of_tokens.clamp(min=1), 0)
        is_in = (
            phases.to(mass.device) == torch.arange(len(self.phases), device=mass.device)[:, None]
        )

        def sums(values: Tensor) -> Tensor:
            """[layers, tokens, roles] as [completions, layers, phases, roles]."""
            flat = (values[:, None] * is_in[None, :, :, None]).permute(0, 1, 3, 2).flatten(0, 2)
            found = torch.stack([sum_per_completion(row, lengths) for row in flat], dim=1)
            shape = (self.num_layers, len(self.phases), len(self.roles))
            return found.unflatten(1, shape)

        counts = [sum_per_completion(row.float(), lengths) for row in is_in]
        self.append(
            share=sums(share), per_token=sums(per_token), num_tokens=torch.stack(counts, dim=1)
        )

    def compute(self) -> dict[str, Float[Tensor, "layers phases roles"]]:
        """``share`` and ``per_token``: means over the tokens of each phase, NaN where none came."""
        sums = self._tables(self.column("share"), self.column("per_token"))
        counts = self.column("num_tokens").view(-1, len(self.phases)).sum(dim=0)[None, :, None]
        return {name: table.sum(dim=0) / counts for name, table in sums.items()}

    def completions(self) -> dict[str, Float[Tensor, "completions layers phases roles"]]:
        """The same means of every completion, of all ranks: what intervals need."""
        rows = self.gathered()
        counts = rows["num_tokens"].view(-1, 1, len(self.phases), 1)
        sums = self._tables(rows["share"], rows["per_token"])
        return {name: table / counts for name, table in sums.items()}

    def _tables(self, share: Tensor, per_token: Tensor) -> dict[str, Tensor]:
        shape = (-1, self.num_layers, len(self.phases), len(self.roles))
        return {"share": share.view(shape), "per_token": per_token.view(shape)}
