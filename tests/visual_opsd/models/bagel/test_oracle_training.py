"""Interleaved and text-to-image training equals the official forward and backward pass."""

import math
from itertools import groupby

import pytest
import torch
import torch.nn.functional as F

from tests.oracle import cases, close, load
from visual_opsd.contexts import Image, Text
from visual_opsd.models.bagel.latents import ImageNoise, encode, noised
from visual_opsd.models.bagel.model import BagelModel
from visual_opsd.models.bagel.packing import context_rows, pack

pytestmark = pytest.mark.oracle


def training_rows(case, tensors):
    """The two stored samples as contexts; the blocks between two texts are one picture."""
    rows = []
    for sample in case["in"]["samples"]:
        words, pictures, row = iter(sample["texts"]), iter(sample["images"]), []
        for is_text, blocks in groupby(sample["plan"], key=lambda block: block[0] == "text"):
            if is_text:
                for _, is_target in blocks:
                    ids = tuple(case["in"]["texts"][next(words)])
                    row.append(Text(ids, is_target=bool(is_target)))
            else:
                shown = [(*block, tensors[f"train/in/{next(pictures)}"]) for block in blocks]
                drawn = [block for block in shown if block[0] == "vae_image"]
                image = Image(
                    shown[-1][2],
                    with_latents=any(not is_target for _, is_target, _ in drawn),
                    num_noised=sum(is_target for _, is_target, _ in drawn),
                    with_patches=shown[-1][0] == "vit_image",
                    latent_pixels=drawn[0][2] if drawn else None,
                )
                row.append(image)
        rows.append(tuple(row))
    return rows


def training_noise(model, case, tensors):
    """The stored noise of every latent image; times stand at its tokens, -inf where it is clean."""
    lengths = [height * width for height, width in case["in"]["patchified_vae_latent_shapes"]]
    times = tensors["train/packed/packed_timesteps"].split(lengths)
    flows = tensors["train/in/flow_noise"].split(lengths)
    posteriors = tensors["train/in/vae_noise"].split(1)
    return [
        ImageNoise(posterior, time[0].item(), None if math.isinf(time[0]) else flow)
        for posterior, time, flow in zip(posteriors, times, flows, strict=True)
    ]


@pytest.fixture
def setup(path):
    model, tensors, description = load(path)
    case = description["train"]
    return model, tensors, case, training_rows(case, tensors), training_noise(model, case, tensors)


@pytest.mark.parametrize("path", cases("train"))
def test_training_rows_are_packed_as_the_official_ones(setup):
    model, tensors, case, contexts, _ = setup
    packed = pack(context_rows(contexts, model.config)[0], is_padded=False)
    assert packed.lengths.tolist() == case["in"]["sample_lens"]
    assert torch.equal(packed.positions[0], tensors["train/packed/packed_position_ids"])
    assert torch.equal(packed.text_ids, tensors["train/packed/packed_text_ids"])
    labels = packed.targets[packed.targets >= 0]
    assert torch.equal(labels, tensors["train/packed/packed_label_ids"])
    masks = [tensors[f"train/packed/attn_allowed_{index}"] for index in range(len(contexts))]
    assert torch.equal(packed.mask[0], torch.block_diag(*masks).bool())


@pytest.mark.parametrize("path", cases("train"))
def test_a_padded_batch_is_encoded_as_by_the_official_trainer(setup):
    """Not as the images alone: the autoencoder looks over the padding."""
    model, tensors, _, contexts, noise = setup
    _, images = context_rows(contexts, model.config)
    config = model.config.latent
    posteriors = [one.posterior for one in noise]
    found = encode(model.codec, config, images.drawn, posteriors, pads_images=True)
    is_other = False
    for index, latent in enumerate(found):
        height, width = (n * config.patch_size for n in latent.grid)
        expected = tensors["train/packed/padded_latent"][index][:, :height, :width]
        close(model.latents_of(latent.tokens, latent.grid), expected)
        own = posteriors[index][..., :height, :width]
        (alone,) = encode(model.codec, config, images.drawn[index : index + 1], [own])
        is_other |= not torch.allclose(alone.tokens, latent.tokens, atol=1e-3)
    assert is_other


@pytest.mark.parametrize("is_padded", [True, False], ids=["padded", "packed"])
@pytest.mark.parametrize("path", cases("train"))
def test_training_has_the_official_losses_and_gradients(setup, is_padded, monkeypatch):
    model, tensors, case, contexts, noise = setup
    monkeypatch.setattr(BagelModel, "is_padded", is_padded)
    model.zero_grad()
    made = model.predict_targets(contexts, noise, pads_images=True)
    text = F.cross_entropy(model.logits(made.hidden), made.targets, reduction="none")
    drawing = (made.velocity - made.target_velocity).square()
    close(text, tensors["train/out/ce"])
    close(drawing, tensors["train/out/mse"])
    close(text.mean(), torch.tensor(case["ce_loss"]))
    close(drawing.mean(), torch.tensor(case["mse_loss"]))

    (text.mean() + drawing.mean()).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert not grads.keys() & set(case["absent_grads"])
    for name, norm in case["grad_norms"].items():
        expected = torch.tensor(norm)
        torch.testing.assert_close(grads[name].norm(), expected, atol=1e-4, rtol=1e-4, msg=name)
    stored = [key for key in tensors if key.startswith("train/grad/")]
    assert stored
    for key in stored:
        close(grads[key.removeprefix("train/grad/")], tensors[key])
    model.zero_grad()


@pytest.mark.parametrize("path", cases("train"))
def test_training_has_the_official_states(setup):
    """Every token of both rows, targets or not, after the first layer and after the last norm."""
    model, tensors, _, contexts, noise = setup
    rows, images = context_rows(contexts, model.config)
    packed = pack(rows, is_padded=False)
    posteriors = [one.posterior for one in noise]
    config = model.config.latent
    latents = encode(model.codec, config, images.drawn, posteriors, pads_images=True)
    for index, one in enumerate(noise):
        if one.flow is not None:
            latents[index], _ = noised(latents[index], one, config)
    layout = model._layout(packed)
    with torch.no_grad():
        streams = model._embed(packed, images.read, latents)
        first = model.language_model.model.layers[0](streams, layout, None, 0)
        last = model.language_model.model(streams, layout)
    close(layout.gather(list(first.values()))[0], tensors["train/out/layer0_out"])
    close(layout.gather(list(last.values()))[0], tensors["train/out/last_hidden"])
