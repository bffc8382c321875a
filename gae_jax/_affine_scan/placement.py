"""Arrays that lie as another array lies: under `jax.vmap`, and over the devices of a mesh."""

from typing import Any

import jax
from jax import Array

from gae_jax._affine_scan.versions import VARYING


def zeros_placed_like(x: Array) -> Array:
    """Returns zeros that are mapped and split as `x` is, whatever `x` holds; `jnp.zeros_like` forgets both."""
    return (x > x).astype(x.dtype)


def struct_placed_like(shape: tuple[int, ...], dtype: Any, x: Array) -> jax.ShapeDtypeStruct:
    """Returns the type of a kernel's output that, inside `jax.shard_map`, varies over the mesh axes that `x` does."""
    return jax.ShapeDtypeStruct(shape, dtype, **{VARYING: getattr(jax.typeof(x), VARYING)})
