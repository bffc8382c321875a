"""Generalized Advantage Estimation as one reverse recursion over time, for one worker, vmapped over workers.

Schulman et al., 2015, "High-Dimensional Continuous Control Using Generalized Advantage Estimation", arXiv:1506.02438.
The paper sums the TD errors of an episode (its equation 16), and the sum obeys a recursion:

    δ_t = r_t + γ V(s_{t+1}) - V(s_t)        A_t = Σ_k (γ λ)^k δ_{t+k} = δ_t + γ λ A_{t+1}

Write h_t = V(s_t) + λ A_t for the carry. Then, from h_T = V(s_T) backwards,

    A_t = r_t + γ h_{t+1} - V(s_t)           the advantage
    h_t = V(s_t) + λ A_t                     handed to step t-1

In this form there is one carry and no shifted copy of the values. Step t bootstraps from h_{t+1}, unless the episode
ends: a terminated step bootstraps from 0, and a truncated step from V(final observation). A masked row hands h on
unchanged. Earlier rows depend on later rows through h_t alone, so a rollout may be split anywhere.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from gae_jax._affine_scan import affine_scan, zeros_placed_like
from gae_jax._rollout import Rollout


class Row(NamedTuple):
    """A transition s_t -> s_{t+1} of one worker. With a leading axis of time, a whole rollout."""

    reward: Array
    value: Array  # V(s_t)
    terminated: Array
    truncated: Array | None
    final_value: Array | None  # V(final observation), read where truncated
    mask: Array | None  # False: not a transition, skip the row
    gamma: Any = None  # None if γ is constant over time
    lambda_before: Any = None  # λ_{t-1}, the weight of A_t in h_t; None if λ is constant


def step(h: Array, row: Row) -> tuple[Array, Array]:
    """From h_{t+1} and row t to h_t and A_t."""
    advantage = row.reward + row.gamma * next_value(h, row) - row.value
    if row.truncated is not None and row.final_value is None:  # V(final observation) is not known: drop the row
        advantage = jnp.where(row.truncated & ~row.terminated, 0, advantage)
    return row.value + row.lambda_before * advantage, advantage


def next_value(h: Array, row: Row) -> Array:
    """The value that row t bootstraps from: h_{t+1}, unless the episode ends."""
    if row.truncated is not None:
        h = jnp.where(row.truncated, 0 if row.final_value is None else row.final_value, h)
    return jnp.where(row.terminated, 0, h)


def skipping_step(h: Array, row: Row, shared: dict[str, Array]) -> tuple[Array, Array]:
    """`step`, but a masked row hands h on unchanged, and is not read: it may hold NaN."""
    row = row._replace(**shared)
    if row.mask is None:
        return step(h, row)
    h_t, advantage = step(h, jax.tree.map(functools.partial(zero_where_masked, row.mask), row))
    return jnp.where(row.mask, h_t, h), jnp.where(row.mask, advantage, 0)


def zero_where_masked(mask: Array | None, x: Array) -> Array:
    """Returns `x`, and 0 or False where the mask is False."""
    if mask is None:
        return x
    return x & mask if x.dtype == jnp.bool_ else jnp.where(mask, x, 0)


def advantages_of(rollout: Rollout, lambda_before: Array, **how: Any) -> Array:
    """Returns A_t of every row, `[T, *B]`.

    A parameter that varies over time is part of a row; a parameter that does not is shared by all rows of a worker, and
    one number is shared by all workers.
    """
    parameters = {"gamma": rollout.gamma, "lambda_before": lambda_before}
    by_row = {name: broadcast_like(x, rollout.terminated) for name, x in parameters.items() if x.shape[0] != 1}
    shared = {name: x[0] for name, x in parameters.items() if name not in by_row}
    numbers = {name: x.reshape(()) for name, x in shared.items() if x.size == 1}
    by_worker = {name: broadcast_like(x, rollout.terminated[0]) for name, x in shared.items() if name not in numbers}
    rows = rows_of(rollout)._replace(**by_row)
    over_workers = functools.partial(advantages_of_one_worker, **how)
    for _ in rollout.rewards.shape[1:]:  # one vmap for each batch axis
        over_workers = jax.vmap(over_workers, in_axes=(1, 0, None, 0), out_axes=1)
    return over_workers(rows, by_worker, numbers, rollout.bootstrap_value)


def advantages_of_one_worker(rows: Row, by_worker: Any, numbers: Any, bootstrap_value: Array, **how: Any) -> Array:
    """The recursion over one trajectory: rows `[T]` -> advantages `[T]`."""
    _, advantages = affine_scan(skipping_step, bootstrap_value, rows, by_worker | numbers, reverse=True, **how)
    return advantages


def rows_of(rollout: Rollout) -> Row:
    """All rows of a rollout, without γ and λ."""
    x = rollout
    return Row(x.rewards, x.values, x.terminated, x.truncated, x.final_values, x.mask)


def broadcast_like(x: Array, like: Array) -> Array:
    """Broadcasts `x` to the shape of `like`, split over devices as `like` is, as vmap demands."""
    return x + zeros_placed_like(like).astype(x.dtype)


def lambda_before_each_row(rollout: Rollout, *, axis_name: str | None = None, implementation: str | None = None) -> Any:
    """λ of the unmasked row before each row: A_t = δ_t + γ_t λ_t A_{t+1}, so h_{t+1} weighs A_{t+1} by λ_t."""
    lambda_, mask = rollout.lambda_, rollout.mask
    is_seam = axis_name is not None and rollout.rewards.shape[0] == 1  # a shard of one row: λ may vary all the same
    if lambda_.shape[0] == 1 and not is_seam:
        return lambda_
    if mask is None:
        before = lambda_[-1:]  # row 0 of the rollout has no row before it, and its h is not used
        if axis_name is not None:
            before = lax.ppermute(before, axis_name, [(i, i + 1) for i in range(lax.axis_size(axis_name) - 1)])
        return jnp.concatenate([before, lambda_[:-1]])
    lambda_ = broadcast_like(lambda_, rollout.terminated)
    init = zeros_placed_like(lambda_[0])
    return affine_scan(_last_unmasked, init, (lambda_, mask), (), axis_name=axis_name, implementation=implementation)[1]


def _last_unmasked(last: Array, row: tuple[Array, Array], _: Any) -> tuple[Array, Array]:
    lambda_, mask = row
    return jnp.where(mask, lambda_, last), last


def value_or_zero(rollout: Rollout) -> Array:
    """V(s_t), and 0 in a masked row whose value is not finite."""
    if rollout.mask is None:
        return rollout.values
    return jnp.where(rollout.mask | jnp.isfinite(rollout.values), rollout.values, 0)
