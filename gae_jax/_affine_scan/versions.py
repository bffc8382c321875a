"""What differs between the versions of JAX that the package runs on, and nothing else."""

from typing import Any

import jax


def struct_varying_like(shape: tuple[int, ...], dtype: Any, like: jax.Array) -> jax.ShapeDtypeStruct:
    """Returns the type of a kernel's output that, inside `jax.shard_map`, varies over the same mesh axes as `like`."""
    name = "manual_axis_type" if hasattr(jax.typeof(like), "manual_axis_type") else "vma"  # the former from 0.10 on
    return jax.ShapeDtypeStruct(shape, dtype, **{name: getattr(jax.typeof(like), name)})
