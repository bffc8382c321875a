"""What must hold of Generalized Advantage Estimation, whoever computes it.

A law takes the library, or a mutant of it, and a rollout, and raises an AssertionError where the library breaks it.
test_laws.py holds the library to every law on hypothesis' rollouts; test_mutants.py holds every law to what it is for:
that code which is subtly wrong does not pass it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from support.oracle import oracle
from support.rollouts import FLAGS, PARAMETERS, Rollout


class Library(NamedTuple):
    """What a law asks of a library."""

    gae: Callable[..., Any]


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
    rollout = rollout.replace(lambda_=0.0, mask=None)
    values, next_values = rollout.values[:-1].astype(np.float64), rollout.values[1:].astype(np.float64)
    if rollout.final_values is not None:
        next_values = np.where(rollout.truncated, rollout.final_values, next_values)
    next_values[rollout.terminated] = 0
    deltas = rollout.rewards + rollout.full(rollout.gamma) * next_values - values
    deltas[rollout.dropped] = 0
    assert_close(lib.gae(**rollout.arguments()), (deltas, deltas + values))


def lambda_1_is_monte_carlo(lib, rollout):
    """The target is the discounted sum of the rewards to the end of the episode and of the value that is left there."""
    rollout = rollout.replace(lambda_=1.0, mask=None)
    if rollout.final_values is None:
        rollout = rollout.replace(truncated=None)
    gamma = rollout.full(rollout.gamma)
    returns = np.zeros(rollout.rewards.shape)
    for t in range(rollout.steps):
        discount = np.ones(rollout.rewards.shape[1:])  # 0 once the episode is over
        for k in range(t, rollout.steps):
            returns[t] += discount * rollout.rewards[k]
            discount = discount * gamma[k] * ~rollout.terminated[k]
            if rollout.truncated is not None:
                returns[t] += discount * rollout.truncated[k] * rollout.final_values[k]
                discount = discount * ~rollout.truncated[k]
        returns[t] += discount * rollout.values[-1]
    assert_close(lib.gae(**rollout.arguments()), (returns - rollout.values[:-1], returns))


def a_cut_rollout_equals_the_uncut_one(lib, rollout):
    """The earlier piece needs to know of the later one only V + lambda A of its first live row: its bootstrap value."""
    whole = lib.gae(**rollout.arguments())
    lambda_ = rollout.full(rollout.lambda_)
    for k in range(1, rollout.steps):
        late = lib.gae(**rollout.rows(k, rollout.steps).arguments())
        last_value = np.array(rollout.values[-1])
        for worker in np.ndindex(last_value.shape):
            before, after = np.split(rollout.live[(slice(None), *worker)], [k])
            if before.any() and after.any():
                mixed = lambda_[(np.flatnonzero(before)[-1], *worker)]
                first = (np.flatnonzero(after)[0], *worker)
                last_value[worker] = rollout.values[k:][first] + mixed * late.advantages[first]
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


def a_masked_row_is_as_if_it_were_not_there(lib, rollout):
    """Each worker's live rows alone give the same; a dead row has advantage 0 and for target its value."""
    whole = lib.gae(**rollout.arguments())
    np.testing.assert_array_equal(whole.advantages[~rollout.live], 0)
    np.testing.assert_array_equal(whole.targets[~rollout.live], rollout.values[:-1][~rollout.live])
    for worker in np.ndindex(rollout.rewards.shape[1:]):
        pick = (slice(None), *worker)
        live = np.flatnonzero(rollout.live[pick])
        if live.size:
            one = rollout.map_arrays(lambda x, pick=pick, live=live: x[pick][live])
            one = one.replace(mask=None, values=rollout.values[pick][[*live, -1]])
            assert_close(lib.gae(**one.arguments()), [x[pick][live] for x in whole], rtol=1e-6)


def parameters_broadcast(lib, rollout):
    """A number for all, or one per worker or per step, is the same as an array that says it for every row."""
    written_out = rollout.replace(**{name: rollout.full(getattr(rollout, name)) for name in PARAMETERS})
    assert_close(lib.gae(**rollout.arguments()), lib.gae(**written_out.arguments()), rtol=1e-6)


def the_time_axis_may_be_any(lib, rollout):
    """Wherever time is, the result is the same and lies the same way."""
    whole = lib.gae(**rollout.arguments())
    for axis in range(-1, rollout.rewards.ndim):
        moved = rollout.map_arrays(lambda x, axis=axis: np.moveaxis(x, 0, axis))
        output = lib.gae(**moved.arguments(), time_axis=axis)
        assert_close(output, [np.moveaxis(x, 0, axis) for x in whole], rtol=1e-6)


def terminated_wins(lib, rollout):
    """Where both flags are set, it is as if truncated were not."""
    if rollout.truncated is not None:
        only_one = rollout.replace(truncated=rollout.truncated & ~rollout.terminated)
        assert_close(lib.gae(**rollout.arguments()), lib.gae(**only_one.arguments()), rtol=0)


def nothing_dead_leaks(lib, rollout: Rollout):
    """What no formula reads may be NaN or infinite: no result changes, nor any gradient."""
    rollout = rollout.replace(**{name: np.array(rollout.full(getattr(rollout, name))) for name in PARAMETERS})
    live, ends = rollout.live, rollout.terminated
    if rollout.final_values is not None:
        ends = ends | rollout.truncated
    nobody_reads_the_last_value = np.ones(rollout.rewards.shape[1:], bool)
    for t in range(rollout.steps):
        nobody_reads_the_last_value = np.where(live[t], ends[t] | rollout.dropped[t], nobody_reads_the_last_value)
    finals = rollout.final_values
    dead_finals = True if rollout.truncated is None else ~(live & rollout.truncated & ~rollout.terminated)
    for poison in (np.float32(np.nan), np.float32(np.inf)):
        poisoned = rollout.replace(
            rewards=np.where(live & ~rollout.dropped, rollout.rewards, poison),
            gamma=np.where(live, rollout.gamma, poison),
            lambda_=np.where(live, rollout.lambda_, poison),
            final_values=None if finals is None else np.where(dead_finals, poison, finals),
            values=np.where(np.stack([*~live, nobody_reads_the_last_value]), poison, rollout.values),
        )
        got, want = lib.gae(**poisoned.arguments()), lib.gae(**rollout.arguments())
        np.testing.assert_array_equal(got.advantages, want.advantages)
        np.testing.assert_array_equal(got.targets, np.where(live, want.targets, 0))
        weights = 1 + np.arange(rollout.rewards.size, dtype=np.float32).reshape(rollout.rewards.shape)
        got, want = (gradient(lib)(inputs_of(x), flags_of(x), weights, weights * live) for x in (poisoned, rollout))
        jax.tree.map(np.testing.assert_array_equal, got, want)


def gradients_are_those_of_the_definition(lib, rollout):
    """A_t and its target are linear in the rewards, so the oracle's answer to a unit reward is the derivative."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2, *rollout.rewards.shape)).astype(np.float32)
    base = oracle(**rollout.arguments())
    want = np.zeros(rollout.rewards.shape)
    for k in range(rollout.steps):
        unit = np.zeros(rollout.rewards.shape)
        unit[k] = 1
        answer = oracle(**rollout.replace(rewards=rollout.rewards + unit).arguments())
        want[k] = sum((w * (a - b)).sum(0) for w, a, b in zip(weights, answer, base, strict=True))
    assert_close([gradient(lib)(inputs_of(rollout), flags_of(rollout), *weights)["rewards"]], [want])


@functools.cache
def gradient(lib):
    """The gradient of the weighted sum of both outputs, with respect to every floating-point input."""

    def loss(inputs, flags, of_advantages, of_targets):
        output = lib.gae(**inputs, **flags)
        return jnp.sum(of_advantages * output.advantages) + jnp.sum(of_targets * output.targets)

    return jax.jit(jax.grad(loss))


def inputs_of(rollout):
    return {k: jnp.asarray(x, jnp.float32) for k, x in rollout.arguments().items() if k not in FLAGS and x is not None}


def flags_of(rollout):
    return {k: x for k, x in rollout.arguments().items() if k in FLAGS}


LAWS = (
    matches_oracle,
    bootstrap_value_is_the_last_value,
    lambda_0_is_delta,
    lambda_1_is_monte_carlo,
    a_cut_rollout_equals_the_uncut_one,
    a_batch_equals_its_workers,
    a_masked_row_is_as_if_it_were_not_there,
    parameters_broadcast,
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
