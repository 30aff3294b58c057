"""AdamW, Muon or (to check sharding) SGD, with warm-up and cosine decay."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim import SGD, AdamW, Muon, Optimizer
from transformers import get_cosine_with_min_lr_schedule_with_warmup


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """The defaults are the paper's main run (Appendix C)."""

    name: Literal["adamw", "muon", "sgd"] = "adamw"
    """``muon`` turns the layers' matrices by orthogonalised momentum and leaves AdamW the rest;
    plain SGD shows what AdamW hides: gradients that are wrong by a factor."""
    learning_rate: float = 1e-5
    final_learning_rate: float = 1e-7
    num_warmup_steps: int = 200
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-15
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.final_learning_rate <= self.learning_rate:
            raise ValueError(
                f"final_learning_rate {self.final_learning_rate} must lie between 0 and "
                f"learning_rate {self.learning_rate}"
            )


def configure(
    module: nn.Module, config: OptimiserConfig, num_steps: int
) -> OptimizerLRSchedulerConfig:
    """What ``configure_optimizers`` returns: only what trains, a schedule by optimiser step."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    optimiser: Optimizer
    if config.name == "muon":
        optimiser = MuonAndAdamW(trained, config)
    elif config.name == "sgd":
        optimiser = SGD(trained.values(), lr=config.learning_rate, weight_decay=config.weight_decay)
    else:
        optimiser = _adamw(list(trained.values()), config)
    schedule = get_cosine_with_min_lr_schedule_with_warmup(
        optimiser,
        num_warmup_steps=config.num_warmup_steps,
        num_training_steps=num_steps,
        min_lr=config.final_learning_rate,
    )
    return {
        "optimizer": optimiser,
        "lr_scheduler": {"scheduler": schedule, "interval": "step"},
    }


class MuonAndAdamW(Optimizer):
    """Muon for the matrices inside layers, AdamW for all else; one optimiser to Lightning.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/), its steps as large as
    AdamW's (Liu et al. 2025, https://arxiv.org/abs/2502.16982), so that one rate serves both.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], config: OptimiserConfig) -> None:
        """Take parameters by name: a layer's are below ``.layers.``."""
        matrices = [p for name, p in parameters.items() if ".layers." in name and p.ndim == 2]
        if not matrices:
            raise ValueError("optimiser.name=muon finds no matrix below '.layers.' that trains")
        chosen = set(map(id, matrices))
        self._parts: tuple[Optimizer, Optimizer] = (
            Muon(
                matrices,
                lr=config.learning_rate,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            _adamw([p for p in parameters.values() if id(p) not in chosen], config),
        )
        groups = [group for part in self._parts for group in part.param_groups]
        super().__init__(groups, {"lr": config.learning_rate})
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up both where a checkpoint left them."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Both parts work on this optimiser's groups and state, which are what is saved."""
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups = [group]
            part.state = self.state


def _adamw(parameters: list[nn.Parameter], config: OptimiserConfig) -> AdamW:
    return AdamW(
        parameters,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
