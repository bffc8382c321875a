"""The n-step advantages that `gae` is a weighted average of.

    A_t^(n) = r_t + γ r_{t+1} + ... + γ^(n-1) r_{t+n-1} + γ^n V(s_{t+n}) - V(s_t)

The sum ends where the episode ends, and at the end of the rollout. So A^(n) is n steps of the recursion of `gae` with
λ = 1, on all rows at once: each step extends the window of every row by one row.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from gae_jax._arguments import Constant, as_integer
from gae_jax._recursion import rows_and_shared, skipping_step, zero_where_masked
from gae_jax._rollout import Rollout, canonical, check_before_jit


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

        A_t^{(n)} = r_t + γ r_{t+1} + ... + γ^{n-1} r_{t+n-1} + γ^n V(s_{t+n}) - V(s_t)

    `T` is the number of transitions, t = 0 ... T-1; `*B` are any batch axes. The sum stops where the episode ends, as
    in `gae`, and at the end of the rollout, with V(s_T). n = 1 gives the TD error δ_t; n >= T gives `gae` with λ = 1.
    For every λ, `gae` is the average (1 - λ) (A^(1) + λ A^(2) + λ² A^(3) + ...).

    Args:
      rewards: `[T, *B]`, r_t, the reward of the transition s_t -> s_{t+1}; floating-point or integer.
      values: `[T+1, *B]`, V(s_0) ... V(s_T), in units of reward; or `[T, *B]` together with `bootstrap_value`.
      terminated: `[T, *B]`, bool or 0 and 1; or one flag. True: transition t ended the episode.
      truncated: like `terminated`. True: transition t was the last before a cut, for example by a time limit.
        Without `final_values`, a truncated row is dropped, and is no sample: its advantage is 0.
      n: the number of steps, at least 1. The cost is min(n, T) passes over the rollout.
      gamma: γ, the discount, in [-1, 1], as in `gae`: a scalar, or an array that broadcasts to the shape of `rewards`.
      bootstrap_value: `[*B]`, or one number, V(s_T), the value of the state after the last transition.
      final_values: `[T, *B]`, or one number, the value of the final observation. Used only where truncated.
      mask: `[T, *B]`, bool or 0 and 1. False: the row is not a transition. The recursion skips the row and does not
        count it among the n steps. The advantage of a masked row is 0.
      time_axis: the axis of time: 0 for arrays `[T, *B]`, 1 for arrays `[N, T]`. Time cannot be split over devices:
        this function has no `time_axis_name`.

    Returns:
      The advantages, in the shape of `rewards`; dtype as in `gae`.

    Raises:
      TypeError, ValueError: as in `gae`; also if n is not an integer, or less than 1.
      NotImplementedError: the number of steps is symbolic, in `jax.export`.

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
    n = as_integer("n", n)
    if n < 1:
        raise ValueError(f"`n` must be at least 1; got {n}")
    lambda_ = Constant(1.0)
    rollout = Rollout(rewards, values, terminated, gamma, lambda_, truncated, bootstrap_value, final_values, mask)
    axis = check_before_jit(rollout, time_axis)
    steps = np.shape(rewards)[axis]
    if not isinstance(steps, int):
        raise NotImplementedError(f"n_step_advantages needs a known number of steps; got T = {steps}")
    return _n_step_advantages(rollout, n=min(n, steps), time_axis=axis)


@functools.partial(jax.jit, static_argnames=("n", "time_axis"))
def _n_step_advantages(rollout: Rollout, *, n: int, time_axis: int) -> Array:
    rollout, to_caller_layout = canonical(rollout, time_axis)  # chex asserts every shape
    rows, shared = rows_and_shared(rollout, rollout.lambda_)  # λ is 1
    mask = jnp.ones_like(rollout.terminated) if rollout.mask is None else rollout.mask
    steps = jnp.arange(len(mask)).reshape(-1, *(1,) * (mask.ndim - 1))
    unmasked_from = lax.cummin(jnp.where(mask, steps, len(mask)), reverse=True)  # the first one, from each row on
    next_unmasked = jnp.concatenate([unmasked_from[1:], jnp.full_like(unmasked_from[:1], len(mask))])

    def look_further(_: Array, targets: Array) -> Array:
        """Extends the window of every row by one row."""
        known = jnp.concatenate([targets, rollout.bootstrap_value[None]])
        following = jnp.take_along_axis(known, next_unmasked, axis=0)
        return jax.vmap(skipping_step, in_axes=(0, 0, None))(following, rows, shared)[0]

    value = zero_where_masked(rollout.mask, rollout.values)
    targets = lax.fori_loop(0, n, look_further, value)
    return to_caller_layout(zero_where_masked(rollout.mask, targets - value))
