"""The laws of `n_step_advantages` and `vtrace`, as functions of a library, or a mutant of it, and a rollout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from support.laws import assert_close
from support.mutants import Mutant
from support.oracle import oracle, vtrace_oracle


def with_log_rhos(rollout):
    """Returns the arguments of `vtrace`."""
    log_rhos = np.random.default_rng(1).normal(size=rollout.rewards.shape).astype(np.float32)
    return rollout.arguments() | {"log_rhos": log_rhos}


def without_lambda(arguments):
    """Returns the arguments of `n_step_advantages`."""
    return {name: x for name, x in arguments.items() if name not in ("lambda_", "log_rhos")}


def n_steps_match_oracle(lib, rollout):
    """The sum of n TD errors, for n below, at and above the number of steps."""
    arguments = rollout.arguments() | {"lambda_": 1.0}
    for n in (1, 2, 4, rollout.steps + 3):
        assert_close([lib.n_step_advantages(**without_lambda(arguments), n=n)], [oracle(**arguments, n=n)[0]])


def gae_is_the_weighted_average_of_n_steps(lib, rollout):
    """The weight of A^(n) is (1 - lambda) lambda^(n-1); the longest has the weight of the tail."""
    rollout = rollout.replace(lambda_=0.7)
    longest = rollout.steps
    weights = [0.3 * 0.7 ** (n - 1) for n in range(1, longest)] + [0.7 ** (longest - 1)]
    n_steps = functools.partial(lib.n_step_advantages, **without_lambda(rollout.arguments()))
    average = sum(w * n_steps(n=n + 1) for n, w in enumerate(weights))
    assert_close([average], [oracle(**rollout.arguments())[0]])


def vtrace_matches_oracle(lib, rollout):
    """Equation 1 of the paper, with equal clips and with different ones."""
    arguments = with_log_rhos(rollout)
    for clips in ({}, {"clip_rho": 2.0, "clip_c": 0.8, "clip_pg_rho": 1.5}, {"clip_rho": 0.7, "clip_c": 1.5}):
        assert_close(lib.vtrace(**arguments, **clips), vtrace_oracle(**arguments, **clips))


def vtrace_on_policy_is_gae(lib, rollout):
    """With all ratios 1, and no clip below 1."""
    arguments = rollout.arguments() | {"log_rhos": np.zeros_like(rollout.rewards)}
    for clips in ({}, {"clip_rho": 2.0, "clip_c": 3.0, "clip_pg_rho": 4.0}):
        assert_close(lib.vtrace(**arguments, **clips), oracle(**rollout.arguments()))


def unused_entries_affect_nothing(lib, rollout):
    """Masked rows, unread final values and unread bootstrap values may be NaN: no output and no gradient changes."""
    rollout = rollout.replace(gamma=0.9, lambda_=0.8)
    live, arguments = rollout.live, with_log_rhos(rollout)
    poisoned = arguments | {name: np.where(live, arguments[name], np.nan) for name in ("rewards", "log_rhos")}
    last_value = np.where(reads_last_value(rollout), rollout.values[-1], np.nan)
    poisoned["values"] = np.concatenate([np.where(live, rollout.values[:-1], np.nan), last_value[None]])
    if rollout.final_values is not None:
        is_read = live & rollout.truncated & ~rollout.terminated
        poisoned["final_values"] = np.where(is_read, rollout.final_values, np.nan)

    def results(rewards, values, arguments, **clips):
        arguments = arguments | {"rewards": rewards, "values": values}
        advantages, targets = lib.vtrace(**arguments, **clips)
        n_steps = lib.n_step_advantages(**without_lambda(arguments), n=3)
        return advantages, targets, n_steps

    def loss(*arguments, **clips):
        return sum(jnp.sum(jnp.where(live, jnp.sin(y), 0)) for y in results(*arguments, **clips))

    gradient = jax.grad(loss, (0, 1))
    for clips, functions in (({}, (results, gradient)), ({"clip_rho": 2.0}, (results,))):
        for fn in functions:
            jitted = jax.jit(functools.partial(fn, **clips))
            got, want = (jitted(x["rewards"], x["values"], x) for x in (poisoned, arguments))
            if fn is results:  # the target of a masked row is its value, and 0 for NaN
                want = want[0], np.where(live, want[1], 0), want[2]
            jax.tree.map(np.testing.assert_array_equal, got, want)


def reads_last_value(rollout):
    """Returns whether the last unmasked row of each worker continues its episode."""
    ends = rollout.terminated if rollout.truncated is None else rollout.terminated | rollout.truncated
    continues = np.zeros(rollout.rewards.shape[1:], bool)
    for t in range(rollout.steps):
        continues = np.where(rollout.live[t], ~ends[t], continues)
    return continues


# Mistakes in the package, and the laws that must detect them.
MUTANTS = {
    n_steps_match_oracle: (
        Mutant("one step too few", "_n_step.py", "fori_loop(0, n,", "fori_loop(1, n,"),
        Mutant(
            "masked rows count",
            "_n_step.py",
            "jnp.where(mask, steps, len(mask))",
            "jnp.broadcast_to(steps, mask.shape)",
        ),
    ),
    gae_is_the_weighted_average_of_n_steps: (
        Mutant("V(s_{T-1}) for V(s_T)", "_n_step.py", "rollout.bootstrap_value[None]", "rollout.values[-1:]"),
    ),
    vtrace_matches_oracle: (
        Mutant("rho is not clipped", "_vtrace.py", "jnp.exp(log_rho_clipped), ", "jnp.exp(log_rho), "),
        Mutant("c of its own row", "_vtrace.py", "before(rollout._replace(lambda_=c_over_rho))", "c_over_rho"),
    ),
    vtrace_on_policy_is_gae: (
        Mutant("bootstraps from vs", "_vtrace.py", "lambda_before * (targets - value)", "(targets - value)"),
    ),
    unused_entries_affect_nothing: (
        Mutant("log ratio of a masked row", "_vtrace.py", "unmasked(rollout.log_rhos)", "rollout.log_rhos"),
    ),
}

LAWS = tuple(MUTANTS)
