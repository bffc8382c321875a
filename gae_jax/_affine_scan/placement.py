"""Arrays that lie over the devices of a mesh as another array lies."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gae_jax._affine_scan.versions import VARYING


def zeros_placed_like(x: Array) -> Array:
    """Returns zeros that are split over Explicit and Manual axes of a mesh as `x` is, whatever `x` holds.

    `jnp.zeros_like` forgets the axes. Where there are none, its zeros are constants, which the compiler folds.
    """
    mesh = jax.typeof(x).sharding.mesh
    return (x > x).astype(x.dtype) if mesh.explicit_axes or mesh.manual_axes else jnp.zeros_like(x)


def struct_placed_like(shape: tuple[int, ...], dtype: Any, x: Array) -> jax.ShapeDtypeStruct:
    """Returns the type of a kernel's output that, inside `jax.shard_map`, varies over the mesh axes that `x` does."""
    return jax.ShapeDtypeStruct(shape, dtype, **{VARYING: getattr(jax.typeof(x), VARYING)})
