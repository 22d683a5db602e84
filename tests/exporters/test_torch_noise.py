from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters.torch_noise import standard_normal


@settings(max_examples=30, deadline=None)
@given(st.integers(16, 400), st.integers(0, 2**63 - 1))
def test_a_seed_draws_what_torch_draws(count: int, seed: int) -> None:
    ours = standard_normal((count,), seed)
    theirs = torch.randn(count, generator=torch.Generator().manual_seed(seed)).numpy()
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)


def test_a_latent_of_full_size_is_torchs_too() -> None:
    shape = (1, 4, 64, 64)
    theirs = torch.randn(shape, generator=torch.Generator().manual_seed(7)).numpy()
    np.testing.assert_allclose(standard_normal(shape, 7), theirs, rtol=2e-5, atol=2e-6)


def test_so_few_numbers_that_torch_draws_them_otherwise_are_refused() -> None:
    with pytest.raises(ValueError, match="another way"):
        standard_normal((3, 5), 0)
