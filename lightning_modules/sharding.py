"""DeepSpeed ZeRO-3 as Lightning runs it, on GPUs and on CPU ranks, and the weights under it.

Facts behind every line: two CPU ranks of deepspeed 0.19.8 under lightning 2.6.6. What DeepSpeed has
no public call for stands in :class:`_Private` alone.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor, nn
from typing_extensions import override

from visual_opsd.weights import M, WholeWeights


@dataclass(frozen=True, kw_only=True)
class Zero3Config:
    """How weights, gradients and optimiser states are spread; sizes are elements."""

    gather: Literal["whole", "layers"] = "whole"
    """What a rollout holds: every weight once, or a layer at a time, again for every token."""
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    offload_parameters: Literal["none", "cpu"] = "none"
    nvme_path: str | None = None
    persistence_threshold: int = 100_000
    """Parameters up to this size stay gathered."""
    reduce_bucket: int = 200_000_000
    prefetch_bucket: int = 50_000_000
    sub_group: int = 500_000_000
    """Steps are taken in groups of so many: one float32 gradient copy of a group is alive."""
    timeout_seconds: int = 1800
    """A rank that waits longer for the others gives up."""

    def __post_init__(self) -> None:
        if self.offload_optimizer == "nvme" and not self.nvme_path:
            raise ValueError("offload_optimizer: nvme needs nvme_path")
        if self.timeout_seconds < 1:
            raise ValueError(f"timeout_seconds must be at least 1, got {self.timeout_seconds}")


def deepspeed_config(config: Zero3Config, *, is_universal: bool = False) -> dict[str, Any]:
    """DeepSpeed's own configuration; Lightning adds precision, accumulation and clipping.

    ``is_universal`` reads checkpoints that :func:`make_universal` has converted.
    """
    zero: dict[str, Any] = {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": config.reduce_bucket,
        "sub_group_size": config.sub_group,
        "stage3_prefetch_bucket_size": config.prefetch_bucket,
        "stage3_param_persistence_threshold": config.persistence_threshold,
    }
    if config.gather == "layers":
        # Decoding through the hooks makes a long trace, which is searched up to this distance.
        zero["stage3_max_reuse_distance"] = 0
    if config.offload_optimizer != "none":
        zero["offload_optimizer"] = {"device": config.offload_optimizer, "pin_memory": True}
        if config.offload_optimizer == "nvme":
            zero["offload_optimizer"]["nvme_path"] = config.nvme_path
    if config.offload_parameters != "none":
        zero["offload_param"] = {"device": config.offload_parameters, "pin_memory": True}
    return {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW, offloaded or not
        "data_types": {"grad_accum_dtype": "fp32"},
        "checkpoint": {"load_universal": is_universal},
    }


class Zero3Strategy(DeepSpeedStrategy):
    """Lightning's, on CPU ranks too; accumulated batches are averaged once."""

    def __init__(self, config: Zero3Config, *, is_universal: bool = False) -> None:
        """``is_universal``: go on from a checkpoint of another number of ranks."""
        super().__init__(
            config=deepspeed_config(config, is_universal=is_universal),
            timeout=timedelta(seconds=config.timeout_seconds),
        )
        self.settings = config
        self.is_universal = is_universal

    @property
    def is_on_cpu(self) -> bool:
        """Gloo ranks: for tests, and to see a run through before it goes to a cluster."""
        return isinstance(self.accelerator, CPUAccelerator)

    @property
    def root_device(self) -> torch.device:
        """With an index also on the CPU: DeepSpeed compares it."""
        return torch.device("cpu", 0) if self.is_on_cpu else super().root_device

    def setup_environment(self) -> None:
        """Lightning's, without the check for CUDA on CPU ranks."""
        if not self.is_on_cpu:
            super().setup_environment()
            return
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        """Lightning's, without the check of device indices on CPU ranks."""
        if not self.is_on_cpu:
            super().setup_distributed()
            return
        _Private.skip_shared_memory_kernels()
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Not all that ``configure_model`` does is to be sharded: see ``ShardedWeights``."""
        yield

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Lightning has divided the loss by the accumulated batches; DeepSpeed would once more."""
        kwargs.setdefault("scale_wrt_gas", False)
        return super().backward(closure_loss, optimizer, *args, **kwargs)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Nothing: the engine saves its own, and Lightning would throw this one away."""
        del optimizer
        return {}

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """Every rank its part; from another number of ranks, memories are cut anew."""
        if not self.is_universal:
            return super().load_checkpoint(checkpoint_path, weights_only)
        if self.is_global_zero:
            make_universal(Path(checkpoint_path))
        self.barrier()
        super().load_checkpoint(checkpoint_path, weights_only)
        return joined(client_states(Path(checkpoint_path)))


class ShardedWeights(WholeWeights):
    """Every rank holds its part of every weight, flat; a rollout gathers them."""

    def __init__(self, strategy: Zero3Strategy, outline: Callable[[], nn.Module]) -> None:
        """``outline`` builds the module's shape; it is called on the meta device."""
        self.strategy = strategy
        self.outline = outline
        self._twin: Any = None

    @contextmanager
    def building(self) -> Iterator[None]:
        """Every module made inside is sharded as soon as it is made."""
        with DeepSpeedStrategy.model_sharded_context(self.strategy):
            yield

    def built(self, build: Callable[[], M], dtype: torch.dtype, device: torch.device | str) -> M:
        """Without a whole copy anywhere; dtype and device are the strategy's."""
        del dtype, device
        with self.building():
            return build()

    def put(self, weight: Tensor, value: Tensor) -> None:
        """Keep this rank's part of ``value``."""
        if not hasattr(weight, "ds_id"):
            super().put(weight, value)
            return
        shard = self.stored(weight)
        shard.data.copy_(part_of(value, dist.get_rank(), shard))

    def stored(self, parameter: Tensor) -> Tensor:
        """This rank's part."""
        return getattr(parameter, "ds_tensor", parameter)

    def precise(self, parameter: Tensor) -> Tensor:
        """This rank's part as the optimiser keeps it; no communication."""
        import deepspeed

        found = deepspeed.utils.safe_get_local_fp32_param(parameter)
        return found.to(self.stored(parameter).device)

    def settle(self) -> None:
        """Wait for what is under way and drop every gathered copy, persistent ones included."""
        if _Private.is_engine(self.strategy.model):
            _Private.drop_gathered(self.strategy.model)

    @contextmanager
    def gathered(self, module: nn.Module) -> Iterator[Any]:
        """A twin without hooks on weights gathered once, or the module itself, in step."""
        if self.strategy.settings.gather == "layers":
            with in_step(module):
                yield module
            return
        import deepspeed

        if self._twin is None:
            with torch.device("meta"):
                self._twin = self.outline().requires_grad_(requires_grad=False).eval()
        names = dict(self._twin.named_parameters(remove_duplicate=False))
        parameters = {name: module.get_parameter(name) for name in names}
        sharded = [p for p in parameters.values() if hasattr(p, "ds_id")]
        with deepspeed.zero.GatheredParameters(sharded):
            try:
                for name, weight in parameters.items():
                    _point(self._twin, name, nn.Parameter(weight.data, requires_grad=False))
                for name, _ in self._twin.named_buffers():
                    _point(self._twin, name, module.get_buffer(name))
                yield self._twin
            finally:
                for name in parameters:
                    empty = torch.empty(0, device="meta")
                    _point(self._twin, name, nn.Parameter(empty, requires_grad=False))

    def packed(self, memory: dict[str, Tensor]) -> "Shards":
        """Marked, so that another number of ranks finds them in a checkpoint."""
        return Shards(memory)

    def unpacked(self, saved: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
        """This rank's part, cut anew where the checkpoint came from other ranks."""
        value = saved[name]
        return value if value.shape == like.shape else part_of(value, dist.get_rank(), like)


class Shards(dict[str, Tensor]):
    """Flat parts of one rank, by name; joined in rank order they are the whole, padded."""


def part_of(value: Tensor, rank: int, like: Tensor) -> Tensor:
    """The ``rank``-th of equal flat parts of ``value``, padded with zeros to the size of ``like``.

    DeepSpeed's layout: part r is ``flat[r * size : (r + 1) * size]``.
    """
    size = like.numel()
    part = value.flatten()[rank * size : (rank + 1) * size]
    return nn.functional.pad(part, (0, size - part.numel())).view_as(like)


def joined(states: list[Any]) -> Any:
    """One state out of those of all ranks: shards behind one another, all else the first's."""
    first = states[0]
    if isinstance(first, Shards):
        return Shards({name: torch.cat([state[name] for state in states]) for name in first})
    if isinstance(first, dict):
        return {key: joined([state[key] for state in states]) for key in first}
    return first


@contextmanager
def in_step(module: nn.Module) -> Iterator[None]:
    """All ranks take as many decoding steps as the one that takes most."""

    def goes_on(wants: bool) -> bool:  # noqa: FBT001 - a flag is what is exchanged
        flag = torch.tensor(int(wants), device=module.device)  # type: ignore[arg-type]
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)

    alone = module.goes_on
    object.__setattr__(module, "goes_on", goes_on)
    try:
        yield
    finally:
        object.__setattr__(module, "goes_on", alone)


TAG, UNIVERSAL = "checkpoint", "checkpoint_universal"


def rank_files(checkpoint: Path) -> list[Path]:
    """The state of every rank in a checkpoint, in rank order."""
    folder = checkpoint / TAG
    count = len(list(folder.glob("zero_pp_rank_*_mp_rank_00_model_states.pt")))
    return [folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in range(count)]


def client_states(checkpoint: Path) -> list[dict[str, Any]]:
    """What Lightning, the module and the callbacks saved, of every rank."""
    # The run's own folder: training state may be any object.
    return [torch.load(p, map_location="cpu", weights_only=False) for p in rank_files(checkpoint)]


def make_universal(checkpoint: Path) -> None:
    """Convert a checkpoint for another number of ranks, once, beside its parts."""
    if (checkpoint / "latest_universal").is_file():  # written last
        return
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(checkpoint / TAG)]
    command += ["--output_folder", str(checkpoint / UNIVERSAL)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise OSError(f"{checkpoint} cannot be converted for other ranks: {done.stderr[-2000:]}")


def _point(module: nn.Module, name: str, value: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    holder = module.get_submodule(owner)
    held: Any = holder._parameters if leaf in holder._parameters else holder._buffers  # noqa: SLF001
    held[leaf] = value


class _Private:
    """What has no public call; ``tests/lightning_modules/test_sharding.py`` fails if it moves.

    Besides: ``ds_id``, ``ds_tensor`` and ``ds_numel`` of a sharded parameter.
    """

    @staticmethod
    def skip_shared_memory_kernels() -> None:
        """CPU ranks would compile them for two minutes, to the same numbers."""
        from deepspeed import ops

        ops.__compatible_ops__["deepspeed_shm_comm"] = False

    @staticmethod
    def is_engine(model: Any) -> bool:
        """Whether DeepSpeed has taken the model over, to train it."""
        return hasattr(getattr(model, "optimizer", None), "parameter_offload")

    @staticmethod
    def drop_gathered(engine: Any) -> None:
        """Release every parameter that is gathered or under way."""
        engine.optimizer.parameter_offload.partition_all_parameters()
