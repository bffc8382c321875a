"""`gae` compiled for GPUs and TPUs that are not here: kernels, loops, memory, collectives; no measured times.

This module needs the extra `aot`: `pytest -m aot`.
"""

import pytest

pytest.importorskip("libtpu", reason="the compilers for GPUs and TPUs are in the extra `aot`")
pytest.importorskip("jax_plugins.xla_cuda12", reason="the compilers for GPUs and TPUs are in the extra `aot`")

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from scaling_out import collective_bytes, collectives
from support import chips

from gae_jax import gae

pytestmark = pytest.mark.aot


def call(rewards, values, terminated, bootstrap_value, **how):
    return gae(rewards, values, terminated, gamma=0.99, lambda_=0.95, bootstrap_value=bootstrap_value, **how)


def shapes(length, lanes):
    rows = jax.ShapeDtypeStruct((length, lanes), jnp.float32)
    return rows, rows, jax.ShapeDtypeStruct((length, lanes), jnp.bool_), jax.ShapeDtypeStruct((lanes,), jnp.float32)


def by(implementation):
    return lambda *rollout: call(*rollout, implementation=implementation)


def advantages_alone(*rollout):
    return call(*rollout, implementation="pallas").advantages


def scratch(executable):
    return executable.memory_analysis().temp_size_in_bytes


over_workers = jax.vmap(call, in_axes=(1, 1, 1, 0), out_axes=1)


@pytest.mark.parametrize("chip", chips.GPUS)
@pytest.mark.parametrize(("length", "lanes", "most"), [(16, 4096, 1), (128, 4096, 3), (4096, 64, 5), (65536, 16, 8)])
def test_kernels_on_a_gpu(chip, length, lanes, most):
    executable = chips.compiled(chip, call, *shapes(length, lanes))
    assert set(chips.launched(executable)) == {"fusion"}
    assert chips.launched(executable)["fusion"] <= most
    assert scratch(executable) < 0.1 * (4 + 4 + 1) * length * lanes


@pytest.mark.parametrize(("length", "lanes"), [(128, 4096), (2048, 128)])
def test_vmap_of_single_trajectories(length, lanes):
    """On a GPU, no more kernels than the batch has; on a TPU, blocks in the place of the kernel."""
    vmapped, batched = (
        chips.launched(chips.compiled("H100", fn, *shapes(length, lanes))) for fn in (over_workers, call)
    )
    assert set(vmapped) == {"fusion"}
    assert vmapped["fusion"] <= batched["fusion"]
    text = chips.text(chips.compiled("v5e", over_workers, *shapes(length, lanes)))
    assert "tpu_custom_call" not in text
    assert " while(" not in text


@pytest.mark.parametrize(("length", "lanes"), [(128, 512), (2048, 128)])
def test_vmap_over_seeds(length, lanes):
    """On a GPU, at most two more kernels than the batch has; on a TPU, one kernel."""

    def launched(chip, fn, *seeds):
        arrays = [jax.ShapeDtypeStruct((*seeds, *x.shape), x.dtype) for x in shapes(length, lanes)]
        return chips.compiled(chip, fn, *arrays)

    over_seeds, alone = (chips.launched(launched("H100", *fn)) for fn in ((jax.vmap(call), 8), (call,)))
    assert set(over_seeds) == {"fusion"}
    assert over_seeds["fusion"] <= alone["fusion"] + 2
    text = chips.text(launched("v5e", jax.vmap(call), 8))
    assert text.count('custom_call_target="tpu_custom_call"') == 1


@pytest.mark.parametrize("chip", chips.TPUS)
@pytest.mark.parametrize(("length", "lanes"), [(1, 1), (16, 32), (1000, 300), (128, 4096), (2048, 2048), (65536, 16)])
def test_one_kernel_on_a_tpu(chip, length, lanes):
    text = chips.text(chips.compiled(chip, by("pallas"), *shapes(length, lanes)))
    assert text.count('custom_call_target="tpu_custom_call"') == 1
    assert " while(" not in text


@pytest.mark.parametrize("chip", chips.TPUS)
def test_nothing_beside_the_kernel_on_a_tpu(chip):
    """For the advantages alone: the compiler fuses the conversion of the flags into the kernel."""
    executable = chips.compiled(chip, advantages_alone, *shapes(128, 4096))
    assert chips.launched(executable) == {"fusion": 1}
    assert chips.text(executable).count('custom_call_target="tpu_custom_call"') == 1


def test_estimated_cycles_of_the_advantages_alone():
    """128 x 4096: two blocks of lanes, and one of time."""
    cycles = chips.kernel_cycles(advantages_alone, "v5e", *shapes(128, 4096), rows=2 * 128, blocks=2)
    print(f"v5e: {cycles} cycles")
    assert cycles < 9000


def test_kernel_with_every_argument():
    names = ["rewards", "values", "terminated", "bootstrap_value"]
    names += ["truncated", "final_values", "mask", "gamma", "lambda_"]
    rows, _, flags, last = shapes(100, 300)

    def everything(*arrays):
        return gae(**dict(zip(names, arrays, strict=True)), implementation="pallas")

    text = chips.text(chips.compiled("v5e", everything, rows, rows, flags, last, flags, rows, flags, last, rows))
    assert text.count('custom_call_target="tpu_custom_call"') == 2  # one scan finds lambda_ before each row


@pytest.mark.parametrize("chip", chips.TPUS)
def test_estimated_cycles_of_each_implementation(chip):
    """The compiler's own estimate, at 128 x 4096: two blocks of lanes, and one of time."""
    rollout = shapes(128, 4096)
    kernel = chips.kernel_cycles(by("pallas"), chip, *rollout, rows=2 * 128, blocks=2)
    blocked, scan = (
        chips.estimated_cycles(chips.compiled(chip, by(name), *rollout), 128) for name in ("blocked", "scan")
    )
    print(f"{chip}: pallas {kernel}, blocked {blocked}, scan {scan} cycles")
    assert 2 * kernel < blocked
    assert 2 * blocked < scan


def split(chip, fn, length, lanes, *, time=None, workers=None, kind=AxisType.Auto):
    """Compiles for several chips of a kind, with time or workers split over the axis "all"."""
    mesh = Mesh(np.array(chips.devices(chip, chips.MANY[chip])), ("all",), axis_types=(kind,))
    specs = [P(workers) if x.ndim == 1 else P(time, workers) for x in shapes(length, lanes)]
    if time:
        fn = jax.shard_map(fn, mesh=mesh, in_specs=tuple(specs), out_specs=P(time, workers))
    return chips.compiled_on(mesh, fn, shapes(length, lanes), specs)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
@pytest.mark.parametrize("chip", chips.MANY)
def test_workers_split_over_chips(chip, kind):
    """No collective. With Explicit axes, each TPU runs the kernel on its workers."""
    executable = split(chip, call, 128, 8192, workers="all", kind=kind)
    assert collectives(executable) == {}
    kernels = int(chip in chips.TPUS and kind == AxisType.Explicit)
    assert chips.text(executable).count('custom_call_target="tpu_custom_call"') == kernels
    assert " while(" not in chips.text(executable)
    assert {sharding.spec for sharding in executable.output_shardings} == {P(None, "all")}


@pytest.mark.parametrize(("chip", "implementation"), [("v5e", "blocked"), ("v5e", None), ("v6e", None), ("H100", None)])
def test_time_split_over_chips(chip, implementation):
    """One collective, of two numbers a worker and chip, for any number of steps."""
    lanes, count = 128, len(chips.devices(chip, chips.MANY[chip]))

    def fn(*rollout):
        return call(*rollout, time_axis_name="all", implementation=implementation)

    for length in (1024, 65536):
        executable = split(chip, fn, length, lanes, time="all")
        assert collectives(executable) in ({"all-gather": 1}, {"all-reduce": 1})  # as a sum, on many chips
        assert collective_bytes(executable) == count * 2 * 4 * lanes
    kernels = 3 if chip in chips.TPUS and implementation is None else 0
    assert chips.text(executable).count('custom_call_target="tpu_custom_call"') == kernels
    assert " while(" not in chips.text(executable)
