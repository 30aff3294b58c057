"""What sharding rests on: arithmetic of parts, and what DeepSpeed keeps to itself.

Two ranks are in ``tests/distributed``; here one rank runs the real engine in this process.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_modules.sharding import (
    Shards,
    Zero3Config,
    deepspeed_config,
    joined,
    part_of,
)
from tests.distributed.conftest import free_port

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", [(1,), (7,), (4, 5)])
def test_parts_are_equal_and_give_the_whole_back(num_ranks, shape):
    whole = torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)
    size = -(-whole.numel() // num_ranks)
    parts = [part_of(whole, rank, torch.empty(size)) for rank in range(num_ranks)]
    assert {len(part) for part in parts} == {size}
    flat = torch.cat(parts)
    assert torch.equal(flat[: whole.numel()].view(shape), whole)
    assert flat[whole.numel() :].abs().sum() == 0


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (8, 4)])
def test_memories_are_cut_anew_for_another_number_of_ranks(before, after):
    whole = torch.randn(13, generator=torch.Generator().manual_seed(0))
    old = torch.empty(-(-13 // before))
    states = [
        {
            "step": 7,
            "callbacks": {"averaged": Shards(weight=part_of(whole, rank, old))},
            "rank": rank,
        }
        for rank in range(before)
    ]
    state = joined(states)
    assert (state["step"], state["rank"]) == (7, 0)
    new = torch.empty(-(-13 // after))
    saved = state["callbacks"]["averaged"]["weight"]
    again = torch.cat([part_of(saved, rank, new) for rank in range(after)])
    assert torch.equal(again[:13], whole)


def test_offload_and_buckets_reach_deepspeed():
    config = Zero3Config(
        offload_optimizer="nvme", nvme_path="/fast", offload_parameters="cpu", gather="layers"
    )
    zero = deepspeed_config(config)["zero_optimization"]
    assert zero["stage"] == 3
    assert zero["offload_optimizer"] == {
        "device": "nvme",
        "pin_memory": True,
        "nvme_path": "/fast",
    }
    assert zero["offload_param"]["device"] == "cpu"
    assert zero["stage3_max_reuse_distance"] == 0
    assert "offload_optimizer" not in deepspeed_config(Zero3Config())["zero_optimization"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"offload_optimizer": "nvme"}, "nvme needs nvme_path"),
        ({"timeout_seconds": 0}, "timeout_seconds must be at least 1, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Zero3Config(**settings)


PRIVATE = """
import os, torch, deepspeed
os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1",
                  MASTER_PORT="{port}")
from lightning_modules.sharding import Zero3Config, ShardedWeights, _Private, deepspeed_config
from visual_opsd.teachers import WeightMemory

assert "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__, "skip_shared_memory_kernels"
_Private.skip_shared_memory_kernels()
deepspeed.init_distributed("gloo")
config = deepspeed_config(Zero3Config(persistence_threshold=0)) | {{
    "train_micro_batch_size_per_gpu": 1}}
build = lambda: torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
with deepspeed.zero.Init(config_dict_or_path=config):
    model = build()
weight = model[0].weight
assert weight.ds_tensor.numel() == 15 and weight.ds_numel == 15 and hasattr(weight, "ds_id")

class Strategy:
    model, settings = None, Zero3Config()
place = ShardedWeights(Strategy, build)
value = torch.arange(15.0).view(5, 3)
place.put(weight, value)
memory = WeightMemory(0.5, place)
memory.remember(model)
optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
engine, *_ = deepspeed.initialize(
    config=config, model=model, optimizer=optimiser, dist_init_required=False)
Strategy.model = engine
assert _Private.is_engine(engine) and not _Private.is_engine(model)

x = torch.ones(1, 3)
start = engine(x).detach()
engine.backward(engine(x).sum())
engine.step()
moved = engine(x).detach()
assert not torch.equal(start, moved)
assert torch.equal(place.precise(weight).view(5, 3), place.stored(weight).float().view(5, 3))
with torch.no_grad(), memory.recalled(model):
    assert torch.equal(engine(x), start)
assert torch.equal(engine(x).detach(), moved)
_Private.drop_gathered(engine)
assert weight.numel() == 0
with torch.no_grad(), place.gathered(model) as twin:
    assert torch.equal(twin(x), moved)
    assert not twin[0]._forward_hooks and not twin[0]._forward_pre_hooks
with torch.no_grad(), memory.recalled(model), place.gathered(model) as twin:
    assert torch.equal(twin(x), start)
assert weight.numel() == 0
memory.follow(model)
with torch.no_grad(), memory.recalled(model), place.gathered(model) as twin:
    assert not torch.equal(twin(x), start) and not torch.equal(twin(x), moved)
print("all there")
"""


def test_what_deepspeed_keeps_to_itself_is_where_it_was():
    """Every private name that ``sharding.py`` touches, on the real engine with one rank.

    And what it is for: the teacher's weights stand in for the student's and leave no trace.
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PRIVATE.format(port=free_port())],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "all there" in done.stdout, done.stderr[-3000:]
