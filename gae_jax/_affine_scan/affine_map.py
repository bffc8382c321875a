"""Affine maps h -> a h + b, as pairs of arrays: what a row of an affine scan does to the carry, and so do many rows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

Step = Callable[[Array, Any, Any], tuple[Array, Any]]  # (carry, row, shared) -> (carry, y)
Scan = Callable[[Array, Any, Any], tuple[Array, Any]]  # (init, xs, shared) -> (last carry, ys)


class AffineMap(NamedTuple):
    """h -> a h + b, elementwise."""

    a: Array
    b: Array


@jax.jit  # traced once, and called for every row of a block
def apply(f: AffineMap, h: Array) -> Array:
    """Returns f(h)."""
    return mul_zero_absorbs(f.a, h) + f.b


@jax.jit
def compose(first: AffineMap, then: AffineMap) -> AffineMap:
    """Returns h -> then(first(h))."""
    return AffineMap(mul_zero_absorbs(then.a, first.a), apply(then, first.b))


def mul_zero_absorbs(a: Array, h: Array) -> Array:
    """Returns a h, where 0 times NaN or infinity is 0: a row that does not read the carry forgets a bad one too."""
    return a * jnp.where((a == 0) & ~jnp.isfinite(h), 0, h)
