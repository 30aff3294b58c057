"""Each control removes what it says and leaves the rest of the problem alone."""

from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F

from datamodules.frozen_lake import MazeSettings, generate_problem
from visual_opsd.contexts import (
    REFERENCE_INTRO,
    TRANSITION,
    Image,
    Problem,
    Role,
    student_context,
    teacher_context,
)
from visual_opsd.interventions import (
    INTERVENTIONS,
    WITHOUT_VISUAL_THOUGHTS,
    blur,
    intervene,
    intervention,
    marked_region,
    noise_like,
    shuffle_patches,
)

REPAINTED = ["patch_shuffled", "blurred", "matched_noise", "legacy_noise", "blank"]
RANDOM = ["patch_shuffled", "matched_noise", "legacy_noise"]
TELLS = ["answer_text", "solution_text"]


def picture(seed, size=(48, 64)):
    """Broad stripes and a little grain, not a picture of noise."""
    generator = torch.Generator().manual_seed(seed)
    columns = torch.linspace(-1, 1, size[1]).sin().expand(3, *size)
    return (columns + 0.2 * torch.randn(3, *size, generator=generator)).clamp(-1, 1)


def problem(name, seed, num_thoughts=2, size=(48, 64)):
    thoughts = tuple(
        Image(picture(seed + 1 + index, size), role=Role.VISUAL_THOUGHT, with_latents=True)
        for index in range(num_thoughts)
    )
    return Problem(
        problem_id=name,
        image=Image(picture(seed, size)),
        question="Which way?",
        answer="L",
        visual_thoughts=thoughts,
        category="size 3",
        text_thoughts=("The start is here.", "I follow the line."),
        text_only_thought="Holes to the right.",
    )


@pytest.fixture
def maze():
    return problem("maze-1", 10)


@pytest.fixture
def donor():
    return problem("maze-2", 20, num_thoughts=1)


def donor_for(name, problem, donor):
    """What the data gives: another problem, or the same wrongly solved."""
    if name != "wrong_vt":
        return donor
    return replace(problem, answer="U", visual_thoughts=donor.visual_thoughts)


def in_bytes(text):
    return tuple(text.encode())


def same(left, right):
    return len(left) == len(right) and all(
        torch.equal(a.pixels, b.pixels) for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_only_what_the_teacher_is_shown_or_told_changes(maze, donor, name):
    pixels = maze.image.pixels.clone()
    shown = intervene(name, maze, donor_for(name, maze, donor), seed=0)
    for field in fields(Problem):
        if field.name not in ("visual_thoughts", "hints"):
            assert getattr(shown, field.name) is getattr(maze, field.name)
    torch.testing.assert_close(maze.image.pixels, pixels, atol=0, rtol=0)
    for thought in shown.visual_thoughts:
        assert thought.role is Role.VISUAL_THOUGHT
        assert thought.with_latents
        assert thought.pixels.shape == (3, 48, 64)
        assert thought.pixels.isfinite().all()


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_the_student_never_notices(maze, donor, name):
    shown = intervene(name, maze, donor_for(name, maze, donor), seed=0)
    before, after = (student_context(p, lambda text: (len(text),)) for p in (maze, shown))
    assert all(a is b or a == b for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", [name for name in INTERVENTIONS if name not in TELLS])
def test_the_teacher_never_sees_the_answer(maze, donor, name):
    """Of any control but those that are there to tell it: other words, the same context."""

    def seen(problem):
        shown = intervene(name, problem, donor_for(name, problem, donor), seed=0)
        assert shown.hints == ()
        context = teacher_context(shown, in_bytes)
        return [part.pixels.tolist() if isinstance(part, Image) else part for part in context]

    words = {"answer": "R", "text_thoughts": ("a", "b"), "text_only_thought": "a secret"}
    assert seen(replace(maze, **words)) == seen(maze)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("answer_text", "<answer>L</answer>"),
        ("solution_text", "<think>Holes to the right.</think><answer>L</answer>"),
    ],
)
def test_a_control_that_tells_says_it_in_place_of_the_picture(maze, name, told):
    """Between the sentences that announce a picture, which stay what they are."""
    shown = intervene(name, maze, None, seed=0)
    more = teacher_context(shown, in_bytes)[3:]
    assert [bytes(part.ids).decode() for part in more] == [REFERENCE_INTRO, told, TRANSITION]
    bare = replace(maze, visual_thoughts=())
    assert intervene(name, bare, None, seed=0).hints == (told,)


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_nothing_is_painted_over_in_place(maze, donor, name):
    kept = [thought.pixels.clone() for thought in maze.visual_thoughts]
    intervene(name, maze, donor_for(name, maze, donor), seed=0)
    assert all(torch.equal(a, t.pixels) for a, t in zip(kept, maze.visual_thoughts, strict=True))


@pytest.mark.parametrize("name", RANDOM)
def test_randomness_is_the_problems_own(maze, donor, name):
    """Seed and problem id decide; global state, other problems and the donor do not."""
    first = intervene(name, maze, donor, seed=5).visual_thoughts
    torch.manual_seed(99)
    intervene(name, donor, None, seed=5)
    assert same(first, intervene(name, maze, None, seed=5).visual_thoughts)
    assert not same(first, intervene(name, maze, donor, seed=6).visual_thoughts)
    renamed = replace(maze, problem_id="maze-3")
    assert not same(first, intervene(name, renamed, donor, seed=5).visual_thoughts)
    assert not torch.equal(first[0].pixels, first[1].pixels)


@pytest.mark.parametrize("name", ["true_vt", "drawn_vt"])
def test_what_the_problem_comes_with_is_shown_as_it_is(maze, name):
    assert intervene(name, maze, None, seed=0) is maze


def test_another_problems_thoughts_replace_all_of_ones_own(maze, donor):
    assert intervene("other_vt", maze, donor, seed=0).visual_thoughts == donor.visual_thoughts


def test_other_vt_needs_another_problem(maze, donor):
    with pytest.raises(ValueError, match="got None"):
        intervene("other_vt", maze, None, seed=0)
    with pytest.raises(ValueError, match="maze-1 is itself"):
        intervene("other_vt", maze, replace(donor, problem_id="maze-1"), seed=0)
    with pytest.raises(ValueError, match="donor maze-2 has none"):
        intervene("other_vt", maze, replace(donor, visual_thoughts=()), seed=0)


def test_wrong_vt_shows_the_problem_itself_wrongly_solved(maze, donor):
    wrong = replace(maze, answer="R", visual_thoughts=donor.visual_thoughts)
    shown = intervene("wrong_vt", maze, wrong, seed=0)
    assert shown.visual_thoughts == donor.visual_thoughts
    assert shown.answer == maze.answer
    for misfit in (None, donor):
        with pytest.raises(ValueError, match=r"wrong_vt needs problem maze-1 .*data\.donors=wrong"):
            intervene("wrong_vt", maze, misfit, seed=0)
    with pytest.raises(ValueError, match="maze-1 has the true answer"):
        intervene("wrong_vt", maze, maze, seed=0)


def test_no_vt_keeps_the_teachers_sentences(maze):
    def encode(text):
        return (len(text),)

    shown = intervene("no_vt", maze, None, seed=0)
    kept = tuple(part for part in teacher_context(maze, encode) if part not in maze.visual_thoughts)
    assert teacher_context(shown, encode) == kept


def test_problem_copy_shows_the_problem_again(maze):
    for thought in intervene("problem_copy", maze, None, seed=0).visual_thoughts:
        assert thought.pixels is maze.image.pixels
        assert thought.role is Role.VISUAL_THOUGHT


def test_blank_is_the_middle_of_the_pixel_range(maze):
    for thought in intervene("blank", maze, None, seed=0).visual_thoughts:
        assert not thought.pixels.any()


def test_the_crop_shows_where_the_line_is_and_not_the_line():
    """A red line in one corner of a maze: that corner comes, larger, without the line."""
    problem = generate_problem(MazeSettings(sizes=(4,)), "train", 0)
    original = problem.image.pixels
    marked = original.clone()
    marked[:, 32:64, 16:48] = torch.tensor([1.0, -1, -1])[:, None, None]
    crop = marked_region(original, marked)
    expected = original[:, 32:64, 16:48].unsqueeze(0)
    assert torch.equal(crop, F.interpolate(expected, (64, 64), mode="bilinear")[0])
    shown = intervene("region_crop", problem, None, seed=0).visual_thoughts[0].pixels
    assert shown.shape == original.shape
    assert (shown[0] - shown[1]).max() < 1.5  # no pure red, which the line is
    blind = replace(problem, visual_thoughts=(replace(problem.image, role=Role.VISUAL_THOUGHT),))
    with pytest.raises(ValueError, match=f"{problem.problem_id}: .* marks nothing"):
        intervene("region_crop", blind, None, seed=0)


def test_the_crop_keeps_proportions_and_stays_in_the_picture():
    original = picture(0, (40, 80))
    marked = original.clone()
    marked[:, 35:40, 0:4] += 2
    whole = F.interpolate(original[None, :, 35:40, 0:10], (40, 80), mode="bilinear")[0]
    assert torch.equal(marked_region(original, marked), whole)


def test_shuffling_keeps_every_patch_and_moves_some(maze):
    pixels = maze.visual_thoughts[0].pixels
    shuffled = intervene("patch_shuffled", maze, None, seed=0).visual_thoughts[0].pixels

    def patches(image):
        rows = (row.split(16, dim=2) for row in image.split(16, dim=1))
        return [patch.flatten().tolist() for row in rows for patch in row]

    assert not torch.equal(shuffled, pixels)
    assert sorted(patches(shuffled)) == sorted(patches(pixels))


def test_shuffling_leaves_the_uneven_margin_in_place():
    pixels = picture(0, (39, 70))
    shuffled = shuffle_patches(pixels, 16, torch.Generator().manual_seed(0))
    assert torch.equal(shuffled[:, 32:], pixels[:, 32:])
    assert torch.equal(shuffled[:, :, 64:], pixels[:, :, 64:])
    assert not torch.equal(shuffled, pixels)


def test_one_patch_alone_cannot_be_shuffled():
    with pytest.raises(ValueError, match="no two patches of 16 px"):
        shuffle_patches(picture(0, (16, 31)), 16, torch.Generator())


def test_blurring_takes_detail_and_keeps_brightness(maze):
    pixels = maze.visual_thoughts[0].pixels
    blurred = intervene("blurred", maze, None, seed=0).visual_thoughts[0].pixels
    assert blurred.mean().item() == pytest.approx(pixels.mean().item(), abs=0.01)
    assert blurred.diff(dim=1).abs().mean() < 0.1 * pixels.diff(dim=1).abs().mean()


def test_the_blur_is_a_ladder(maze):
    """The stronger, the further from the truth; without a strength it is a sixteenth."""
    true = maze.visual_thoughts[0].pixels
    names = ("true_vt", "blurred:0.01", "blurred:0.03", "blurred", "blurred:0.25")
    shown = [intervene(name, maze, None, seed=0).visual_thoughts[0].pixels for name in names]
    errors = [(pixels - true).square().mean().item() for pixels in shown]
    assert errors == sorted(set(errors))
    sixteenth = intervene("blurred:0.0625", maze, None, seed=0).visual_thoughts[0].pixels
    assert torch.equal(sixteenth, shown[3])


def test_blurring_a_dot_gives_a_gaussian_of_that_width():
    dot = torch.full((3, 65, 65), -1.0)
    dot[:, 32, 32] = 1.0
    mass = (blur(dot, 4.0)[0] + 1) / 2
    across = mass.sum(dim=0)
    offsets = torch.arange(65) - 32
    assert mass.sum().item() == pytest.approx(1, abs=1e-3)
    assert (across * offsets**2).sum().sqrt().item() == pytest.approx(4, rel=0.02)


def test_a_blur_changes_nothing_in_one_colour():
    flat = torch.full((3, 20, 30), 0.25)
    torch.testing.assert_close(blur(flat, 5.0), flat)


def test_noise_matches_each_channels_mean_and_deviation(maze):
    noise = intervene("matched_noise", maze, None, seed=0).visual_thoughts[0].pixels
    pixels = maze.visual_thoughts[0].pixels
    assert noise.abs().max() <= 1
    torch.testing.assert_close(noise.mean((1, 2)), pixels.mean((1, 2)), atol=3e-3, rtol=0)
    torch.testing.assert_close(noise.std((1, 2)), pixels.std((1, 2)), atol=3e-3, rtol=0)


def test_noise_keeps_nothing_of_the_picture(maze):
    noise = intervene("matched_noise", maze, None, seed=0).visual_thoughts[0].pixels
    both = torch.stack([noise.flatten(), maze.visual_thoughts[0].pixels.flatten()])
    assert torch.corrcoef(both)[0, 1].abs() < 0.05


@pytest.mark.parametrize("share", [0.0, 0.001, 0.03, 0.5, 1.0])
def test_noise_comes_close_to_the_most_deviation_there_is(share):
    """White with some black: as far apart as a mean allows, which no clamped Gaussian reaches."""
    pixels = torch.ones(3, 50, 80)
    pixels.view(3, -1)[:, : int(share * 4000)] = -1
    noise = noise_like(pixels, torch.Generator().manual_seed(0))
    assert noise.abs().max() <= 1
    torch.testing.assert_close(noise.mean((1, 2)), pixels.mean((1, 2)), atol=0.03, rtol=0)
    torch.testing.assert_close(noise.std((1, 2)), pixels.std((1, 2)), atol=0.1, rtol=0)


def test_noise_does_not_run_away_on_a_saturated_channel():
    """The correction once left the blue of a maze a tenth of the range too dark."""
    for index in range(8):
        problem = generate_problem(MazeSettings(), "train", index)
        pixels = problem.visual_thoughts[0].pixels
        noise = noise_like(pixels, torch.Generator().manual_seed(0))
        torch.testing.assert_close(noise.mean((1, 2)), pixels.mean((1, 2)), atol=0.02, rtol=0)
        torch.testing.assert_close(noise.std((1, 2)), pixels.std((1, 2)), atol=0.04, rtol=0)


def test_noise_in_a_large_picture_is_fitted_on_a_part_of_it():
    pixels = picture(0, (300, 400))
    noise = noise_like(pixels, torch.Generator().manual_seed(0))
    torch.testing.assert_close(noise.mean((1, 2)), pixels.mean((1, 2)), atol=0.01, rtol=0)
    torch.testing.assert_close(noise.std((1, 2)), pixels.std((1, 2)), atol=0.01, rtol=0)


def test_legacy_noise_leaves_the_pixel_range(maze):
    noise = intervene("legacy_noise", maze, None, seed=0).visual_thoughts[0].pixels
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    assert (noise.abs() > 1).float().mean().item() == pytest.approx(0.317, abs=0.03)


@pytest.mark.parametrize("name", [*REPAINTED, "problem_copy", "region_crop"])
def test_a_second_size_for_latents_is_changed_alike(maze, name):
    """Else the truth would stay visible to whoever reads latents."""
    second = picture(3, (32, 32))
    thought = replace(maze.visual_thoughts[0], latent_pixels=second)
    image = replace(maze.image, latent_pixels=picture(4, (32, 32)))
    both = replace(maze, image=image, visual_thoughts=(thought,))
    shown = intervene(name, both, None, seed=0).visual_thoughts[0]
    assert shown.latent_pixels.shape == second.shape
    assert not torch.equal(shown.latent_pixels, second)


@pytest.mark.parametrize("name", [n for n in INTERVENTIONS if n not in WITHOUT_VISUAL_THOUGHTS])
def test_a_problem_without_thoughts_is_no_silent_control(maze, donor, name):
    """A failed picture once left a teacher that was told of images and saw none."""
    with pytest.raises(ValueError, match=f"{name} needs a visual thought, and problem maze-1"):
        intervene(name, replace(maze, visual_thoughts=()), donor, seed=0)


def test_unknown_names_get_a_hint(maze):
    with pytest.raises(ValueError, match="did you mean 'matched_noise'"):
        intervene("matched_noize", maze, None, seed=0)
    with pytest.raises(ValueError, match="known are true_vt, drawn_vt, other_vt"):
        intervene("sepia", maze, None, seed=0)


@pytest.mark.parametrize("strength", ["", "0", "1.5", "strong", "nan"])
def test_a_strength_that_is_none_is_named(strength):
    with pytest.raises(ValueError, match=f"'blurred:{strength}': the strength is a share"):
        intervention(f"blurred:{strength}")
    with pytest.raises(ValueError, match=r"'blank:0\.5': only blurred has a strength"):
        intervention("blank:0.5")
