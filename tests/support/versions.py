"""What differs for the tests between versions of JAX, and nothing else."""

import inspect
from typing import Any

import jax
import jax.experimental
from jax.experimental.pallas import tpu as pltpu

enable_x64: Any = jax.enable_x64 if hasattr(jax, "enable_x64") else vars(jax.experimental)["enable_x64"]  # from 0.8 on
set_mesh: Any = jax.set_mesh if hasattr(jax, "set_mesh") else vars(jax.sharding)["use_mesh"]  # from 0.7.1 on


def two_cores_with_race_detection() -> Any:
    """Returns the parameters of a simulated TPU of two cores, which detects races and whose memory holds NaN at first.

    The parameter for the number of cores has had three names.
    """
    accepted = inspect.signature(pltpu.InterpretParams).parameters
    [cores] = accepted.keys() & {"num_cores_per_device", "num_cores_or_threads_per_device", "num_cores_or_threads"}
    how: dict[str, Any] = {cores: 2}
    return pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", random_seed=0, **how)
