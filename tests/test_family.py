"""n-step advantages and V-trace: right, linear in time, over devices, and refused where wrong."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from scaling_out import collectives
from support import estimator_laws as family
from support import peers
from support.laws import assert_close
from support.rollouts import random_rollout
from test_mutants import EXAMPLES

import gae_jax
from gae_jax import n_step_advantages, vtrace

T, N = 24, 16
ROLLOUT = random_rollout(0, steps=T, batch=(N,), ends=0.1)
ARRAYS = {k: jnp.asarray(x) for k, x in ROLLOUT.arguments().items() if isinstance(x, np.ndarray)}
ARRAYS |= {"values": ARRAYS["values"][:-1], "bootstrap_value": ARRAYS["values"][-1]}
ESTIMATORS = {
    "n_step_advantages": lambda **x: n_step_advantages(**x, n=5, gamma=0.9),
    "vtrace": lambda **x: vtrace(**x, log_rhos=jnp.sin(x["rewards"]), gamma=0.9, lambda_=0.8),
    "vtrace, clips differ": lambda **x: vtrace(**x, log_rhos=jnp.sin(x["rewards"]), gamma=0.9, clip_c=0.5),
}


@pytest.mark.parametrize("law", family.LAWS, ids=lambda law: law.__name__)
def test_law(law):
    for rollout in EXAMPLES[1::8]:
        law(gae_jax, rollout)


def test_gamma_and_lambda_by_worker_and_any_batch():
    rollout = random_rollout(1, steps=5, batch=(2, 2), gamma="worker", lambda_="worker", dead=0.2)
    family.n_steps_are_a_sum_of_n_deltas(gae_jax, rollout)
    family.on_policy_vtrace_is_gae(gae_jax, rollout)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_inside_everything(name):
    """Jit, vmap over workers, another axis of time, float16 in and out."""
    fn = ESTIMATORS[name]
    want = fn(**ARRAYS)

    def same(got, rtol=1e-6):
        assert_close(jax.tree.leaves(got), [np.asarray(x) for x in jax.tree.leaves(want)], rtol=rtol)

    same(jax.jit(fn)(**ARRAYS))
    last_axis = {k: x.ndim - 1 for k, x in ARRAYS.items()}
    same(jax.vmap(lambda x: fn(**x), in_axes=(last_axis,), out_axes=1)(ARRAYS))
    turned = {k: x.T for k, x in ARRAYS.items()}
    same(jax.tree.map(jnp.transpose, fn(**turned, time_axis=1)))
    narrow = fn(**{k: x.astype(jnp.float16) if x.dtype == jnp.float32 else x for k, x in ARRAYS.items()})
    assert all(x.dtype == jnp.float16 for x in jax.tree.leaves(narrow))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_workers_split_over_devices(name, masked, kind):
    mesh = Mesh(np.array(jax.devices()), ("workers",), axis_types=(kind,))
    arrays = ARRAYS | ({"mask": jnp.cos(7 * ARRAYS["rewards"]) > -0.5} if masked else {})
    split = {k: jax.device_put(x, NamedSharding(mesh, P(*[None] * (x.ndim - 1), "workers"))) for k, x in arrays.items()}
    program = jax.jit(lambda x: ESTIMATORS[name](**x)).lower(split).compile()
    got, want = (jax.tree.leaves(x) for x in (program(split), ESTIMATORS[name](**arrays)))
    assert_close(got, [np.asarray(x) for x in want], rtol=1e-6)
    assert collectives(program) == {}


def test_what_n_steps_cost_does_not_depend_on_n():
    """Four loops, each over n rows of T / n blocks at once, in as much memory; n sums would take n times as much."""
    rows = jax.ShapeDtypeStruct((4096, 4), jnp.float32)

    def compiled(n) -> Any:
        fn = jax.jit(lambda r, v, e, last: n_step_advantages(r, v, e, n=n, gamma=0.9, bootstrap_value=last))
        return fn.lower(rows, rows, rows, jax.ShapeDtypeStruct((4,), jnp.float32)).compile()

    few, many = compiled(16), compiled(1024)
    assert few.as_text().count(" while(") == many.as_text().count(" while(") <= 4
    assert many.memory_analysis().temp_size_in_bytes < 1.5 * few.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("clips", [{}, {"clip_rho": 2.0, "clip_pg_rho": 1.5}, {"clip_rho": 0.5, "clip_pg_rho": 0.7}])
@pytest.mark.parametrize("lambda_", [1.0, 0.9])
def test_vtrace_is_that_of_rlax(lambda_, clips):
    """Which clips c at 1, and knows no truncation."""
    try:
        one_worker = peers.load("rlax").vtrace_td_error_and_advantage
    except ImportError as error:
        pytest.skip(f"cannot be imported: {error}")
    rewards, values, last, ends = (ARRAYS[k] for k in ("rewards", "values", "bootstrap_value", "terminated"))
    log_rhos, following = jnp.sin(rewards), jnp.concatenate([values[1:], last[None]])
    with peers.as_peers_want():
        theirs = jax.vmap(
            lambda v, v_next, r, discount, log_rho: one_worker(
                v,
                v_next,
                r,
                discount,
                jnp.exp(log_rho),
                lambda_,
                clip_rho_threshold=clips.get("clip_rho", 1.0),
                clip_pg_rho_threshold=clips.get("clip_pg_rho", 1.0),
            ),
            1,
            1,
        )(values, following, rewards, 0.9 * (1 - ends), log_rhos)
    how = {"log_rhos": log_rhos, "gamma": 0.9, "lambda_": lambda_, "bootstrap_value": last}
    ours = vtrace(rewards, values, ends, **how, **clips)
    assert_close(ours, [np.asarray(theirs.pg_advantage), np.asarray(values + theirs.errors)])


def test_vtrace_survives_extreme_ratios():
    """What the policy would never do now, or never did then."""
    log_rhos = jnp.array([-jnp.inf, -1e30, 1e30, 300.0])
    rewards, values, flags = jnp.ones(4), jnp.ones(5), jnp.zeros(4, bool)
    for clip_c in (1.0, 0.5):
        how = {"log_rhos": log_rhos, "gamma": 0.9, "clip_c": clip_c}
        output = vtrace(rewards, values, flags, **how)
        assert np.isfinite(output).all()
        np.testing.assert_array_equal(output.targets[:2], 1)
        gradient = jax.grad(lambda r, how=how: jnp.sum(vtrace(rewards, values, flags, **(how | {"log_rhos": r}))[0]))
        assert np.isfinite(gradient(jnp.array([-300.0, -1e30, 1e30, 300.0]))).all()


GOOD = {"rewards": np.ones((4, 3)), "values": np.ones((5, 3)), "terminated": np.zeros((4, 3), bool), "gamma": 0.9}


@pytest.mark.parametrize(
    ("fn", "change", "error", "message"),
    [
        (n_step_advantages, {"n": 0}, ValueError, r"`n` must be at least 1; got 0"),
        (n_step_advantages, {"n": 1.5}, TypeError, r"`n` must be an integer; got 1.5"),
        (n_step_advantages, {"n": True}, TypeError, r"`n` must be an integer; got True"),
        (n_step_advantages, {"n": 2, "values": np.ones((4, 3))}, ValueError, r"`values` must have shape \(5, 3\)"),
        (vtrace, {"log_rhos": None}, TypeError, r"`log_rhos` must be an array of numbers; got NoneType"),
        (vtrace, {"log_rhos": np.ones((4, 1))}, ValueError, r"`log_rhos` must have shape \(4, 3\).*got \(4, 1\)"),
        (vtrace, {"log_rhos": np.ones((4, 3)), "clip_rho": 0.0}, ValueError, r"`clip_rho` must be positive; got 0.0"),
        (vtrace, {"log_rhos": np.ones((4, 3)), "clip_c": np.ones(3)}, ValueError, r"`clip_c` must be one number; got"),
    ],
)
def test_bad_argument(fn, change, error, message):
    with pytest.raises(error, match=message):
        fn(**(GOOD | change))
