"""The laws of Generalized Advantage Estimation, as functions of a library and a rollout.

A law raises an AssertionError where the library breaks it. `test_gae.py` checks the laws on random rollouts;
`test_mutants.py` checks that each law detects the mistakes that it is there to detect.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from support.mutants import Mutant
from support.oracle import oracle
from support.rollouts import FLAGS, PARAMETERS, Rollout


class Library(NamedTuple):
    """The estimators that a law calls, in the place of a library that has them."""

    gae: Any = None
    vtrace: Any = None
    n_step_advantages: Any = None


def matches_oracle(lib, rollout):
    """The oracle: the sum over all later TD errors, episode by episode, in float64."""
    assert_close(lib.gae(**rollout.arguments()), oracle(**rollout.arguments()))


def bootstrap_value_equals_the_last_row_of_values(lib, rollout):
    """Values `[T+1]`, or `[T]` beside `bootstrap_value`, give the same result."""
    values, last_value = rollout.values[:-1], rollout.values[-1]
    split = lib.gae(**rollout.replace(values=values).arguments(), bootstrap_value=last_value)
    assert_close(split, lib.gae(**rollout.arguments()), rtol=1e-6)


def lambda_0_gives_td_errors(lib, rollout):
    """With lambda 0, A_t is the TD error: r + gamma V(s') - V, where the flags of the row decide V(s')."""
    rollout = rollout.replace(lambda_=0.0, mask=None)
    values, next_values = rollout.values[:-1].astype(np.float64), rollout.values[1:].astype(np.float64)
    if rollout.final_values is not None:
        next_values = np.where(rollout.truncated, rollout.final_values, next_values)
    next_values[rollout.terminated] = 0
    deltas = rollout.rewards + rollout.full(rollout.gamma) * next_values - values
    deltas[rollout.dropped] = 0
    assert_close(lib.gae(**rollout.arguments()), (deltas, deltas + values))


def lambda_1_gives_monte_carlo_returns(lib, rollout):
    """With lambda 1, the target is the discounted sum of rewards up to the end of the episode, and the value there."""
    rollout = rollout.replace(lambda_=1.0, mask=None)
    if rollout.final_values is None:
        rollout = rollout.replace(truncated=None)
    gamma = rollout.full(rollout.gamma)
    returns = np.zeros(rollout.rewards.shape)
    for t in range(rollout.steps):
        discount = np.ones(rollout.rewards.shape[1:])  # 0 after the end of the episode
        for k in range(t, rollout.steps):
            returns[t] += discount * rollout.rewards[k]
            discount = discount * gamma[k] * ~rollout.terminated[k]
            if rollout.truncated is not None:
                returns[t] += discount * rollout.truncated[k] * rollout.final_values[k]
                discount = discount * ~rollout.truncated[k]
        returns[t] += discount * rollout.values[-1]
    assert_close(lib.gae(**rollout.arguments()), (returns - rollout.values[:-1], returns))


def split_rollout_equals_whole(lib, rollout):
    """The earlier part bootstraps from V + lambda A of the first unmasked row of the later part."""
    whole = lib.gae(**rollout.arguments())
    lambda_ = rollout.full(rollout.lambda_)
    for k in {1, rollout.steps // 2, rollout.steps - 1} & set(range(1, rollout.steps)):
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


def batch_equals_single_workers(lib, rollout):
    """Each worker alone, as a single trajectory `[T]`, gives the same result as in the batch."""
    whole = lib.gae(**rollout.arguments())
    for worker in np.ndindex(rollout.rewards.shape[1:]):
        pick = (slice(None), *worker)
        alone = lib.gae(**rollout.map_arrays(lambda x, pick=pick: x[pick]).arguments())
        assert_close(alone, [x[pick] for x in whole], rtol=1e-6)


def masked_rows_are_skipped(lib, rollout):
    """Removing the masked rows changes no other row; a masked row has advantage 0, and its value as target."""
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
    """Parameters as numbers, by worker or by step equal the same written out for every row."""
    written_out = rollout.replace(**{name: rollout.full(getattr(rollout, name)) for name in PARAMETERS})
    assert_close(lib.gae(**rollout.arguments()), lib.gae(**written_out.arguments()), rtol=1e-6)


def any_time_axis(lib, rollout):
    """Moving the axis of time moves it in the result, and changes nothing else."""
    whole = lib.gae(**rollout.arguments())
    for axis in range(-1, rollout.rewards.ndim):
        moved = rollout.map_arrays(lambda x, axis=axis: np.moveaxis(x, 0, axis))
        output = lib.gae(**moved.arguments(), time_axis=axis)
        assert_close(output, [np.moveaxis(x, 0, axis) for x in whole], rtol=1e-6)


def terminated_wins_over_truncated(lib, rollout):
    """Where both flags are set, `truncated` has no effect."""
    if rollout.truncated is not None:
        only_one = rollout.replace(truncated=rollout.truncated & ~rollout.terminated)
        assert_close(lib.gae(**rollout.arguments()), lib.gae(**only_one.arguments()), rtol=0)


def unused_entries_affect_nothing(lib, rollout: Rollout):
    """Unused entries may be NaN or infinite; they affect neither outputs nor gradients."""
    rollout = rollout.replace(**{name: np.array(rollout.full(getattr(rollout, name))) for name in PARAMETERS})
    live, ends = rollout.live, rollout.terminated
    if rollout.final_values is not None:
        ends = ends | rollout.truncated
    last_value_is_unused = np.ones(rollout.rewards.shape[1:], bool)
    for t in range(rollout.steps):
        last_value_is_unused = np.where(live[t], ends[t] | rollout.dropped[t], last_value_is_unused)
    finals = rollout.final_values
    unused_finals = True if rollout.truncated is None else ~(live & rollout.truncated & ~rollout.terminated)
    for poison in (np.float32(np.nan), np.float32(np.inf)):
        poisoned = rollout.replace(
            rewards=np.where(live & ~rollout.dropped, rollout.rewards, poison),
            gamma=np.where(live, rollout.gamma, poison),
            lambda_=np.where(live, rollout.lambda_, poison),
            final_values=None if finals is None else np.where(unused_finals, poison, finals),
            values=np.where(np.stack([*~live, last_value_is_unused]), poison, rollout.values),
        )
        got, want = lib.gae(**poisoned.arguments()), lib.gae(**rollout.arguments())
        np.testing.assert_array_equal(got.advantages, want.advantages)
        np.testing.assert_array_equal(got.targets, np.where(live, want.targets, 0))
        weights = 1 + np.arange(rollout.rewards.size, dtype=np.float32).reshape(rollout.rewards.shape)
        got, want = (gradient(lib)(inputs_of(x), flags_of(x), weights, weights * live) for x in (poisoned, rollout))
        jax.tree.map(np.testing.assert_array_equal, got, want)


def gradients_match_oracle(lib, rollout):
    """Outputs are linear in the rewards, so the oracle's difference for one more unit of reward is the derivative."""
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
    """Returns the gradient of a weighted sum of both outputs, with respect to all floating-point arguments."""

    def loss(inputs, flags, of_advantages, of_targets):
        output = lib.gae(**inputs, **flags)
        return jnp.sum(of_advantages * output.advantages) + jnp.sum(of_targets * output.targets)

    return jax.jit(jax.grad(loss))


def inputs_of(rollout):
    return {k: jnp.asarray(x, jnp.float32) for k, x in rollout.arguments().items() if k not in FLAGS and x is not None}


def flags_of(rollout):
    return {k: x for k, x in rollout.arguments().items() if k in FLAGS}


def assert_close(got, want, rtol=1e-5):
    """Asserts equality up to `rtol`, relative to the largest entry: an advantage is a difference, and may be near 0."""
    for g, w in zip(got, want, strict=True):
        w = np.asarray(w)
        np.testing.assert_allclose(g, w, rtol=0, atol=rtol * max(1.0, np.abs(w).max()))


# Mistakes in the package, and the laws that must detect them.
RECURSION, ROLLOUT, SHARDED = "_recursion.py", "_rollout.py", "_affine_scan/sharded.py"
MUTANTS = {
    matches_oracle: (
        Mutant("time runs forward", RECURSION, "reverse=True", "reverse=False"),
        Mutant("lambda of its own row", RECURSION, "jnp.concatenate([before, lambda_[:-1]])", "lambda_"),
        Mutant(
            "numbers in bfloat16",
            RECURSION,
            "parameter.reshape(())",
            "parameter.reshape(()).astype(jnp.bfloat16).astype(jnp.float32)",
        ),
    ),
    lambda_0_gives_td_errors: (
        Mutant("the result is in reverse", RECURSION, "**options)[1]", "**options)[1][::-1]"),
        Mutant(
            "flag of the step before", RECURSION, ": rollout.terminated,", ": jnp.roll(rollout.terminated, 1, axis=0),"
        ),
        Mutant("V(s_t) for V(final)", RECURSION, "row.final_value, h)", "row.value, h)"),
        Mutant("not dropped", RECURSION, "row.truncated & ~row.terminated", "False"),
        Mutant("lambda is missing", RECURSION, "row.lambda_before * advantage", "advantage"),
        Mutant("gamma for lambda", RECURSION, "row.lambda_before * advantage", "row.gamma * advantage"),
        Mutant("gamma is missing", RECURSION, "row.gamma * next_value(h, row)", "next_value(h, row)"),
    ),
    lambda_1_gives_monte_carlo_returns: (
        Mutant("truncation as termination", RECURSION, "row.final_value, h)", "0, h)"),
        Mutant("no bootstrap value", RECURSION, "skipping_step, rollout.", "skipping_step, 0 * rollout."),
    ),
    split_rollout_equals_whole: (
        Mutant(
            "lambda is missing on the first hop",
            RECURSION,
            "advantage, advantage",
            "advantage, advantage / row.lambda_before",
        ),
    ),
    batch_equals_single_workers: (
        Mutant(
            "one bootstrap value for all",
            RECURSION,
            "rollout.bootstrap_value, rows",
            "rollout.bootstrap_value.max() + 0 * rollout.bootstrap_value, rows",
        ),
    ),
    bootstrap_value_equals_the_last_row_of_values: (
        Mutant("V(s_{T-1}) for V(s_T)", ROLLOUT, "rows.values[-1]", "rows.values[-2]"),
    ),
    any_time_axis: (Mutant("time left in front", ROLLOUT, "jnp.moveaxis(x, 0, axis)", "x"),),
    parameters_broadcast: (
        Mutant(
            "the first row for all rows",
            RECURSION,
            "broadcast_like(parameter, roll",
            "broadcast_like(parameter[:1], roll",
        ),
    ),
    terminated_wins_over_truncated: (
        Mutant(
            "truncation wins",
            RECURSION,
            "where(row.terminated, 0",
            "where(row.terminated & ~jnp.bool_(row.truncated), 0",
        ),
    ),
    masked_rows_are_skipped: (
        Mutant(
            "a masked row ends the episode", RECURSION, "jnp.where(row.mask, h_t, h)", "jnp.where(row.mask, h_t, 0)"
        ),
        Mutant("a masked row is a step", RECURSION, "jnp.where(row.mask, h_t, h)", "h_t"),
        Mutant("lambda of a masked row", RECURSION, "jnp.where(mask, lambda_, last)", "lambda_"),
    ),
    unused_entries_affect_nothing: (
        Mutant("0 times NaN", RECURSION, "jnp.where(row.terminated, 0, h)", "(1 - row.terminated.astype(h.dtype)) * h"),
        Mutant("masked rows are read", RECURSION, "else jnp.where(mask, x, 0)", "else x"),
        Mutant(
            "NaN in a masked target",
            RECURSION,
            "jnp.isfinite(rollout.values), rollout.values, 0)",
            "True, rollout.values, 0)",
        ),
    ),
    gradients_match_oracle: (
        Mutant("targets detached", "_gae.py", "advantages + value", "jax.lax.stop_gradient(advantages) + value"),
    ),
}

# These appear only where time is split over devices.
MUTANTS_WITH_TIME_SPLIT = {
    matches_oracle: (
        Mutant("time begins at the wrong end", SHARDED, "count - 1 if reverse else 0", "0 if reverse else count - 1"),
        Mutant("carry of the first shard", SHARDED, "entering[index]", "entering[0]"),
        Mutant("lambda of its own shard", RECURSION, "if time_axis_name is not None:", "if False:"),
        Mutant("lambda of the shard after", RECURSION, "[(i, i + 1) for", "[(i + 1, i) for"),
        Mutant("lambda of the first row before", RECURSION, "before = lambda_[-1:]", "before = lambda_[:1]"),
        Mutant("lambda of a shard of one row", RECURSION, "and not is_shard_of_one_row", "or False"),
        Mutant("masked shards apart", RECURSION, "axis_name=time_axis_name, impl", "impl"),
    ),
    unused_entries_affect_nothing: (
        Mutant(
            "0 times NaN at a seam", "_affine_scan/affine_map.py", "(a == 0) & ~jnp.isfinite(h), 0, h", "False, 0, h"
        ),
    ),
}

LAWS = tuple(MUTANTS)
