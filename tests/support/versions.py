"""What differs for the tests between versions of JAX, and nothing else."""

import inspect
from typing import Any

import jax
import jax.experimental
import pytest
from jax.experimental.pallas import tpu as pltpu

VERSION = jax.__version_info__
experimental: Any = jax.experimental
sharding: Any = jax.sharding
enable_x64 = jax.enable_x64 if VERSION >= (0, 8) else experimental.enable_x64
set_mesh = jax.set_mesh if hasattr(jax, "set_mesh") else sharding.use_mesh
kernel_on_explicit_axes = pytest.mark.skipif(VERSION < (0, 9), reason="the kernel on Explicit axes needs jax 0.9")
gradients_on_explicit_axes = VERSION >= (0, 8)  # jax 0.7 forgets the mesh of a cotangent
shard_map_of_some_axes = pytest.mark.skipif(VERSION < (0, 10), reason="shard_map of some Explicit axes needs jax 0.10")
derivatives_per_shard = pytest.mark.skipif(VERSION < (0, 8), reason="jax 0.7 lacks derivatives of kernels in shard_map")


def two_cores_with_race_detection() -> pltpu.InterpretParams:
    """Returns the parameters of a simulated TPU of two cores, which detects races and whose memory holds NaN at first.

    The parameter for the number of cores has had three names.
    """
    accepted = inspect.signature(pltpu.InterpretParams).parameters
    [cores] = accepted.keys() & {"num_cores_per_device", "num_cores_or_threads_per_device", "num_cores_or_threads"}
    how: dict[str, Any] = {cores: 2}
    return pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", random_seed=0, **how)
