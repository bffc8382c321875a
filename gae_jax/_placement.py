"""Where arrays lie on a mesh, and what differs for it between the versions of JAX that the package runs on."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec

VARYING = "manual_axis_type" if jax.__version_info__ >= (0, 10) else "vma"  # of a type inside `jax.shard_map`
KERNELS_ON_EXPLICIT_AXES = jax.__version_info__ >= (0, 9)  # before, a shard_map cannot be mapped there
reshard: Any = jax.reshard if jax.__version_info__ >= (0, 8) else jax.sharding.reshard


def zeros_placed_like(x: Array) -> Array:
    """Returns zeros that lie on a mesh as `x` does. `jnp.zeros_like` forgets the axes of a shard_map around it."""
    return jnp.where(False, lax.stop_gradient(x), jnp.zeros((), x.dtype))


def placed_alike(arrays: Any) -> Any:
    """Returns arrays `[T, *B]` and `[*B]`, all split over the Explicit axes of a mesh as the first that is split.

    JAX does not combine arrays that are split in different ways. On Auto axes, the compiler places them.
    """
    on_mesh = [x for x in jax.tree.leaves(arrays) if jax.typeof(x).sharding.mesh.explicit_axes]
    if not on_mesh:
        return arrays
    ndim = max(x.ndim for x in jax.tree.leaves(arrays))
    mesh, specs = jax.typeof(on_mesh[0]).sharding.mesh, [jax.typeof(x).sharding.spec for x in on_mesh if x.ndim == ndim]
    first = next((spec for spec in specs if any(spec)), (None,) * ndim)

    def placed(x: Array) -> Array:
        spec = PartitionSpec(
            *(None if size == 1 else axis for axis, size in zip(first[ndim - x.ndim :], x.shape, strict=True))
        )
        return x if spec == jax.typeof(x).sharding.spec else reshard(x, NamedSharding(mesh, spec))

    return jax.tree.map(placed, arrays)
