"""`gae` agrees with its peers, each called by its own conventions, where they can say what it says."""

import importlib
import warnings

import jax
import jax.numpy as jnp
import pytest
from laws import assert_close
from rollouts import random_rollout

from gae_jax import gae


def peer(name):
    """Imports a peer, quietly: what it warns of at import is its own affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"{name} cannot be imported: {error}")


@pytest.fixture
def as_peers_want():
    """Peers were not written for strict promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("gamma", "lambda_"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0)])
def test_rlax(seed, gamma, lambda_, as_peers_want):
    rlax = peer("rlax")
    rollout = random_rollout(seed, steps=64, batch=(8,), ends=0.05, truncation=None, gamma=gamma, lambda_=lambda_)
    discounts = gamma * (1 - rollout.terminated.astype(jnp.float32))
    theirs = jax.vmap(rlax.truncated_generalized_advantage_estimation, (1, 1, None, 1), 1)(
        jnp.asarray(rollout.rewards), discounts, lambda_, jnp.asarray(rollout.values)
    )
    assert_close([gae(**rollout.arguments()).advantages], [theirs])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("gamma", "lambda_"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0)])
def test_brax(seed, gamma, lambda_, as_peers_want):
    """Its `vs` are our targets, and a truncated row is dropped; its `advantages` are not GAE."""
    losses = peer("brax.training.agents.ppo.losses")
    rollout = random_rollout(seed, steps=64, batch=(8,), ends=0.05, truncation="dropped", gamma=gamma, lambda_=lambda_)
    rollout = rollout.replace(truncated=rollout.truncated & ~rollout.terminated)
    targets, _ = losses.compute_gae(
        jnp.float32(rollout.truncated),
        jnp.float32(rollout.terminated),
        jnp.asarray(rollout.rewards),
        jnp.asarray(rollout.values[:-1]),
        jnp.asarray(rollout.values[-1]),
        lambda_,
        gamma,
    )
    assert_close(gae(**rollout.arguments()), (targets - rollout.values[:-1], targets))
