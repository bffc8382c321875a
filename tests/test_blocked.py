"""The affine scan without a loop: any length and any batch."""

import jax.numpy as jnp
import numpy as np
import pytest
from support import scan_laws

import gae_jax
from gae_jax._affine_scan.affine_map import mul_zero_absorbs


@pytest.mark.parametrize(
    ("length", "batch"),
    [(1, (2,)), (257, (2,)), (16, ()), (17, (0,)), pytest.param(129, (4, 1), marks=pytest.mark.slow)],
)
@pytest.mark.usefixtures("fast_compilation")
def test_any_length_and_batch(length, batch):
    """One stage, two, and three; a last block that is full, or holds one row."""
    scan_laws.assert_obeys(scan_laws.outputs, gae_jax, "blocked", length, batch)


def test_zero_absorbs_numbers_that_are_not_finite():
    a, h = jnp.array([0.0, 0.0, 0.0, 2.0, 2.0]), jnp.array([1.0, jnp.nan, jnp.inf, 3.0, jnp.nan])
    np.testing.assert_array_equal(mul_zero_absorbs(a, h), [0, 0, 0, 6, np.nan])
