"""One rule of who sees whom, two kernels that obey it, and a causal that is aligned lower right."""

import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from visual_opsd.contexts import drawing_context, student_context
from visual_opsd.models.bagel.attention import BLOCK, Mode, Visibility, attend
from visual_opsd.models.interface import Drawing, Sampling

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
INTERLEAVED = [
    (Mode.CAUSAL, 70),
    (Mode.FULL, 150),
    (Mode.CAUSAL, 20),
    (Mode.NOISE, 140),
    (Mode.NOISE, 9),
    (Mode.FULL, 40),
    (Mode.CAUSAL, 61),
]
SHORT = [(Mode.CAUSAL, 3), (Mode.FULL, 300), (Mode.CAUSAL, 30)]


def ids_of(row, sample):
    """Splits, modes and samples of one row of (mode, length)."""
    lengths = torch.tensor([length for _, length in row])
    splits = torch.arange(len(row)).repeat_interleave(lengths) + 100 * sample
    modes = torch.tensor([int(mode) for mode, _ in row]).repeat_interleave(lengths)
    return torch.stack([splits, modes, torch.full_like(splits, sample)])


def packed(*rows):
    """All in one row."""
    ids = torch.cat([ids_of(row, sample) for sample, row in enumerate(rows)], dim=1)
    return Visibility(*ids[:, None])


def padded(*rows):
    """One below another."""
    ids = [ids_of(row, sample) for sample, row in enumerate(rows)]
    longest = max(part.shape[1] for part in ids)
    fills = torch.tensor([-1, Mode.CAUSAL, -1])
    columns = [
        torch.cat([part, fills[:, None].expand(-1, longest - part.shape[1])], dim=1) for part in ids
    ]
    return Visibility(*torch.stack(columns, dim=1))


def knocked_out(visibility, *splits):
    """Some splits are seen by themselves alone."""
    chosen = torch.isin(visibility.splits, torch.tensor(splits))
    return replace(visibility, seen_until=visibility.splits.where(chosen, 10_000))


VISIBILITIES = {
    "packed": packed(INTERLEAVED, SHORT),
    "padded": padded(INTERLEAVED, SHORT),
    "knocked out": knocked_out(packed(INTERLEAVED, SHORT), 0, 1, 101),
    "causal": packed([(Mode.CAUSAL, 400)]),
    "cached": padded(INTERLEAVED, SHORT).behind(torch.tensor([5, 200]), 200),
}


@pytest.fixture(params=VISIBILITIES)
def visibility(request):
    return VISIBILITIES[request.param]


def tokens_for(visibility, heads=4, groups=2, head=8):
    batch, time = visibility.splits.shape
    generator = torch.Generator().manual_seed(0)

    def draw(length, count):
        return torch.randn(batch, length, count, head, generator=generator)

    num_keys = visibility.longest + time
    return draw(time, heads), draw(num_keys, heads // groups), draw(num_keys, heads // groups)


@torch.no_grad()
def test_flex_attention_equals_the_dense_mask(visibility):
    tokens = tokens_for(visibility)
    assert isinstance(visibility.mask("flex"), BlockMask)
    found = [attend(*tokens, visibility.mask(kernel)) for kernel in ("sdpa", "flex")]
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
@torch.no_grad()
def test_compiled_flex_attention_equals_the_dense_mask(visibility):
    """It traces in one graph, as a GPU's kernel needs it; torch has no gradient on a CPU."""
    tokens = [x.transpose(1, 2) for x in tokens_for(visibility, head=32)]
    compiled = torch.compile(flex_attention, fullgraph=True)
    found = compiled(*tokens, block_mask=visibility.mask("flex"), enable_gqa=True)
    expected = attend(*tokens_for(visibility, head=32), visibility.mask("sdpa"))
    torch.testing.assert_close(found.transpose(1, 2), expected, atol=1e-5, rtol=0)


def test_the_block_mask_leaves_out_nothing_that_is_seen(visibility):
    """And takes as whole only what is seen whole; torch's own looks at every pair to know that."""
    dense, mask = visibility.dense(), visibility.blocks()
    time, num_keys = dense.shape[2:]
    missing = (0, -num_keys % BLOCK, 0, -time % BLOCK)

    def by_block(pairs):
        return pairs.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK))

    any_seen = by_block(F.pad(dense, missing, value=False)).any(dim=5).any(dim=3)
    all_seen = by_block(F.pad(dense, missing, value=True)).all(dim=5).all(dim=3)
    looked_at = mask.to_dense().bool()
    whole = torch.zeros_like(looked_at)
    for row, head, query in torch.cartesian_prod(*(torch.arange(n) for n in whole.shape[:3])):
        count = mask.full_kv_num_blocks[row, head, query]
        whole[row, head, query, mask.full_kv_indices[row, head, query, :count].long()] = True
    assert not (any_seen & ~looked_at).any()
    assert not (whole & ~all_seen).any()


def test_blocks_of_other_samples_and_of_the_future_are_not_looked_at():
    text = [(Mode.CAUSAL, 4 * BLOCK)]
    looked_at = packed(text, text).blocks().to_dense()[0, 0]
    one = torch.ones(4, 4).tril()
    assert torch.equal(looked_at.float(), torch.block_diag(one, one))


def test_the_block_mask_of_a_long_row_is_never_quadratic():
    """40,960 tokens: every pair would be 1.7 GB."""
    long = packed([(Mode.CAUSAL, 20_000), (Mode.FULL, 4096), (Mode.CAUSAL, 16_864)]).blocks()
    held = [x for x in (long.kv_indices, long.full_kv_indices, long.q_indices) if x is not None]
    assert max(x.numel() for x in held) == (40_960 // BLOCK) ** 2


@pytest.mark.parametrize("kernel", ["sdpa", "flex"])
def test_a_cached_causal_call_is_aligned_lower_right(kernel):
    """What comes behind 150 cached tokens sees them all. The first release's fallback asked SDPA
    for ``is_causal``, which is aligned top left: its text after an image saw the first keys only.
    """
    whole = packed([(Mode.CAUSAL, 160)])
    q, k, v = tokens_for(whole)
    expected = attend(q, k, v, whole.mask("sdpa"))[:, 150:]
    new = packed([(Mode.CAUSAL, 10)]).behind(torch.tensor([150]), 150)
    found = attend(q[:, 150:], k, v, new.mask(kernel))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    top_left = torch.ones(10, 160).tril().bool()[None, None]
    assert (attend(q[:, 150:], k, v, top_left) - expected).abs().max() > 0.1


def test_the_kernel_changes_nothing_that_a_model_says_or_draws(model, tokenizer, problems):
    reads = [student_context(problem, tokenizer.encode) for problem in problems[:4]]
    draws = [drawing_context(problem, tokenizer.encode) for problem in problems[:4]]
    found = []
    for kernel in ("auto", "sdpa", "flex"):
        model.run_with(kernel=kernel)
        completions = model.sample(reads, Sampling(max_tokens=8), range(4))
        with torch.no_grad():
            states = model(reads, completions.ids)
        drawn = model.draw(draws, Drawing(num_timesteps=3), range(4))
        found.append((completions.ids, states, [image.pixels for image in drawn]))
    (
        (auto_ids, auto_states, auto_drawn),
        (ids, states, drawn),
        (flex_ids, flex_states, flex_drawn),
    ) = found
    assert torch.equal(auto_states, states)  # on a CPU, auto is SDPA
    torch.testing.assert_close(flex_states, states, atol=1e-5, rtol=0)
    for one, same, other in zip(auto_ids, ids, flex_ids, strict=True):
        assert torch.equal(one, same)
        assert torch.equal(one, other)
    for one, same, other in zip(auto_drawn, drawn, flex_drawn, strict=True):
        assert torch.equal(one, same)
        torch.testing.assert_close(one, other, atol=1 / 127, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_values_and_gradients_are_those_of_the_dense_mask(visibility):
    here = torch.device("cuda")
    tokens = [x.to(here).requires_grad_() for x in tokens_for(visibility, head=32)]
    moved = visibility.to(here)
    found = []
    for kernel in ("sdpa", "flex"):
        y = attend(*tokens, moved.mask(kernel))
        found.append([y, *torch.autograd.grad(y.square().sum(), tokens)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=1e-2)
