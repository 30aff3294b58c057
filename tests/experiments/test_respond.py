"""Words and pictures around a question, by either protocol."""

import pytest
from PIL import Image as PILImage

from experiments import respond
from experiments.respond import DECODINGS, Asked
from visual_opsd.contexts import SYSTEM_PROMPT_TRAIN, Image, Text
from visual_opsd.models.bagel.preprocessing import PROTOCOLS


def asked(*sizes):
    pictures = tuple(PILImage.new("RGB", size, "white") for size in sizes)
    return Asked(pictures=pictures, prompt="Which?", seed=0)


def test_the_harness_puts_placeholders_before_a_question_and_the_paper_does_not(start):
    for protocol, words in (
        ("paper", "Which?"),
        ("harness", "<img><|image_1|></img> <img><|image_2|></img> Which?"),
    ):
        found = respond.load(start, protocol)
        *images, question = found._inputs(asked((32, 32), (32, 32)))
        assert all(isinstance(image, Image) for image in images)
        assert isinstance(question, Text)
        assert found.tokenizer.decode(question.ids) == words


def test_protocols_differ_as_their_sources_say():
    paper, harness = DECODINGS["paper"], DECODINGS["harness"]
    assert (paper.sampling.temperature, paper.sampling.max_tokens) == (0, 1024)
    assert (harness.sampling.temperature, harness.sampling.max_tokens) == (0.3, 4095)
    assert paper.system_prompt == SYSTEM_PROMPT_TRAIN
    assert harness.system_prompt.startswith("\n")
    assert harness.system_prompt.endswith("</answer>.\n")


def test_the_tiny_model_sees_reduced_mazes_and_makes_all_else_fit(start):
    see = respond.load(start, "paper").see
    shapes = [tuple(image.pixels.shape) for image in see(asked((192, 256), (300, 100)).pictures)]
    assert shapes == [(3, 64, 48), (3, 16, 64)]


def test_pictures_share_their_budget_under_the_paper_alone():
    pictures = [PILImage.new("RGB", (1000, 800))] * 4
    sizes = {
        protocol: [tuple(image.pixels.shape[1:]) for image in respond._eyes(protocol)(pictures)]
        for protocol in ("paper", "harness")
    }
    alone = PROTOCOLS["paper"].image(pictures[0]).pixels.shape[1:]
    assert all(height * width <= 2_007_040 / 4 for height, width in sizes["paper"])
    assert tuple(alone) != sizes["paper"][0]
    assert sizes["harness"][0] == tuple(PROTOCOLS["harness"].image(pictures[0]).pixels.shape[1:])


def test_a_reply_says_what_it_cost(start):
    found = respond.load(start, "paper").limited(3)
    replies = found.answer([asked((32, 32)), asked((32, 48))])
    assert all(0 < reply.num_tokens <= 3 for reply in replies)
    assert replies[0].seconds == replies[1].seconds > 0
    assert not any(reply.num_drawings for reply in replies)


def test_a_model_that_cannot_draw_is_not_asked_to(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl"}')
    with pytest.raises(ValueError, match="reads and cannot draw"):
        respond.load(tmp_path, "paper", "drawn")
