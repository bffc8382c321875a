"""`n_step_advantages`: its laws, under transformations and on a mesh, its memory, and its errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from scaling_out import collectives
from support import estimator_laws
from support.laws import assert_close
from support.meshes import make_mesh
from support.oracle import oracle
from support.rollouts import EXAMPLES, random_rollout
from support.versions import enable_x64

import gae_jax
from gae_jax import n_step_advantages

ROLLOUT = random_rollout(0, steps=24, batch=(16,), ends=0.1, dead=0.2)
ARRAYS = {k: jnp.asarray(x) for k, x in ROLLOUT.arguments().items() if isinstance(x, np.ndarray)}
ARRAYS |= {"values": ARRAYS["values"][:-1], "bootstrap_value": ARRAYS["values"][-1]}
N_STEPS = 20  # more than there are workers, fewer than there are steps
WANT = oracle(**ROLLOUT.replace(lambda_=1.0).arguments(), n=N_STEPS)[0]


def estimate(arrays, **how):
    return n_step_advantages(**arrays, n=N_STEPS, gamma=0.9, **how)


@pytest.mark.parametrize(
    "law",
    [estimator_laws.n_steps_match_oracle, estimator_laws.gae_is_the_weighted_average_of_n_steps],
    ids=lambda law: law.__name__,
)
@pytest.mark.usefixtures("fast_compilation")
def test_law(law):
    for rollout in EXAMPLES[1::8]:
        law(gae_jax, rollout)


def test_gamma_by_worker_and_two_batch_axes():
    rollout = random_rollout(1, steps=5, batch=(2, 2), gamma="worker", dead=0.2)
    estimator_laws.n_steps_match_oracle(gae_jax, rollout)


@pytest.mark.slow
def test_vmap_and_another_axis_of_time():
    workers = {k: x.ndim - 1 for k, x in ARRAYS.items()}
    assert_close([jax.vmap(estimate, in_axes=(workers,), out_axes=1)(ARRAYS)], [WANT])
    assert_close([estimate({k: x.T for k, x in ARRAYS.items()}, time_axis=1).T], [WANT])


def test_narrow_floats_in_and_out():
    narrow = {k: x.astype(jnp.float16) if x.dtype == jnp.float32 else x for k, x in ARRAYS.items()}
    assert estimate(narrow).dtype == jnp.float16
    assert_close([estimate(narrow).astype(jnp.float32)], [WANT], rtol=2e-3)


def test_gradient_matches_oracle():
    """The outputs are linear in the rewards: the derivative is a difference, of any size."""
    with enable_x64(True):
        direction = np.random.default_rng(1).normal(size=ROLLOUT.rewards.shape)
        wide = {k: x if x.dtype == bool else np.float64(x) for k, x in ARRAYS.items()}
        got = jax.jvp(lambda r: estimate(wide | {"rewards": r}), (jnp.asarray(wide["rewards"]),), (direction,))[1]
        moved = ROLLOUT.replace(rewards=np.float64(ROLLOUT.rewards) + direction, lambda_=1.0)
        assert_close([got], [oracle(**moved.arguments(), n=N_STEPS)[0] - WANT])
        pullback = jax.vjp(lambda r: estimate(wide | {"rewards": r}), jnp.asarray(wide["rewards"]))[1]
        weights = np.random.default_rng(2).normal(size=WANT.shape)
        assert np.vdot(pullback(jnp.asarray(weights))[0], direction) == pytest.approx(np.vdot(got, weights))


@pytest.mark.parametrize(
    "kind", [AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.versions)], ids=lambda kind: kind.name
)
def test_workers_split_over_devices(kind):
    mesh = make_mesh(kind, workers=8)
    specs = {k: P(*[None] * (x.ndim - 1), "workers") for k, x in ARRAYS.items()}
    split = {k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in ARRAYS.items()}
    program = jax.jit(estimate).lower(split).compile()
    assert_close([program(split)], [WANT])
    assert collectives(program) == {}


def test_memory_does_not_depend_on_n():
    """One loop over n, whose body holds the targets of all rows."""
    rows = jax.ShapeDtypeStruct((1024, 4), jnp.float32)

    def compiled(n) -> Any:
        fn = jax.jit(lambda r, v, e, last: n_step_advantages(r, v, e, n=n, gamma=0.9, bootstrap_value=last))
        return fn.lower(rows, rows, rows, jax.ShapeDtypeStruct((4,), jnp.float32)).compile()

    few, many = compiled(16), compiled(512)
    assert few.as_text().count(" while(") == many.as_text().count(" while(") == 1
    assert many.memory_analysis().temp_size_in_bytes == few.memory_analysis().temp_size_in_bytes


T, N = 5, 3
GOOD: dict[str, Any] = {
    "rewards": np.zeros((T, N), np.float32),
    "values": np.zeros((T + 1, N), np.float32),
    "terminated": np.zeros((T, N), bool),
    "gamma": 0.99,
}


@pytest.mark.versions
def test_bad_number_of_steps():
    def call(n: Any):
        return n_step_advantages(**GOOD, n=n)

    for n in (1.5, True, None, "1", np.float32(1), np.array(2.0), jnp.array(2.0)):
        with pytest.raises(TypeError, match="`n` must be an integer; got"):
            call(n)
    with pytest.raises(TypeError, match="`n` must be an integer that is known while tracing; got"):
        jax.jit(call)(2)
    with pytest.raises(ValueError, match="`n` must be at least 1; got 0"):
        call(np.int64(0))
    assert call(jnp.array(2)).shape == (T, N)


@pytest.mark.versions
def test_bad_values():
    bad: dict[str, Any] = GOOD | {"values": np.ones((T, N))}
    with pytest.raises(ValueError, match=r"`values` must have shape \(6, 3\)"):
        n_step_advantages(**bad, n=2)
