"""Shared set-up: one thread, fixed seeds, and the comparison that the numerical tests use."""

import gc
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo

torch.set_num_threads(1)  # small tensors: several threads only wait for each other


def pytest_configure(config):
    # What torch.compile says of the very first Python 3.13, whatever is compiled.
    config.addinivalue_line("filterwarnings", r"ignore:Guards may run slower on Python 3\.13\.0:RuntimeWarning")


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def process_state():
    """What tests share, and would find changed by another that came before."""
    return {
        "threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "anomaly detection": torch.is_anomaly_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "function modes": torch._C._len_torch_function_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "global hooks of modules": len(torch.nn.modules.module._global_forward_hooks),
        "the stance of torch.compile": torch._dynamo.eval_frame._stance.stance,
        "folder": Path.cwd(),
        "variables": dict(os.environ),
        "garbage collector": gc.isenabled(),
    }


@pytest.fixture(autouse=True)
def unchanged():
    """A test that leaves the state of the process changed fails itself, not the one that happens to come next."""
    before = process_state()
    yield
    after = process_state()
    # Packages that are imported late set some of their own, and pytest one that names the running test.
    after["variables"] = {k: v for k, v in after["variables"].items() if k in before["variables"]}
    for variables in (before["variables"], after["variables"]):
        variables.pop("PYTEST_CURRENT_TEST", None)
    assert after == before, {name: after[name] for name in after if after[name] != before[name]}


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
