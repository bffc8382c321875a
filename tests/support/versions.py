"""What differs for the tests between versions of JAX, and nothing else."""

import inspect

import jax
from jax.experimental.pallas import tpu as pltpu

if hasattr(jax, "enable_x64"):
    enable_x64 = jax.enable_x64
else:  # before 0.8
    from jax.experimental import enable_x64 as enable_x64

set_mesh = jax.set_mesh if hasattr(jax, "set_mesh") else jax.sharding.use_mesh  # the latter before 0.7.1


def two_cores_with_race_detection() -> pltpu.InterpretParams:
    """Returns the parameters of a simulated TPU of two cores, which detects races and whose memory holds NaN at first.

    The parameter for the number of cores has had three names.
    """
    accepted = inspect.signature(pltpu.InterpretParams).parameters
    [cores] = accepted.keys() & {"num_cores_per_device", "num_cores_or_threads_per_device", "num_cores_or_threads"}
    return pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", random_seed=0, **{cores: 2})
