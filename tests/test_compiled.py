"""What the compiler makes of `gae`: one loop, however it is batched, on CPUs; and no loop elsewhere."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import pytest

from gae_jax import gae

T, N = 16, 32
SHAPES = (jax.ShapeDtypeStruct((T, N), jnp.float32),) * 2 + (jax.ShapeDtypeStruct((T, N), jnp.bool_),) * 2
FINAL = jax.ShapeDtypeStruct((N,), jnp.float32)


def call(rewards, values, terminated, truncated, bootstrap_value, implementation=None):
    how = {"gamma": 0.9, "lambda_": 0.8, "implementation": implementation}
    return gae(rewards, values, terminated, truncated, bootstrap_value=bootstrap_value, **how)


def compiled(fn):
    return jax.jit(fn).lower(*SHAPES, FINAL).compile()


def opcodes(executable):
    """How often each instruction occurs in the optimised program."""
    return collections.Counter(re.findall(r"^ .* = .*? ([a-z][a-z-]*)\(", executable.as_text(), re.MULTILINE))


def one_by_one(rewards, values, terminated, truncated, bootstrap_value):
    """The counterexample: a loop a worker."""
    outputs = [
        call(rewards[:, i], values[:, i], terminated[:, i], truncated[:, i], bootstrap_value[i]) for i in range(N)
    ]
    return jax.tree.map(lambda *x: jnp.stack(x, 1), *outputs)


over_workers = jax.vmap(call, in_axes=(1, 1, 1, 1, 0), out_axes=1)


def test_single_trajectories_vmapped_are_the_batched_call():
    vmapped, batched = compiled(over_workers), compiled(call)
    assert opcodes(vmapped)["while"] == opcodes(batched)["while"] == 1
    assert opcodes(vmapped) == opcodes(batched)
    assert vmapped.cost_analysis() == batched.cost_analysis()
    assert str(vmapped.memory_analysis()) == str(batched.memory_analysis())


@pytest.mark.parametrize(("implementation", "loops"), [("scan", 1), ("blocked", 0)])
def test_the_implementation_asked_for_is_the_one_that_runs(implementation, loops):
    executable = compiled(functools.partial(call, implementation=implementation))
    assert opcodes(executable)["while"] == loops


def test_the_count_can_tell():
    assert opcodes(compiled(one_by_one))["while"] == N


@pytest.mark.parametrize("batch", [(), (3,), (3, 5), (2, 3, 5)])
def test_one_loop_for_any_batch_axes_and_no_transposition(batch):
    shapes = [jax.ShapeDtypeStruct((T, *batch), x.dtype) for x in SHAPES]
    executable = jax.jit(call).lower(*shapes, jax.ShapeDtypeStruct(batch, jnp.float32)).compile()
    assert opcodes(executable)["while"] == 1
    assert "transpose" not in opcodes(executable)


def test_the_gradient_is_two_loops():
    """Once forward for what the derivative needs, once back: no loop inside a loop."""
    executable = compiled(jax.grad(lambda *arrays: jnp.sum(call(*arrays).advantages ** 2), argnums=(0, 1)))
    assert opcodes(executable)["while"] == 2


@pytest.mark.parametrize(
    ("platform", "loops", "kernels"), [("cpu", 1, 0), ("cuda", 0, 0), ("rocm", 0, 0), ("tpu", 0, 1)]
)
def test_one_traced_program_is_lowered_for_each_platform_in_its_own_way(platform, loops, kernels):
    program = jax.jit(call).trace(*SHAPES, FINAL).lower(lowering_platforms=(platform,)).as_text()
    assert program.count("stablehlo.while") == loops
    assert program.count("tpu_custom_call") == kernels


def test_for_all_platforms_at_once():
    exported = jax.export.export(jax.jit(call), platforms=("cpu", "cuda", "tpu"))(*SHAPES, FINAL)
    program = exported.mlir_module()
    assert program.count("stablehlo.while") == program.count("tpu_custom_call") == 1
