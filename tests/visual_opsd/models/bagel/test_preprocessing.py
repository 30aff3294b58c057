"""Pictures are resized as the official code does it, mistakes included."""

import pytest
import torch
from PIL import Image as PILImage

from tests.oracle import load_oracle, oracle_files
from visual_opsd.models.bagel.preprocessing import DRAWN, READ_IN_OPSD, ResizeRule, to_pixels


@pytest.mark.oracle
@pytest.mark.parametrize("path", oracle_files(), ids=lambda path: f"{path.stem}-resize_table")
def test_every_size_of_the_official_table(path):
    _, description = load_oracle(path)
    tables = description["cases"]["resize_table"]
    assert sum(len(table["rows_w_h_imgnum_neww_newh"]) for table in tables.values()) > 100
    for table in tables.values():
        p = table["params"]
        rule = ResizeRule(
            max_side=p["max_image_size"],
            min_side=p["min_image_size"],
            stride=p["image_stride"],
            max_pixels=p.get("max_pixels", 14 * 14 * 9 * 1024),
        )
        for width, height, num_images, *expected in table["rows_w_h_imgnum_neww_newh"]:
            assert rule.size(width, height, num_images) == tuple(expected), (width, height)


@pytest.mark.oracle
@pytest.mark.parametrize("path", oracle_files(), ids=lambda path: f"{path.stem}-interleave-pixels")
def test_a_picture_becomes_the_official_pixels(path):
    tensors, description = load_oracle(path)
    case = description["cases"]["interleave"]
    picture = PILImage.fromarray(tensors["interleave/in/image_uint8_hwc"].numpy())
    rules = {
        name: ResizeRule(
            max_side=case[name]["max_image_size"],
            min_side=case[name]["min_image_size"],
            stride=case[name]["image_stride"],
        )
        for name in ("vae_transform", "vit_transform")
    }
    pixels = to_pixels(picture, rules["vae_transform"])
    torch.testing.assert_close(pixels, tensors["interleave/out/vae_pixels"], atol=1e-6, rtol=0)
    # The interleaved inferencer resizes twice: by the rule for latents, then by that for reading.
    once = PILImage.fromarray(tensors["interleave/out/resized_uint8_hwc"].numpy())
    pixels = to_pixels(once, rules["vit_transform"])
    torch.testing.assert_close(pixels, tensors["interleave/out/vit_pixels"], atol=1e-6, rtol=0)


def test_transparency_becomes_white():
    picture = PILImage.new("RGBA", (32, 32), (255, 0, 0, 0))
    assert (to_pixels(picture, ResizeRule(max_side=64, min_side=16, stride=16)) == 1).all()


def test_both_rules_for_a_large_photo_keep_their_strides():
    for rule in (DRAWN, READ_IN_OPSD):
        width, height = rule.size(4000, 3000)
        assert width % rule.stride == height % rule.stride == 0
        assert max(width, height) <= rule.max_side
