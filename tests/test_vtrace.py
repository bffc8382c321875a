"""`vtrace`: its laws, beside rlax, with extreme ratios, and its errors."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from support import estimator_laws, peers
from support.estimators import GOOD, N, T, zeros
from support.laws import assert_close, matches_oracle
from support.oracle import oracle, vtrace_oracle
from support.rollouts import EXAMPLES, random_rollout
from support.versions import enable_x64

import gae_jax
from gae_jax import vtrace

pytestmark = pytest.mark.usefixtures("fast_compilation")
ROLLOUT = random_rollout(0, steps=24, batch=(16,), ends=0.1, masked_share=0.2)
ARRAYS = {k: jnp.asarray(x) for k, x in ROLLOUT.arguments().items() if isinstance(x, np.ndarray)}
ARRAYS |= {"log_rhos": jnp.sin(ARRAYS["rewards"])}


@pytest.mark.parametrize("name", ["vtrace", "vtrace with unequal clips"])
@pytest.mark.parametrize("law", estimator_laws.LAWS_OF_ALL, ids=lambda law: law.__name__)
def test_law(law, name):
    estimator, reference = estimator_laws.ESTIMATORS[name]
    estimate = estimator(gae_jax)
    for rollout in EXAMPLES[::8]:
        law(estimate, rollout, reference)


@pytest.mark.parametrize("clips", [{}, {"clip_rho": 2.0, "clip_c": 3.0, "clip_pg_rho": 4.0}], ids=str)
def test_on_policy_is_gae(clips):
    """With all ratios 1, and no clip below 1; with gamma and lambda by worker, and two batch axes."""
    rollout = random_rollout(1, steps=5, batch=(2, 2), gamma="worker", lambda_="worker", masked_share=0.2)
    output = vtrace(**rollout.arguments(), log_rhos=np.zeros_like(rollout.rewards), **clips)
    assert_close(output, oracle(**rollout.arguments()))


def test_c_clipped_above_rho():
    clips = {"clip_rho": 0.7, "clip_c": 1.5}
    estimate, reference = estimator_laws.vtrace_of(gae_jax, **clips), estimator_laws.vtrace_reference(clips)
    matches_oracle(estimate, EXAMPLES[0], reference)


@pytest.mark.slow
@pytest.mark.parametrize("clips", [{}, {"clip_c": 0.5}], ids=str)
def test_blocked(clips):
    how = {"gamma": 0.9, "lambda_": 0.8} | clips
    program = jax.jit(functools.partial(vtrace, implementation="blocked", **how)).lower(**ARRAYS).compile()
    assert_close(program(**ARRAYS), vtrace_oracle(**{k: np.asarray(x) for k, x in ARRAYS.items()}, **how))
    assert " while(" not in str(program.as_text())


@pytest.mark.slow
@pytest.mark.parametrize("clips", [{}, {"clip_c": 0.5}], ids=str)
def test_derivatives(clips):
    """With respect to all arguments that are no flags, away from the kinks at the clips."""
    with enable_x64(True):
        arrays = {k: np.asarray(x[: 7 if k == "values" else 6, :2]) for k, x in ARRAYS.items()}
        flags = {k: x for k, x in arrays.items() if x.dtype == bool}
        numbers = arrays | {"gamma": 0.9, "lambda_": 0.8}
        wide = {k: jnp.asarray(np.float64(x)) for k, x in numbers.items() if k not in flags}
        check_grads(jax.jit(lambda x: vtrace(**x, **flags, **clips)), (wide,), order=1)


@pytest.mark.parametrize(
    ("lambda_", "clips"),
    [(1.0, {}), (0.9, {"clip_rho": 2.0, "clip_pg_rho": 1.5}), (0.9, {"clip_rho": 0.5, "clip_pg_rho": 0.7})],
)
def test_matches_rlax(lambda_, clips):
    """The estimator of rlax clips c at 1, and has neither truncation nor a mask."""
    with peers.skip_import_errors():
        one_worker = peers.load("rlax").vtrace_td_error_and_advantage
    rewards, values, ends, log_rhos = (ARRAYS[k] for k in ("rewards", "values", "terminated", "log_rhos"))
    how = {"clip_rho_threshold": clips.get("clip_rho", 1.0), "clip_pg_rho_threshold": clips.get("clip_pg_rho", 1.0)}
    with peers.as_peers_want():
        arrays = values[:-1], values[1:], rewards, 0.9 * (1 - ends), jnp.exp(log_rhos)
        theirs = jax.vmap(lambda *rows: one_worker(*rows, lambda_, **how), 1, 1)(*arrays)
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


LOG_RHOS: dict[str, Any] = {"log_rhos": zeros(T, N)}


@pytest.mark.versions
@pytest.mark.parametrize("name", ["clip_rho", "clip_c", "clip_pg_rho"])
def test_bad_clip(name):
    def call(x: Any):
        return vtrace(**GOOD | LOG_RHOS | {name: x})

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
        ({"implementation": "cuda"}, ValueError, r"`implementation` must be None or one of"),
    ],
)
def test_bad_argument(change, error, message):
    with pytest.raises(error, match=message):
        vtrace(**GOOD | LOG_RHOS | change)
