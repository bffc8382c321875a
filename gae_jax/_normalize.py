"""Advantages with mean 0 and variance 1, as the policy's gradient likes them."""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from gae_jax._affine_scan import shard_index_and_count
from gae_jax._rollout import as_flags, as_numbers, check_shape, promoted


@functools.partial(jax.jit, static_argnames="axis_name")
def normalize(
    advantages: ArrayLike, mask: ArrayLike | None = None, *, axis_name: str | None = None, epsilon: ArrayLike = 1e-8
) -> Array:
    """Subtracts the mean and divides by the standard deviation, both over all live entries.

        (A - mean(A)) / (std(A) + epsilon)

    Args:
      advantages: of any shape, floating-point or integer.
      mask: of the same shape, bool or 0 and 1: False where an entry does not count. It is not read, and comes out as 0.
      axis_name: inside `jax.shard_map`, the axis of the mesh whose devices count together. Exchanged is one all-gather
        of three numbers a device.
      epsilon: keeps the quotient finite where all entries are alike: the result is 0 there.

    Returns:
      The normalized advantages, in the shape of `advantages`, and in its dtype if that is floating-point; computed in
      float32 at least. With no live entry, or one, they are 0.

    Raises:
      TypeError: an argument is not an array of numbers, or not one of flags.
      ValueError: mask has another shape, or there is no such axis.

    >>> import jax.numpy as jnp
    >>> print(normalize(jnp.array([1.0, 2.0, 3.0, 100.0]), mask=jnp.array([True, True, True, False])))
    [-1.2247448  0.         1.2247448  0.       ]
    """
    given = as_numbers("advantages", advantages)
    x = given.astype(promoted(given, jnp.float32))
    live = jnp.ones(x.shape, bool)
    if mask is not None:
        check_shape("mask", mask, x.shape, "that of `advantages`")
        live = as_flags("mask", mask).astype(bool)
    if x.size == 0:
        return given
    # In one pass, from sums of what an entry has beyond a typical one: entries may be alike, and far from 0.
    rows, live_rows = jnp.atleast_1d(x), jnp.atleast_1d(live)
    in_first = jnp.sum(live_rows[0], dtype=x.dtype)
    typical = lax.stop_gradient(jnp.sum(jnp.where(live_rows[0], rows[0], 0)) / jnp.maximum(in_first, 1))
    beyond = jnp.where(live, x - typical, 0)
    count, total, squares = (jnp.sum(each, dtype=x.dtype) for each in (live, beyond, beyond * beyond))
    shift = total / jnp.maximum(count, 1)
    here = jnp.stack([count, typical + shift, jnp.maximum(squares - shift * total, 0)])
    counts, means, spreads = here[:, None] if axis_name is None else _of_all_devices(here, axis_name)
    entries = jnp.maximum(jnp.sum(counts), 1)
    mean = jnp.sum(counts * means) / entries
    variance = jnp.sum(spreads + counts * (means - mean) ** 2) / entries
    deviation = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
    normalized = (jnp.where(live, x, mean) - mean) / (deviation + epsilon)
    return normalized.astype(given.dtype) if jnp.issubdtype(given.dtype, jnp.floating) else normalized


def _of_all_devices(x: Array, axis_name: str) -> Array:
    shard_index_and_count(axis_name)  # is there such an axis?
    return lax.all_gather(x, axis_name, axis=1)
