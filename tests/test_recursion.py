"""The boundaries of episodes in degenerate rollouts, numbers that are not finite, and derivatives around a loop."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from support.estimator_laws import ESTIMATORS
from support.laws import assert_close
from support.meshes import make_mesh
from support.oracle import oracle
from support.rollouts import random_rollout
from support.scan_laws import interpreted_kernel
from support.versions import second_derivative_per_shard

import gae_jax
from gae_jax import gae, n_step_advantages


@pytest.mark.parametrize("batch", [(0,), (1,), (2, 3, 1, 2)])
def test_any_batch_axes(batch):
    rollout = random_rollout(3, steps=4, batch=batch)
    output = gae(**rollout.arguments())
    assert output.advantages.shape == output.targets.shape == (4, *batch)
    if rollout.rewards.size:
        assert_close(output, oracle(**rollout.arguments()))


def test_all_rows_masked():
    rollout = random_rollout(0, steps=4, batch=(3,))
    rollout = rollout.replace(mask=np.zeros((4, 3), bool))
    output = gae(**rollout.arguments())
    np.testing.assert_array_equal(output.advantages, 0)
    np.testing.assert_array_equal(output.targets, rollout.values[:-1])


def test_one_worker_masked_throughout_beside_another():
    rollout = random_rollout(0, steps=4, batch=(2,))
    rollout = rollout.replace(mask=np.array([[True, False]] * 4))
    rollout.values[:, 1] = np.nan
    output = gae(**rollout.arguments())
    assert np.isfinite(output.advantages).all()
    assert np.isfinite(output.targets).all()
    want = oracle(**rollout.map_arrays(lambda x: x[:, 0]).arguments())
    assert_close([x[:, 0] for x in output], want)


def test_all_rows_terminated_and_truncated():
    rollout = random_rollout(0, steps=4, batch=(3,), ends=1.0, truncation="dropped")
    np.testing.assert_array_equal(gae(**rollout.arguments()).advantages, rollout.rewards - rollout.values[:-1])


@pytest.mark.parametrize("masked", [[0], [0, 1], [2, 3], [5], [4, 5], [0, 2, 5]], ids=str)
def test_masked_rows_at_the_head_in_the_middle_and_at_the_tail(masked):
    rollout = random_rollout(1, steps=6, batch=(), ends=0.0, truncation=None).replace(
        mask=~np.isin(np.arange(6), masked), gamma=np.linspace(0.5, 1, 6), lambda_=np.linspace(1, 0.5, 6)
    )
    assert_close(gae(**rollout.arguments()), oracle(**rollout.arguments()))


def test_masked_nan_under_debug_nans():
    """Neither the results nor the gradients compute a NaN from NaN in masked rows."""
    rollout = random_rollout(2, steps=6, batch=(3,), dead=0.4)
    rewards = jnp.where(rollout.live, rollout.rewards, jnp.nan)
    values = jnp.asarray(np.where(np.stack([*~rollout.live, np.zeros(3, bool)]), np.nan, rollout.values))
    arguments = rollout.arguments()
    del arguments["rewards"], arguments["values"]

    def loss(rewards, values):
        return sum(map(jnp.sum, gae(rewards, values, **arguments)))

    with jax.debug_nans(True):
        jax.block_until_ready(gae(rewards, values, **arguments))
        jax.block_until_ready(jax.grad(loss, argnums=(0, 1))(rewards, values))


STEPS, WORKERS = 12, 4
# Episodes end in rows 3 and 7 of every worker, by termination or truncation.
ENDS = np.broadcast_to(np.isin(np.arange(STEPS), (3, 7))[:, None], (STEPS, WORKERS))
ROLLOUT = random_rollout(0, steps=STEPS, batch=(WORKERS,), gamma="both", lambda_="both").replace(
    terminated=ENDS & (np.arange(WORKERS) % 2 == 0), truncated=ENDS & (np.arange(WORKERS) % 2 == 1)
)


@pytest.mark.parametrize("parameter", [None, "gamma", "lambda_"])
@pytest.mark.parametrize(
    ("name", "how"),
    [
        *(("gae", {"implementation": name}) for name in ("scan", "blocked")),
        ("vtrace", {"implementation": "blocked"}),
        ("n_step_advantages", {}),
    ],
    ids=str,
)
def test_a_number_that_is_not_finite_stays_within_its_episode(name, how, parameter):
    """Also where gamma or lambda_ is 0, where the implementations differ in which rows of the episode it reaches."""
    rollout = ROLLOUT if parameter is None else ROLLOUT.replace(**{parameter: np.zeros((STEPS, WORKERS), np.float32)})

    estimate = ESTIMATORS[name][0](gae_jax)

    def results(rollout):
        return estimate(**rollout.arguments(), **how)

    want = results(rollout)
    for name in ("rewards", "values", "final_values"):
        for x in (np.nan, np.inf):
            bad = getattr(rollout, name).copy()
            bad[7 if name == "final_values" else 5] = x
            other_episodes = np.r_[0:4, 8:STEPS]
            for g, w in zip(results(rollout.replace(**{name: bad})), want, strict=True):
                np.testing.assert_array_equal(g[other_episodes], w[other_episodes])


# Derivatives of a loop around an estimator, as for meta-gradients of gamma and lambda.

MINIBATCHES = [random_rollout(seed, steps=3, batch=(16,), truncation=None) for seed in range(2)]
LOG_RHOS = jnp.sin(jnp.arange(3 * 16.0)).reshape(3, 16)


def targets_by_a_python_loop(rewards, values, terminated, gamma, lambda_, rho: Any = 1.0, c: Any = 1.0, n=None):
    """Returns V-trace targets: A_t + V(s_t) with the ratios 1; of n steps where `n` is given."""
    steps, discounts = len(rewards), gamma * (1 - terminated.astype(jnp.float32))
    weights, rho = c * lambda_ * jnp.ones(rewards.shape), rho * jnp.ones(rewards.shape)
    deltas = rho * (rewards + discounts * values[1:] - values[:-1])
    targets = []
    for t in range(steps):
        product, target = jnp.ones(rewards.shape[1:]), values[t]
        for k in range(t, min(steps, t + (n or steps))):
            target += product * deltas[k]
            product *= discounts[k] * weights[k]
        targets.append(target)
    return jnp.stack(targets)


def split_over_time(rewards, values, terminated, gamma, lambda_):
    options: dict[str, Any] = {"time_axis_name": "time", "implementation": "blocked"}

    def shard(rewards, values, terminated, last_value, gamma, lambda_):
        return gae(rewards, values, terminated, gamma=gamma, lambda_=lambda_, bootstrap_value=last_value, **options)

    specs = *(P("time"),) * 3, P(), P(), P()
    split = jax.shard_map(shard, mesh=make_mesh(time=3), in_specs=specs, out_specs=P("time"))
    return split(rewards, values[:-1], terminated, values[-1], gamma, lambda_).targets


def ratios(clip):
    return jnp.exp(jnp.minimum(LOG_RHOS, jnp.log(clip)))


def vtrace_targets(r, v, e, g, la, **clips):
    return gae_jax.vtrace(r, v, e, log_rhos=LOG_RHOS, gamma=g, lambda_=la, **clips).targets


by_definition, slow = targets_by_a_python_loop, pytest.mark.slow
BESIDE_LOOPS = {  # and the same by a Python loop
    "gae": (lambda r, v, e, g, la: gae(r, v, e, gamma=g, lambda_=la).targets, by_definition),
    "gae, time split": (split_over_time, by_definition),
    "vtrace": (
        functools.partial(vtrace_targets, clip_c=0.5),
        functools.partial(by_definition, rho=ratios(1.0), c=ratios(0.5)),
    ),
    "n-step": (
        lambda r, v, e, g, la: la * n_step_advantages(r, v, e, n=2, gamma=g),
        lambda r, v, e, g, la: la * (by_definition(r, v, e, g, 1.0, n=2) - v[:-1]),
    ),
}
SLOW = {"gae, time split": (slow, second_derivative_per_shard), "vtrace": slow, "n-step": slow}


@pytest.mark.versions
@pytest.mark.parametrize("name", ["gae", *(pytest.param(name, marks=marks) for name, marks in SLOW.items())])
@pytest.mark.usefixtures("fast_compilation")
def test_second_derivatives_of_a_loop_over_minibatches(name):
    """As for a meta-gradient of gamma and lambda; the batch is wide enough for the kernel of TPUs."""

    def derivatives(estimate):
        def loss(numbers):
            def minibatch(weight, rollout):
                rewards, values, terminated = rollout
                return jnp.mean(jnp.sin(estimate(rewards * weight, values * weight, terminated, *numbers))), None

            return jax.lax.scan(minibatch, jnp.float32(1), arrays)[0]

        return jax.hessian(loss)(numbers), jax.grad(lambda x: jnp.sum(jax.grad(loss)(x) ** 2))(numbers)

    arrays = [jnp.stack([getattr(x, name) for x in MINIBATCHES]) for name in ("rewards", "values", "terminated")]
    numbers = jnp.array([0.9, 0.8])
    with interpreted_kernel():
        got, want = (jax.jit(functools.partial(derivatives, estimate))() for estimate in BESIDE_LOOPS[name])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), got, want)
