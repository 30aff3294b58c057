"""One question about one picture, from the command line."""

import pytest
from PIL import Image as PILImage

from datamodules.frozen_lake import MazeSettings, generate
from experiments import answer
from tests import tiny
from visual_opsd.benchmarks.maze_pictures import render
from visual_opsd.models.bagel import checkpoints
from visual_opsd.models.bagel.preprocessing import open_picture, to_picture
from visual_opsd.rollouts.interleaved import Outcome


@pytest.fixture
def maze(tmp_path):
    path = tmp_path / "maze.png"
    render(generate(MazeSettings(sizes=(4,)), "test", 0)).save(path)
    return path


def said(capsys, *command):
    """What the command prints, on one line."""
    answer.main([str(part) for part in command])
    return " ".join(capsys.readouterr().out.split())


def test_the_shipped_base_answers_in_words_and_drawn(capsys, maze, tmp_path):
    words = said(capsys, "--image", maze, "--out", tmp_path)
    assert "answer: \\boxed{" in words
    assert "ended by the model" in words
    assert "0 drawings" in words

    drawn = said(capsys, "--image", maze, "--out", tmp_path, "--draw", "--timesteps", 9)
    assert "answer: \\boxed{" in drawn
    assert f"drawn: {tmp_path / 'maze-1.png'} (64 x 64 px)" in drawn
    with PILImage.open(tmp_path / "maze-1.png") as picture:
        assert picture.size == (64, 64)


def test_what_is_saved_is_what_was_drawn(start, maze, tmp_path, capsys):
    model, tokenizer = checkpoints.load(start)
    picture = open_picture(maze)
    how = answer.how_to(
        answer.parse(["--image", str(maze), "--timesteps", "3", "--max-tokens", "40"])
    )
    for seed in range(20):
        found = answer.ask(model, tokenizer, picture, "Which way?", (how[0], seed), draw=True)
        if found.images:
            break
    saved = answer.show(found, tmp_path / "out", "maze", answer.Console())
    assert len(saved) == len(found.images) > 0
    for path, image in zip(saved, found.images, strict=True):
        with PILImage.open(path) as stored:
            assert stored.tobytes() == to_picture(image.pixels).tobytes()
    printed = capsys.readouterr().out
    assert f"{found.num_tokens} tokens, {len(saved)} drawings" in printed
    assert ("answer: none" in printed) == (found.outcome is Outcome.OUT_OF_ROUNDS)


def test_a_seed_and_a_temperature_decide_what_is_written(start, maze, capsys):
    settings = ("--model", start, "--image", maze, "--question", "Go?", "--max-tokens", 12)
    texts = {
        seed: said(capsys, *settings, "--temperature", 1, "--seed", seed).split(" tokens")[0]
        for seed in (0, 1)
    }
    assert texts[0] != texts[1]
    again = said(capsys, *settings, "--temperature", 1, "--seed", 0).split(" tokens")[0]
    assert again == texts[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--image": "no.png"}, "no picture no.png"),
        ({"--question": "  "}, "--question is empty"),
        ({"--model": "nowhere"}, "nowhere"),
        ({"--timesteps": "1"}, "num_timesteps must be >= 2, got 1"),
        ({"--max-tokens": "0"}, "max_tokens must be >= 1, got 0"),
        ({"--step-cache": "0"}, "interval must be >= 1, got 0"),
    ],
)
def test_what_a_user_got_wrong_is_one_line(maze, change, message):
    command = {"--image": str(maze), **change}
    with pytest.raises(SystemExit, match=message) as error:
        answer.main([part for pair in command.items() for part in pair])
    assert "\n" not in str(error.value)


def test_what_is_no_picture_of_whole_cells_is_an_error_that_names_it(tmp_path):
    words = tmp_path / "words.png"
    words.write_text("no picture")
    with pytest.raises(SystemExit, match=r"words\.png is no picture that can be read"):
        answer.main(["--image", str(words)])
    odd = tmp_path / "odd.png"
    PILImage.new("RGB", (100, 64)).save(odd)
    with pytest.raises(SystemExit, match="100x64"):
        answer.main(["--image", str(odd)])


def test_only_the_tiny_model_knows_what_to_ask(base, tokenizer):
    assert answer.question_for(base.config, None).startswith("You are a maze solver")
    model = tiny.make_autoencoder_model(tokenizer)
    assert answer.question_for(model.config, "What is it?") == "What is it?"
    with pytest.raises(ValueError, match="--question TEXT is needed"):
        answer.question_for(model.config, None)
