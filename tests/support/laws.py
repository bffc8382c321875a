"""The laws of Generalized Advantage Estimation, as functions of an estimator and a rollout.

A law calls `estimate` as `gae` is called, and raises an AssertionError where the estimator breaks the law. Some laws
hold for all estimators: `support.estimator_laws` gives `vtrace` and `n_step_advantages` the signature of `gae`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from support.oracle import oracle
from support.rollouts import FLAGS, PARAMETERS, Rollout


def matches_oracle(estimate, rollout, reference=oracle):
    """The oracle: the sum over all later TD errors, episode by episode, in float64."""
    assert_close(estimate(**rollout.arguments()), reference(**rollout.arguments()))


def any_time_axis(estimate, rollout, reference=oracle):
    """Moving the axis of time moves it in the result, and changes nothing else."""
    for axis in range(-1, rollout.rewards.ndim):
        moved = rollout.map_arrays(lambda x, axis=axis: np.moveaxis(x, 0, axis))
        output = estimate(**moved.arguments(), time_axis=axis)
        assert_close([np.moveaxis(x, axis, 0) for x in output], reference(**rollout.arguments()))


def unused_entries_affect_nothing(estimate, rollout, reference=None):
    """Unused entries may be NaN or infinite; they affect neither outputs nor gradients."""
    del reference
    rollout = rollout.replace(**{name: np.array(rollout.full(getattr(rollout, name))) for name in PARAMETERS})
    weights = 1 + np.arange(rollout.rewards.size, dtype=np.float32).reshape(rollout.rewards.shape)
    jitted, slopes = jax.jit(estimate), gradient(estimate)
    want = [np.asarray(x) for x in jitted(**rollout.arguments())]
    # The target of a masked row is its value, and 0 for NaN.
    want[1:] = [np.where(rollout.live, x, 0) for x in want[1:]]
    want_slopes = slopes(inputs_of(rollout), flags_of(rollout), weights, weights * rollout.live)
    for x in (np.float32(np.nan), np.float32(np.inf)):
        poisoned = with_unused_entries(rollout, x)
        jax.tree.map(np.testing.assert_array_equal, list(jitted(**poisoned.arguments())), want)
        got_slopes = slopes(inputs_of(poisoned), flags_of(poisoned), weights, weights * rollout.live)
        jax.tree.map(np.testing.assert_array_equal, got_slopes, want_slopes)


def with_unused_entries(rollout: Rollout, x):
    """Returns the rollout with `x` in every entry that no result depends on."""
    live, ends, finals = rollout.live, rollout.terminated, rollout.final_values
    if rollout.truncated is not None:
        ends = ends | rollout.truncated
    last_value_is_unused = np.ones(rollout.rewards.shape[1:], bool)
    for t in range(rollout.steps):
        last_value_is_unused = np.where(live[t], ends[t], last_value_is_unused)
    return rollout.replace(
        rewards=np.where(live & ~rollout.dropped, rollout.rewards, x),
        gamma=np.where(live, rollout.gamma, x),
        lambda_=np.where(live, rollout.lambda_, x),
        final_values=None if finals is None else np.where(live & rollout.truncated & ~rollout.terminated, finals, x),
        values=np.where(np.stack([*~live, last_value_is_unused]), x, rollout.values),
    )


def gradients_match_oracle(estimate, rollout, reference=oracle):
    """Outputs are linear in the rewards, so the oracle's difference for one more unit of reward is the derivative."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2, *rollout.rewards.shape)).astype(np.float32)
    base = reference(**rollout.arguments())
    want = np.zeros(rollout.rewards.shape)
    for k in range(rollout.steps):
        unit = np.zeros(rollout.rewards.shape)
        unit[k] = 1
        answer = reference(**rollout.replace(rewards=rollout.rewards + unit).arguments())
        want[k] = sum((w * (a - b)).sum(0) for w, a, b in zip(weights, answer, base, strict=False))
    assert_close([gradient(estimate)(inputs_of(rollout), flags_of(rollout), *weights)["rewards"]], [want])


@functools.cache
def gradient(estimate):
    """Returns the gradient of a weighted sum of the outputs, with respect to all floating-point arguments."""

    def loss(inputs, flags, *weights):
        return sum(jnp.sum(w * x) for w, x in zip(weights, estimate(**inputs, **flags), strict=False))

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


# Mistakes in the package, by the law that must detect them: a name, a file, a fragment, the fragment in its place.
RECURSION, ROLLOUT, SHARDED = "_recursion.py", "_rollout.py", "_affine_scan/sharded.py"
MUTANTS = {
    matches_oracle: [
        ("time runs forward", RECURSION, "reverse=True", "reverse=False"),
        ("lambda of its own row", RECURSION, "jnp.concatenate([before, lambda_[:-1]])", "lambda_"),
        ("bfloat16", RECURSION, "parameter.reshape(())", "lax.reduce_precision(parameter, 8, 7).reshape(())"),
        ("V(s_T) exchanged", RECURSION, "rollout.bootstrap_value, rows", "rollout.bootstrap_value[::-1], rows"),
        ("V(s_{T-1}) for V(s_T)", ROLLOUT, "rows.values[-1]", "rows.values[-2]"),
        ("parameters of the first row", RECURSION, "broadcast_like(parameter, r", "broadcast_like(parameter[:1], r"),
        ("truncation wins", RECURSION, "(row.terminated, 0", "(row.terminated & ~jnp.bool_(row.truncated), 0"),
        ("a masked row ends the episode", RECURSION, "jnp.where(row.mask, h_t, h)", "jnp.where(row.mask, h_t, 0)"),
        ("a masked row is a step", RECURSION, "jnp.where(row.mask, h_t, h)", "h_t"),
        ("lambda of a masked row", RECURSION, "jnp.where(mask, lambda_, last)", "lambda_"),
        ("the result is in reverse", RECURSION, "**options)[1]", "**options)[1][::-1]"),
        ("flag of the step before", RECURSION, ": rollout.terminated,", ": jnp.roll(rollout.terminated, 1, 0),"),
        ("V(s_t) for V(final)", RECURSION, "row.final_value, h)", "row.value, h)"),
        ("not dropped", RECURSION, "row.truncated & ~row.terminated", "False"),
        ("lambda is missing", RECURSION, "row.lambda_before * advantage", "advantage"),
        ("gamma for lambda", RECURSION, "row.lambda_before * advantage", "row.gamma * advantage"),
        ("gamma is missing", RECURSION, "row.gamma * next_value(h, row)", "next_value(h, row)"),
        ("truncation as termination", RECURSION, "row.final_value, h)", "0, h)"),
        ("no lambda on the first hop", RECURSION, "advantage, advantage", "advantage, advantage / row.lambda_before"),
        ("no bootstrap value", RECURSION, "skipping_step, rollout.", "skipping_step, 0 * rollout."),
    ],
    any_time_axis: [("time left in front", ROLLOUT, "jnp.moveaxis(x, 0, axis)", "x")],
    unused_entries_affect_nothing: [
        ("0 times NaN", RECURSION, "jnp.where(row.terminated, 0, h)", "(1 - row.terminated.astype(h.dtype)) * h"),
        ("masked rows are read", RECURSION, "else jnp.where(mask, x, 0)", "else x"),
        ("NaN in a masked target", RECURSION, "jnp.isfinite(rollout.values), roll", "True, roll"),
    ],
    gradients_match_oracle: [
        ("targets detached", "_gae.py", "advantages + value", "jax.lax.stop_gradient(advantages) + value"),
    ],
}
MUTANTS_WITH_TIME_SPLIT = {  # mistakes in what runs only where time is split over devices
    matches_oracle: [
        ("time begins at the wrong end", SHARDED, "count - 1 if reverse else 0", "0 if reverse else count - 1"),
        ("carry of the first shard", SHARDED, "entering[index]", "entering[0]"),
        ("lambda of its own shard", RECURSION, "if axis_name is not None:", "if False:"),
        ("lambda of the shard after", RECURSION, "[(i, i + 1) for", "[(i + 1, i) for"),
        ("lambda of the first row before", RECURSION, "before = lambda_[-1:]", "before = lambda_[:1]"),
        ("lambda of a shard of one row", RECURSION, " and not is_shard_of_one_row", ""),
        ("masked shards apart", RECURSION, "axis_name=axis_name, impl", "impl"),
    ],
    unused_entries_affect_nothing: [
        ("0 times NaN", "_affine_scan/affine_map.py", "(a == 0) & ~jnp.isfinite(h), 0, h", "False, 0, h"),
    ],
}
