"""Our BAGEL equals the official one: 1e-4 on every stored number, ids to the last one."""

import pytest
import torch

from tests.oracle import cases, close, load
from visual_opsd.contexts import DrawingContext, Image, Text
from visual_opsd.losses.divergence import DivergenceConfig, divergence, teacher_scores
from visual_opsd.models.bagel import model as bagel_model
from visual_opsd.models.bagel.canvas import Canvas
from visual_opsd.models.bagel.model import BagelModel
from visual_opsd.models.bagel.packing import attention_mask, context_rows, grid_ids, pack
from visual_opsd.models.interface import Drawing, Sampling

pytestmark = pytest.mark.oracle


def pack_of(case, tensors, description):
    """The stored context of a student or teacher, and its completion with the end mark."""
    ids = description[case]["in"]["ids"]
    problem = Image(tensors[f"{case}/in/problem_image"])
    context = (Text(tuple(ids["system"])), problem, Text(tuple(ids["question"])))
    if case == "teacher":
        keys = sorted(key for key in tensors if key.startswith("teacher/in/vt_image_"))
        thoughts = [Image(tensors[key]) for key in keys]
        context = (
            *context,
            Text(tuple(ids["ref_intro"])),
            *thoughts,
            Text(tuple(ids["transition"])),
        )
    return context, ids["completion"]


@pytest.mark.parametrize("is_padded", [True, False], ids=["padded", "packed"])
@pytest.mark.parametrize("case", ["student", "teacher"])
@pytest.mark.parametrize("path", cases("scoring"))
def test_scoring_equals_the_official_logits(path, case, is_padded, monkeypatch):
    model, tensors, description = load(path)
    monkeypatch.setattr(BagelModel, "is_padded", is_padded)
    context, completion = pack_of(case, tensors, description)
    ids = torch.tensor([*completion, model.config.tokens.end])
    other = (Text((1, 2, 3)),)
    hidden = model([context, other], [ids, ids[:4]])[: len(ids)]
    close(model.logits(hidden), tensors[f"{case}/out/logits"])


@pytest.mark.parametrize("case", ["student", "teacher"])
@pytest.mark.parametrize("path", cases("packing"))
def test_packing_equals_the_official_packs(path, case):
    model, tensors, description = load(path)
    context, completion = pack_of(case, tensors, description)
    target = Text(tuple(completion), is_target=True)
    rows, _ = context_rows([(*context, target)], model.config)
    packed = pack(rows)
    expected = {key: tensors[f"{case}/packed/{key}"] for key in ("packed_position_ids",)}
    assert torch.equal(packed.positions[0], expected["packed_position_ids"])
    assert torch.equal(packed.text_ids, tensors[f"{case}/packed/packed_text_ids"])
    assert torch.equal(packed.mask[0], tensors[f"{case}/packed/attn_allowed"])
    labels = packed.targets[packed.targets >= 0]
    assert torch.equal(labels, tensors[f"{case}/packed/packed_label_ids"])


@pytest.mark.parametrize("path", cases("teacher-vit"))
def test_the_vision_encoder_equals_the_official_states(path):
    model, tensors, description = load(path)
    context, _ = pack_of("teacher", tensors, description)
    images = [segment.pixels for segment in context if isinstance(segment, Image)]
    states, _ = model.vit_model(images)
    close(states, tensors["teacher/out/vit_last_hidden"])


@pytest.mark.parametrize("path", cases("kv"))
def test_cached_greedy_decoding_equals_the_official_ids(path):
    model, tensors, description = load(path)
    case = description["kv"]
    context = (
        Text(tuple(case["in"]["text1"])),
        Image(tensors["kv/in/image"]),
        Text(tuple(case["in"]["text2"])),
    )
    cache = model._prefill([context], room=17)
    assert int(cache.lengths[0]) == case["ctx_kv_len"]
    assert int(cache.next_positions[0]) == case["ctx_rope"]
    for layer in range(model.config.decoder.num_layers):
        close(cache.keys[layer][0, : case["ctx_kv_len"]], tensors[f"kv/cache/ctx.k{layer}"])
        close(cache.values[layer][0, : case["ctx_kv_len"]], tensors[f"kv/cache/ctx.v{layer}"])
    generated = tensors["kv/out/generated"]
    for token, logits in zip(generated, tensors["kv/out/step_logits"], strict=True):
        close(model._decode_step(token[None], cache)[0], logits)
    # In a batch with a longer row, through the public door.
    longer = (*context, Text((3, 1, 4)))
    sampling = Sampling(temperature=0, max_tokens=len(generated) - 1)
    completions = model.sample([longer, context], sampling, seeds=[0, 1])
    assert torch.equal(completions.ids[1], generated[1:])


def drawing_setup(path):
    """The three contexts of the drawing case, with the stored posterior noise."""
    model, tensors, description = load(path)
    case = description["gen"]
    image = Image(
        tensors["gen/in/context_image_vit"],
        with_latents=True,
        latent_pixels=tensors["gen/in/context_image_vae"],
    )
    system, prompt = Text(tuple(case["in"]["system"])), Text(tuple(case["in"]["prompt"]))
    context = DrawingContext((system, image, prompt), (system, image), (system, prompt))
    height, width = case["in"]["image_size"]
    side = model.config.latent.pixels_per_token
    return model, tensors, case, context, (height // side, width // side)


@pytest.fixture
def stored_noise(monkeypatch):
    """Feed the stored posterior noise instead of our own."""

    def use(tensors):
        noise = tensors["gen/in/context_vae_noise"]
        monkeypatch.setattr(bagel_model, "context_noise", lambda pixels, config: noise)

    return use


@pytest.mark.parametrize("path", cases("gen"))
def test_velocities_equal_the_official_ones_in_every_branch(path, stored_noise):
    model, tensors, case, context, size = drawing_setup(path)
    stored_noise(tensors)
    times = tensors["gen/in/time_probe"]
    close(model.time_embedder(times), tensors["gen/out/time_embed"])
    noise = tensors["gen/in/init_noise"]
    names = {"main": "", "text_free": "_cfg_text", "image_free": "_cfg_img"}
    with torch.no_grad():
        for branch, suffix in names.items():
            canvas = Canvas(model, [getattr(context, branch)], [size])
            key = {"main": "main", "text_free": "cfg_text", "image_free": "cfg_img"}[branch]
            assert int(canvas.cache.lengths[0]) == case[f"{key}_kv_len"]
            assert int(canvas.cache.next_positions[0]) == case[f"{key}_rope"]
            close(canvas.velocity(noise, 0.7), tensors[f"gen/out/velocity_t0p7{suffix}"])


@pytest.mark.parametrize("one_batch", [True, False], ids=["one-batch", "separate-calls"])
@pytest.mark.parametrize("path", cases("gen"))
def test_every_guidance_variant_equals_the_official_latents(path, one_batch, stored_noise):
    model, tensors, case, context, size = drawing_setup(path)
    stored_noise(tensors)
    assert len(case["variants"]) > 1
    for index, variant in enumerate(case["variants"]):
        drawing = Drawing(
            num_timesteps=case["num_timesteps"],
            timestep_shift=case["timestep_shift"],
            text_guidance=variant["cfg_text_scale"],
            image_guidance=variant["cfg_img_scale"],
            guidance_interval=tuple(variant["cfg_interval"]),
            renormalisation=variant["cfg_renorm_type"],
            renormalisation_min=variant["cfg_renorm_min"],
            branches_in_one_batch=one_batch,
        )
        # Twice the same context in a batch: nobody's image changes.
        noise = tensors["gen/in/init_noise"].repeat(2, 1)
        tokens = model.flow([context, context], drawing, noise, [size, size])
        expected = tensors[f"gen/out/latent_{index}"]
        for part in tokens.chunk(2):
            torch.testing.assert_close(
                part, expected, atol=1e-4, rtol=0, msg=lambda m, v=variant: f"{v}: {m}"
            )


@pytest.mark.parametrize("path", cases("gen"))
def test_decoding_a_drawing_equals_the_official_picture(path):
    model, tensors, _, _, (height, width) = drawing_setup(path)
    latents = model.latents_of(tensors["gen/out/latent_3"], (height, width))
    close(latents[None], tensors["gen/out/unpatchified_latent_3"])
    pixels = model.codec.decode(latents)
    decoded = tensors["gen/out/decoded_3"]
    # Stored as decoded, before or after the shift to [0, 1]; ours is clamped to [-1, 1].
    close(pixels, decoded[0].clamp(-1, 1))


@pytest.mark.parametrize("path", cases("mask"))
def test_the_mask_equals_the_official_rule(path):
    _, tensors, description = load(path)
    case = description["mask"]
    modes = {"causal": 0, "full": 1, "noise": 2}
    lengths = torch.tensor(case["split_lens"])
    splits = torch.arange(len(lengths)).repeat_interleave(lengths)
    kinds = torch.tensor([modes[m] for m in case["attn_modes"]]).repeat_interleave(lengths)
    mask = attention_mask(splits[None], kinds[None], torch.zeros_like(splits)[None])
    assert torch.equal(mask[0], tensors["mask/out/allowed"])


@pytest.mark.parametrize("path", cases("posids"))
def test_position_ids_equal_the_official_ones(path):
    _, tensors, _ = load(path)
    keys = [key for key in tensors if key.startswith("posids/out/")]
    assert keys
    for key in keys:
        kind, size, patch, side = key.removeprefix("posids/out/").split("_")
        height, width = (int(n) // int(patch[1:]) for n in size.split("x"))
        ids = grid_ids(height, width, int(side[1:]), interpolate=kind == "interpolate")
        assert torch.equal(ids, tensors[key]), key


@pytest.mark.parametrize("path", cases("vae"))
def test_the_autoencoder_equals_the_official_one(path):
    model, tensors, _ = load(path)
    image, noise = tensors["vae/in/image"][0], tensors["vae/in/noise"]
    close(model.codec.encode(image)[None], tensors["vae/out/encode_mean"])
    close(model.codec.encode(image, noise)[None], tensors["vae/out/encode_sample"])
    decoded = model.codec.decode(tensors["vae/in/latent"][0])
    close(decoded[None], tensors["vae/out/decode"].clamp(-1, 1))


@pytest.mark.parametrize("path", cases("opsd_step"))
def test_one_step_of_the_method_has_the_official_gradients(path):
    model, tensors, description = load(path)
    case = description["opsd_step"]
    ids = description["student"]["in"]["ids"]["completion"]
    ids = torch.tensor([*ids, model.config.tokens.end])
    student_sees, _ = pack_of("student", tensors, description)
    teacher_sees, _ = pack_of("teacher", tensors, description)
    first = description["jsd"]["grid"][0]
    config = DivergenceConfig(
        teacher_weight=float(first["beta"]),
        temperature=float(first["temperature"]),
        top_k=first["top_k"],
        tail=False,
        legacy=True,
        entry_clip=first["token_clip"],
    )
    model.zero_grad()
    with torch.no_grad():
        scores = teacher_scores(model.logits(model([teacher_sees], [ids])), config)
    per_token = model.logits(
        model([student_sees], [ids]),
        lambda logits, rows: divergence(logits, scores.rows(rows), config),
    )
    loss = per_token.mean()
    loss.backward()
    close(loss, torch.tensor(case["loss"]))
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name, norm in case["grad_norms"].items():
        expected = torch.tensor(norm)
        actual = grads[name].norm() if name in grads else torch.tensor(0.0)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4, msg=name)
    for key in tensors:
        if key.startswith("opsd_step/grad/"):
            close(grads[key.removeprefix("opsd_step/grad/")], tensors[key])
    model.zero_grad()
