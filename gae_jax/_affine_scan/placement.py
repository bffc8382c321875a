"""Arrays that lie over the devices of a mesh as another array lies."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from gae_jax._affine_scan.versions import VARYING


def zeros_placed_like(x: Array) -> Array:
    """Returns zeros that lie on a mesh as `x` does. `jnp.zeros_like` forgets the axes of a shard_map around it."""
    return jnp.where(False, lax.stop_gradient(x), jnp.zeros((), x.dtype))


def struct_placed_like(shape: tuple[int, ...], dtype: Any, x: Array) -> jax.ShapeDtypeStruct:
    """Returns the type of a kernel's output that, inside `jax.shard_map`, varies over the mesh axes that `x` does."""
    return jax.ShapeDtypeStruct(shape, dtype, **{VARYING: getattr(jax.typeof(x), VARYING)})
