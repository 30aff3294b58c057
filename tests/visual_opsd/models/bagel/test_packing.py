"""Where every token stands and whom it sees, worked out by hand on small rows."""

import pytest
import torch

from tests import tiny
from visual_opsd.contexts import Image, Text
from visual_opsd.models.bagel.packing import context_rows, grid_ids, pack

BEGIN, END, START_OF_IMAGE, END_OF_IMAGE = range(4)
CELL = 16


@pytest.fixture
def config(tokenizer):
    found = tiny.configuration(tokenizer.marks)
    assert (found.tokens.begin, found.tokens.end) == (BEGIN, END)
    return found


def picture(rows, columns, **settings):
    return Image(torch.zeros(3, rows * CELL, columns * CELL), **settings)


def pack_of(config, *contexts, **settings):
    rows, images = context_rows(contexts, config)
    return pack(rows, **settings), images


def test_text_advances_by_its_tokens_and_an_image_by_one(config):
    packed, _ = pack_of(config, (Text((7, 8)), picture(1, 2), Text((9,))))
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 4, 4, 4, 5, 6, 7]]
    assert packed.next_positions == (8,)
    text = [BEGIN, 7, 8, END, START_OF_IMAGE, END_OF_IMAGE, BEGIN, 9, END]
    assert packed.text_ids.tolist() == text


def test_a_target_predicts_its_successors_and_its_end(config):
    packed, _ = pack_of(config, (Text((7,)), Text((8, 9), is_target=True)))
    assert packed.targets.tolist() == [-1, -1, -1, 8, 9, END, -1]


def test_a_noised_copy_does_not_advance_and_is_seen_by_itself_alone(config):
    packed, images = pack_of(
        config, (Text((7,)), picture(1, 1, num_noised=2, with_latents=True), Text((8,)))
    )
    # text | first copy | second copy | clean latents | patches | text
    assert packed.positions.tolist() == [[0, 1, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4, 4, 4, 5, 6, 7]]
    assert images.is_noised == [True, True, False]
    mask = packed.mask[0]
    first, second, rest = slice(3, 6), slice(6, 9), slice(9, 18)
    assert mask[first, first].all()
    assert mask[second, second].all()
    for copy, other in ((first, second), (second, first)):
        assert not mask[other, copy].any()
        assert not mask[rest, copy].any()
        assert mask[copy, :3].all()


def test_text_is_causal_and_images_are_seen_whole(config):
    packed, _ = pack_of(config, (Text((7, 8)), picture(1, 2)))
    mask = packed.mask[0]
    assert torch.equal(mask[:4, :4], torch.ones(4, 4).tril().bool())
    assert mask[4:, :].all()
    assert not mask[:4, 4:].any()


@pytest.mark.parametrize("is_padded", [True, False])
def test_no_row_sees_another(config, is_padded):
    rows = ((Text((7, 8)), picture(1, 1)), (Text((9,)),))
    packed, _ = pack_of(config, *rows, is_padded=is_padded)
    lengths = packed.lengths.tolist()
    assert lengths == [7, 3]
    if is_padded:
        assert packed.mask.shape == (2, 7, 7)
        assert not packed.mask[1, :, 3:].any()  # padding is seen by nobody
        assert packed.mask.any(dim=-1).all()  # and no query is left without a key
    else:
        assert packed.mask.shape == (1, 10, 10)
        assert not packed.mask[0, :7, 7:].any()
        assert not packed.mask[0, 7:, :7].any()
    # Streams and layout are inverse to each other.
    flat = packed.order.flatten()[packed.inverse]
    assert torch.equal(flat, torch.arange(len(packed.inverse)))


def test_a_grid_takes_the_top_left_corner_of_its_table():
    assert grid_ids(2, 3, stride=4).tolist() == [0, 1, 2, 4, 5, 6]
    with pytest.raises(ValueError, match="5 x 1 exceeds the position table of 4"):
        grid_ids(5, 1, stride=4)


def test_a_picture_that_is_no_multiple_of_a_latent_token_is_refused(config):
    image = Image(torch.zeros(3, 16, 16), with_latents=True, latent_pixels=torch.zeros(3, 24, 16))
    with pytest.raises(ValueError, match="24 x 16 px does not divide into latents of 16 px"):
        context_rows([(image,)], config)
