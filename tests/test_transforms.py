"""`gae` is right inside whatever JAX does to a function."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from support.laws import assert_close, flags_of, inputs_of
from support.oracle import oracle
from support.rollouts import random_rollout

from gae_jax import gae

ROLLOUT = random_rollout(7, steps=12, batch=(4,), ends=0.2)
WANT = oracle(**ROLLOUT.arguments())


def in_order(rollout):
    """The arrays of a rollout, in the order of `gae`'s positions."""
    return rollout.rewards, rollout.values, rollout.terminated, rollout.truncated


def call(rewards, values, terminated, truncated, final_values):
    return gae(rewards, values, terminated, truncated, gamma=0.9, lambda_=0.8, final_values=final_values)


ARRAYS = (*in_order(ROLLOUT), ROLLOUT.final_values)


def test_jit():
    assert_close(jax.jit(call)(*ARRAYS), WANT)


def test_one_compilation_serves_every_gamma():
    traces = []

    @jax.jit
    def jitted(gamma, lambda_):
        traces.append(gamma)
        return gae(*in_order(ROLLOUT), gamma=gamma, lambda_=lambda_).advantages

    for gamma, lambda_ in [(0.9, 0.8), (1.0, 0.0)]:
        want, _ = oracle(*in_order(ROLLOUT), gamma=gamma, lambda_=lambda_)
        assert_close([jitted(gamma, lambda_)], [want])
    assert len(traces) == 1


def test_vmap_over_workers():
    assert_close(jax.vmap(call, in_axes=1, out_axes=1)(*ARRAYS), WANT, rtol=1e-6)


def test_vmap_over_gamma_and_lambda():
    grid = jnp.array([0.0, 0.5, 0.9])
    outputs = jax.vmap(lambda g, la: gae(*in_order(ROLLOUT), gamma=g, lambda_=la))(grid, grid)
    for i, x in enumerate(np.asarray(grid)):
        assert_close([y[i] for y in outputs], oracle(*in_order(ROLLOUT), gamma=x, lambda_=x))


def test_inside_scan():
    """A training loop that is one scan over iterations."""

    def iteration(scale, _):
        output = gae(scale * ROLLOUT.rewards, *ARRAYS[1:4], gamma=0.9, lambda_=0.8, final_values=ARRAYS[4])
        return scale + 1.0, output

    _, outputs = jax.lax.scan(iteration, jnp.float32(1), length=3)
    for i in range(3):
        rewards = ROLLOUT.rewards * np.float32(i + 1)
        assert_close([x[i] for x in outputs], oracle(**ROLLOUT.replace(rewards=rewards).arguments()))


def test_grad_of_vmap_is_vmap_of_grad():
    flags, inputs = flags_of(ROLLOUT), inputs_of(ROLLOUT)
    parameters: dict[str, Any] = {name: inputs.pop(name) for name in ("gamma", "lambda_")}

    def loss(inputs, flags):
        return jnp.sum(gae(**inputs, **flags, **parameters).advantages ** 2)

    batched = jax.grad(loss)(inputs, flags)
    grad_of_vmap = jax.grad(lambda inputs: jnp.sum(jax.vmap(loss, in_axes=1)(inputs, flags)))(inputs)
    vmap_of_grad = jax.vmap(jax.grad(loss), in_axes=1, out_axes=1)(inputs, flags)
    for other in (grad_of_vmap, vmap_of_grad):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), other, batched)


@pytest.mark.parametrize(
    ("gamma", "lambda_", "dead"), [(0.9, 0.8, 0.0), ("both", "step", 0.3), ("worker", "both", 0.3)]
)
def test_derivatives_forward_reverse_and_second_order(gamma, lambda_, dead):
    """With respect to every floating-point input: gamma and lambda_ too, as meta-gradients want them."""
    rollout = random_rollout(7, steps=6, batch=(2,), ends=0.2, gamma=gamma, lambda_=lambda_, dead=dead)
    with jax.enable_x64(True):
        flags, inputs = flags_of(rollout), jax.tree.map(np.float64, inputs_of(rollout))
        check_grads(lambda x: gae(**x, **flags), (inputs,), order=2, modes=["fwd", "rev"])


def test_linear_transpose():
    """Advantages are linear in rewards and values; the transposed map is the gradient of a weighted sum."""
    flags, inputs = flags_of(ROLLOUT), inputs_of(ROLLOUT)
    parameters: dict[str, Any] = {name: inputs.pop(name) for name in ("gamma", "lambda_")}

    def advantages(inputs):
        return gae(**inputs, **flags, **parameters).advantages

    [transposed] = jax.linear_transpose(advantages, inputs)(jnp.ones((12, 4)))
    gradient = jax.grad(lambda inputs: jnp.sum(advantages(inputs)))(inputs)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), transposed, gradient)


def test_strict_about_leaks_and_nans():
    with jax.checking_leaks(), jax.debug_nans(True):
        assert_close(jax.jit(call)(*ARRAYS), WANT)
