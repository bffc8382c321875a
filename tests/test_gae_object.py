"""The object of the annotated page: its calling order, its layout, its results."""

import jax
import numpy as np
import pytest
from support.oracle import oracle

from gae_jax import GAE


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_it_computes_what_the_page_does(share):
    rng = np.random.default_rng(0)
    done = rng.random((8, 128)) < share
    rewards, values = rng.normal(size=(8, 128)), rng.normal(size=(8, 129))
    want, _ = oracle(rewards.T, values.T, done.T, gamma=0.99, lambda_=0.95)

    got = GAE(8, 128, 0.99, 0.95)(done, rewards, values)

    assert got.shape == (8, 128)
    np.testing.assert_allclose(got, want.T, rtol=0, atol=1e-5 * np.abs(want).max())


def test_it_can_be_jitted_and_compared():
    estimate = GAE(n_workers=2, worker_steps=3, gamma=0.9, lambda_=0.8)
    arguments = np.zeros((2, 3), bool), np.ones((2, 3), np.float32), np.zeros((2, 4), np.float32)
    np.testing.assert_array_equal(jax.jit(estimate)(*arguments), estimate(*arguments))
    assert estimate == GAE(2, 3, 0.9, 0.8)
