"""Shares of attention by target, the same texts behind several contexts, and what hiding does."""

import json
from dataclasses import replace

import pytest
import torch

from experiments import attention, attention_figures
from experiments.attending import (
    CUTS,
    TARGETS,
    Written,
    cuts,
    knock_out_kl,
    shares,
    with_thoughts,
)
from experiments.attention import LookingConfig, load_summary, measure, seen, write_texts
from experiments.schema import TINY_BASE
from visual_opsd.contexts import (
    IMAGE_START,
    Image,
    Role,
    Text,
    images_in,
    student_context,
    teacher_context,
)
from visual_opsd.interventions import intervene
from visual_opsd.models.bagel import checkpoints
from visual_opsd.models.interface import Drawing, Sampling

CONFIG = LookingConfig(
    sampling=Sampling(max_tokens=12),
    trajectories=Sampling(max_tokens=12),
    drawing=Drawing(num_timesteps=3, text_guidance=1.0),
)


@pytest.fixture(scope="module")
def loaded(start):
    model, tokenizer = checkpoints.load(start)
    return model.eval(), tokenizer


@pytest.fixture(scope="module")
def texts(loaded, problems):
    return write_texts(*loaded, problems, CONFIG)


def behind_teacher(problems, tokenizer, length=5):
    """A text behind the teacher's context, as it is and without visual thoughts."""
    return [
        Written(
            problem,
            torch.arange(length + index),
            {
                name: teacher_context(intervene(name, problem, None, 0), tokenizer.encode)
                for name in ("true_vt", "no_vt")
            },
        )
        for index, problem in enumerate(problems)
    ]


def test_every_bit_of_attention_goes_to_one_target(loaded, problems):
    model, tokenizer = loaded
    written = behind_teacher(problems[:3], tokenizer)
    found = shares(model, written, "true_vt")
    assert found.share.shape == (3, 2, 4, len(TARGETS))
    for text, share, per_token, num_tokens in zip(
        written, found.share, found.per_token, found.num_tokens, strict=True
    ):
        # system prompt, problem, question, intro, visual thought, transition, the text itself
        context = text.contexts["true_vt"]
        columns = model.attention([context], [text.ids], by_head=True).mean(dim=2).double()
        others = columns[..., [0, 2, 3, 5]].sum(dim=-1)
        expected = torch.stack([columns[..., 1], columns[..., 4], others, columns[..., 6]], dim=-1)
        torch.testing.assert_close(share, expected, atol=1e-5, rtol=0)
        assert num_tokens == len(text.ids)
        sizes = model.segment_lengths(context)
        for target, size in ((0, sizes[1]), (1, sizes[4]), (3, len(text.ids))):
            torch.testing.assert_close(per_token[..., target] * size, share[..., target])
    without = shares(model, written, "no_vt").share
    assert not without[..., TARGETS.index("visual_thought")].any()
    torch.testing.assert_close(without.sum(dim=-1), torch.ones(3, 2, 4).double())


def test_interleaved_reasoning_is_cut_where_the_drawing_stands(texts, problems, loaded):
    _, tokenizer = loaded
    before, after = texts.reasoned.before, texts.reasoned.after
    assert 0 < len(before) == len(after) == len(problems) - texts.reasoned.num_left_out
    for thought, rest in zip(before, after, strict=True):
        problem = thought.problem
        assert rest.problem is problem
        assert IMAGE_START in tokenizer.decode(thought.ids.tolist())
        assert thought.ids[-1] == rest.ids[-1] == tokenizer.marks.end
        drawn = rest.contexts["drawn_vt"]
        assert drawn[:3] == thought.contexts["drawn_vt"]
        assert drawn[3] == Text(tuple(thought.ids[:-1].tolist()))
        assert images_in(drawn, Role.VISUAL_THOUGHT) == (4,)
        assert drawn[4].with_latents
        true = rest.contexts["true_vt"]
        assert torch.equal(true[4].pixels, problem.visual_thoughts[0].pixels)
        assert true[4].with_latents
        assert rest.contexts["no_vt"] == drawn[:4]


def test_all_contexts_of_a_completion_are_the_teachers(texts, problems, loaded):
    _, tokenizer = loaded
    assert [text.problem for text in texts.completions] == list(problems)
    for text in texts.completions:
        assert set(text.contexts) == set(CONFIG.interventions)
        student = student_context(text.problem, tokenizer.encode)
        for name, context in text.contexts.items():
            assert context[:3] == student
            assert len(context) == (5 if name == "no_vt" else 6)


def test_other_thoughts_take_the_places_of_the_drawn_ones():
    def image(value, **settings):
        return Image(torch.full((3, 16, 16), value), **settings)

    thought = image(0.5, role=Role.VISUAL_THOUGHT, with_latents=True)
    context = (image(0.0), Text((7,)), thought, Text((8,)))
    other = image(-0.5, role=Role.VISUAL_THOUGHT)
    shown = with_thoughts(context, [other])
    assert shown[2].pixels is other.pixels
    assert shown[2].with_latents
    assert (shown[0], shown[1], shown[3]) == (context[0], context[1], context[3])
    assert with_thoughts(context, []) == (context[0], context[1], context[3])
    with pytest.raises(ValueError, match="zip"):
        with_thoughts(context, [other, other])


@torch.no_grad()
def test_the_kl_of_a_cut_is_that_of_its_two_distributions(loaded, problems):
    model, tokenizer = loaded
    written = behind_teacher(problems[:3], tokenizer)
    found = knock_out_kl(model, written, "true_vt")
    for text, row in zip(written, found, strict=True):
        view = cuts(text.contexts["true_vt"], text.contexts["no_vt"])
        assert tuple(row) == tuple(view) == CUTS
        shown, *others = (
            torch.distributions.Categorical(logits=model.logits(model([view[cut]], [text.ids])))
            for cut in CUTS
        )
        assert row["shown"] == 0
        for cut, other in zip(CUTS[1:], others, strict=True):
            expected = torch.distributions.kl_divergence(shown, other).sum()
            assert row[cut] == pytest.approx(float(expected), abs=1e-4)
            assert row[cut] > 1e-4


def test_a_knock_out_is_scored_by_the_problems_own_task(loaded, problems):
    """Every picture of a tiny model was read as a maze, which a chart's cannot be."""
    model, tokenizer = loaded
    grey = Image(torch.zeros(3, 32, 32))
    charts = [replace(p, task="Chart_Refocus", answer="3", image=grey) for p in problems[:2]]
    written = behind_teacher(charts, tokenizer)
    found = attention.knock_out(model, tokenizer, written, "true_vt", CONFIG)
    assert {solved["value"] for solved in found["solved"].values()} == {0}


def test_what_cannot_be_looked_at_is_an_error(loaded, problems):
    model, tokenizer = loaded
    bare = replace(problems[1], visual_thoughts=())
    with pytest.raises(ValueError, match=f"1 problems have no visual thought.*{bare.problem_id}"):
        write_texts(model, tokenizer, [problems[0], bare], CONFIG)
    with pytest.raises(ValueError, match="no visual thought to knock out"):
        cuts(student_context(bare, tokenizer.encode), ())
    with pytest.raises(ValueError, match="need no_vt"):
        LookingConfig(interventions=("true_vt",))
    reading, _ = checkpoints.load(TINY_BASE, reading_only=True)
    with pytest.raises(ValueError, match="needs a model that draws"):
        write_texts(reading, checkpoints.load(TINY_BASE)[1], problems[:1], CONFIG)


def test_a_summary_holds_all_that_its_figures_show(loaded, texts):
    model, tokenizer = loaded
    summary = json.loads(json.dumps(measure(model, tokenizer, texts, CONFIG)))
    views = summary["shares"]
    assert set(views["thought_after"]) == {"drawn_vt", *CONFIG.interventions}
    for found in (one for kind in views.values() for one in kind.values()):
        for layer in range(2):
            total = sum(found[target]["by_layer"][layer]["value"] for target in TARGETS)
            assert total == pytest.approx(1, abs=1e-4)
    for kind, name in (("thought_after", "drawn_vt"), ("completion", "true_vt")):
        cut = summary["knock_out"][kind]
        assert cut["shown"] == name
        assert set(cut["kl"]) == set(CUTS[1:])
        assert set(cut["solved"]) == set(CUTS)
    for name, draw in attention_figures.FIGURES.items():
        assert draw(summary).axes, name
    told = seen(summary)
    kl = summary["knock_out"]["completion"]["kl"]["all_behind"]["value"]
    assert f"moves the next token by {kl:.3f}" in told
    layers = attention_figures.by_layer(summary).axes[0].get_lines()
    expected = [
        100 * x["value"] for x in views["thought_before"]["drawn_vt"]["problem_image"]["by_layer"]
    ]
    assert layers[0].get_ydata() == pytest.approx(expected)


@pytest.mark.slow
def test_one_command_writes_summary_and_figures(tmp_path, capsys):
    """The shipped base: it draws for these mazes, and answers."""
    attention.main(["--problems", "2", "--out", str(tmp_path)])
    assert load_summary(tmp_path)["problems"] == 2
    for name in attention_figures.FIGURES:
        for suffix in (".png", ".pdf"):
            assert (tmp_path / f"{name}{suffix}").stat().st_size > 1000
    assert str(tmp_path / "summary.json") in capsys.readouterr().out


def test_a_missing_summary_names_its_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m experiments.attention --out"):
        load_summary(tmp_path)
