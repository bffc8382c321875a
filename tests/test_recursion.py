"""The boundaries of episodes in degenerate rollouts, numbers that are not finite, and derivatives around a loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import laws
from support.estimator_laws import ESTIMATORS
from support.meshes import over_time
from support.rollouts import random_rollout
from support.scan_laws import interpreted_kernel
from support.versions import derivatives_per_shard

import gae_jax
from gae_jax import gae

pytestmark = pytest.mark.usefixtures("fast_compilation")


def test_no_workers():
    output = gae(**random_rollout(3, steps=4, batch=(0,)).arguments())
    assert output.advantages.shape == output.targets.shape == (4, 0)


MASKED_ROWS = ([0], [0, 1], [2, 3], [5], [4, 5], [0, 2, 5])
DEGENERATE = {
    "one worker": random_rollout(3, steps=4, batch=(1,)),
    "four batch axes": random_rollout(3, steps=4, batch=(2, 3, 1, 2)),
    "all rows masked": random_rollout(0, steps=4, batch=(3,), masked_share=1.0),
    "one of two workers masked": random_rollout(0, steps=4, batch=(2,)).replace(mask=np.array([[True, False]] * 4)),
    "all rows terminated and truncated": random_rollout(0, steps=4, batch=(3,), ends=1.0, truncation="dropped"),
} | {
    f"rows {rows} masked": random_rollout(1, steps=6, ends=0.0, gamma="both", lambda_="both").replace(
        mask=~np.isin(np.arange(6), rows)
    )
    for rows in MASKED_ROWS
}


@pytest.mark.parametrize("rollout", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_rollout(rollout):
    laws.matches_oracle(gae, rollout)
    laws.unused_entries_affect_nothing(gae, rollout)


def test_unused_nan_under_debug_nans():
    """Neither the results nor the gradients compute a NaN from NaN in unused entries."""
    whole = random_rollout(2, steps=6, batch=(3,), masked_share=0.4)
    rollout = laws.with_unused_entries(whole, np.float32(np.nan))
    rollout.values[-1] = whole.values[-1]  # an unused V(s_T) is kept for the backward pass, where debug_nans sees it
    flags, inputs = laws.flags_of(rollout), laws.inputs_of(rollout)
    with jax.debug_nans(True):
        jax.block_until_ready(gae(**inputs, **flags))
        jax.block_until_ready(jax.grad(lambda inputs: sum(map(jnp.sum, gae(**inputs, **flags))))(inputs))


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
# Pallas's interpreter refuses check_vma.
KERNEL_IN_SHARDS = over_time(functools.partial(gae, implementation="pallas"), 3, check_vma=False)
VTRACE = functools.partial(gae_jax.vtrace, log_rhos=jnp.sin(jnp.arange(3 * 16.0)).reshape(3, 16), clip_c=0.5)
slow, versions = pytest.mark.slow, pytest.mark.versions


@pytest.mark.parametrize(
    ("estimate", "plain"),
    [
        pytest.param(gae, gae, marks=versions),
        pytest.param(KERNEL_IN_SHARDS, gae, marks=(slow, versions, derivatives_per_shard)),
        pytest.param(VTRACE, VTRACE, marks=slow),
    ],
    ids=["gae", "gae, time split", "vtrace"],
)
def test_second_derivatives_of_a_loop_over_minibatches(estimate, plain):
    """For a meta-gradient of gamma and lambda, JAX differentiates the loop as it does around a plain `lax.scan`.

    The batch is wide enough for the kernel.
    """

    def derivatives(estimate):
        def loss(numbers):
            def minibatch(weight, rollout):
                rewards, values, terminated = rollout
                output = estimate(rewards * weight, values * weight, terminated, gamma=numbers[0], lambda_=numbers[1])
                return jnp.mean(jnp.sin(jax.tree.leaves(output)[-1])), None

            return jax.lax.scan(minibatch, jnp.float32(1), arrays)[0]

        return jax.hessian(loss)(numbers), jax.grad(lambda x: jnp.sum(jax.grad(loss)(x) ** 2))(numbers)

    arrays = [jnp.stack([getattr(x, name) for x in MINIBATCHES]) for name in ("rewards", "values", "terminated")]
    numbers = jnp.array([0.9, 0.8])
    with interpreted_kernel():
        estimates = estimate, functools.partial(plain, implementation="scan")
        got, want = (jax.jit(functools.partial(derivatives, fn))() for fn in estimates)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), got, want)
