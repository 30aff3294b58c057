"""What notebooks show live is what the method scores, and what is missing is said."""

from dataclasses import replace

import pytest
import torch

from experiments import drawings
from experiments.evaluation import FAST_DRAWING
from experiments.looking import TokenGaps, open_model, open_problems
from tests import tiny
from visual_opsd.contexts import student_context
from visual_opsd.models.interface import Sampling

SAMPLING = Sampling(max_tokens=12)


@pytest.fixture(scope="module")
def gaps(start, problems, tmp_path_factory):
    return TokenGaps(start, problems[:3], {"same": start}, SAMPLING)


def test_a_strip_has_a_value_a_token_for_the_truth_and_for_the_control(gaps):
    strip = gaps.strip(1, "matched_noise")
    assert list(strip.gaps) == ["true_vt", "matched_noise"]
    assert {len(values) for values in strip.gaps.values()} == {len(strip.tokens)}
    assert strip.gaps["true_vt"] != strip.gaps["matched_noise"]
    assert strip.gaps == gaps.strip(1, "matched_noise", "same").gaps


def test_the_mean_of_all_is_that_of_the_strips(gaps):
    rows = [gaps.strip(index, "true_vt") for index in range(3)]
    flat = torch.tensor([value for row in rows for value in row.gaps["true_vt"]])
    assert gaps.mean().value == pytest.approx(float(flat.mean()), abs=1e-5)
    assert gaps.by_category().loc["all", "base"].startswith(f"{flat.mean():.3f}")


def test_the_teacher_is_shown_what_was_chosen(gaps, problems):
    (other,) = gaps.shown(2, "other_vt").visual_thoughts
    assert torch.equal(other.pixels, problems[0].visual_thoughts[0].pixels)  # the next, round
    assert gaps.shown(0, "no_vt").visual_thoughts == ()


def test_a_drawing_is_watched_to_its_end(start, problems):
    model, tokenizer = open_model(start)
    contexts = [student_context(problem, tokenizer.encode) for problem in problems]
    tiny.inclined(model, contexts, {tokenizer.encode(tiny.ASKS)[0]: 100})  # always
    watched = drawings.watch(model, tokenizer, problems[0], FAST_DRAWING, max_tokens=4)
    drawn = watched.reasoning.images
    assert len(watched.forecasts) == len(drawn) * (FAST_DRAWING.num_timesteps - 1)
    assert (watched.forecasts[-1][1].pixels - drawn[-1].pixels).abs().max() <= 1.01 * 2 / 255
    model.codec = None
    with pytest.raises(ValueError, match="loaded without a codec"):
        drawings.watch(model, tokenizer, problems[0], FAST_DRAWING, max_tokens=4)


def test_a_model_that_asks_for_no_drawing_says_so(base_folder, problems):
    with pytest.raises(ValueError, match="without asking for a drawing"):
        drawings.watch(*open_model(base_folder), problems[0], FAST_DRAWING, max_tokens=4)


def test_what_was_not_drawn_is_said_beside_what_was_answered(base_folder, problems):
    """One problem without a drawing took the whole cell with it."""
    base = open_model(base_folder)
    said = drawings.seen(*base, problems[:2], (base[0], "the student"), max_tokens=4)
    assert "the student: 0 of 2 right" in said
    assert "drawing first" not in said
    assert f"2 not drawn, the first because the model answered {problems[0].problem_id}" in said
    assert "make pretrain-tiny" in said


def test_what_is_missing_is_named_with_the_command_that_makes_it(start, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no trained model at .*: make demo"):
        open_model(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match="hf download ThinkMorph/ThinkMorph-7B"):
        open_model(tmp_path / "ThinkMorph-7B")
    with pytest.raises(ValueError, match="no ThinkMorph folder"):
        open_problems(start, str(tmp_path / "absent"), 3)


def test_a_path_is_walked_to_judge_it(problems):
    problem = problems[0]
    right = f"<answer>\\boxed{{{problem.answer}}}</answer>"
    assert drawings.verdict(problem, right) == f"{problem.answer} (right)"
    assert drawings.verdict(problem, "who knows") == "who knows (wrong)"
    assert drawings.verdict(problem, "") == "no answer (wrong)"
    puzzle = replace(problem, task="Jigsaw_Assembly", answer="B")
    assert drawings.verdict(puzzle, "<answer>b</answer>") == "b (right)"
    assert drawings.verdict(puzzle, right).endswith("(wrong)")
