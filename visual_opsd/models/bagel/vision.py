"""How an image is read: SigLIP patches, a connector, and the two frozen position tables."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoder

from visual_opsd.models.bagel.config import VisionConfig
from visual_opsd.models.bagel.packing import grid_ids


def position_table(side: int, width: int) -> Float[Tensor, "places width"]:
    """Sines and cosines of column, then row, of a grid's places, row by row.

    In numpy's float64, as MAE has it: DeepSpeed makes torch round new tensors while it shards.
    """
    frequencies = 1 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width // 4))
    angles = np.outer(np.arange(side, dtype=np.float64), frequencies)
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    table = np.concatenate([np.tile(axis, (side, 1)), np.repeat(axis, side, axis=0)], axis=1)
    return torch.from_numpy(table.astype(np.float32))


class PositionTable(nn.Module):
    """Frozen 2-D sine-cosine positions, column coordinate first (official names and values)."""

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.side, self.width = side, width
        self.pos_embed = nn.Parameter(torch.empty(side**2, width), requires_grad=False)
        if not self.pos_embed.is_meta:
            self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Fill the table from its formula."""
        self.pos_embed.copy_(self.exact())

    def exact(self) -> Float[Tensor, "places width"]:
        """The formula's float32 values, wherever the weight itself is and however it is cut."""
        return position_table(self.side, self.width)

    def forward(self, ids: Int[Tensor, " tokens"]) -> Float[Tensor, "tokens width"]:
        """Look up row-major grid ids."""
        return self.pos_embed[ids]


class TimeEmbedding(nn.Module):
    """The flow's time in [0, 1], not scaled, through 256 frequencies and a small network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Float[Tensor, " tokens"]) -> Float[Tensor, "tokens width"]:
        """Embed one time a token."""
        frequencies = get_timestep_embedding(
            time.float(), 256, flip_sin_to_cos=True, downscale_freq_shift=0
        )
        return self.mlp(frequencies.to(self.mlp[0].weight.dtype))


class Connector(nn.Module):
    """From the encoder's width to the decoder's."""

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inner, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "tokens inner"]) -> Float[Tensor, "tokens width"]:
        """Two layers with a gelu between."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class VisionEmbeddings(nn.Module):
    """Patches as a linear map (row, column, channel order) and a learned position table."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(3 * config.patch_size**2, config.hidden_size)
        self.position_embedding = nn.Embedding(config.patches_per_side**2, config.hidden_size)

    def forward(
        self, patches: Float[Tensor, "tokens pixels"], ids: Int[Tensor, " tokens"]
    ) -> Float[Tensor, "tokens inner"]:
        """Embed every patch at its place."""
        return self.patch_embedding(patches) + self.position_embedding(ids)


class SiglipTower(nn.Module):
    """transformers' SigLIP encoder behind BAGEL's own embeddings (its own would interpolate)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        siglip = SiglipVisionConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            patch_size=config.patch_size,
            layer_norm_eps=config.layer_norm_eps,
            hidden_act="gelu_pytorch_tanh",
        )
        siglip._attn_implementation = "sdpa"  # noqa: SLF001 - transformers sets it from a model only
        self.embeddings = VisionEmbeddings(config)
        self.encoder = SiglipEncoder(siglip)  # type: ignore[arg-type]
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        patches: Float[Tensor, "tokens pixels"],
        ids: Int[Tensor, " tokens"],
        lengths: Sequence[int],
    ) -> Float[Tensor, "tokens inner"]:
        """Encode images of ``lengths`` patches each; none sees another."""
        x = self.embeddings(patches, ids)
        longest = max(lengths)
        if all(length == longest for length in lengths):
            x = self.encoder(inputs_embeds=x.unflatten(0, (-1, longest))).last_hidden_state
            return self.post_layernorm(x.flatten(0, 1))
        sizes = torch.tensor(lengths, device=x.device)
        is_token = torch.arange(longest, device=x.device) < sizes[:, None]
        padded = x.new_zeros(len(lengths), longest, x.shape[-1]).masked_scatter(
            is_token[..., None], x
        )
        mask = is_token[:, None, None, :].expand(-1, 1, longest, -1)
        x = self.encoder(inputs_embeds=padded, attention_mask=mask).last_hidden_state
        return self.post_layernorm(x[is_token])


class VisionModel(nn.Module):
    """Names the tower as the official checkpoints do."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.vision_model = SiglipTower(config)
        self.config = config

    def forward(self, images: Sequence[Float[Tensor, "3 _height _width"]]) -> tuple[Tensor, Tensor]:
        """Encode images; returns states [tokens, inner] and their position ids [tokens]."""
        side, stride = self.config.patch_size, self.config.patches_per_side
        weight = self.vision_model.embeddings.patch_embedding.weight
        patches = [
            rearrange(image, "c (h p) (w q) -> (h w) (p q c)", p=side, q=side) for image in images
        ]
        ids = torch.cat(
            [grid_ids(image.shape[1] // side, image.shape[2] // side, stride) for image in images]
        ).to(weight.device)
        lengths = [len(patch) for patch in patches]
        states = self.vision_model(torch.cat(patches).to(weight), ids, lengths)
        return states, ids
