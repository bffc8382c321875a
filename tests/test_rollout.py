"""The arguments in canonical form: what a call depends on, and what a number that is not finite reaches."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.rollouts import random_rollout

import gae_jax
from gae_jax import gae, n_step_advantages

T, N = 12, 4
# Episodes end in rows 3 and 7 of every worker, by termination or truncation.
ENDS = np.broadcast_to(np.isin(np.arange(T), (3, 7))[:, None], (T, N))
ROLLOUT = random_rollout(0, steps=T, batch=(N,), gamma="both", lambda_="both").replace(
    terminated=ENDS & (np.arange(N) % 2 == 0), truncated=ENDS & (np.arange(N) % 2 == 1)
)


@pytest.mark.parametrize("parameter", [None, "gamma", "lambda_"])
@pytest.mark.parametrize("implementation", ["scan", "blocked"])
@pytest.mark.parametrize("estimator", ["gae", "vtrace", "n_step_advantages"])
def test_a_number_that_is_not_finite_stays_within_its_episode(estimator, implementation, parameter):
    """Also where gamma or lambda_ is 0, where the implementations differ in which rows of the episode it reaches."""
    rollout = ROLLOUT if parameter is None else ROLLOUT.replace(**{parameter: np.zeros((T, N), np.float32)})

    def results(rollout):
        arguments = rollout.arguments()
        if estimator == "n_step_advantages":
            del arguments["lambda_"]
            return (n_step_advantages(**arguments, n=5),)
        if estimator == "vtrace":
            arguments["log_rhos"] = np.sin(ROLLOUT.rewards)
        return getattr(gae_jax, estimator)(**arguments, implementation=implementation)

    want = results(rollout)
    for name in ("rewards", "values", "final_values"):
        for x in (np.nan, np.inf):
            bad = getattr(rollout, name).copy()
            bad[7 if name == "final_values" else 5] = x
            other_episodes = np.r_[0:4, 8:T]
            for g, w in zip(results(rollout.replace(**{name: bad})), want, strict=True):
                np.testing.assert_array_equal(g[other_episodes], w[other_episodes])


def count_traces(monkeypatch, module):
    """Returns a list that grows by one item whenever an estimator of the module is traced."""
    traced, canonical = [], importlib.import_module(module).canonical
    monkeypatch.setattr(f"{module}.canonical", lambda *x: traced.append(1) or canonical(*x))
    return traced


def test_n_beyond_the_rollout_compiles_once(monkeypatch):
    traced = count_traces(monkeypatch, "gae_jax._n_step")
    arguments = random_rollout(1, steps=7, batch=(5,)).arguments()
    del arguments["lambda_"]
    numbers: tuple[Any, ...] = (200, 100, np.int64(7), jnp.array(8))
    for n in numbers:
        n_step_advantages(**arguments, n=n)
    assert len(traced) == 1


@pytest.mark.parametrize("estimator", ["gae", "vtrace"])
def test_time_axis_counted_from_either_end_compiles_once(estimator, monkeypatch):
    traced = count_traces(monkeypatch, f"gae_jax._{estimator}")
    arguments = random_rollout(1, steps=5, batch=(3,)).map_arrays(np.transpose).arguments()
    if estimator == "vtrace":
        arguments["log_rhos"] = np.zeros((3, 5), np.float32)
    for time_axis in (1, -1):
        getattr(gae_jax, estimator)(**arguments, time_axis=time_axis)
    assert len(traced) == 1


def test_float64_arrays_give_float64_under_x64_only():
    arrays = {k: np.asarray(x, np.float64) for k, x in ROLLOUT.arguments().items() if k in ("rewards", "values")}
    arguments = ROLLOUT.replace(**arrays, final_values=None, gamma=0.9, lambda_=0.8).arguments()
    assert gae(**arguments).advantages.dtype == jnp.float32
    with jax.enable_x64(True):
        assert gae(**arguments).advantages.dtype == jnp.float64
