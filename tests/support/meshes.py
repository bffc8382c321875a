"""`gae` over a mesh of devices, to be called as if there were one."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P


def over_time(gae, devices, *, check_vma=True, **how):
    """`gae` with time split over as many devices as divide it, up to `devices`; to be called as `gae` is."""

    def split(rewards, values, terminated, truncated=None, *, time_axis=0, bootstrap_value=None, **others):
        rewards, values = jnp.asarray(rewards), jnp.asarray(values)
        axis = time_axis % rewards.ndim
        steps = rewards.shape[axis]
        if bootstrap_value is None:
            values, bootstrap_value = jnp.split(values, [steps], axis)
            bootstrap_value = bootstrap_value.squeeze(axis)
        arguments = {"rewards": rewards, "values": values, "terminated": terminated, "truncated": truncated} | others
        arguments = {name: jnp.asarray(x) for name, x in arguments.items() if x is not None}
        specs = {name: _spec(x.shape, rewards.shape, axis) for name, x in arguments.items()}
        static = {"time_axis": axis, "axis_name": "time"} | how
        call = _compiled(
            gae, math.gcd(steps, devices), check_vma, tuple(sorted(specs.items())), tuple(sorted(static.items()))
        )
        return call(arguments, bootstrap_value)

    return split


def _spec(shape, rewards, axis):
    """Split time, where there is an axis of it: a parameter may lack axes in front."""
    missing = len(rewards) - len(shape)
    return P(*("time" if i + missing == axis and n == rewards[axis] else None for i, n in enumerate(shape)))


@functools.cache
def _compiled(gae, count, check_vma, specs, how):
    mesh = Mesh(np.array(jax.devices()[:count]), ("time",))
    specs = dict(specs)

    def call(arguments, bootstrap_value):
        return gae(**arguments, bootstrap_value=bootstrap_value, **dict(how))

    return jax.jit(
        jax.shard_map(call, mesh=mesh, in_specs=(specs, P()), out_specs=specs["rewards"], check_vma=check_vma)
    )
