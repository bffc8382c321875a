"""Floats of any width, integers, flags of any kind, NumPy or JAX, weak or mixed; and a long sum in bfloat16."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.laws import assert_close, flags_of
from support.oracle import oracle
from support.rollouts import random_rollout

from gae_jax import gae

ROLLOUT = random_rollout(7, steps=12, batch=(4,), ends=0.2, dead=0.1)
WANT = oracle(**ROLLOUT.arguments())


def test_float64():
    with jax.enable_x64(True):
        output = gae(**ROLLOUT.map_arrays(lambda x: x if x.dtype == bool else x.astype(np.float64)).arguments())
        assert output.advantages.dtype == output.targets.dtype == jnp.float64
        assert_close(output, WANT, rtol=1e-14)


@pytest.mark.parametrize("x64", [False, True])
def test_float32_stays_float32(x64):
    with jax.enable_x64(x64):
        output = gae(**ROLLOUT.arguments())
        assert output.advantages.dtype == output.targets.dtype == jnp.float32
        assert_close(output, WANT)


@pytest.mark.parametrize("dtype", [bool, np.int32, np.uint8, np.float32])
def test_flags_of_any_kind(dtype):
    arguments = ROLLOUT.arguments() | {k: v.astype(dtype) for k, v in flags_of(ROLLOUT).items() if v is not None}
    assert_close(gae(**arguments), WANT)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_in_and_out_but_not_between(dtype):
    """The result is that of float32 arithmetic on the rounded inputs, rounded once."""
    rounded = ROLLOUT.map_arrays(lambda x: x if x.dtype == bool else x.astype(dtype))
    wide = rounded.map_arrays(lambda x: x if x.dtype == bool else x.astype(np.float32))
    output = gae(**rounded.arguments())
    assert output.advantages.dtype == output.targets.dtype == dtype
    for got, want in zip(output, gae(**wide.arguments()), strict=True):
        np.testing.assert_array_equal(got, want.astype(dtype))


def test_mixed_inputs_promote_and_integers_do_not_count():
    arguments: dict[str, Any] = ROLLOUT.arguments() | {"rewards": np.arange(48, dtype=np.int32).reshape(12, 4)}
    assert_close(gae(**arguments), oracle(**arguments))
    arguments |= {"values": ROLLOUT.values.astype(jnp.bfloat16)}
    output = gae(**arguments)
    assert output.advantages.dtype == jnp.float32  # that of final_values
    assert_close(output, oracle(**arguments))


def test_jax_arrays_are_as_good_as_numpy_s():
    arguments: dict[str, Any] = {k: x if x is None else jnp.asarray(x) for k, x in ROLLOUT.arguments().items()}
    for got, want in zip(gae(**arguments), gae(**ROLLOUT.arguments()), strict=True):
        np.testing.assert_array_equal(got, want)


def test_weak_types_give_way():
    """A bootstrap value written as `0.0 * ...` is weakly typed, and does not widen bfloat16."""
    rewards = jnp.ones((3,), jnp.bfloat16)
    output = gae(rewards, rewards, rewards == 0, gamma=0.5, lambda_=0.5, bootstrap_value=0.0)
    assert output.advantages.dtype == jnp.bfloat16


def test_integers_alone_give_floats():
    output = gae(np.arange(3), np.arange(4), np.zeros(3, int), gamma=1, lambda_=1)
    assert output.advantages.dtype == jnp.float32
    np.testing.assert_array_equal(output.targets, [6, 6, 5])


def test_gamma_is_not_rounded_to_the_type_of_the_rewards():
    """0.999 is 1.0 in bfloat16: at lambda 1, without an end, the difference is all there is."""
    rewards = jnp.zeros((1000,), jnp.bfloat16)
    output = gae(rewards, rewards, rewards != 0, gamma=0.999, lambda_=1.0, bootstrap_value=jnp.bfloat16(1))
    np.testing.assert_allclose(output.advantages[0].astype(np.float32), 0.999**1000, rtol=1e-2)


@pytest.mark.parametrize(("gamma", "lambda_"), [(0.99, 0.95), (0.999, 0.99)])
def test_no_drift_over_a_long_rollout_in_bfloat16(gamma, lambda_):
    """What the recursion adds to the error of the rounded inputs stays under 2% of the advantages' rms."""
    rng = np.random.default_rng(0)
    rewards, values = (rng.normal(size=(n, 2)).astype(jnp.bfloat16) for n in (4096, 4097))
    terminated = np.zeros((4096, 2), bool)
    got = gae(rewards, values, terminated, gamma=gamma, lambda_=lambda_).advantages
    want, _ = oracle(rewards, values, terminated, gamma=gamma, lambda_=lambda_)
    assert got.dtype == jnp.bfloat16
    assert np.abs(np.asarray(got, np.float64) - want).max() < 0.02 * np.sqrt(np.mean(want**2))
