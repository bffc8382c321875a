"""The affine scan without a loop: any length, any batch, and no loop in the program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.scan_laws import matches_lax_scan, problem, scanned

import gae_jax
from gae_jax._affine_scan.affine_map import AffineMap, apply, compose, mul_zero_absorbs


@pytest.mark.parametrize("length", [1, 17, 257, *(pytest.param(n, marks=pytest.mark.slow) for n in (16, 129))])
@pytest.mark.usefixtures("fast_compilation")
def test_any_length(length):
    """One stage, two, and three; a last block that is full, or holds one row."""
    matches_lax_scan(gae_jax, "blocked", length)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [(), (4, 1, 2), (0,)], ids=str)
def test_any_batch_axes(batch):
    matches_lax_scan(gae_jax, "blocked", 20, batch)


@pytest.mark.parametrize("length", [16, 4096])
def test_program_has_no_loop(length):
    call = jax.jit(lambda *arguments: scanned(gae_jax, "blocked", *arguments))
    assert "stablehlo.while" not in call.lower(*jax.eval_shape(lambda: problem(0, length, (2,)))).as_text()


def test_composition_of_affine_maps():
    (first, then), h = (AffineMap(*map(jnp.float32, x)) for x in ((2, 3), (5, 7))), jnp.float32(11)
    assert apply(compose(first, then), h) == apply(then, apply(first, h)) == 5 * (2 * 11 + 3) + 7


def test_zero_absorbs_numbers_that_are_not_finite():
    a, h = jnp.array([0.0, 0.0, 0.0, 2.0, 2.0]), jnp.array([1.0, jnp.nan, jnp.inf, 3.0, jnp.nan])
    np.testing.assert_array_equal(mul_zero_absorbs(a, h), [0, 0, 0, 6, np.nan])
