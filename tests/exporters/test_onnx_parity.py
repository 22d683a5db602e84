from __future__ import annotations

import json
import math

import numpy as np
import pytest

from exporters.onnx_parity import ImageParity, ModelParity, psnr


def test_psnr_of_one_level_everywhere_is_48_db_and_of_equal_pictures_infinite() -> None:
    flat = np.full((8, 8, 3), 100, np.uint8)
    assert psnr(flat, flat + 1) == pytest.approx(20 * math.log10(255))
    assert psnr(flat, flat) == math.inf


@pytest.mark.parametrize(
    ("max_abs", "scale", "passed"),
    [(5e-5, 1.0, True), (2e-4, 1.0, False), (2e-4, 3.0, True), (math.inf, 1.0, False)],
)
def test_a_difference_is_judged_against_the_largest_number_and_infinity_never_passes(
    max_abs: float, scale: float, passed: bool
) -> None:
    parity = ModelParity("unet", "fp32", (), max_abs, scale, 1e-4)
    assert parity.passed is passed
    json.dumps(parity.as_dict(), allow_nan=False)


def test_equal_pictures_are_json_too() -> None:
    image = ImageParity("fp32", "a star", 0, 4, 5.0, 0, math.inf, 45.0)
    assert image.passed
    assert json.loads(json.dumps(image.as_dict(), allow_nan=False))["identical"] is True
