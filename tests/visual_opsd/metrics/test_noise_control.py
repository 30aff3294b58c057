"""The gain over each control: paired, tested, adjusted for all of them."""

import numpy as np
import pytest
import torch

from visual_opsd.metrics.noise_control import NoiseControl, gains
from visual_opsd.statistics import holm, mcnemar_exact, paired_bootstrap_difference


def test_a_gain_counts_what_one_side_alone_solves():
    real = np.array([1, 1, 1, 1, 1, 1, 0, 0, 0, 1], dtype=bool)
    noise = np.array([0, 0, 0, 0, 0, 0, 0, 0, 1, 1], dtype=bool)
    found = gains(real, {"matched_noise": noise, "true_vt": real}, seed=0)
    gain = found["matched_noise"]
    assert (gain.wins, gain.losses) == (6, 1)
    assert gain.difference.value == pytest.approx(0.5)
    assert gain.p_value == mcnemar_exact(6, 1) == pytest.approx(2 * 8 / 128)
    assert gain.p_holm == pytest.approx(2 * gain.p_value)
    nothing = found["true_vt"]
    assert (nothing.difference.low, nothing.difference.high, nothing.p_holm) == (0, 0, 1)


def test_seeds_are_counted_a_problem_and_resampled():
    """Three seeds that all solve what no control solves: wins are problems, not problem-seeds."""
    real = np.repeat([[1, 1, 1, 1, 0, 0]], 3, axis=0)
    gain = gains(real, {"blank": np.zeros((2, 6))}, seed=0)["blank"]
    assert (gain.wins, gain.losses) == (4, 0)
    assert gain.difference.low < gain.difference.value == pytest.approx(4 / 6)


def test_more_seeds_on_one_side_alone_make_no_win():
    """Of two equal arms the one with one seed won every problem that a second seed missed."""
    gain = gains([[1, 1, 1, 1], [0, 0, 0, 0]], {"blank": [[1, 1, 1, 1]]}, seed=0)["blank"]
    assert (gain.wins, gain.losses, gain.p_value) == (0, 0, 1)


def test_the_metric_is_the_function_batch_by_batch():
    generator = torch.Generator().manual_seed(0)
    arms = torch.rand(3, 200, generator=generator) < torch.tensor([[0.8], [0.6], [0.5]])
    metric = NoiseControl(["matched_noise", "blank"])
    for batch in arms.split(64, dim=1):
        metric.update(batch[0], blank=batch[2], matched_noise=batch[1])
    values = {name: value.item() for name, value in metric.compute().items()}
    expected = paired_bootstrap_difference(arms[0], arms[1], seed=0)
    assert values["gain/matched_noise"] == pytest.approx(expected.value)
    assert values["gain/matched_noise_low"] == pytest.approx(expected.low, abs=0.01)
    assert values["gain/matched_noise_high"] == pytest.approx(expected.high, abs=0.01)
    p_values = [values["p/matched_noise"], values["p/blank"]]
    adjusted = [values["p_holm/matched_noise"], values["p_holm/blank"]]
    assert adjusted == pytest.approx(holm(p_values))


def test_unpaired_or_unnamed_controls_are_refused():
    solved = torch.tensor([True, False])
    with pytest.raises(ValueError, match=r"expected the controls \['blank'\], got \['noise'\]"):
        NoiseControl(["blank"]).update(solved, noise=solved)
    with pytest.raises(ValueError, match="2 problems with true visual thoughts"):
        NoiseControl(["blank"]).update(solved, blank=solved[:1])
