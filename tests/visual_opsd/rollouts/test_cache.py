"""Drawings on disk: whole, or not there."""

from dataclasses import fields, replace

import pytest
import torch
from PIL import Image as PILImage

from visual_opsd.models.interface import Drawing, StepCache
from visual_opsd.rollouts.cache import DrawingCache, key_of

KEY = "ab" + "0" * 62


def picture(seed=0, height=32, width=48):
    """Any picture in 256 levels."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(256, (3, height, width), generator=generator)
    return levels / 127.5 - 1


@pytest.fixture
def cache(tmp_path):
    return DrawingCache(tmp_path / "drawings")


def test_a_picture_comes_back_bit_by_bit(cache):
    assert cache.get(KEY) is None
    cache.put(KEY, picture())
    first = cache.get(KEY)
    torch.testing.assert_close(first, picture(), atol=1e-6, rtol=0)
    cache.put(KEY, first)
    assert torch.equal(cache.get(KEY), first)


def test_another_folder_object_reads_the_same(cache):
    cache.put(KEY, picture())
    assert torch.equal(DrawingCache(cache.folder).get(KEY), cache.get(KEY))


def test_no_damage_is_ever_read(cache):
    """Cut anywhere, or with any byte changed, an entry is absent or what it was."""
    cache.put(KEY, picture(height=8, width=8))
    whole = cache.get(KEY)
    content = cache.path(KEY).read_bytes()
    for length in range(0, len(content), 7):
        cache.path(KEY).write_bytes(content[:length])
        found = cache.get(KEY)
        assert found is None or torch.equal(found, whole), length
    num_noticed = 0
    for index in range(len(content)):
        spoilt = bytearray(content)
        spoilt[index] ^= 0x55
        cache.path(KEY).write_bytes(spoilt)
        found = cache.get(KEY)
        assert found is None or torch.equal(found, whole), index
        num_noticed += found is None
    assert num_noticed > 0.9 * len(content)


def test_a_picture_of_somebody_else_is_no_entry(cache):
    """A PNG without our digest of its pixels was not written by us."""
    cache.path(KEY).parent.mkdir(parents=True)
    PILImage.new("RGB", (16, 16)).save(cache.path(KEY))
    assert cache.get(KEY) is None


def test_a_write_that_fails_leaves_the_old_entry(cache, monkeypatch):
    cache.put(KEY, picture())
    kept = cache.get(KEY)
    monkeypatch.setattr("PIL.Image.Image.save", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cache.put(KEY, picture(1))
    assert torch.equal(cache.get(KEY), kept)
    assert list(cache.folder.rglob("*.png")) == [cache.path(KEY)]


def test_a_key_names_everything_a_drawing_depends_on():
    base = {
        "checkpoint": "c",
        "problem": "p",
        "thought": (1, 2),
        "drawing": Drawing(),
        "seed": 3,
    }
    other = {
        "num_timesteps": 9,
        "timestep_shift": 1.0,
        "text_guidance": 1.0,
        "image_guidance": 1.0,
        "guidance_interval": (0.4, 1.0),
        "renormalisation": "global",
        "renormalisation_min": 0.5,
        "branches_in_one_batch": False,
        "step_cache": StepCache(),
        "size": (64, 64),
    }
    assert set(other) == {field.name for field in fields(Drawing)}  # a new knob needs a key
    changes = [
        {"checkpoint": "d"},
        {"problem": "q"},
        {"thought": (1,)},
        {"seed": 4},
        *({"drawing": replace(Drawing(), **{name: value})} for name, value in other.items()),
    ]
    keys = {key_of(**base), *(key_of(**{**base, **change}) for change in changes)}
    assert len(keys) == 1 + len(changes)
    # As before there was a step cache: what is cached already is not drawn again.
    assert key_of(**base).startswith("66e4e26e5a5b71e0")
