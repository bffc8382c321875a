"""The affine scan without a loop: a handful of kernels, whatever the length. Plain JAX, for any platform.

The rows are cut into blocks of K. All blocks at once compose the maps of their K rows into one map. The maps of the
blocks are a shorter affine scan, solved by the same function; its result is the carry that enters each block. From
there, all blocks at once apply K maps, which gives the carry that enters each row. One call of `step` on all rows at
once then yields every output.

Each stage should become one kernel that reads its rows anew, which is cheaper than to keep a and b in memory. The
barriers hold the compiler to that; without them, XLA computes some stages twice.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from gae_jax._affine_scan.affine_map import AffineMap, Step, apply, compose
from gae_jax._placement import zeros_placed_like

# Rows in a block. Longer blocks save a stage, but cost more: XLA computes each of the K carries of a block from the
# carry that enters the block, K (K - 1) / 2 steps in all.
SHORTEST, LONGEST = 8, 16


def blocked(step: Step, init: Array, xs: Any, shared: Any, *, reverse: bool) -> tuple[Array, Any]:
    """Runs the step on all rows at once, from carries found by composing blocks of rows."""
    shared = beside_all_rows(shared)
    # The map of each row, `[T, *B]`: the step's carry at 0, and its derivative.
    zeros = zeros_placed_like(jax.tree.leaves(xs)[0]).astype(init.dtype)
    b, a = jax.jvp(lambda h: step(h, xs, shared)[0], (zeros,), (zeros + 1,))
    in_order = slice(None, None, -1 if reverse else 1)
    last, entering = _carries(AffineMap(a[in_order], b[in_order]), init)
    return last, step(entering[in_order], xs, shared)[1]


def beside_all_rows(shared: Any) -> Any:
    """Returns what all rows share in a shape for one call of the step, which is elementwise, on all rows at once."""
    return jax.tree.map(lambda x: x[None] if x.ndim else x, shared)


def _carries(maps: AffineMap, init: Array) -> tuple[Array, Array]:
    """Returns the last carry `[*B]`, and the carry that enters each row `[T, *B]`."""
    length = maps.a.shape[0]
    if length <= LONGEST:
        *entering, last = _chain(_unstacked(maps, axis=0), init)
        # jnp.stack would leave the axis of a jax.vmap around this call behind the new axis, and cost transpositions.
        return last, jnp.concatenate([h.reshape(1, *h.shape) for h in entering])
    size = _block_size(length)
    rows_of_blocks = _unstacked(_in_blocks(maps, size), axis=1)
    block_maps = lax.optimization_barrier(functools.reduce(compose, rows_of_blocks))
    last, entering_block = lax.optimization_barrier(_carries(block_maps, init))
    entering = _chain(rows_of_blocks[:-1], entering_block)
    return last, lax.collapse(jnp.stack(entering, axis=1), 0, 2)[:length]


def _in_blocks(maps: AffineMap, size: int) -> AffineMap:
    """From maps `[T, *B]` to `[blocks, size, *B]`; maps that hand the carry on fill up the last block."""
    a, b = maps
    missing = [(0, -len(a) % size)] + [(0, 0)] * (a.ndim - 1)
    padded = AffineMap(jnp.pad(a, missing, constant_values=1), jnp.pad(b, missing))
    return jax.tree.map(lambda x: x.reshape(len(x) // size, size, *x.shape[1:]), padded)


def _unstacked(maps: AffineMap, axis: int) -> list[AffineMap]:
    return [AffineMap(*map_) for map_ in zip(*(jnp.unstack(x, axis=axis) for x in maps), strict=True)]


def _block_size(length: int) -> int:
    """Returns the rows of a block in the first stage, for the fewest stages; in later stages a block has LONGEST."""
    in_later_stages = LONGEST
    while in_later_stages * LONGEST < length:
        in_later_stages *= LONGEST
    return max(SHORTEST, -(-length // in_later_stages))


def _chain(maps: list[AffineMap], carry: Array) -> list[Array]:
    """Returns the carry before the first map, and after each."""
    return list(itertools.accumulate(maps, lambda h, f: apply(f, h), initial=carry))
