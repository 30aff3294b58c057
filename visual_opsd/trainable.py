"""Which weights train: those that read and write, or low-rank adapters beside them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from visual_opsd.models.interface import Drawer
from visual_opsd.weights import WholeWeights

ADAPTER = "default"


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Low-rank adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

    Without dropout: what is scored has to be what was sampled.
    """

    rank: int = 64
    alpha: int = 128
    """An adapter adds ``alpha / rank * up(down(x))``; up starts at zero."""
    targets: str = r".*language_model\.model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
    """Names of linear maps, matched in full; the default is what BAGEL reads and writes with."""
    seed: int | None = None
    """None: the run's."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if self.alpha < 1:
            raise ValueError(f"alpha must be at least 1, got {self.alpha}")


def freeze_drawing(model: nn.Module) -> None:
    """Take off the optimiser what only drawings train: text gives it no gradient.

    BAGEL's generation experts are 6.5 of 14.6 billion weights.
    """
    if isinstance(model, Drawer):
        for parameter in model.drawing_parameters():
            parameter.requires_grad = False


def adapt(model: nn.Module, config: LoRAConfig, place: WholeWeights | None = None) -> None:
    """Put adapters beside the maps that ``config`` names, and freeze everything else.

    They stay float32 beside rounded weights: a step of the paper's size is below bfloat16's.
    ``place`` knows where weights are, if they are sharded: the start is the same.

    Raises:
        ValueError: ``targets`` names no map of the model.
    """
    lora = LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=config.targets, lora_dropout=0.0
    )
    place = place or WholeWeights()
    with torch.random.fork_rng(), place.building():  # peft draws a start that is not used
        try:
            inject_adapter_in_model(lora, model, ADAPTER)
        except ValueError as error:
            raise ValueError(f"lora.targets {config.targets!r}: {error}") from error
    generator = torch.Generator().manual_seed(config.seed or 0)
    for layer in adapters(model).values():
        down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        for weight in (down, up):
            weight.data = weight.data.float()
        start = torch.empty(config.rank, layer.in_features, device="cpu")
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)  # as peft's own
        place.put(down, start)
        place.put(up, torch.zeros(layer.out_features, config.rank, device="cpu"))


def adapters(model: nn.Module) -> dict[str, Any]:
    """The adapted maps by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The model as it was before it was adapted, to the bit; no copy is made."""
    layers = adapters(model).values()
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)


def save_adapters(model: nn.Module, folder: Path) -> None:
    """The adapters alone, as peft reads them: ``PeftModel.from_pretrained(base, folder)``."""
    folder.mkdir(parents=True, exist_ok=True)
    state: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=ADAPTER)
    weights = {f"base_model.model.{name}": x.contiguous().cpu() for name, x in state.items()}
    save_file(weights, folder / "adapter_model.safetensors")
    config: LoraConfig = model.peft_config[ADAPTER]  # type: ignore[index, assignment]
    config.save_pretrained(str(folder))


@torch.no_grad()
def merge_adapters(model: nn.Module) -> None:
    """Add the adapters to the weights beside them and take them out: the model is plain again."""
    for name, layer in adapters(model).items():
        layer.merge()
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer.get_base_layer())
