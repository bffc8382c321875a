"""`vtrace`: its laws, beside rlax, under transformations and on a mesh, with extreme ratios, and its errors."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from scaling_out import collectives
from support import estimator_laws, peers
from support.laws import assert_close
from support.meshes import make_mesh
from support.oracle import vtrace_oracle
from support.rollouts import EXAMPLES, random_rollout
from support.versions import enable_x64

import gae_jax
from gae_jax import vtrace

ROLLOUT = random_rollout(0, steps=24, batch=(16,), ends=0.1, dead=0.2)
ARRAYS = {k: jnp.asarray(x) for k, x in ROLLOUT.arguments().items() if isinstance(x, np.ndarray)}
ARRAYS |= {"log_rhos": jnp.sin(ARRAYS["rewards"])}
SPLIT = ARRAYS | {"values": ARRAYS["values"][:-1], "bootstrap_value": ARRAYS["values"][-1]}
CLIPS = {"equal clips": {}, "different clips": {"clip_c": 0.5}}


def estimate(arrays, **how):
    return vtrace(**arrays, gamma=0.9, lambda_=0.8, **how)


def wanted(clips):
    return vtrace_oracle(**{k: np.asarray(x) for k, x in ARRAYS.items()}, gamma=0.9, lambda_=0.8, **clips)


@pytest.mark.parametrize(
    "law",
    [
        estimator_laws.vtrace_matches_oracle,
        estimator_laws.vtrace_on_policy_is_gae,
        estimator_laws.unused_entries_affect_nothing,
    ],
    ids=lambda law: law.__name__,
)
@pytest.mark.usefixtures("fast_compilation")
def test_law(law):
    for rollout in EXAMPLES[1::8]:
        law(gae_jax, rollout)


def test_gamma_and_lambda_by_worker_and_two_batch_axes():
    rollout = random_rollout(1, steps=5, batch=(2, 2), gamma="worker", lambda_="worker", dead=0.2)
    estimator_laws.vtrace_on_policy_is_gae(gae_jax, rollout)


@pytest.mark.slow
@pytest.mark.parametrize("clips", CLIPS.values(), ids=CLIPS)
def test_vmap_and_another_axis_of_time(clips):
    fn = functools.partial(estimate, **clips)
    workers = {k: x.ndim - 1 for k, x in SPLIT.items()}
    assert_close(jax.vmap(fn, in_axes=(workers,), out_axes=1)(SPLIT), wanted(clips))
    turned = fn({k: x.T for k, x in SPLIT.items()}, time_axis=1)
    assert_close([x.T for x in turned], wanted(clips))


@pytest.mark.slow
@pytest.mark.parametrize("clips", CLIPS.values(), ids=CLIPS)
def test_blocked(clips):
    program = jax.jit(functools.partial(estimate, implementation="blocked", **clips)).lower(SPLIT).compile()
    assert_close(program(SPLIT), wanted(clips))
    assert " while(" not in program.as_text()


def test_narrow_floats_in_and_out():
    narrow = {k: x.astype(jnp.float16) if x.dtype == jnp.float32 else x for k, x in SPLIT.items()}
    assert all(x.dtype == jnp.float16 for x in estimate(narrow))


@pytest.mark.slow
@pytest.mark.parametrize("clips", CLIPS.values(), ids=CLIPS)
@pytest.mark.usefixtures("fast_compilation")
def test_derivatives(clips):
    """With respect to rewards, values and log ratios, away from the kinks at the clips."""
    with enable_x64(True):
        wide = {k: jnp.asarray(np.asarray(x[:6, :2], np.float64)) for k, x in ARRAYS.items() if x.dtype == jnp.float32}
        wide["values"] = jnp.asarray(np.asarray(ARRAYS["values"][:7, :2], np.float64))
        flags = {k: x[:6, :2] for k, x in ARRAYS.items() if x.dtype == bool}
        check_grads(jax.jit(lambda x: estimate(x | flags, **clips)), (wide,), order=1)


@pytest.mark.parametrize(
    "kind", [AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.versions)], ids=lambda kind: kind.name
)
@pytest.mark.parametrize("clips", CLIPS.values(), ids=CLIPS)
def test_workers_split_over_devices(clips, kind):
    mesh = make_mesh(kind, workers=8)
    specs = {k: P(*[None] * (x.ndim - 1), "workers") for k, x in SPLIT.items()}
    split = {k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in SPLIT.items()}
    program = jax.jit(functools.partial(estimate, **clips)).lower(split).compile()
    assert_close(program(split), wanted(clips))
    assert collectives(program) == {}


@pytest.mark.parametrize(
    ("lambda_", "clips"),
    [(1.0, {}), (0.9, {"clip_rho": 2.0, "clip_pg_rho": 1.5}), (0.9, {"clip_rho": 0.5, "clip_pg_rho": 0.7})],
)
def test_matches_rlax(lambda_, clips):
    """The estimator of rlax clips c at 1, and has neither truncation nor a mask."""
    try:
        one_worker = peers.load("rlax").vtrace_td_error_and_advantage
    except ImportError as error:
        pytest.skip(f"cannot be imported: {error}")
    rewards, values, ends, log_rhos = (ARRAYS[k] for k in ("rewards", "values", "terminated", "log_rhos"))
    how = {"clip_rho_threshold": clips.get("clip_rho", 1.0), "clip_pg_rho_threshold": clips.get("clip_pg_rho", 1.0)}
    with peers.as_peers_want():
        theirs = jax.vmap(
            lambda v, v_next, r, discount, log_rho: one_worker(
                v, v_next, r, discount, jnp.exp(log_rho), lambda_, **how
            ),
            1,
            1,
        )(values[:-1], values[1:], rewards, 0.9 * (1 - ends), log_rhos)
    ours = vtrace(rewards, values, ends, log_rhos=log_rhos, gamma=0.9, lambda_=lambda_, **clips)
    assert_close(ours, [np.asarray(theirs.pg_advantage), np.asarray(values[:-1] + theirs.errors)])


@pytest.mark.parametrize("clip_c", [1.0, 0.5])
def test_extreme_ratios(clip_c):
    """Actions that one of the two policies almost never takes."""
    log_rhos = jnp.array([-jnp.inf, -1e30, 1e30, 300.0])
    rewards, values, flags = jnp.ones(4), jnp.ones(5), jnp.zeros(4, bool)

    def advantages(log_rhos):
        return vtrace(rewards, values, flags, log_rhos=log_rhos, gamma=0.9, clip_c=clip_c).advantages

    output = vtrace(rewards, values, flags, log_rhos=log_rhos, gamma=0.9, clip_c=clip_c)
    assert np.isfinite(output).all()
    np.testing.assert_array_equal(output.targets[:2], 1)
    gradient = jax.grad(lambda x: jnp.sum(advantages(x)))
    assert np.isfinite(gradient(jnp.array([-300.0, -1e30, 1e30, 300.0]))).all()


T, N = 5, 3
GOOD: dict[str, Any] = {
    "rewards": np.zeros((T, N), np.float32),
    "values": np.zeros((T + 1, N), np.float32),
    "terminated": np.zeros((T, N), bool),
    "log_rhos": np.zeros((T, N), np.float32),
    "gamma": 0.99,
}


@pytest.mark.versions
@pytest.mark.parametrize("name", ["clip_rho", "clip_c", "clip_pg_rho"])
def test_bad_clip(name):
    def call(x: Any):
        return vtrace(**(GOOD | {name: x}))

    for x in (None, "1", 1j, [1.0], True, np.complex64(1), np.array("1")):
        with pytest.raises(TypeError, match=rf"`{name}` must be a number; got"):
            call(x)
    for x in (0.0, -1, 1e-60, math.nan, np.float32(-1), jnp.array(-1.0), np.array(-1.0)):
        with pytest.raises(ValueError, match=rf"`{name}` must be at least 1\.2e-38; got"):
            call(x)
    with pytest.raises(ValueError, match=rf"`{name}` must be one number; got shape \(3,\)"):
        call(np.zeros(N))
    for x in (1e-30, 2, 2**40, 1e39, 10**400, math.inf, np.float64(1), jnp.array(1.0)):
        assert np.isfinite(call(x)).all()
    assert np.isfinite(jax.jit(call)(1.0)).all()


@pytest.mark.versions
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"implementation": "pallas"}, NotImplementedError, "implementation='pallas' is for TPUs"),
        ({"log_rhos": None}, TypeError, r"`log_rhos` must be an array of numbers; got NoneType"),
        ({"log_rhos": np.ones((T, 1))}, ValueError, r"`log_rhos` must have shape \(5, 3\).*got \(5, 1\)"),
        ({"values": np.ones((T, N))}, ValueError, r"`values` must have shape \(6, 3\)"),
        ({"implementation": "cuda"}, ValueError, r"`implementation` must be None or one of"),
    ],
)
def test_bad_argument(change, error, message):
    with pytest.raises(error, match=message):
        vtrace(**(GOOD | change))
