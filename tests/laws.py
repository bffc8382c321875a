"""What must hold of Generalized Advantage Estimation, whoever computes it.

A law takes the library, or a mutant of it, and a rollout, and raises an AssertionError where the library breaks it.
test_laws.py holds the library to every law on hypothesis' rollouts; test_mutants.py holds every law to what it is for:
that code which is subtly wrong does not pass it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from oracle import oracle


def matches_oracle(lib, rollout):
    """The sum over every later delta, episode by episode, in float64."""
    assert_close(lib.gae(**rollout.arguments()), oracle(**rollout.arguments()))


def bootstrap_value_is_the_last_value(lib, rollout):
    """Both forms of `values` say the same."""
    values, last_value = rollout.values[:-1], rollout.values[-1]
    split = lib.gae(**rollout.replace(values=values).arguments(), bootstrap_value=last_value)
    assert_close(split, lib.gae(**rollout.arguments()), rtol=0)


def lambda_0_is_delta(lib, rollout):
    """A = r + gamma V(s') - V, where V(s') is known from the flags of the same row."""
    rollout = rollout.replace(lambda_=0.0)
    values, next_values = rollout.values[:-1].astype(np.float64), rollout.values[1:].astype(np.float64)
    if rollout.final_values is not None:
        next_values = np.where(rollout.truncated, rollout.final_values, next_values)
    next_values[rollout.terminated] = 0
    deltas = rollout.rewards + rollout.gamma * next_values - values
    if rollout.truncated is not None and rollout.final_values is None:
        deltas[rollout.truncated & ~rollout.terminated] = 0
    assert_close(lib.gae(**rollout.arguments()), (deltas, deltas + values))


def lambda_1_is_monte_carlo(lib, rollout):
    """The target is the discounted sum of the rewards to the end of the episode and of the value that is left there."""
    rollout = rollout.replace(lambda_=1.0)
    if rollout.truncated is not None and rollout.final_values is None:
        rollout = rollout.replace(truncated=None)
    returns = np.zeros(rollout.rewards.shape)
    for t in range(rollout.steps):
        alive = np.ones(rollout.rewards.shape[1:], bool)
        for k in range(t, rollout.steps):
            discount = rollout.gamma ** (k - t)
            returns[t] += alive * discount * rollout.rewards[k]
            if rollout.truncated is not None:
                cut = alive & rollout.truncated[k] & ~rollout.terminated[k]
                returns[t] += cut * discount * rollout.gamma * rollout.final_values[k]
                alive &= ~rollout.truncated[k]
            alive &= ~rollout.terminated[k]
        returns[t] += alive * rollout.gamma ** (rollout.steps - t) * rollout.values[-1]
    assert_close(lib.gae(**rollout.arguments()), (returns - rollout.values[:-1], returns))


def a_cut_rollout_equals_the_uncut_one(lib, rollout):
    """The earlier piece needs to know of the later one only V_k + lambda A_k, as its bootstrap value."""
    whole = lib.gae(**rollout.arguments())
    for k in range(1, rollout.steps):
        late = lib.gae(**rollout.rows(k, rollout.steps).arguments())
        last_value = rollout.values[k] + np.float32(rollout.lambda_) * np.asarray(late.advantages[0])
        early = rollout.rows(0, k)
        early = early.replace(values=np.concatenate([early.values[:-1], last_value[None]]))
        early = lib.gae(**early.arguments())
        assert_close([np.concatenate(pieces) for pieces in zip(early, late, strict=True)], whole)


def a_batch_equals_its_workers(lib, rollout):
    """Workers one by one, each as a single trajectory [T]."""
    whole = lib.gae(**rollout.arguments())
    for worker in np.ndindex(rollout.rewards.shape[1:]):
        pick = (slice(None), *worker)
        alone = lib.gae(**rollout.map_arrays(lambda x, pick=pick: x[pick]).arguments())
        assert_close(alone, [x[pick] for x in whole], rtol=1e-6)


def the_time_axis_may_be_any(lib, rollout):
    """Wherever time is, the result is the same and lies the same way."""
    whole = lib.gae(**rollout.arguments())
    for axis in range(-1, rollout.rewards.ndim):
        moved = rollout.map_arrays(lambda x, axis=axis: np.moveaxis(x, 0, axis))
        output = lib.gae(**moved.arguments(), time_axis=axis)
        assert_close(output, [np.moveaxis(x, 0, axis) for x in whole], rtol=1e-6)


def terminated_wins(lib, rollout):
    """Where both flags are set, it is as if truncated were not."""
    if rollout.truncated is None:
        return
    only_one = rollout.replace(truncated=rollout.truncated & ~rollout.terminated)
    assert_close(lib.gae(**rollout.arguments()), lib.gae(**only_one.arguments()), rtol=0)


def nothing_dead_leaks(lib, rollout):
    """What no formula reads may be NaN: no result changes, nor any gradient."""
    finals, terminated = rollout.final_values, rollout.terminated
    dead_finals = None if finals is None else terminated | ~rollout.truncated
    last_is_dead = terminated[-1] if finals is None else terminated[-1] | rollout.truncated[-1]
    poisoned = rollout.replace(
        values=np.concatenate([rollout.values[:-1], np.where(last_is_dead, np.nan, rollout.values[-1:])]),
        final_values=None if finals is None else np.where(dead_finals, np.nan, finals),
    )
    assert_close(lib.gae(**poisoned.arguments()), lib.gae(**rollout.arguments()), rtol=0)
    weights = np.arange(rollout.rewards.size, dtype=np.float32).reshape(rollout.rewards.shape)
    got, want = (gradient(lib, "targets")(inputs_of(x), flags_of(x), weights) for x in (poisoned, rollout))
    jax.tree.map(np.testing.assert_array_equal, got, want)


def gradients_are_those_of_the_definition(lib, rollout):
    """dA_t / dr_k = (gamma lambda)^(k-t) within an episode, and d target_t / dr_k the same: nothing is detached."""
    if rollout.truncated is not None and rollout.final_values is None:
        rollout = rollout.replace(truncated=None)
    weights = np.random.default_rng(0).normal(size=rollout.rewards.shape)
    ends = rollout.terminated if rollout.truncated is None else rollout.terminated | rollout.truncated
    want = np.zeros_like(weights)
    for t in range(rollout.steps):
        alive = np.ones(rollout.rewards.shape[1:], bool)
        for k in range(t, rollout.steps):
            want[k] += alive * weights[t] * (rollout.gamma * rollout.lambda_) ** (k - t)
            alive &= ~ends[k]

    for output in ("advantages", "targets"):
        got = gradient(lib, output)(inputs_of(rollout), flags_of(rollout), weights.astype(np.float32))
        assert_close([got["rewards"]], [want])


@functools.cache
def gradient(lib, output):
    """The gradient of the weighted sum of an output, with respect to every floating-point input."""

    def loss(inputs, flags, weights):
        return jnp.sum(weights * getattr(lib.gae(**inputs, **flags), output))

    return jax.jit(jax.grad(loss))


def inputs_of(rollout):
    flags = flags_of(rollout)
    return {k: jnp.float32(v) for k, v in rollout.arguments().items() if k not in flags and v is not None}


def flags_of(rollout):
    return {"terminated": rollout.terminated, "truncated": rollout.truncated}


LAWS = (
    matches_oracle,
    bootstrap_value_is_the_last_value,
    lambda_0_is_delta,
    lambda_1_is_monte_carlo,
    a_cut_rollout_equals_the_uncut_one,
    a_batch_equals_its_workers,
    the_time_axis_may_be_any,
    terminated_wins,
    nothing_dead_leaks,
    gradients_are_those_of_the_definition,
)


def assert_close(got, want, rtol=1e-5):
    """Equal up to rtol, relative to the largest number there is: an advantage is a difference, and may be next to 0."""
    for g, w in zip(got, want, strict=True):
        w = np.asarray(w)
        np.testing.assert_allclose(g, w, rtol=0, atol=rtol * max(1.0, np.abs(w).max()))
