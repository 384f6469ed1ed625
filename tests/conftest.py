"""Shared set-up: one thread, fixed seeds, and the comparison that the numerical tests use."""

import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # small tensors: several threads only wait for each other


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def close():
    """Assert that the largest difference is at most ``tol`` times the largest reference value."""

    def check(actual, expected, tol=1e-10, scale=None):
        actual = np.asarray(actual.detach() if isinstance(actual, torch.Tensor) else actual, dtype=float)
        expected = np.asarray(expected.detach() if isinstance(expected, torch.Tensor) else expected, dtype=float)
        assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
        assert np.isfinite(expected).all(), "the reference is not finite"
        assert np.isfinite(actual).all(), "the result is not finite"
        largest = np.abs(expected).max() if scale is None else scale
        assert largest > 0, "the reference is zero everywhere: this case tests nothing"
        error = np.abs(actual - expected).max() / largest
        assert error <= tol, f"largest difference over largest value: {error:.3g}, allowed {tol:.3g}"

    return check
