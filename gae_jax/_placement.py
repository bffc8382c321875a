"""Where arrays lie on a mesh, and what differs for it between the versions of JAX that the package runs on."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

VARYING = "manual_axis_type" if jax.__version_info__ >= (0, 10) else "vma"  # of a type inside `jax.shard_map`
KERNELS_ON_EXPLICIT_AXES = jax.__version_info__ >= (0, 9)  # before, a shard_map cannot be mapped there
reshard: Any = jax.reshard if jax.__version_info__ >= (0, 8) else jax.sharding.reshard


def zeros_placed_like(x: Array) -> Array:
    """Returns zeros that lie on a mesh as `x` does. `jnp.zeros_like` forgets the axes of a shard_map around it."""
    return jnp.where(False, lax.stop_gradient(x), jnp.zeros((), x.dtype))
