"""What every implementation of `affine_scan` obeys: functions of the library and of the implementation's name.

A law fails with an AssertionError, so a library with a mistake in it can be held to them too.
"""

import contextlib
import functools
import io
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu


def step_with(slope, offset):
    """A step over a tree of rows, which closes over two arrays, and forgets the carry where `cut`."""

    def step(carry, row):
        new_carry = row["a"] * slope * jnp.where(row["cut"], 0, carry) + offset * row["b"][0] - row["b"][1]
        return new_carry, {"before": carry * row["a"], "squared": (new_carry * new_carry, carry + offset)}

    return step


def problem(seed, length, batch, dtype: Any = np.float32):
    """The two arrays, the first carry, and the rows."""
    rng = np.random.default_rng(seed)
    shape = (length, *batch)
    a, b, c = (rng.uniform(-1.1, 1.1, shape).astype(dtype) for _ in range(3))
    xs = {"a": a, "b": (b, c), "cut": rng.random(shape) < 0.2}
    closed_over = rng.uniform(0.5, 1, batch).astype(dtype), dtype(0.7)
    return jax.tree.map(jnp.asarray, (closed_over, rng.normal(size=batch).astype(dtype), xs))


def scanned(lib, name, closed_over, init, xs, *, reverse=False):
    """The scan by an implementation; or by the specification, where there is no library."""
    if lib is None:
        return lax.scan(step_with(*closed_over), init, xs, reverse=reverse)
    return lib.affine_scan(step_with(*closed_over), init, xs, reverse=reverse, implementation=name)


def assert_all_close(got, want, tolerance=1e-5):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    assert jax.tree.map(jnp.result_type, got) == jax.tree.map(jnp.result_type, want)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), got, want)


def is_lax_scan(lib, name, length=70, batch=(2,)):
    """The same carry, the same rows, either way."""
    for reverse in (False, True):
        arguments = problem(0, length, batch)
        got = jax.jit(functools.partial(scanned, lib, name, reverse=reverse))(*arguments)
        assert_all_close(got, scanned(None, None, *arguments, reverse=reverse))


def differentiates_as_lax_scan(lib, name, length=19, batch=(2,)):
    """With respect to the first carry, the rows and what is closed over: forward, reverse, twice in any order."""
    dtype, tolerance = (np.float32, 1e-3) if name == "interpreted" else (np.float64, 1e-9)
    with jax.enable_x64(dtype is np.float64):
        closed_over, init, xs = problem(1, length, batch, dtype)
        cut = xs.pop("cut")
        inputs = closed_over, init, xs
        direction = jax.tree.map(jnp.sin, inputs)

        def derivatives(lib):
            def loss(inputs):
                closed_over, init, xs = inputs
                last, ys = scanned(lib, name, closed_over, init, xs | {"cut": cut}, reverse=True)
                return jnp.sum(jnp.sin(last)) + sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(ys))

            def slope(inputs):
                return jax.jvp(loss, (inputs,), (direction,))[1]

            def steepness(inputs):
                return sum(jnp.sum(g * g) for g in jax.tree.leaves(jax.grad(loss)(inputs)))

            curvature = jax.jvp(jax.grad(loss), (inputs,), (direction,))[1]
            return (
                slope(inputs),
                jax.grad(loss)(inputs),
                jax.grad(slope)(inputs),
                jax.grad(steepness)(inputs),
                curvature,
            )

        got, want = (jax.jit(derivatives, static_argnums=0)(x) for x in (lib, None))
        assert_all_close(got, want, tolerance)


def forgets_what_is_cut(lib, name, length=40):
    """Where the step forgets the carry, it forgets it also if it is not a number."""
    for reverse, later in ((False, slice(length // 2 + 1, None)), (True, slice(None, length // 2))):
        closed_over, init, xs = problem(2, length, (2,))
        xs["cut"] = jnp.zeros((length, 2), bool).at[length // 2].set(True)
        last, ys = jax.jit(functools.partial(scanned, lib, name, reverse=reverse))(closed_over, init * jnp.nan, xs)
        want, want_ys = scanned(None, None, closed_over, init, xs, reverse=reverse)
        assert_all_close(
            (last, [y[later] for y in jax.tree.leaves(ys)]), (want, [y[later] for y in jax.tree.leaves(want_ys)])
        )


def batches_as_lax_scan(lib, name, length=19):
    """Vmap over all arrays, along any axis, twice, and of a gradient."""
    arguments = problem(3, length, (3, 2))
    axes = (0, None), 0, 1

    def results(lib, reverse):
        scan = functools.partial(scanned, lib, name, reverse=reverse)
        gradient = jax.grad(lambda *x: sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(scan(*x))), argnums=1)
        once = jax.vmap(scan, in_axes=axes, out_axes=(0, 1))
        return {
            "along its first axis": once(*arguments),
            "along its last": jax.vmap(scan, in_axes=((1, None), 1, 2), out_axes=(1, 2))(*arguments),
            "twice": jax.vmap(jax.vmap(scan, in_axes=axes), in_axes=axes)(*arguments),
            "of a gradient": jax.vmap(gradient, in_axes=axes)(*arguments),
        }

    for reverse in (False, True):
        got, want = (jax.jit(results, static_argnums=(0, 1))(x, reverse) for x in (lib, None))
        assert_all_close(got, want)


def shares_as_lax_scan(lib, name, length=19):
    """Vmap over some arrays, which share the others."""
    closed_over, init, xs = problem(3, length, (2,))
    slopes, inits = jnp.stack([closed_over[0]] * 3), jnp.stack([init, 2 * init, 3 * init])

    def results(lib, reverse):
        scan = functools.partial(scanned, lib, name, reverse=reverse)
        return {
            "the rows": jax.vmap(scan, in_axes=(None, 0, None))(closed_over, inits, xs),
            "the first carry": jax.vmap(scan, in_axes=((0, None), None, None))((slopes, 0.7), init, xs),
        }

    for reverse in (False, True):
        got, want = (jax.jit(results, static_argnums=(0, 1))(x, reverse) for x in (lib, None))
        assert_all_close(got, want)


def kernel_is_lax_scan(lib, length=40, lanes=130):
    """The kernel in a simulator, in blocks of 32 rows by 128 lanes: two cores, NaN where nothing is written."""
    simulator = pltpu.InterpretParams(
        detect_races=True, uninitialized_memory="nan", num_cores_or_threads=2, random_seed=0
    )
    closed_over, init, xs = problem(4, length, (lanes,))
    for reverse in (False, True):
        with (
            mock.patch.object(lib._affine_scan.pallas_tpu, "VMEM", 32 * 128 * 100),
            pltpu.force_tpu_interpret_mode(simulator),
            contextlib.redirect_stdout(io.StringIO()) as printed,
        ):
            got = lib._affine_scan.pallas_tpu.pallas_tpu(step_with(*closed_over), init, xs, reverse=reverse)
            jax.block_until_ready(got)
        assert "RACE" not in printed.getvalue().upper()
        assert_all_close(got, scanned(None, None, closed_over, init, xs, reverse=reverse))


def interpreted(lib):
    """The kernel in Pallas's own interpreter, which every transformation understands, as an implementation."""

    def run(*arguments, **how):
        with mock.patch.object(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True)):
            return lib._affine_scan.pallas_tpu.pallas_tpu(*arguments, **how)

    return mock.patch.dict(lib._affine_scan.primitive.IMPLEMENTATIONS, interpreted=run)


LAWS = is_lax_scan, differentiates_as_lax_scan, forgets_what_is_cut, batches_as_lax_scan, shares_as_lax_scan
