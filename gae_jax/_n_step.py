"""The k-step advantages that `gae` is a weighted average of.

    A_t^(n) = r_t + γ r_{t+1} + ... + γ^(n-1) r_{t+n-1} + γ^n V(s_{t+n}) - V(s_t)

The sum ends where the episode does, and at the end of the rollout, as that of `gae` with λ = 1 does. So it is n steps
of that recursion, h_t = r_t + γ h_{t+1} with its rules for the boundaries, from h_{t+n} = V(s_{t+n}).

Such a step is affine in h, and n of them are a map h -> a h + b. To know the maps of all windows of n rows in time that
does not grow with n, cut the rows into blocks of n: a window is the end of a block and the beginning of the next, and a
scan through the blocks, all at once, gives the maps of all ends, and another those of all beginnings.
"""

import functools
from typing import Any

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
    last = trajectory.bootstrap_value
    if mask is None:
        target = _after_n_steps(a, b, value, last, n=min(n, len(value)))
        return as_given(target - value, trajectory)
    # The live rows, without those between them; behind the last, rows that hand on V(s_T).
    place = jnp.where(mask, jnp.cumsum(mask, axis=0) - 1, len(mask))

    def live_first(x: Array, behind: Any) -> Array:
        behind = jnp.broadcast_to(behind, x.shape)
        return jnp.put_along_axis(behind, place, x, axis=0, inplace=False, mode="drop")

    target = _after_n_steps(
        live_first(a, jnp.ones_like(a)),
        live_first(b, jnp.zeros_like(b)),
        live_first(value, last),
        last,
        n=min(n, len(a)),
    )
    target = jnp.take_along_axis(target, jnp.minimum(place, len(mask) - 1), axis=0)
    return as_given(jnp.where(mask, target - value, 0), trajectory)


def _after_n_steps(a: Array, b: Array, value: Array, last: Array, *, n: int) -> Array:
    """From rows h -> a h + b to what n of them, from each on, make of the value n rows further on; all `[T, *B]`."""
    steps, *batch = value.shape
    count = -(-steps // n)

    def blocks(x: Array, behind: Array) -> Array:
        """`[n, count + 1, *B]`: the i-th rows of all blocks; behind the end, and in one block more, as given."""
        behind = jnp.broadcast_to(behind, ((count + 1) * n - steps, *batch))
        return jnp.moveaxis(jnp.concatenate([x, behind]).reshape(count + 1, n, *batch), 1, 0)

    a, b, value = blocks(a, jnp.ones_like(last)), blocks(b, jnp.zeros_like(last)), blocks(value, last)
    zeros, ones = jnp.zeros_like(a[0]), jnp.ones_like(a[0])
    # The maps from a row, with it, to the end of its block; and from the beginning of its block to it, without it.
    _, end_a = affine_scan(lambda h, a: (a * h, a * h), ones, a, reverse=True)
    _, end_b = affine_scan(lambda h, row: (row[0] * h + row[1],) * 2, zeros, (a, b), reverse=True)
    _, begun_a = affine_scan(lambda h, a: (a * h, h), ones, a)
    _, begun_b = affine_scan(lambda h, x: (h + x, h), zeros, times(begun_a, b))
    begun = times(begun_a, value) + begun_b
    target = times(end_a[:, :-1], begun[:, 1:]) + end_b[:, :-1]
    return jnp.moveaxis(target, 0, 1).reshape(count * n, *batch)[:steps]
