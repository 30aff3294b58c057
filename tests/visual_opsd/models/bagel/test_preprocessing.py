"""Pictures are resized as the official code does it, mistakes included."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from tests import tiny
from tests.oracle import load_oracle, oracle_files
from visual_opsd.models.bagel.preprocessing import (
    DRAWN,
    PROTOCOLS,
    READ_IN_OPSD,
    Protocol,
    ResizeRule,
    open_picture,
    protocol_for,
    to_pixels,
)
from visual_opsd.models.bagel.presets import bagel_7b_mot


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
    protocol = Protocol(
        read=rules["vit_transform"], drawn=rules["vae_transform"], resizes_first=True
    )
    image = protocol.image(picture, with_latents=True)
    for ours, name in ((image.pixels, "vit_pixels"), (image.drawn_pixels, "vae_pixels")):
        torch.testing.assert_close(ours, tensors[f"interleave/out/{name}"], atol=1e-6, rtol=0)


def test_transparency_becomes_white():
    picture = PILImage.new("RGBA", (32, 32), (255, 0, 0, 0))
    assert (to_pixels(picture, ResizeRule(max_side=64, min_side=16, stride=16)) == 1).all()


def test_both_rules_for_a_large_photo_keep_their_strides():
    for rule in (DRAWN, READ_IN_OPSD):
        width, height = rule.size(4000, 3000)
        assert width % rule.stride == height % rule.stride == 0
        assert max(width, height) <= rule.max_side


def photo(width, height):
    generator = np.random.default_rng(0)
    return PILImage.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def sizes(protocol, picture):
    image = protocol.image(picture, with_latents=True)
    return tuple(image.pixels.shape[1:]), tuple(image.drawn_pixels.shape[1:])


def test_protocols_read_a_picture_in_their_own_sizes():
    """300 x 200: training enlarges to 378, the harness to 512 first and reads that."""
    assert sizes(PROTOCOLS["train"], photo(300, 200)) == ((378, 560), (512, 768))
    assert sizes(PROTOCOLS["paper"], photo(300, 200)) == ((378, 560), (512, 768))
    assert sizes(PROTOCOLS["harness"], photo(300, 200)) == ((518, 770), (512, 768))


def test_the_harness_resamples_twice():
    picture = photo(500, 400)
    once = picture.resize(DRAWN.size(500, 400), resample=PILImage.Resampling.BICUBIC)
    read = PROTOCOLS["harness"].read
    twice = PROTOCOLS["harness"].image(picture).pixels
    assert torch.equal(twice, to_pixels(once, read))
    assert twice.shape != to_pixels(picture, read).shape


def test_only_a_drawing_asks_for_latents():
    image = PROTOCOLS["train"].image(photo(300, 200))
    assert not image.with_latents
    assert image.latent_pixels is None


def test_the_tiny_model_resizes_nothing(tokenizer, problems):
    protocol = protocol_for(tiny.configuration(tokenizer.marks), "harness")
    picture = photo(48, 64)
    image = protocol.image(picture, with_latents=True)
    assert image.latent_pixels is None
    grey = (image.pixels * 127.5 + 127.5).round().byte().permute(1, 2, 0)
    assert torch.equal(grey, torch.from_numpy(np.array(picture)))
    with pytest.raises(ValueError, match="multiples of 16 px; got 50x64"):
        protocol.image(photo(50, 64))
    assert protocol_for(bagel_7b_mot(), "harness") is PROTOCOLS["harness"]


def test_a_file_and_its_bytes_are_the_same_picture(tmp_path):
    photo(20, 10).save(tmp_path / "a.png")
    opened = open_picture(tmp_path / "a.png")
    assert opened.tobytes() == photo(20, 10).tobytes()
    assert open_picture((tmp_path / "a.png").read_bytes()).tobytes() == opened.tobytes()


def png_promising(width, height):
    """A valid header, and next to nothing behind it."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_000, 12_000, 100_000])
def test_a_decompression_bomb_is_refused_before_it_takes_memory(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_promising(side, side))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"bomb\.png .*pixels"):
        open_picture(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_thread_of_a_picture_stays_small():
    """One pixel high, 40 million wide: enlarging it to the least height would take terabytes."""
    for rule in (DRAWN, READ_IN_OPSD):
        width, height = rule.size(40_000_000, 1)
        assert width * height < 10**6


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    photo(64, 64).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-5000])
    for name in ("text.png", "cut.png"):
        with pytest.raises(ValueError, match=rf"{name} is no picture that can be read"):
            open_picture(tmp_path / name)
    with pytest.raises(ValueError, match="row 7 is no picture"):
        open_picture(b"", name="row 7")
    with pytest.raises(FileNotFoundError, match=r"no picture .*absent"):
        open_picture(tmp_path / "absent.png")
