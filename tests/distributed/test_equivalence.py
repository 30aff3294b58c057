"""Two ranks under ZeRO-3 cannot be told from one process, except by speed."""

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tests.distributed.conftest import PATIENCE, ZERO3

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600 * PATIENCE)]
SGD = (
    "visual_opsd.optimiser.name=sgd",
    "visual_opsd.optimiser.learning_rate=0.3",
    "visual_opsd.teacher=fixed",
)
# A bias of the keys adds the same to all scores of a query, which softmax takes away again: its
# gradient is rounding noise, and AdamW makes steps of noise. (The decoder normalises its keys.)
WITHOUT_GRADIENT = "vit_model.vision_model.encoder.layers.0.self_attn.k_proj.bias"


def largest_difference(one, other):
    """Of any weight, relative to the tensor's largest value; and whose it is."""
    ours, theirs = load_file(one), load_file(other)
    assert ours.keys() == theirs.keys()
    assert max(x[WITHOUT_GRADIENT].abs().max() for x in (ours, theirs)) < 1e-4
    return max(
        (float((ours[n] - theirs[n]).abs().max() / ours[n].abs().max().clamp(min=1e-30)), n)
        for n in ours
        if n != WITHOUT_GRADIENT
    )


def has_moved(start, end):
    """The largest change of a weight that training has made."""
    ours, theirs = load_file(start), load_file(end)
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def assert_same_course(one, ranks):
    """The same problems, tokens and losses in every batch; how far the losses are apart."""
    found = []
    for whole, *parts in zip(one.rows(), *(ranks.rows(rank) for rank in (0, 1)), strict=True):
        assert whole["problems"] == [name for part in parts for name in part["problems"]]
        assert whole["tokens"] == [row for part in parts for row in part["tokens"]]
        found.append(abs(whole["loss"] - sum(part["loss"] for part in parts) / 2))
    return max(found)


CASES = [
    pytest.param("adamw", (), 1e-4, id="adamw, ema teacher"),
    pytest.param("sgd", SGD, 1e-5, id="sgd, fixed teacher", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "settings", "tolerance"), CASES)
def test_ten_steps_on_two_ranks_are_ten_steps_in_one_process(
    machine, note, base_folder, name, settings, tolerance
):
    """Accumulation 2, clipping, full vocabulary, completions of different lengths a rank."""
    one = machine.once(f"{name}_1", *settings)
    two = machine.once(f"{name}_2", *ZERO3, *settings, ranks=2)
    loss = assert_same_course(one, two)
    weights, name_of_largest = largest_difference(one.model, two.model)
    moved = has_moved(base_folder / "model.safetensors", two.model)
    lengths = [[sum(map(len, row["tokens"])) for row in two.rows(rank)] for rank in (0, 1)]
    assert lengths[0] != lengths[1]
    note(
        f"10 steps, {name}",
        f"<= {tolerance:g} of the tensor's largest value; sampled tokens equal",
        largest_weight_difference=weights,
        of_weight=name_of_largest,
        largest_loss_difference=loss,
        largest_weight_change=moved,
        tokens_equal=True,
    )
    assert moved > 1e-3
    assert loss < 1e-5
    assert weights <= tolerance


def test_the_teacher_takes_four_bytes_a_weight_over_the_ranks(machine, note):
    two = machine.once("adamw_2", *ZERO3, ranks=2)
    found = [two.rows(rank, "memory")[-1] for rank in (0, 1)]
    expected = 4 * found[0]["num_trained"] / 2
    note(
        "extra memory of the EMA teacher",
        "4 bytes x trainable parameters / ranks",
        expected=expected,
        measured=[row["teacher_bytes"] for row in found],
    )
    for row in found:
        assert expected <= row["teacher_bytes"] <= 1.01 * expected + 1024


@pytest.mark.slow
def test_adapters_and_the_teacher_without_them_are_one_process_too(machine, note):
    """Sharded adapters start alike; the teacher is the model with its adapters switched off."""
    lora = ("visual_opsd.lora={rank: 4, alpha: 8}", "visual_opsd.teacher=adapter_off")
    settings = (*lora, "trainer.max_steps=4", "trainer.average_decay=0.5")
    one = machine.once("lora_1", *settings)
    two = machine.run("lora_2", *ZERO3, *settings, ranks=2)
    assert_same_course(one, two)
    difference, weight = largest_difference(one.model, two.model)
    note("adapters, teacher adapter_off", "<= 1e-4", difference=difference, of_weight=weight)
    assert difference <= 1e-4


@pytest.mark.slow
def test_recomputed_layers_and_chunks_of_unequal_number_are_one_process_too(machine, note):
    """What a 7B run does at its first step: both make ranks run modules again going backward."""
    size = 5  # tokens a chunk of logits; a batch of two completions has 2 to 48
    one = machine.once("adamw_1")
    two = machine.run(
        "recomputed_2",
        *(*ZERO3, "trainer.activation_checkpointing=true"),
        ranks=2,
        logits_a_chunk=str(size * tiny.VOCABULARY_SIZE),
    )
    loss = assert_same_course(one, two)
    difference, weight = largest_difference(one.model, two.model)
    chunks = [
        [-(-sum(map(len, row["tokens"])) // size) for row in two.rows(rank)] for rank in (0, 1)
    ]
    unequal = sum(mine != theirs for mine, theirs in zip(*chunks, strict=True))
    note(
        "activation checkpointing, logits in unequal numbers of chunks",
        "<= 1e-4",
        difference=difference,
        of_weight=weight,
        largest_loss_difference=loss,
        batches_with_unequal_chunks=unequal,
        most_chunks=max(map(max, chunks)),
    )
    assert unequal > 0
    assert max(map(min, zip(*chunks, strict=True))) > 1
    assert loss < 1e-5
    assert difference <= 1e-4


@pytest.mark.slow
def test_the_optimiser_may_live_in_host_memory(machine, note):
    """On CPU ranks that is where it is anyway: what is tested is DeepSpeed's other code path."""
    one = machine.once("adamw_1")
    two = machine.run("offload_2", *ZERO3, "trainer.zero3.offload_optimizer=cpu", ranks=2)
    assert_same_course(one, two)
    difference, weight = largest_difference(one.model, two.model)
    note("optimiser offloaded to the CPU", "<= 1e-4", difference=difference, of_weight=weight)
    assert difference <= 1e-4


@pytest.mark.slow
def test_in_bfloat16_ranks_train_float32_weights(machine, base_folder):
    """Mixed precision as DeepSpeed does it: steps that bfloat16 would round away are kept.

    And position tables are the formula's, rounded once: computed in bfloat16 while DeepSpeed
    shards, they were off by up to 0.41.
    """
    settings = ("trainer.precision=bf16-mixed", "trainer.max_steps=4")
    settings = (*settings, "visual_opsd.optimiser.learning_rate=1e-6")
    settings = (*settings, "visual_opsd.optimiser.final_learning_rate=1e-6")
    two = machine.run("bf16_2", *ZERO3, *settings, ranks=2)
    end, start = load_file(two.model), load_file(base_folder / "model.safetensors")
    name = "language_model.lm_head.weight"
    assert end[name].dtype == torch.float32
    kept = (end[name] - start[name].bfloat16().float()).abs()
    assert 0 < kept.max() < 1e-5
    for rank in (0, 1):
        (tables,) = two.rows(rank, "tables")
        rounded_once = ["torch.bfloat16", 0]
        assert tables == {"vit_pos_embed": rounded_once, "latent_pos_embed": rounded_once}


@pytest.mark.slow
def test_replicas_are_one_process_too(machine):
    """Plain DDP."""
    one = machine.once("adamw_1")
    two = machine.run("adamw_ddp", "trainer.strategy=ddp", ranks=2)
    assert_same_course(one, two)
    assert largest_difference(one.model, two.model)[0] <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("gather", "count"), [("whole", 100), ("layers", 40)])
def test_ragged_rollouts_never_hang(machine, note, gather, count):
    """Among them some where one rank alone has an empty or a cut completion."""
    settings = (f"trainer.max_steps={count}", "trainer.accumulate=1")
    settings = (*settings, "trainer.checkpoint_every=1000")
    one = machine.once(f"rollouts_{count}_1", *settings)
    two = machine.once(
        f"rollouts_{gather}", *ZERO3, *settings, f"trainer.zero3.gather={gather}", ranks=2
    )
    assert_same_course(one, two)
    lengths = [[list(map(len, row["tokens"])) for row in two.rows(rank)] for rank in (0, 1)]
    empty, full = (
        sum((n in mine) != (n in theirs) for mine, theirs in zip(*lengths, strict=True))
        for n in (1, 24)
    )
    seconds = sum(row["rollout_seconds"] for row in two.rows())
    note(
        f"{count} rollouts, gather {gather}",
        "no hang, same tokens as one process",
        tokens_equal=True,
        empty_on_one_rank_only=empty,
        maximal_on_one_rank_only=full,
        seconds=seconds,
    )
    assert empty > 0
    assert full > 0


@pytest.mark.slow
def test_a_drawing_that_one_rank_has_and_the_other_has_not_hangs_nobody(machine, note):
    """Every other drawing is taken out of the cache: who misses one draws it, alone."""
    settings = ("rollout.intervention=drawn_vt", "drawing.num_timesteps=3", "trainer.max_steps=4")
    settings = (*settings, "drawing.text_guidance=1.0")
    one = machine.once("drawn_1", *settings)
    for drawing in sorted((machine.folder / "cache").rglob("*.png"))[::2]:
        drawing.unlink()
    two = machine.run("drawn_2", *ZERO3, *settings, ranks=2)
    assert_same_course(one, two)
    difference, _ = largest_difference(one.model, two.model)
    note("a cache hit on one rank, a miss on the other", "no hang", weight_difference=difference)
    assert difference <= 1e-4


@pytest.mark.slow
def test_what_one_rank_has_cached_and_the_other_has_not_hangs_nobody(machine, note):
    """Offline distillation: a batch is read where both ranks have all of theirs."""
    offline = (*SGD, "trainer.max_steps=6", "rollout.policy=start", "rollout.cache_scores=true")
    one = machine.run("offline_1", *offline)
    cache = machine.folder / "cache" / "offline"
    entries = sorted(cache.rglob("*.safetensors"))
    for path in entries[::6]:
        path.unlink()
    two = machine.run("offline_2", *ZERO3, *offline, ranks=2)
    assert len(entries) > 24
    assert sorted(cache.rglob("*.safetensors")) == entries
    loss = assert_same_course(one, two)
    weights, name = largest_difference(one.model, two.model)
    note("offline distillation", "<= 1e-5", largest_weight_difference=weights, of_weight=name)
    assert loss < 1e-5
    assert weights <= 1e-5


def test_a_weight_without_gradient_is_the_only_exception():
    """What the comparison leaves out: the loss does not depend on a bias of the keys."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, bias = (torch.randn(5, 8, generator=generator).double() for _ in range(4))
    bias = bias[:1].requires_grad_()
    (q @ (k + bias).T).softmax(-1).matmul(v).square().sum().backward()
    assert bias.grad.abs().max() < 1e-13
