"""Time split over the devices of a mesh axis, each of which holds a piece: one small exchange, whatever the length.

A piece is affine in the carry that enters it, as each of its rows is. So each device composes its own piece into one
map, h -> a h + b; the maps are exchanged, an a and a b `[*B]` of every device, and scanned, which gives the carry that
enters each piece; then each device runs its own. Of the rows nothing is exchanged.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from gae_jax._affine_scan.blocked import times
from gae_jax._affine_scan.primitive import Step, bind


def pieces(axis_name: str) -> tuple[Array, int]:
    """Which piece is here, and of how many.

    Raises:
      ValueError: there is no such axis here.
    """
    try:
        return lax.axis_index(axis_name), lax.axis_size(axis_name)
    except NameError:
        raise ValueError(
            "`axis_name` must be an axis of the mesh, inside a jax.shard_map that splits time over it; "
            f"got {axis_name!r}, which no shard_map around this call maps over"
        ) from None


def sharded(
    step: Step, parameters: Any, init: Array, xs: Any, *, reverse: bool, axis_name: str, implementation: str | None
) -> tuple[Array, Any]:
    """Scans as `bind` does, where xs is the piece of time that is here, and piece i on the i-th device of a mesh axis.

    Reads `init` where time begins, or with `reverse` ends. Returns the last carry of all pieces, and this piece's rows.
    """
    scan = functools.partial(bind, reverse=reverse, implementation=implementation)

    def compose(carry: Array) -> Array:
        """From the carry that enters this piece to the one that leaves it."""
        return scan(lambda *x: (step(*x)[0], ()), parameters, carry, xs)[0]

    here, count = pieces(axis_name)
    is_first = here == (count - 1 if reverse else 0)
    # What enters the first piece is known there, so what leaves it is known too: a map of slope 0.
    start = jnp.where(is_first, init, jnp.zeros_like(init))
    slope = jnp.where(is_first, jnp.zeros_like(init), jnp.ones_like(init))
    b, a = jax.jvp(compose, (start,), (slope,))
    maps = lax.all_gather(jnp.stack([a, b]), axis_name, axis=1)
    last, entering = bind(_follow, (), jnp.zeros_like(init), tuple(maps), reverse=reverse, implementation="blocked")
    return last, scan(step, parameters, jnp.where(is_first, init, entering[here]), xs)[1]


def _follow(_: Any, carry: Array, piece: tuple[Array, Array]) -> tuple[Array, Array]:
    """From the carry that enters a piece to the one that leaves it, and what entered."""
    a, b = piece
    return times(a, carry) + b, carry
