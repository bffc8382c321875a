"""Standardizes advantages over all unmasked entries, optionally across devices."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from gae_jax._arguments import as_number, check_is_array, check_is_mapped, check_shape, promoted

AxisNames = str | tuple[str, ...]


def normalize(
    advantages: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    axis_name: AxisNames | None = None,
    epsilon: ArrayLike = 1e-8,
) -> Array:
    """Standardizes advantages: subtracts the mean and divides by the standard deviation of all unmasked entries.

        (A - mean(A)) / (std(A) + epsilon)

    The function is pure and compiled with `jax.jit`. It works inside jit, vmap, grad and shard_map. Gradients flow
    through the mean and the standard deviation.

    Args:
      advantages: an array of any shape, floating-point or integer.
      mask: an array of the same shape, bool or 0 and 1. False: the entry does not count, and may be NaN. Its result
        is 0.
      axis_name: inside `jax.shard_map`, the name of a mesh axis, or a tuple of names. The mean and the standard
        deviation are then taken over the entries of all devices along these axes. An axis of `jax.pmap` or `jax.vmap`
        works too. The communication is at most six all-reduces of one number, whatever the size of the array.
      epsilon: a number, at least 0, added to the standard deviation.

    Returns:
      The standardized advantages, in the shape of `advantages` and in its dtype if that is floating-point; an integer
      array gives float32, or float64 under x64. The computation runs in float32 or wider. If all unmasked entries are
      equal, the result is 0. A NaN in an unmasked entry makes the whole result NaN, and so does a sum of the entries
      that overflows.

    Raises:
      TypeError: an argument is not an array of numbers or flags, epsilon is not a number, or axis_name not a name.
      ValueError: mask has another shape, epsilon is negative or an array, or axis_name is not a mesh axis.

    >>> import jax.numpy as jnp
    >>> print(normalize(jnp.array([1.0, 2.0, 3.0, 100.0]), mask=jnp.array([True, True, True, False])))
    [-1.2247448  0.         1.2247448  0.       ]
    """
    check_is_array("advantages", advantages)
    if mask is not None:
        check_is_array("mask", mask, flags=True)
        check_shape("mask", mask, np.shape(advantages), "the shape of `advantages`")
    number = as_number("epsilon", epsilon)
    if not isinstance(number, Array) and not number >= 0:
        raise ValueError(f"`epsilon` must be at least 0; got {epsilon}")
    if axis_name is not None:
        _check_axis_name(axis_name)
    return _normalize(advantages, mask, number, axis_name=axis_name)


@functools.partial(jax.jit, static_argnames="axis_name")
def _normalize(
    advantages: ArrayLike, mask: ArrayLike | None, epsilon: ArrayLike, *, axis_name: AxisNames | None
) -> Array:
    x = jnp.asarray(advantages)
    live = jnp.ones(x.shape, bool) if mask is None else jnp.asarray(mask).astype(bool)
    dtype = promoted(x)
    x = jnp.where(live, x.astype(promoted(dtype, jnp.float32)), 0)
    epsilon = jnp.asarray(epsilon, x.dtype)

    def total(entries: Array) -> Array:
        local = jnp.sum(entries, dtype=x.dtype)
        return local if axis_name is None else lax.psum(local, axis_name)

    count = jnp.maximum(total(live), 1)
    for _ in range(3):  # A mean is rounded, by much where it is large: subtract the mean of what it leaves, too.
        x = jnp.where(live, x - total(x) / count, 0)
    # Squares overflow or vanish in units of reward, but not in units of the mean absolute deviation.
    mean_deviation = lax.stop_gradient(total(jnp.abs(x)) / count)
    all_equal = mean_deviation == 0
    unit = jnp.where(all_equal, 1, mean_deviation)
    x = x / unit
    variance = jnp.where(all_equal, 1, total(x * x) / count)
    return (x / (jnp.sqrt(variance) + epsilon / unit)).astype(dtype)


def _check_axis_name(axis_name: Any) -> None:
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"`axis_name` must be a name or a tuple of names; got {axis_name!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"`axis_name` must not repeat a name; got {axis_name!r}")
    check_is_mapped(axis_name)
