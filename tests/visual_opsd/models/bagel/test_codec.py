"""The linear codec: patches to whitened components and back; and how large the real one is."""

import torch

from visual_opsd.models.bagel.autoencoder_file import official_weights
from visual_opsd.models.bagel.codec import LatentCodec, PatchCodec, autoencoder_kl


def pictures(problems):
    return [image.pixels for p in problems for image in (p.image, *p.visual_thoughts)]


def test_with_every_component_nothing_is_lost():
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 8, 12, generator=generator) * 2 - 1 for _ in range(40)]
    codec = LatentCodec(PatchCodec.fit(images, patch_size=4, channels=48))
    for image in images[:4]:
        latents = codec.encode(image)
        assert latents.shape == (48, 2, 3)
        torch.testing.assert_close(codec.decode(latents), image, atol=1e-4, rtol=0)


def test_more_components_lose_less(problems):
    errors = []
    for channels in (1, 4, 16):
        codec = LatentCodec(PatchCodec.fit(pictures(problems), channels=channels))
        errors.append(
            sum((codec.decode(codec.encode(p)) - p).square().mean() for p in pictures(problems))
        )
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_the_latents_of_what_it_was_fitted_on_are_white():
    generator = torch.Generator().manual_seed(0)
    images = [3 * torch.randn(3, 8, 8, generator=generator) for _ in range(400)]
    codec = PatchCodec.fit(images, patch_size=2, channels=6)
    latents = torch.cat([codec.encode(image[None]).latent_dist.mean for image in images])
    flat = latents.transpose(0, 1).flatten(1)
    torch.testing.assert_close(flat.mean(dim=1), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(flat.cov(), torch.eye(6), atol=1e-2, rtol=0)


def test_the_posterior_has_no_spread(problems):
    codec = LatentCodec(PatchCodec.fit(pictures(problems), channels=4))
    pixels = problems[0].image.pixels
    noise = torch.ones(1, 4, *(side // 16 for side in pixels.shape[1:]))
    assert torch.equal(codec.encode(pixels, noise), codec.encode(pixels))


def test_fitting_twice_gives_the_same_components(problems):
    """Eigenvectors have no sign of their own; ours do, whatever the order of the pictures."""
    one = PatchCodec.fit(pictures(problems), channels=8)
    other = PatchCodec.fit(pictures(problems)[::-1], channels=8)
    torch.testing.assert_close(one.basis, other.basis, atol=1e-4, rtol=0)
    assert (one.basis.gather(0, one.basis.abs().argmax(dim=0, keepdim=True)) > 0).all()


def test_the_autoencoder_has_the_tensors_of_the_official_file():
    """FLUX.1's, counted where the official model was built (spec/bagel.md, section 1)."""
    with torch.device("meta"):
        weights = official_weights(autoencoder_kl())
    assert len(weights) == 244
    assert sum(weight.numel() for weight in weights.values()) == 83_819_683
