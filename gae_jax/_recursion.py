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

from gae_jax._affine_scan import affine_scan
from gae_jax._placement import zeros_placed_like
from gae_jax._rollout import Rollout


class Row(NamedTuple):
    """A transition s_t -> s_{t+1} of one worker."""

    reward: Array
    value: Array  # V(s_t)
    terminated: Array
    truncated: Array | None
    final_value: Array | None  # V(final observation), read where truncated
    mask: Array | None  # False: not a transition, skip the row
    gamma: Array
    lambda_before: Array  # λ_{t-1}, the weight of A_t in h_t


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


def skipping_step(h: Array, varying: dict[str, Any], shared: dict[str, Any]) -> tuple[Array, Array]:
    """`step`, but a masked row hands h on unchanged, and is not read: it may hold NaN."""
    row = Row(**varying, **shared)
    if row.mask is None:
        return step(h, row)
    h_t, advantage = step(h, jax.tree.map(functools.partial(zero_where_masked, row.mask), row))
    return jnp.where(row.mask, h_t, h), jnp.where(row.mask, advantage, 0)


def zero_where_masked(mask: Array | None, x: Array) -> Array:
    """Returns `x`, and 0 or False where the mask is False."""
    if mask is None:
        return x
    return x & mask if x.dtype == jnp.bool_ else jnp.where(mask, x, 0)


def advantages_of(rollout: Rollout, lambda_before: Array, **options: str | None) -> Array:
    """Returns A_t of every row, `[T, *B]`. The options are options of `affine_scan`."""
    rows, shared = rows_and_shared(rollout, lambda_before)
    return affine_scan(skipping_step, rollout.bootstrap_value, rows, shared, reverse=True, **options)[1]


def rows_and_shared(rollout: Rollout, lambda_before: Array) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the fields of `Row`: what each row has, `[T, *B]`; and what all rows share, `[*B]` or one number."""
    rows = {"reward": rollout.rewards, "value": rollout.values, "mask": rollout.mask}
    rows |= {"terminated": rollout.terminated, "truncated": rollout.truncated, "final_value": rollout.final_values}
    shared = {}
    for name, parameter in {"gamma": rollout.gamma, "lambda_before": lambda_before}.items():
        if parameter.size == 1:
            shared[name] = parameter.reshape(())
        elif parameter.shape[0] == 1:
            shared[name] = broadcast_like(parameter[0], rollout.terminated[0])
        else:
            rows[name] = broadcast_like(parameter, rollout.terminated)
    return rows, shared


def broadcast_like(x: Array, like: Array) -> Array:
    """Broadcasts `x` to the shape of `like`, split over devices as `like` is, as vmap demands."""
    return x + zeros_placed_like(like).astype(x.dtype)


def lambdas_before(rollout: Rollout, *, axis_name: str | None = None, implementation: str | None = None) -> Array:
    """Returns λ_{t-1} for each row t: the λ of the unmasked row before, which weighs A_t in h_t."""
    lambda_, mask = rollout.lambda_, rollout.mask
    is_shard_of_one_row = axis_name is not None and rollout.rewards.shape[0] == 1  # where λ may vary all the same
    if lambda_.shape[0] == 1 and not is_shard_of_one_row:
        return lambda_
    if mask is None:
        before = lambda_[-1:]  # row 0 of the rollout has no row before it, and its h is not used
        if axis_name is not None:
            to_next_shard = [(i, i + 1) for i in range(lax.axis_size(axis_name) - 1)]
            before = lax.ppermute(before, axis_name, to_next_shard)
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
