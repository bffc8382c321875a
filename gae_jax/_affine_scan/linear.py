"""The scan of tangents, dh_t = a_t dh_{t-1} + c_t, in forms that JAX can transpose, as a gradient needs."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from gae_jax._affine_scan.affine_map import AffineMap
from gae_jax._affine_scan.placement import zeros_placed_like
from gae_jax._affine_scan.versions import TRANSPOSES_ANY_SCAN


def linear_scan(
    scan: Callable[..., Any], a: Array, c: Array, d_init: Array, *, reverse: bool, implementation: str | None
) -> tuple[Array, Array]:
    """Scans from dh_0 = d_init; returns the last dh, and the dh that enters each row.

    `scan` solves a linear system, but on CPUs a plain `jax.lax.scan` is faster, and JAX transposes the loop itself.
    """

    def by_rows(a: Array, c: Array, d_init: Array) -> tuple[Array, Array]:
        return lax.scan(lambda dh, row: (row.a * dh + row.b, dh), d_init, AffineMap(a, c), reverse=reverse)

    def by_system(a: Array, c: Array, d_init: Array) -> tuple[Array, Array]:
        return _solve(scan, a, c, d_init, reverse, implementation)

    if implementation is None and TRANSPOSES_ANY_SCAN:
        return lax.platform_dependent(a, c, d_init, cpu=by_rows, default=by_system)
    return by_system(a, c, d_init)


def _solve(
    scan: Callable[..., Any], a: Array, c: Array, d_init: Array, reverse: bool, implementation: str | None
) -> tuple[Array, Array]:
    """The rows are the equations of a linear system, (I - a S) dh = c, where S shifts by one row.

    From a linear system, JAX derives every further derivative. The transposed system, (I - S^T a) g = ct, is a scan the
    other way:

        g_t = ct_t + k_t,    k_{t-1} = a_t g_t
    """

    def entering(dh: Array, first: Array) -> Array:
        return jnp.concatenate([dh[1:], first[None]] if reverse else [first[None], dh[:-1]])

    def residual(dh: Array) -> Array:
        return dh - a * entering(dh, zeros_placed_like(a[0]))

    def solve(_: Any, c: Array) -> Array:
        return scan(_apply, zeros_placed_like(a[0]), AffineMap(a, c), (), reverse, implementation)[1]

    def transpose_solve(_: Any, ct: Array) -> Array:
        return scan(_apply_transposed, zeros_placed_like(a[0]), AffineMap(a, ct), (), not reverse, implementation)[1]

    from_init = a * entering(zeros_placed_like(a), d_init)  # a_1 dh_0 in the first row, and 0 in all others
    dh = lax.custom_linear_solve(residual, c + from_init, solve, transpose_solve)
    return dh[0] if reverse else dh[-1], entering(dh, d_init)


def _apply(dh: Array, row: AffineMap, _: Any) -> tuple[Array, Array]:
    dh = row.a * dh + row.b
    return dh, dh


def _apply_transposed(k: Array, row: AffineMap, _: Any) -> tuple[Array, Array]:
    g = row.b + k
    return row.a * g, g
