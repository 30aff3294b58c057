"""Confidence against accuracy, by hand."""

import math

import pytest
import torch

from visual_opsd.metrics.calibration import answer_confidence, expected_calibration_error


def test_confidence_of_an_answer():
    rows = [torch.tensor([0.5, 0.8]).log(), torch.tensor([0.9]).log(), torch.zeros(0)]
    assert answer_confidence(rows).tolist() == pytest.approx([0.4, 0.9, 0])
    assert answer_confidence(rows, "mean").tolist() == pytest.approx([0.65, 0.9, 0])


def test_a_sure_and_wrong_model_is_as_far_off_as_it_is_sure():
    error = expected_calibration_error(torch.full((8,), 0.9), torch.zeros(8, dtype=torch.bool))
    assert error == pytest.approx(0.9)


def test_bins_weigh_by_their_size():
    """Three of four right at .75, and one of two right at .95: 4/6 of 0 and 2/6 of .45."""
    confidence = torch.tensor([0.75] * 4 + [0.95] * 2)
    is_right = torch.tensor([True, True, True, False, True, False])
    assert expected_calibration_error(confidence, is_right) == pytest.approx(2 / 6 * 0.45)
    assert not math.isnan(expected_calibration_error(confidence, is_right, num_bins=1))
