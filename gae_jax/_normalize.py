"""Standardizes advantages over all unmasked entries, optionally across devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from gae_jax._arguments import as_number, check_axis_names, check_is_array, check_shape, promoted


def normalize(
    advantages: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    axis_name: str | tuple[str, ...] | None = None,
    epsilon: ArrayLike = 1e-8,
    ddof: ArrayLike = 0,
) -> Array:
    """Standardizes advantages: subtracts the mean and divides by the standard deviation of all unmasked entries.

        (A - mean(A)) / (std(A) + epsilon)

    The function is pure and compiled with `jax.jit`. It works inside jit, vmap, grad and shard_map. Gradients flow
    through the mean and the standard deviation.

    Args:
      advantages: an array of any shape, floating-point or integer.
      mask: an array of the same shape, bool or 0 and 1. False: the entry does not count, and may be NaN. Its result
        is 0. Rows that are no samples must not count: rows that `gae` masks, and truncated rows without `final_values`,
        which `gae` drops. Their advantage is 0, and 0 is not neutral once the mean is subtracted:
        `normalize(advantages, keep)` with `keep = mask & (terminated | ~truncated)`, for flags that are bool.
      axis_name: inside `jax.shard_map`, the name of a mesh axis, or a tuple of names. The mean and the standard
        deviation are then taken over the entries of all devices along these axes. An axis of `jax.pmap` or `jax.vmap`
        works too. The communication is at most six all-reduces of one or two numbers, whatever the size of the array.
      epsilon: a number, at least 0, added to the standard deviation.
      ddof: a number, at least 0: the variance is the sum of squares divided by the number of entries minus `ddof`. 1
        gives the unbiased variance. If there are no more than `ddof` unmasked entries, the result is 0.

    Returns:
      The standardized advantages, in the shape of `advantages` and in its dtype if that is floating-point; an integer
      array gives float32, or float64 under x64. The computation runs in float32 or wider. If all unmasked entries are
      equal, the result is 0, and the gradient is the gradient for a standard deviation of 1. A NaN in an unmasked entry
      makes the whole result NaN, and so does a sum that overflows.

    Raises:
      TypeError: an argument is not an array of numbers or flags, epsilon or ddof not a number, or axis_name not a name.
      ValueError: mask has another shape, epsilon or ddof is negative or an array, or axis_name is not a mesh axis.

    >>> import jax.numpy as jnp
    >>> print(normalize(jnp.array([1.0, 2.0, 3.0, 100.0]), mask=jnp.array([True, True, True, False])))
    [-1.2247448  0.         1.2247448  0.       ]
    """
    check_is_array("advantages", advantages)
    if mask is not None:
        check_is_array("mask", mask, flags=True)
        check_shape("mask", mask, np.shape(advantages), "the shape of `advantages`")
    axis_names = axis_name if isinstance(axis_name, tuple) else () if axis_name is None else (axis_name,)
    check_axis_names("axis_name", *axis_names)
    epsilon, ddof = as_number("epsilon", epsilon, default=1e-8), as_number("ddof", ddof, default=0.0)
    return _normalize(advantages, mask, epsilon, ddof, axis_names=axis_names)


@functools.partial(jax.jit, static_argnames="axis_names")
def _normalize(
    advantages: ArrayLike, mask: ArrayLike | None, epsilon: ArrayLike, ddof: ArrayLike, *, axis_names: tuple[str, ...]
) -> Array:
    x = jnp.asarray(advantages)
    live = jnp.ones(x.shape, bool) if mask is None else jnp.asarray(mask).astype(bool)
    dtype = promoted(x)
    x = jnp.where(live, x.astype(promoted(dtype, jnp.float32)), 0)
    epsilon, ddof = jnp.asarray(epsilon, x.dtype), jnp.asarray(ddof, x.dtype)

    def total(entries: Array) -> Array:
        local = jnp.sum(entries, dtype=x.dtype)
        return lax.psum(local, axis_names) if axis_names else local

    count = total(live)
    live &= count > ddof
    freedom = jnp.where(count > ddof, count - ddof, 1)
    count = jnp.maximum(count, 1)
    # A rounded mean lies between the smallest and the largest entry, too: equal entries leave exactly 0.
    constant = lax.stop_gradient(x)
    bounds = jnp.stack([jnp.max(y, where=live, initial=-jnp.inf) for y in (-constant, constant)])
    minus_least, most = lax.pmax(bounds, axis_names) if axis_names else bounds
    x = jnp.where(live, x - jnp.clip(total(constant) / count, -minus_least, most), 0)
    # A large mean is rounded by much: subtract the mean of what it leaves.
    x = jnp.where(live, x - total(x) / count, 0)
    # Squares overflow or vanish in units of reward, but not in units of the mean absolute deviation.
    mean_deviation = lax.stop_gradient(total(jnp.abs(x)) / count)
    all_equal = mean_deviation == 0
    unit = jnp.where(all_equal, 1, mean_deviation)
    x = x / unit
    variance = jnp.where(all_equal, 1, total(x * x) / freedom)
    return (x / (jnp.sqrt(variance) + epsilon / unit)).astype(dtype)
