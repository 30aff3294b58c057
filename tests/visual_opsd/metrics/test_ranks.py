"""Two processes that share the rows find what one finds, also where one of them saw nothing."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from visual_opsd.losses.divergence import DivergenceConfig
from visual_opsd.metrics.accuracy import SolvedRate
from visual_opsd.metrics.attention_share import AttentionShare
from visual_opsd.metrics.divergence_audit import ClipLoss, TopKError
from visual_opsd.metrics.kl_gap import KLGap, KLGapClosure
from visual_opsd.metrics.legacy import EndAlignedKLGapLegacy
from visual_opsd.metrics.noise_control import NoiseControl

NUM_BATCHES = 3
ROLES = ["text", "problem"]
CLASSES = ["thought", "answer"]


def make_metrics():
    return {
        "gap": KLGap(ROLES, CLASSES),
        "closure": KLGapClosure(ROLES, CLASSES),
        "legacy": EndAlignedKLGapLegacy(),
        "noise": NoiseControl(["blank"]),
        "attention": AttentionShare(2, CLASSES, ROLES),
        "top_k": TopKError(DivergenceConfig(top_k=3)),
        "clip": ClipLoss(DivergenceConfig(token_clip=0.1)),
        "solved": SolvedRate(),
    }


def arguments(batch):
    """Of every metric, for one batch of ragged completions."""
    generator = torch.Generator().manual_seed(batch)
    lengths = torch.tensor([batch + 1, 0, 2 * batch + 2])
    count = int(lengths.sum())
    kl = torch.rand(3, count, generator=generator)
    classes = torch.randint(2, (count,), generator=generator)
    categories = ["text", "problem", "problem"]
    logits = torch.randn(2, count, 8, generator=generator)
    log_probs = logits.log_softmax(-1)
    solved = torch.rand(2, 5, generator=generator) < 0.5
    mass = torch.rand(2, count, 2, generator=generator)
    sizes = torch.randint(1, 9, (3, 2), generator=generator)
    return {
        "gap": (kl[0], lengths, categories, classes),
        "closure": (*kl, lengths, categories, classes),
        "legacy": (log_probs[0], log_probs[1]),
        "attention": (mass, ROLES, sizes, lengths, classes),
        "top_k": tuple(logits),
        "clip": tuple(logits),
        "solved": (solved[0],),
        "noise": (solved[0], solved[1]),
    }


def measure(batches):
    metrics = make_metrics()
    for batch in batches:
        for name, values in arguments(batch).items():
            if name == "noise":
                metrics[name].update(values[0], blank=values[1])
            else:
                metrics[name].update(*values)
    found = {}
    for name, metric in metrics.items():
        value = metric.compute()
        value = value if isinstance(value, dict) else {name: value}
        found |= {f"{name}.{key}": tensor.double() for key, tensor in value.items()}
    return found


def run_rank(rank, store, batches_of_rank):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.save(measure(batches_of_rank[rank]), f"{store}.{rank}")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*before the ``update``.*")
@pytest.mark.parametrize("batches_of_rank", [([0, 1], [2]), (list(range(NUM_BATCHES)), [])])
def test_two_ranks_equal_one(tmp_path, batches_of_rank):
    """An idle rank once sent empty float32 columns where the other sent float64."""
    store = tmp_path / "store"
    multiprocessing.start_processes(
        run_rank, (store, batches_of_rank), nprocs=2, start_method="fork"
    )
    whole = measure(range(NUM_BATCHES))
    for rank in range(2):
        torch.testing.assert_close(torch.load(f"{store}.{rank}"), whole, rtol=0, atol=1e-6)
