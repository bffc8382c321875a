"""Arrays that lie as another array lies: under `jax.vmap`, over the devices of a mesh, and by the version of JAX."""

from typing import Any

import jax
from jax import Array

reshard: Any = getattr(jax, "reshard", None) or jax.sharding.reshard  # the former from jax 0.8 on


def zeros_placed_like(x: Array) -> Array:
    """Returns zeros that are mapped and split as `x` is, whatever `x` holds; `jnp.zeros_like` forgets both."""
    return (x > x).astype(x.dtype)


def struct_placed_like(shape: tuple[int, ...], dtype: Any, x: Array) -> jax.ShapeDtypeStruct:
    """Returns the type of a kernel's output that, inside `jax.shard_map`, varies over the mesh axes that `x` does."""
    name = "manual_axis_type" if hasattr(jax.typeof(x), "manual_axis_type") else "vma"  # the former from jax 0.10 on
    return jax.ShapeDtypeStruct(shape, dtype, **{name: getattr(jax.typeof(x), name)})
