import numpy as np
import pytest

from visual_opsd.benchmarks.benchmark import Tally, guess_an_option
from visual_opsd.benchmarks.blink import BLINK
from visual_opsd.benchmarks.chartqa import CHARTQA, is_near
from visual_opsd.benchmarks.choices import choose
from visual_opsd.benchmarks.cvbench import CV_BENCH
from visual_opsd.benchmarks.hub import letter_of, options_of
from visual_opsd.benchmarks.items import Item, choice_prompt
from visual_opsd.benchmarks.mmvp import MMVP
from visual_opsd.benchmarks.nine import NINE, PAPER
from visual_opsd.benchmarks.sat import SAT
from visual_opsd.benchmarks.vsp_navigation import VSP
from visual_opsd.benchmarks.vstar import VSTAR
from visual_opsd.statistics import weighted_rates, wilson


def item(row=0, options=2, answer="A", dataset="set", **columns):
    return Item(
        dataset=dataset,
        index=str(row),
        row=row,
        question="Which?",
        pictures=(),
        answer=answer,
        options={letter: f"thing {letter}" for letter in "ABCD"[:options]},
        columns=columns,
    )


def score(benchmark, items, are_right):
    texts = [
        f"<answer>{each.answer if right else 'L'}</answer>"
        for each, right in zip(items, are_right, strict=True)
    ]
    return benchmark.score(items, benchmark.marks(items, texts))


def test_the_mean_of_the_published_rows_is_the_published_mean():
    """Table 2 prints the means of its rows; a slip of the keyboard in a row would show."""
    means = {"Visual-OPSD": 74.03, "ThinkMorph-7B, drawn": 70.63, "BAGEL-7B": 51.02}
    means |= {"text-only SFT": 63.75, "GPT-5": 75.58, "Qwen3-VL-32B": 71.44, "GPT-4o": 59.62}
    means |= {"Visual-OPSD, noise": 64.15, "ThinkMorph-7B, text-only": 69.90}
    means |= {"InternVL3.5-8B": 58.04, "InternVL3.5-38B": 63.67, "Qwen3-VL-8B": 64.58}
    means |= {"Janus-Pro-7B": 39.68, "Chameleon-7B": 19.71}
    assert set(means) == set(PAPER)
    for name, row in PAPER.items():
        assert len(row) == len(NINE)
        assert sum(row) / 9 == pytest.approx(means[name], abs=0.012), name


def test_chance_on_vstar_is_the_published_one():
    """115 questions with four options, 76 with two: 34.95 %."""
    items = [item(row, options=4 if row < 115 else 2) for row in range(191)]
    assert VSTAR.headline.expected(items, guess_an_option) == pytest.approx(0.3495, abs=5e-5)


def test_one_stratum_is_wilson_and_several_are_a_mean_of_means():
    items = [item(row, category="ab"[row >= 6]) for row in range(8)]
    found = score(BLINK, items, [True] * 3 + [False] * 3 + [True, True])
    assert {key: found[key] for key in ("value", "low", "high")} == wilson(5, 8).as_dict()
    assert found["also"]["macro"]["value"] == pytest.approx((0.5 + 1.0) / 2)
    assert {name: part["n"] for name, part in found["categories"].items()} == {"a": 6, "b": 2}


def test_the_interval_of_a_mean_holds_what_bootstrapping_its_parts_says():
    """MOVER, against 95 % of means of rates drawn anew."""
    parts = [(30, 40), (55, 60), (10, 50)]
    found = weighted_rates([wilson(*part) for part in parts], [0.25, 0.25, 0.5])
    rng = np.random.default_rng(0)
    draws = [rng.binomial(n, right / n, 20_000) / n for right, n in parts]
    means = 0.25 * draws[0] + 0.25 * draws[1] + 0.5 * draws[2]
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.012)
    assert found.high == pytest.approx(high, abs=0.012)
    assert weighted_rates([wilson(3, 9)], [1.0]) == wilson(3, 9)


def test_cv_bench_weighs_two_sources_of_2d_as_much_as_all_of_3d():
    items = [
        *(item(row, dataset="CV-Bench-2D", source="ADE20K") for row in range(4)),
        *(item(row, dataset="CV-Bench-2D", source="COCO") for row in range(4, 6)),
        *(item(row, dataset="CV-Bench-3D", source="Omni3D") for row in range(10)),
    ]
    found = score(CV_BENCH, items, [True] * 4 + [False] * 2 + [True] * 7 + [False] * 3)
    assert found["value"] == pytest.approx((0.5 + 0.7) / 2)
    assert found["files"]["CV-Bench-2D"]["value"] == pytest.approx(0.5)
    assert found["also"]["micro"]["value"] == pytest.approx(11 / 16)


def test_chartqa_weighs_both_directions_alike():
    items = [item(row, dataset="ChartQA_h_bar", answer="7") for row in range(3)]
    items += [item(row, dataset="ChartQA_v_bar", answer="8") for row in range(1)]
    found = score(CHARTQA, items, [True, False, False, True])
    assert found["value"] == pytest.approx((1 / 3 + 1) / 2)
    assert found["also"]["micro"]["value"] == pytest.approx(0.5)


def test_mmvp_counts_questions_and_pairs_that_lie_side_by_side():
    items = [item(row) for row in range(5)]
    found = score(MMVP, items, [True, True, True, False, True])
    assert found["value"] == pytest.approx(0.8)
    assert found["also"]["pairs"] == {**wilson(1, 2).as_dict(), "n": 2}
    assert MMVP.also["pairs"].expected(items, guess_an_option) == pytest.approx(0.25)


def test_a_circular_question_is_right_when_all_its_rotations_are():
    items = [item(row, options=2, g_index=str(row % 3)) for row in range(6)]
    found = score(SAT, items, [True, True, True, True, False, True])
    assert found["n"] == 3
    assert found["value"] == pytest.approx(2 / 3)
    assert found["chance"] == pytest.approx(0.25)
    one_is_gone = score(SAT, items[:5], [True, True, True, True, False])
    assert one_is_gone["n"] == 2, "a question that lost a rotation is left out"


def test_rotations_made_here_move_every_option_and_its_answer():
    row = {
        "question": "Which?",
        "answers": ["left", "right", "ahead"],
        "correct_answer": "right",
        "image_bytes": [{"bytes": b"p"}],
    }
    made = list(SAT.from_hub(row, 7))
    assert [each["index"] for each in made] == ["7", "1000007", "2000007"]
    assert {each["g_index"] for each in made} == {"7"}
    assert all(each[each["answer"]] == "right" for each in made)
    assert {each["answer"] for each in made} == {"A", "B", "C"}


def test_a_constant_letter_never_solves_a_whole_circular_question():
    items = [item(0, answer="A", g_index="0"), item(1, answer="B", g_index="0")]
    assert SAT.best_constant(items)["value"] == 0
    assert VSTAR.best_constant([item(0), item(1), item(2, answer="B")]) == {
        "answer": "A",
        "value": pytest.approx(2 / 3),
    }


def test_format_failures_are_counted_beside_what_is_right():
    items = [item(row) for row in range(4)]
    texts = ["<answer>A</answer>", "The answer is A.", "<answer>Q</answer>", ""]
    found = VSTAR.score(items, VSTAR.marks(items, texts))
    assert found["value"] == pytest.approx(0.5)
    assert found["format_failures"] == 3


def test_a_maze_counts_by_level_and_by_gymnasiums_rule_beside():
    mazes = [item(row, options=0, maze_map="['SF' 'FG']") for row in range(2)]
    texts = [r"<answer>\boxed{D,R}</answer>", r"<answer>\boxed{L,D,R}</answer>"]
    found = VSP.score(mazes, VSP.marks(mazes, texts))
    assert (found["value"], found["also"]["gymnasium"]["value"]) == (0.5, 1.0)
    assert list(found["categories"]) == ["level_2"]
    assert found["best_constant"] == {"answer": r"\boxed{D,R}", "value": 1.0}


def test_words_of_a_choice_are_the_harness_to_the_byte():
    asked = Item(
        dataset="d",
        index="0",
        row=0,
        question="What is it?",
        pictures=(),
        answer="A",
        options={"A": "None", "B": "a cat"},
        columns={"hint": "Look."},
    )
    ending = "Please select the correct answer from the options above. \n"
    assert choice_prompt(asked, "harness") == (
        f"Hint: Look.\nQuestion: What is it?\nOptions:\nB. a cat\n{ending}"
    )
    assert "A. None\nB. a cat\n" in choice_prompt(asked, "paper")


def test_hub_choices_lose_their_own_letters_only():
    assert options_of(["(A) left", "B. right", "A. third"]) == {
        "A": "left",
        "B": "right",
        "C": "A. third",
    }
    assert [letter_of(answer) for answer in ("(b)", "B", 1, "(B) ")] == ["B"] * 4


def test_no_whole_unit_is_no_number():
    with pytest.raises(ValueError, match="1 items make no whole unit"):
        Tally(size=lambda _: 2).count([item()], [True])


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("<answer>The answer is B</answer>", "B"),
        ("<answer>Answer: B</answer>", "B"),
        ("<answer>The correct answer is (B).</answer>", "B"),
        ("<answer>Option B is right</answer>", "B"),
        ("The answer is **B** because it is small", "B"),
        ("<answer>`B`</answer>", "B"),
        ("<answer>B. A is too small</answer>", "B"),
        ("The answer is B, and A is too small", "B"),
        ("<answer>(A) or (B)</answer>", None),
        ("<answer>B. or C.</answer>", None),
        ("The answer is B or C", None),
        ("The answer is B, C", None),
        ("The answer is B and C.", None),
    ],
)
def test_a_letter_in_a_sentence_is_read_and_two_letters_are_no_choice(text, letter):
    """A sentence within the tag was no answer; "(A) or (B)" was A, and not even ambiguous."""
    found = choose(text, {"A": "red", "B": "dark blue", "C": "green"})
    assert found.value == letter
    assert found.is_ambiguous == (letter is None)


def test_a_number_is_read_from_what_a_reply_wraps_it_in():
    bars = item(options=0, answer="55", dataset="ChartQA_h_bar")
    for text in (r"\boxed{55}", "The answer is 55.", "**55**", r"55\%"):
        assert CHARTQA.mark(bars, f"<answer>{text}</answer>").is_right, text


def test_a_share_is_read_either_way_but_not_a_hundredth_of_it():
    assert is_near("0.55", "55%")
    assert is_near("55%", "0.55")
    assert not is_near("0.55%", "55")
    assert not is_near("5500", "55%")
