"""`gae` and `GAE`: the laws on random rollouts, under every transformation of JAX, and the compiled program.

`pytest tests/test_gae.py --hypothesis-profile=slow --hypothesis-show-statistics` runs ten times as many rollouts, and
prints the largest relative error.
"""

import collections
import functools
import re
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from hypothesis import given
from hypothesis import strategies as st
from jax.experimental import checkify
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from support import laws
from support.laws import assert_close, flags_of, inputs_of
from support.meshes import make_mesh
from support.oracle import oracle
from support.rollouts import EXAMPLES, FLAGS, random_rollout, rollouts
from support.versions import enable_x64

from gae_jax import GAE, gae

pytestmark = pytest.mark.versions
MOST_EXAMPLES = hypothesis.settings().max_examples
ROLLOUT = random_rollout(7, steps=12, batch=(4,), ends=0.2)
WANT = oracle(**ROLLOUT.arguments())


# The laws.


@given(
    rollout=rollouts,
    time_axis=st.integers(0, 2),
    split=st.booleans(),
    flag_dtype=st.sampled_from([bool, np.int32, np.float32]),
    implementation=st.sampled_from([None, "scan", "blocked"]),
)
@hypothesis.settings(max_examples=max(1, MOST_EXAMPLES // 4))
def test_matches_oracle(rollout, time_axis, split, flag_dtype, implementation):
    """In any layout and with any kind of flags: within 1e-5, relative to the largest advantage."""
    want = oracle(**rollout.arguments())
    time_axis %= rollout.rewards.ndim
    moved = rollout.map_arrays(lambda x: np.moveaxis(x, 0, time_axis)) if time_axis else rollout
    arguments = moved.arguments()
    arguments |= {k: x.astype(flag_dtype) for k, x in arguments.items() if k in FLAGS and x is not None}
    if split:
        arguments |= {"values": np.moveaxis(rollout.values[:-1], 0, time_axis), "bootstrap_value": rollout.values[-1]}

    output = gae(**arguments, time_axis=time_axis, implementation=implementation)

    got = [np.moveaxis(np.asarray(x), time_axis, 0) for x in output]
    scale = max(1.0, np.abs(want[0]).max())
    errors = [np.abs(g - w).max() / scale for g, w in zip(got, want, strict=True)]
    hypothesis.target(float(max(errors)), label="relative error")
    assert max(errors) < 1e-5


@pytest.mark.parametrize("law", laws.MUTANTS, ids=lambda law: law.__name__)
@pytest.mark.usefixtures("fast_compilation")
def test_law(law):
    for rollout in EXAMPLES[::4]:
        law(gae, rollout)


@given(rollouts)
@hypothesis.settings(max_examples=max(1, MOST_EXAMPLES // 20))
def test_unused_entries_of_random_rollouts(rollout):
    laws.unused_entries_affect_nothing(gae, rollout)


# The object.


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_object_matches_oracle_batch_major(share):
    rng = np.random.default_rng(0)
    done = rng.random((8, 128)) < share
    rewards, values = rng.normal(size=(8, 128)), rng.normal(size=(8, 129))
    want, _ = oracle(rewards.T, values.T, done.T, gamma=0.99, lambda_=0.95)
    assert_close([GAE(8, 128, 0.99, 0.95)(done, rewards, values)], [want.T])


def test_object_can_be_jitted_and_compared():
    estimate = GAE(n_workers=2, worker_steps=3, gamma=0.9, lambda_=0.8)
    arguments = {"done": np.zeros((2, 3), bool), "rewards": np.ones((2, 3)), "values": np.zeros((2, 4))}
    np.testing.assert_array_equal(jax.jit(estimate)(**arguments), estimate(**arguments))
    assert estimate == GAE(2, 3, 0.9, 0.8)


# Transformations.


def call(rewards, values, terminated, truncated, final_values):
    return gae(rewards, values, terminated, truncated, gamma=0.9, lambda_=0.8, final_values=final_values)


ARRAYS = ROLLOUT.rewards, ROLLOUT.values, ROLLOUT.terminated, ROLLOUT.truncated, ROLLOUT.final_values


def checked(*arrays):
    error, output = checkify.checkify(call)(*arrays)
    error.throw()
    return output


@pytest.mark.parametrize(
    "transformed",
    [
        jax.jit(call),
        jax.checkpoint(call),
        checked,
        jax.jit(call, donate_argnums=0),
        jax.vmap(call, in_axes=1, out_axes=1),
        jax.pmap(call, in_axes=1, out_axes=1),
        lambda r, *others: [x[1] for x in jax.lax.map(lambda scale: call(scale * r, *others), jnp.arange(2.0))],
        jax.jit(
            jax.shard_map(call, mesh=make_mesh(workers=4), in_specs=P(None, "workers"), out_specs=P(None, "workers"))
        ),
    ],
    ids=["jit", "checkpoint", "checkify", "donate", "vmap", "pmap", "scan", "shard_map"],
)
@pytest.mark.usefixtures("fast_compilation", "leak_checks")
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
def test_transformed(transformed):
    with jax.debug_nans(True):
        assert_close(transformed(*map(jnp.asarray, ARRAYS)), WANT)


def test_vmap_over_gamma_and_lambda():
    grid, arguments = jnp.array([0.0, 0.5, 0.9]), ROLLOUT.arguments()
    outputs = jax.vmap(lambda g, la: gae(**arguments | {"gamma": g, "lambda_": la}))(grid, grid)
    for i, x in enumerate(np.asarray(grid)):
        assert_close([y[i] for y in outputs], oracle(**arguments | {"gamma": x, "lambda_": x}))


# Derivatives.


@pytest.mark.parametrize(("gamma", "lambda_", "masked_share"), [(0.9, 0.8, 0.0), ("both", "step", 0.3)])
@pytest.mark.usefixtures("fast_compilation")
def test_derivatives_forward_and_reverse(gamma, lambda_, masked_share):
    """With respect to every floating-point argument: gamma and lambda_ too, for meta-gradients."""
    rollout = random_rollout(7, steps=6, batch=(2,), ends=0.2, gamma=gamma, lambda_=lambda_, masked_share=masked_share)
    with enable_x64(True):
        flags, inputs = flags_of(rollout), jax.tree.map(np.float64, inputs_of(rollout))
        check_grads(jax.jit(lambda x: gae(**x, **flags)), (inputs,), order=1, modes=["fwd", "rev"])


# The compiled program.


def shapes(steps, *batch):
    rows, flags = (jax.ShapeDtypeStruct((steps, *batch), dtype) for dtype in (jnp.float32, jnp.bool_))
    return rows, rows, flags, flags, jax.ShapeDtypeStruct(batch, jnp.float32)


def estimate(rewards, values, terminated, truncated, bootstrap_value, implementation=None):
    how = {"gamma": 0.9, "lambda_": 0.8, "implementation": implementation}
    return gae(rewards, values, terminated, truncated, bootstrap_value=bootstrap_value, **how)


def compiled(fn, steps=16, batch=(8,)) -> Any:
    return jax.jit(fn).lower(*shapes(steps, *batch)).compile()


def opcodes(executable):
    """Returns how often each instruction occurs in the optimised program."""
    return collections.Counter(re.findall(r"^ .* = .*? ([a-z][a-z-]*)\(", executable.as_text(), re.MULTILINE))


def test_vmap_of_single_trajectories_compiles_to_the_batched_program():
    vmapped, batched = compiled(jax.vmap(estimate, in_axes=(1, 1, 1, 1, 0), out_axes=1)), compiled(estimate)
    assert opcodes(vmapped)["while"] == 1
    assert opcodes(vmapped) == opcodes(batched)
    assert vmapped.cost_analysis() == batched.cost_analysis()
    assert str(vmapped.memory_analysis()) == str(batched.memory_analysis())


@pytest.mark.parametrize("batch", [(), (2, 3, 5)])
def test_one_loop_and_no_transposition_for_any_batch_axes(batch):
    executable = compiled(estimate, batch=batch)
    assert opcodes(executable)["while"] == 1
    assert "transpose" not in opcodes(executable)


@pytest.mark.parametrize(("implementation", "loops"), [("scan", 2), ("blocked", 0)])
def test_named_implementation_runs(implementation, loops):
    """Also where one more scan finds lambda_ of the unmasked row before."""

    def masked(rewards, values, terminated, mask, bootstrap_value):
        how = {"bootstrap_value": bootstrap_value, "implementation": implementation}
        return gae(rewards, values, terminated, mask=mask, gamma=0.9, lambda_=rewards, **how)

    assert opcodes(compiled(masked))["while"] == loops


# Rounding.


@pytest.mark.parametrize("gamma", [0.99, 1.0])
@pytest.mark.parametrize("lambda_", [0.9, 0.999, 0.9999])
def test_rounding_error_of_large_values_is_within_its_bound(gamma, lambda_):
    """2^-24 max|V| / (1 - γλ), as the docstring says, where |V| is a million times |A|; and none with its remedies."""
    rng = np.random.default_rng(0)
    rewards, values = (rng.normal(size=(n, 4)).astype(np.float32) for n in (20_000, 20_001))
    gamma, lambda_ = np.float32(gamma), np.float32(lambda_)
    decay = float(gamma) * float(lambda_)

    def error(level):
        shifted = (values + level).astype(np.float32)
        got = gae(rewards, shifted, False, gamma=gamma, lambda_=lambda_).advantages
        deltas = rewards + float(gamma) * np.float64(shifted[1:]) - shifted[:-1]
        want = np.asarray(scipy.signal.lfilter([1], [1, -decay], deltas[::-1], axis=0))[::-1]
        return np.abs(got - want).max() / np.abs(want).max(), np.abs(want).max()

    relative, scale = error(1e6)
    assert relative * scale < 2**-24 * 1e6 / (1 - decay)
    assert error(0.0)[0] < 1e-5
    with enable_x64(True):
        rewards, values = np.float64(rewards), np.float64(values)
        assert error(1e6)[0] < (1e-5 if gamma == 1 else 1e-6)


# The memory of a gradient.


def scratch_of_a_gradient(implementation):
    def loss(*arrays):
        return jnp.sum(estimate(*arrays, implementation=implementation).advantages ** 2)

    return compiled(jax.grad(loss, argnums=(0, 1)), 256, (256,)).memory_analysis().temp_size_in_bytes


def residuals(implementation):
    """Returns the bytes that a gradient keeps, where only the forward call is jitted."""
    forward = jax.jit(functools.partial(estimate, implementation=implementation))

    def pullback(rewards, values, *others):
        return jax.vjp(lambda r, v: forward(r, v, *others), rewards, values)[1]

    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(pullback, *shapes(256, 256))))


def test_memory_of_a_gradient():
    """In one jit, the default takes as much as a plain scan; where only the forward call is jitted, thrice at most."""
    assert scratch_of_a_gradient(None) <= 1.5 * scratch_of_a_gradient("scan")
    for implementation in (None, "blocked"):
        assert 0 < residuals(implementation) <= 3 * residuals("scan")
