"""What differs between the versions of JAX that the package runs on."""

from typing import Any

import jax

VARYING = "manual_axis_type" if jax.__version_info__ >= (0, 10) else "vma"  # of a type inside `jax.shard_map`
KERNELS_ON_EXPLICIT_AXES = jax.__version_info__ >= (0, 9)  # before, a shard_map cannot be mapped there
reshard: Any = jax.reshard if jax.__version_info__ >= (0, 8) else jax.sharding.reshard
