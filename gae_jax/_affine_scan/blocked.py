"""The same scan without a loop: a handful of kernels, whatever the length; plain JAX, for any platform.

A step that is affine in its carry, h -> a h + b, is told by a row's a and b, and so are several steps one after the
other: they compose to another such map. So the rows are cut into blocks of some K. All blocks at once compose their K
maps into one; the blocks' maps are a shorter scan, solved in the same way; it gives the carry that enters each block,
and from there K steps, all blocks at once, give the carry that enters each row. Then one call of `step` on all rows at
once gives every output.

Each stage is to become one kernel, which reads its rows anew: that is cheaper than to keep a and b in memory. The
barriers are what holds the compiler to it; without them it computes some stages twice over.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

# Steps in a block. Longer ones save a stage; but a kernel that writes K rows takes K (K - 1) / 2 steps to do so.
SHORTEST, LONGEST = 8, 16


def blocked(step: Callable[..., Any], init: Array, xs: Any, *, reverse: bool) -> tuple[Array, Any]:
    """Runs the step on all rows at once, from carries found by composing blocks of rows."""

    def coefficients(row: Any) -> tuple[Array, Array]:
        """Those of h -> a h + b: its derivative, and its value at 0."""
        b, a = jax.jvp(lambda h: step(h, row)[0], (jnp.zeros_like(init),), (jnp.ones_like(init),))
        return a, b

    a, b = jax.vmap(coefficients)(xs)
    if reverse:
        a, b = a[::-1], b[::-1]
    entering, last = _carries(a, b, init)
    if reverse:
        entering = entering[::-1]
    _, ys = jax.vmap(step)(entering, xs)
    return last, ys


def _carries(a: Array, b: Array, init: Array) -> tuple[Array, Array]:
    """From `a` and `b` `[T, *B]` and `init` `[*B]` to the carry that enters each row, `[T, *B]`, and the last."""
    length = len(a)
    if length <= LONGEST:
        *entering, last = _chain(zip(a, b, strict=True), init)
        return jnp.stack(entering), last
    size = _block_size(length)
    # The last block is filled up with steps that hand the carry on.
    missing = [(0, -length % size)] + [(0, 0)] * init.ndim
    a = jnp.pad(a, missing, constant_values=1).reshape(-1, size, *init.shape)
    b = jnp.pad(b, missing).reshape(-1, size, *init.shape)
    steps = [(a[:, k], b[:, k]) for k in range(size)]
    block_a, block_b = steps[0]
    for a_k, b_k in steps[1:]:
        block_a, block_b = times(a_k, block_a), times(a_k, block_b) + b_k
    block_a, block_b = lax.optimization_barrier((block_a, block_b))
    entering_block, last = lax.optimization_barrier(_carries(block_a, block_b, init))
    entering = _chain(steps[:-1], entering_block)
    return jnp.stack(entering, axis=1).reshape(-1, *init.shape)[:length], last


def _block_size(length: int) -> int:
    """The smallest blocks of as few stages as can be: in all stages but the first they are as long as they may."""
    in_later_stages = LONGEST
    while in_later_stages * LONGEST < length:
        in_later_stages *= LONGEST
    return max(SHORTEST, -(-length // in_later_stages))


def _chain(steps: Iterable[tuple[Array, Array]], carry: Array) -> list[Array]:
    """The carry before the first step, and after each."""
    carries = [carry]
    for a, b in steps:
        carries.append(times(a, carries[-1]) + b)
    return carries


def times(a: Array, x: Array) -> Array:
    """A x, where 0 times NaN is 0: a step that forgets the carry forgets it also if that is not finite."""
    return a * jnp.where((a == 0) & ~jnp.isfinite(x), 0, x)
