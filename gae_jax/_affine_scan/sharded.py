"""Time split over the devices of a mesh axis: one small exchange, whatever the length.

A shard is affine in the carry that enters it, as each of its rows is. So each device composes its shard into one affine
map, all-gathers the D maps, an a and a b of shape `[*B]` each, and scans them, which gives the carry that enters its
shard. Then the device scans its shard. In all, a device scans its shard three times: for a, for b and for the outputs.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import get_abstract_mesh

from gae_jax._affine_scan.affine_map import AffineMap, Step, apply


def sharded(
    scan: Callable[..., Any], step: Step, init: Array, xs: Any, shared: Any, *, reverse: bool, axis_name: str
) -> tuple[Array, Any]:
    """Scans with `scan` on each device, where device i holds the i-th shard of `xs`.

    Reads `init` on the device where the scan begins. Returns the last carry of all shards, and the outputs of this one.
    """
    index, count = lax.axis_index(axis_name), lax.axis_size(axis_name)
    is_first = index == (count - 1 if reverse else 0)
    # The carry that enters the first shard is known there, so the first map is the constant that leaves it: a = 0.
    start = jnp.where(is_first, init, jnp.zeros_like(init))
    slope = jnp.where(is_first, jnp.zeros_like(init), jnp.ones_like(init))
    b, _ = scan(step, start, xs, shared, reverse=reverse)
    a, _ = scan(functools.partial(_linear_part, step), slope, xs, shared, reverse=reverse)
    maps = AffineMap(*jnp.moveaxis(_gathered(jnp.stack([a, b]), axis_name), 1, 0))
    last, entering = scan(_follow, jnp.zeros_like(init), maps, (), reverse=reverse, implementation="blocked")
    return last, scan(step, jnp.where(is_first, init, entering[index]), xs, shared, reverse=reverse)[1]


def _linear_part(step: Step, carry: Array, row: Any, shared: Any) -> tuple[Array, Any]:
    """From h to a h, where the step is h -> a h + b."""
    return jax.jvp(lambda h: step(h, row, shared)[0], (jnp.zeros_like(carry),), (carry,))[1], ()


def _follow(carry: Array, shard: AffineMap, _: Any) -> tuple[Array, Array]:
    """From the carry that enters a shard to the carry that leaves the shard; and the carry that enters."""
    return apply(shard, carry), carry


def _gathered(x: Array, axis_name: str) -> Array:
    """Returns the `x` of all devices along the axis, stacked."""
    if not get_abstract_mesh().explicit_axes:
        return lax.all_gather(x, axis_name)
    # Beside Explicit axes, JAX cannot transpose an all-gather: sum arrays in which each device fills its own row.
    is_own_row = jnp.arange(lax.axis_size(axis_name)) == lax.axis_index(axis_name)
    return lax.psum(jax.vmap(lambda own: jnp.where(own, x, 0))(is_own_row), axis_name)
