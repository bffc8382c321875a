"""The k-step advantages that `gae` is a weighted average of.

    A_t^(n) = r_t + γ r_{t+1} + ... + γ^(n-1) r_{t+n-1} + γ^n V(s_{t+n}) - V(s_t)

The sum ends where the episode does, and at the end of the rollout, as that of `gae` with λ = 1 does. So it is n steps
of that recursion, h_t = r_t + γ h_{t+1} with its rules for the boundaries, from h_{t+n} = V(s_{t+n}).

Such a step is affine in h, and n of them are a map h -> a h + b. To know the maps of all windows of n rows in time that
does not grow with n, cut the rows into blocks of n: a window is the end of a block and the beginning of the next, and a
scan through the blocks, all at once, gives the maps of all ends, and another those of all beginnings.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from gae_jax._affine_scan import affine_scan
from gae_jax._affine_scan.blocked import times
from gae_jax._gae import step
from gae_jax._trajectory import as_given, canonical_trajectory, check_arguments


def n_step_advantages(
    rewards: ArrayLike,
    values: ArrayLike,
    terminated: ArrayLike,
    truncated: ArrayLike | None = None,
    *,
    n: int,
    gamma: ArrayLike,
    bootstrap_value: ArrayLike | None = None,
    final_values: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    time_axis: int = 0,
) -> Array:
    """Computes n-step advantages over a batch of rollouts.

        A_t^(n) = r_t + γ r_{t+1} + ... + γ^(n-1) r_{t+n-1} + γ^n V(s_{t+n}) - V(s_t)

    where the sum ends early at the end of an episode, as in `gae`, and at the end of the rollout, with V(s_T). With
    n = 1 it is δ_t; with n >= T it is `gae` with λ = 1; and `gae` is (1 - λ) (A^(1) + λ A^(2) + λ² A^(3) + ...).

    Args:
      rewards: `[T, *B]`, as in `gae`.
      values: `[T+1, *B]`, or `[T, *B]` together with `bootstrap_value`.
      terminated: `[T, *B]`, flags.
      truncated: `[T, *B]`, flags; without `final_values` such a row is dropped: its advantage is 0.
      n: the number of steps, at least 1; may exceed T. What it costs does not depend on it.
      gamma: γ, a scalar or an array that broadcasts to `[T, *B]`.
      bootstrap_value: `[*B]`, V(s_T).
      final_values: `[T, *B]`, the value of the final observation; read only where truncated.
      mask: `[T, *B]`, False where the row is no transition: skipped, not counted among the n, and its advantage 0.
      time_axis: the axis of time.

    Returns:
      The advantages, in the shape of `rewards` and in the dtype that the floating-point arrays promote to.

    Raises:
      TypeError, ValueError: as `gae` does; also for n that is no integer, or less than 1.

    Source: Schulman et al., 2015, arXiv:1506.02438, equations 11 to 15.

    >>> import jax.numpy as jnp
    >>> advantages = n_step_advantages(
    ...     rewards=jnp.array([1.0, 1.0, 1.0]),
    ...     values=jnp.array([0.5, 0.5, 0.5, 0.5]),  # the last is V(s_T)
    ...     terminated=jnp.array([False, False, False]),
    ...     n=2,
    ...     gamma=0.5,
    ... )
    >>> print(advantages)
    [1.125 1.125 0.75 ]
    """
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"`n` must be an integer; got {n!r}")
    if n < 1:
        raise ValueError(f"`n` must be at least 1; got {n}")
    arguments = {
        "rewards": rewards,
        "values": values,
        "terminated": terminated,
        "truncated": truncated,
        "bootstrap_value": bootstrap_value,
        "final_values": final_values,
        "mask": mask,
        "gamma": gamma,
        "lambda_": 1.0,
    }
    check_arguments(arguments)
    return _n_step_advantages(arguments, n=int(n), time_axis=time_axis)


@functools.partial(jax.jit, static_argnames=("n", "time_axis"))
def _n_step_advantages(arguments: dict[str, ArrayLike | None], *, n: int, time_axis: int) -> Array:
    trajectory = canonical_trajectory(arguments, time_axis, None)
    transitions, mask = trajectory.transitions, trajectory.transitions.mask
    value = transitions.value
    gamma = jnp.broadcast_to(trajectory.gamma, value.shape)

    def h_before(h: Array) -> Array:
        return step(h, transitions, gamma, jnp.ones_like(value))[0]

    b, a = jax.jvp(h_before, (jnp.zeros_like(value),), (jnp.ones_like(value),))
    after_n_steps = functools.partial(_after_n_steps_of_one_worker, min(n, len(value)))
    for _ in value.shape[1:]:
        after_n_steps = jax.vmap(after_n_steps, in_axes=(1, 1, 1, 0, None if mask is None else 1), out_axes=1)
    advantages = after_n_steps(a, b, value, trajectory.bootstrap_value, mask) - value
    return as_given(advantages if mask is None else jnp.where(mask, advantages, 0), trajectory)


def _after_n_steps_of_one_worker(n: int, a: Array, b: Array, value: Array, last: Array, mask: Array | None) -> Array:
    """From rows h -> a h + b to what n of them, from each on, make of V(s_{t+n}); all `[T]`, and V(s_T) is `[]`."""
    if mask is None:
        return _after_n_rows(n, a, b, value, last)
    # The live rows, without those between them; behind the last, rows that hand on V(s_T).
    place = jnp.where(mask, jnp.cumsum(mask) - 1, len(mask))

    def live_first(x: Array, behind: Array) -> Array:
        return jnp.full_like(x, behind).at[place].set(x, mode="drop")

    a, b = live_first(a, jnp.ones_like(last)), live_first(b, jnp.zeros_like(last))
    return _after_n_rows(n, a, b, live_first(value, last), last)[jnp.minimum(place, len(mask) - 1)]


def _after_n_rows(n: int, a: Array, b: Array, value: Array, last: Array) -> Array:
    """The same, where every row is live."""
    length = len(value)
    count = -(-length // n)

    def blocks(x: Array, behind: Array) -> Array:
        """`[n, count + 1]`: the i-th rows of all blocks; behind the end, and in one block more, as given."""
        return jnp.concatenate([x, jnp.full_like(x, behind, shape=(count + 1) * n - length)]).reshape(count + 1, n).T

    a, b, value = blocks(a, jnp.ones_like(last)), blocks(b, jnp.zeros_like(last)), blocks(value, last)
    zeros, ones = jnp.zeros_like(a[0]), jnp.ones_like(a[0])
    # The maps from a row, with it, to the end of its block; and from the beginning of its block to it, without it.
    _, end_a = affine_scan(lambda h, a: (a * h, a * h), ones, a, reverse=True)
    _, end_b = affine_scan(lambda h, row: (row[0] * h + row[1],) * 2, zeros, (a, b), reverse=True)
    _, begun_a = affine_scan(lambda h, a: (a * h, h), ones, a)
    _, begun_b = affine_scan(lambda h, x: (h + x, h), zeros, times(begun_a, b))
    begun = times(begun_a, value) + begun_b
    target = times(end_a[:, :-1], begun[:, 1:]) + end_b[:, :-1]
    return target.T.ravel()[:length]
