"""AdamW with warm-up and cosine decay, as every run here uses it (and SGD, to check sharding)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from transformers import get_cosine_with_min_lr_schedule_with_warmup


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """The defaults are the paper's main run (Appendix C)."""

    name: Literal["adamw", "sgd"] = "adamw"
    """Plain SGD shows what AdamW hides: gradients that are wrong by a factor."""
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
    parameters: Iterable[nn.Parameter], config: OptimiserConfig, num_steps: int
) -> OptimizerLRSchedulerConfig:
    """What ``configure_optimizers`` returns: only what trains, a schedule by optimiser step."""
    trained = [p for p in parameters if p.requires_grad]
    optimiser: Optimizer
    if config.name == "sgd":
        optimiser = SGD(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    else:
        optimiser = AdamW(
            trained,
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
        )
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
