"""The loops around the model equal the official ones: drawing skipped, and interleaved."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from tests.oracle import cases, close, load
from visual_opsd.contexts import SYSTEM_PROMPT_EVAL, Image, Text
from visual_opsd.models.bagel import model as bagel_model
from visual_opsd.models.bagel.config import SpecialTokens
from visual_opsd.models.bagel.model import BagelModel
from visual_opsd.models.bagel.preprocessing import Protocol, ResizeRule, to_picture
from visual_opsd.models.interface import Drawing, Sampling
from visual_opsd.rollouts.interleaved import Interleaving, Outcome, reason

pytestmark = pytest.mark.oracle


@pytest.fixture
def sampler(path):
    """The stored context, and the model with the case's end mark and its word for a drawing."""
    model, tensors, description = load(path)
    case = description["sampler"]
    model = copy.copy(model)
    model.config = replace(
        model.config, tokens=replace(model.config.tokens, end=case["eos_token_id"])
    )
    model.decode = lambda ids: "<image_start>" if case["marker_id"] in ids else ""
    system, question = (Text(tuple(case[name])) for name in ("system", "question"))
    return model, case, (system, Image(tensors["student/in/problem_image"]), question)


def written(model, context, budget, skips):
    """What the official sampler returns: no marks; its budget also counts the first begin mark."""
    sampling = Sampling(temperature=0, max_tokens=budget - 1, max_drawings_skipped=skips)
    found = model.sample([context], sampling, seeds=[0])
    ids = found.ids[0][found.is_sampled[0]]
    return ids[ids != model.config.tokens.end].tolist()


@pytest.mark.parametrize("skips", [0, 1, 3])
@pytest.mark.parametrize("path", cases("sampler"))
def test_a_skipped_drawing_goes_on_as_in_the_official_sampler(sampler, skips):
    model, case, context = sampler
    expected = case[f"completion_skips{skips}"]
    assert written(model, context, case["max_new_tokens"], skips) == expected


@pytest.mark.parametrize("path", cases("sampler"))
def test_small_budgets_cut_where_the_official_sampler_does(sampler):
    model, case, context = sampler
    assert len(case["small_budget"]) > 1
    for budget, (_, *expected) in case["small_budget"].items():
        assert written(model, context, int(budget), skips=1) == expected, budget


class SpeltTokenizer:
    """Every id as a word of its own; the case's marker asks for a drawing."""

    def __init__(self, case, marks: SpecialTokens):
        self.case, self.marks = case, marks

    def encode(self, text):
        if text == SYSTEM_PROMPT_EVAL:
            return tuple(self.case["system"])
        words = text.split()
        return tuple(self.case["marker_id"] if "<" in word else int(word) for word in words)

    def decode(self, ids):
        marker = self.case["marker_id"]
        return " ".join("<image_start>" if i == marker else str(i) for i in ids)

    def first_block(self, ids):
        stops = [index for index, i in enumerate(ids) if i in (self.marks.begin, self.marks.end)]
        return self.decode(ids[: min(stops, default=len(ids))])


def rule(settings):
    return ResizeRule(
        max_side=settings["max_image_size"],
        min_side=settings["min_image_size"],
        stride=settings["image_stride"],
    )


@pytest.fixture
def interleave(path, monkeypatch):
    """The case's model with its stored noise; and the latents that it draws."""
    model, tensors, description = load(path)
    case = description["interleave"]
    encoded, starts = [], iter(range(case["max_rounds"]))

    def stored_posterior(pixels, config):
        """By picture: the official loop encodes each once, ours whenever it is read again."""
        same = [index for index, known in enumerate(encoded) if torch.equal(known, pixels)]
        index = same[0] if same else len(encoded)
        encoded.extend([] if same else [pixels])
        return tensors[f"interleave/in/vae_noise_{index}"]

    def stored_start(num_tokens, config, seed):
        return tensors[f"interleave/in/init_noise_{next(starts)}"]

    monkeypatch.setattr(bagel_model, "context_noise", stored_posterior)
    monkeypatch.setattr(bagel_model, "start_noise", stored_start)
    flow, flows = BagelModel.flow, []

    def kept(self, *arguments):
        flows.append(flow(self, *arguments))
        return flows[-1]

    monkeypatch.setattr(BagelModel, "flow", kept)
    return model, tensors, case, flows


def interleaving(case):
    return Interleaving(
        max_rounds=case["max_rounds"],
        # The official limit counts the begin mark.
        sampling=Sampling(temperature=0, max_tokens=case["max_think_token_n"] - 1),
        drawing=Drawing(
            num_timesteps=case["num_timesteps"],
            timestep_shift=case["timestep_shift"],
            text_guidance=case["cfg_text_scale"],
            image_guidance=case["cfg_img_scale"],
            guidance_interval=tuple(case["cfg_interval"]),
            renormalisation=case["cfg_renorm_type"],
            renormalisation_min=case["cfg_renorm_min"],
        ),
    )


@pytest.mark.parametrize("path", cases("interleave"))
def test_interleaved_reasoning_equals_the_official_loop(interleave):
    """From a picture of bytes to every text, latent and grey level."""
    model, tensors, case, flows = interleave
    tokenizer = SpeltTokenizer(case, model.config.tokens)
    protocol = Protocol(
        read=rule(case["vit_transform"]), drawn=rule(case["vae_transform"]), resizes_first=True
    )

    def look(image):
        return protocol.image(to_picture(image.pixels), with_latents=True)

    picture = PILImage.fromarray(tensors["interleave/in/image_uint8_hwc"].numpy())
    shown = protocol.image(picture, with_latents=True)
    close(shown.latent_pixels, tensors["interleave/out/vae_pixels"])
    close(shown.pixels, tensors["interleave/out/vit_pixels"])

    problem = (shown, Text(tuple(case["question"])))
    (found,) = reason(model, tokenizer, [problem], interleaving(case), [0], look)
    assert len(found.outputs) == len(case["outputs"])
    for output, expected in zip(found.outputs, case["outputs"], strict=True):
        if expected["type"] == "text":
            assert list(tokenizer.encode(output)) == expected["ids"]
            continue
        key = expected["key"]
        close(flows.pop(0), tensors[f"interleave/out/{key.replace('image', 'latent')}"])
        grey = torch.from_numpy(np.array(to_picture(output.pixels))).int()
        assert (grey - tensors[f"interleave/out/{key}"].int()).abs().max() <= 1
    is_text_last = case["outputs"][-1]["type"] == "text"
    assert (found.outcome is Outcome.OUT_OF_ROUNDS) != is_text_last
