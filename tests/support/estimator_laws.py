"""What must hold of the estimators beside `gae`: functions of the library, or of a mutant of it, and a rollout."""

import jax
import jax.numpy as jnp
import numpy as np

from support.laws import assert_close
from support.oracle import oracle, vtrace_oracle


def with_log_rhos(rollout):
    """The arguments of `vtrace`."""
    log_rhos = np.random.default_rng(1).normal(size=rollout.rewards.shape).astype(np.float32)
    return rollout.arguments() | {"log_rhos": log_rhos}


def n_steps_are_a_sum_of_n_deltas(lib, rollout):
    """For n below, at and beyond the length of the rollout."""
    arguments = rollout.arguments() | {"lambda_": 1.0}
    without = {k: x for k, x in arguments.items() if k != "lambda_"}
    for n in (1, 2, 4, rollout.steps + 3):
        assert_close([lib.n_step_advantages(**without, n=n)], [oracle(**arguments, n=n)[0]])


def gae_is_their_weighted_average(lib, rollout):
    """(1 - lambda) lambda^(n-1) of each, and the weight of the tail on the longest."""
    rollout = rollout.replace(lambda_=0.7)
    without = {k: x for k, x in rollout.arguments().items() if k != "lambda_"}
    longest = rollout.steps
    weights = [0.3 * 0.7 ** (n - 1) for n in range(1, longest)] + [0.7 ** (longest - 1)]
    average = sum(w * lib.n_step_advantages(**without, n=n + 1) for n, w in enumerate(weights))
    assert_close([average], [oracle(**rollout.arguments())[0]])


def vtrace_is_its_definition(lib, rollout):
    """Equation 1 of the paper, with clips alike, and all different."""
    arguments = with_log_rhos(rollout)
    for clips in ({}, {"clip_rho": 2.0, "clip_c": 0.8, "clip_pg_rho": 1.5}, {"clip_rho": 0.7, "clip_c": 1.5}):
        assert_close(lib.vtrace(**arguments, **clips), vtrace_oracle(**arguments, **clips))


def on_policy_vtrace_is_gae(lib, rollout):
    """With every ratio 1, and no clip below it."""
    arguments = rollout.arguments() | {"log_rhos": np.zeros_like(rollout.rewards)}
    for clips in ({}, {"clip_rho": 2.0, "clip_c": 3.0, "clip_pg_rho": 4.0}):
        assert_close(lib.vtrace(**arguments, **clips), oracle(**rollout.arguments()))


def nothing_dead_leaks(lib, rollout):
    """Masked rows and final values that are not read may be NaN: no result changes, nor a gradient."""
    arguments = with_log_rhos(rollout.replace(gamma=0.9, lambda_=0.8))
    poisoned = dict(arguments)
    live = rollout.live
    for name in ("rewards", "log_rhos"):
        poisoned[name] = np.where(live, arguments[name], np.nan)
    last_value = np.array(rollout.values[-1])
    ends = rollout.terminated if rollout.truncated is None else rollout.terminated | rollout.truncated
    for worker in np.ndindex(last_value.shape):
        rows = np.flatnonzero(live[(slice(None), *worker)])
        if not rows.size or ends[(rows[-1], *worker)]:
            last_value[worker] = np.nan
    poisoned["values"] = np.concatenate([np.where(live, rollout.values[:-1], np.nan), last_value[None]])
    if rollout.final_values is not None:
        is_read = live & rollout.truncated & ~rollout.terminated
        poisoned["final_values"] = np.where(is_read, rollout.final_values, np.nan)

    def results(arguments, rewards, values, **clips):
        arguments = arguments | {"rewards": rewards, "values": values}
        shared = {k: x for k, x in arguments.items() if k not in ("lambda_", "log_rhos")}
        advantages, targets = lib.vtrace(**arguments, **clips)
        return advantages, jnp.where(live, targets, 0), lib.n_step_advantages(**shared, n=3)

    gradient = jax.grad(lambda *x, **how: sum(jnp.sum(jnp.sin(y)) for y in results(*x, **how)), (1, 2))
    for clips, functions in (({}, 1), ({"clip_rho": 2.0}, 2)):
        for fn in (results, gradient)[:functions]:
            got, want = (
                fn(x, jnp.asarray(x["rewards"]), jnp.asarray(x["values"]), **clips) for x in (poisoned, arguments)
            )
            jax.tree.map(np.testing.assert_array_equal, got, want)


LAWS = (
    n_steps_are_a_sum_of_n_deltas,
    gae_is_their_weighted_average,
    vtrace_is_its_definition,
    on_policy_vtrace_is_gae,
    nothing_dead_leaks,
)
