"""Meshes of CPU devices, and `gae` with time split over one, called as without a mesh."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P


def make_mesh(kind=AxisType.Auto, **axes):
    """Returns a mesh of as many devices as the lengths of its axes ask for."""
    devices = np.array(jax.devices()[: math.prod(axes.values())]).reshape(tuple(axes.values()))
    return Mesh(devices, tuple(axes), axis_types=(kind,) * len(axes))


def over_time(gae, devices, *, check_vma=True):
    """Returns `gae` with time split over as many devices as divide the number of steps, at most `devices`."""

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
        call = _compiled(gae, math.gcd(steps, devices), check_vma, tuple(sorted(specs.items())), axis)
        return call(arguments, bootstrap_value)

    return split


def _spec(shape, rewards, axis):
    """Splits the axis of time, if the array has one: a parameter may lack the first axes of `rewards`."""
    missing = len(rewards) - len(shape)
    return P(*("time" if i + missing == axis and n == rewards[axis] else None for i, n in enumerate(shape)))


@functools.cache
def _compiled(gae, count, check_vma, specs, axis):
    specs = dict(specs)

    def call(arguments, bootstrap_value):
        return gae(**arguments, bootstrap_value=bootstrap_value, time_axis=axis, time_axis_name="time")

    how = {"in_specs": (specs, P()), "out_specs": specs["rewards"], "check_vma": check_vma}
    return jax.jit(jax.shard_map(call, mesh=make_mesh(time=count), **how))
