"""Every test runs as strictly as JAX allows, on eight devices: CPUs, unless JAX_PLATFORMS names other devices."""

import collections
import gc
import os

import hypothesis
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from support import peers

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Every new shape compiles, so a slow example does not mean a slow test.
# `--hypothesis-profile=slow` runs ten times as many examples.
hypothesis.settings.register_profile("default", deadline=None, max_examples=200)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=20)
hypothesis.settings.register_profile("slow", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("default")


@pytest.fixture
def fast_compilation():
    """Compiles with few optimizations, for a test whose programs run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def implicit_promotion():
    """Promotes ranks and dtypes as JAX does by default, for packages that rely on it."""
    with peers.as_peers_want():
        yield


@pytest.fixture
def leak_checks():
    """Checks for leaked tracers. JAX collects garbage for each program: here, without what was there before."""
    gc.freeze()
    with jax.checking_leaks():
        yield
    gc.unfreeze()


def pytest_terminal_summary(terminalreporter):
    """Prints in one line why tests were skipped, and how many for each reason."""
    reasons = [report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.getreports("skipped")]
    counts = collections.Counter(reason.rpartition(": ")[2] for reason in reasons)  # "No module named 'torch'"
    if counts:
        terminalreporter.write_line("skipped: " + ", ".join(f"{reason} ({n})" for reason, n in counts.most_common()))
