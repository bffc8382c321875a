"""What every implementation of `affine_scan` obeys: functions of the library and of the implementation's name.

A law raises an AssertionError where an implementation differs from `jax.lax.scan`, so that a mutant of the library can
be held to it too.
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

from support.mutants import Mutant
from support.versions import enable_x64, two_cores_with_race_detection

PALLAS_CALL, PLATFORM_DEPENDENT = pl.pallas_call, lax.platform_dependent


def step(carry, row, shared):
    """A step over a tree of rows, which forgets the carry where `cut`."""
    slope, offset = shared
    new_carry = row["a"] * slope * jnp.where(row["cut"], 0, carry) + offset * row["b"][0] - row["b"][1]
    return new_carry, {"before": carry * row["a"], "squared": (new_carry * new_carry, carry + offset)}


def problem(seed, length, batch, dtype: Any = np.float32):
    """Returns the first carry, the rows and the shared arrays of a scan with `step`."""
    rng = np.random.default_rng(seed)
    shape = (length, *batch)
    a, b, c = (rng.uniform(-1.1, 1.1, shape).astype(dtype) for _ in range(3))
    xs = {"a": a, "b": (b, c), "cut": rng.random(shape) < 0.2}
    shared = tuple(rng.uniform(0.5, 1, batch).astype(dtype) for _ in range(2))
    return jax.tree.map(jnp.asarray, (rng.normal(size=batch).astype(dtype), xs, shared))


def scanned(lib, name, init, xs, shared, *, reverse=False):
    """Scans with an implementation of the library; with `jax.lax.scan`, where there is no library."""
    if lib is None:
        return lax.scan(lambda carry, row: step(carry, row, shared), init, xs, reverse=reverse)
    return lib._affine_scan.affine_scan(step, init, xs, shared, reverse=reverse, implementation=name)


def assert_all_close(got, want, tolerance=1e-5):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    assert jax.tree.map(jnp.result_type, got) == jax.tree.map(jnp.result_type, want)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), got, want)


@contextlib.contextmanager
def interpreted_kernel():
    """Within this context, implementation="pallas" runs on CPUs, in Pallas's interpreter."""

    def platform_dependent(*operands, default=None, **platforms):
        return PLATFORM_DEPENDENT(*operands, default=default or platforms["tpu"], **platforms)

    with (
        mock.patch.object(pl, "pallas_call", functools.partial(PALLAS_CALL, interpret=True)),
        mock.patch.object(lax, "platform_dependent", platform_dependent),
    ):
        yield


@contextlib.contextmanager
def short_blocks(lib):
    """Within this context, "blocked" has blocks of 2 to 4 rows: several levels of blocks in a small program."""
    blocked = {} if lib is None else lib._affine_scan.blocked.__globals__
    with mock.patch.dict(blocked, SHORTEST=2, LONGEST=4):
        yield


@functools.cache
def by_lax_scan(seed, length, batch, reverse):
    return scanned(None, None, *problem(seed, length, batch), reverse=reverse)


def matches_lax_scan(lib, name, length=70, batch=(2,)):
    """The last carry and the outputs, in either direction."""
    arguments = problem(0, length, batch)
    for reverse in (False, True):
        got = jax.jit(functools.partial(scanned, lib, name, reverse=reverse))(*arguments)
        assert_all_close(got, by_lax_scan(0, length, batch, reverse))


def differentiates_as_lax_scan(lib, name):
    """Along the first carry, the rows and the shared arrays at once: forward and reverse."""
    dtype, tolerance = widest(name)
    assert_all_close(derivatives(lib, name, dtype), derivatives(None, None, dtype), tolerance)


def differentiates_twice_as_lax_scan(lib, name):
    """Forward over reverse, and reverse over forward."""
    dtype, tolerance = widest(name)
    assert_all_close(second_derivatives(lib, name, dtype), second_derivatives(None, None, dtype), tolerance)


def differentiates_one_input_at_a_time(lib, name):
    """Where the other inputs have no tangent: forward, along the first carry, the rows, or the shared arrays."""
    assert_all_close(tangents_of_one_input(lib, name), tangents_of_one_input(None, None), 1e-4)


def differentiates_twice_around_a_loop(lib, name):
    """A second derivative of `lax.scan` over minibatches, with the scan in its body: JAX splits such a body in two."""
    assert_all_close(second_derivatives_around_a_loop(lib, name), second_derivatives_around_a_loop(None, None), 1e-3)


@functools.cache
def second_derivatives_around_a_loop(lib, name, minibatches=2, batch=(16,)):
    """With respect to one number that every row reads, and one for all rows: as gamma and lambda are."""
    init, xs, shared = problem(6, 5, batch)
    xs = jax.tree.map(lambda x: jnp.stack([x[::-1]] * minibatches), xs)

    def loss(numbers):
        def minibatch(weight, rows):
            rows = rows | {"a": rows["a"] * numbers[0]}
            last, ys = scanned(lib, name, init * weight, rows, (numbers[1], shared[1]), reverse=True)
            return weight + jnp.mean(jnp.sin(last)) + jnp.mean(jnp.sin(ys["before"])), None

        return lax.scan(minibatch, jnp.float32(0.5), xs)[0]

    def results(numbers):
        gradient = jax.grad(loss)
        return {
            "hessian": jax.hessian(loss)(numbers),
            "gradient of a gradient": jax.grad(lambda x: jnp.sum(gradient(x) ** 2))(numbers),
            "gradient along a direction": slope_of(gradient, numbers, jnp.cos(numbers)),
        }

    with short_blocks(lib):
        return jax.jit(results)(jnp.array([0.9, 0.8]))


def widest(name):
    """Returns the widest dtype that an implementation reads, and a tolerance for derivatives in this dtype."""
    return (np.float32, 1e-3) if name == "pallas" else (np.float64, 1e-9)


def loss_of(lib, name, cut):
    """Returns a function of the first carry, the rows and the shared arrays that is not linear in any of them."""

    def loss(inputs):
        init, xs, shared = inputs
        last, ys = scanned(lib, name, init, xs | {"cut": cut}, shared, reverse=True)
        return jnp.sum(jnp.sin(last)) + sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(ys))

    return loss


@functools.cache  # the results of `lax.scan` serve all implementations and mutants
def derivatives(lib, name, dtype):
    with enable_x64(dtype is np.float64), short_blocks(lib):
        loss, inputs, direction = loss_and_inputs(lib, name, dtype)
        return jax.jit(lambda inputs: (slope_of(loss, inputs, direction), jax.grad(loss)(inputs)))(inputs)


@functools.cache
def second_derivatives(lib, name, dtype):
    with enable_x64(dtype is np.float64), short_blocks(lib):
        loss, inputs, direction = loss_and_inputs(lib, name, dtype)

        def results(inputs):
            return (
                slope_of(jax.grad(loss), inputs, direction),
                jax.grad(lambda inputs: slope_of(loss, inputs, direction))(inputs),
            )

        return jax.jit(results)(inputs)


def loss_and_inputs(lib, name, dtype, length=19, batch=(2,)):
    """Returns a loss, its inputs, and a direction to move them in."""
    init, xs, shared = problem(1, length, batch, dtype)
    loss = loss_of(lib, name, xs.pop("cut"))
    inputs = init, xs, shared
    return loss, inputs, jax.tree.map(jnp.sin, inputs)


def slope_of(fn, inputs, direction):
    return jax.jvp(fn, (inputs,), (direction,))[1]


@functools.cache
def tangents_of_one_input(lib, name):
    init, xs, shared = problem(1, 19, (2,))

    def along(x, arguments_with):
        return jax.jvp(lambda x: scanned(lib, name, *arguments_with(x), reverse=True), (x,), (jnp.sin(x),))[1]

    def results(init, a, slope):
        return (
            along(init, lambda x: (x, xs, shared)),
            along(a, lambda x: (init, xs | {"a": x}, shared)),
            along(slope, lambda x: (init, xs, (x, shared[1]))),
        )

    with short_blocks(lib):
        return jax.jit(results)(init, xs["a"], shared[0])


def forgets_before_a_cut(lib, name, length=40):
    """Where the step forgets the carry, a carry of NaN changes nothing after the cut, nor any gradient there."""
    for reverse, later in ((False, slice(length // 2 + 1, None)), (True, slice(None, length // 2))):
        init, xs, shared = problem(2, length, (2,))
        xs["cut"] = jnp.zeros((length, 2), bool).at[length // 2].set(True)
        last, ys = jax.jit(functools.partial(scanned, lib, name, reverse=reverse))(init * jnp.nan, xs, shared)
        want, want_ys = scanned(None, None, init, xs, shared, reverse=reverse)
        assert_all_close(
            (last, [y[later] for y in jax.tree.leaves(ys)]), (want, [y[later] for y in jax.tree.leaves(want_ys)])
        )


def batches_as_lax_scan(lib, name):
    """`jax.vmap` over all arrays, along any axis, twice, and of a gradient; and over some of the arrays."""
    assert_all_close(batched(lib, name), batched(None, None), 1e-4)


@functools.cache
def batched(lib, name):
    def results(arguments, one):
        init, xs, shared = arguments
        scan: Any = functools.partial(scanned, lib, name, reverse=True)
        gradient = jax.grad(lambda *x: sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(scan(*x))))
        return {
            "along the first axis": jax.vmap(scan, in_axes=(0, 1, 0), out_axes=(0, 1))(*arguments),
            "along the last axis": jax.vmap(scan, in_axes=(1, 2, 1), out_axes=(1, 2))(*arguments),
            "twice": jax.vmap(jax.vmap(scan, in_axes=(0, 1, 0)), in_axes=(0, 1, 0))(*arguments),
            "of a gradient": jax.vmap(gradient, in_axes=(0, 1, 0))(*arguments),
            "over the first carry": jax.vmap(scan, in_axes=(0, None, None))(init, *one[1:]),
            "over the rows": jax.vmap(scan, in_axes=(None, 1, None))(one[0], xs, one[2]),
            "over the shared arrays": jax.vmap(scan, in_axes=(None, None, 0))(one[0], one[1], shared),
        }

    with short_blocks(lib):
        return jax.jit(results)(problem(3, 19, (3, 2)), problem(3, 19, (2,)))


def kernel_matches_lax_scan(lib, length=12, lanes=130):
    """The kernel in a simulator of two cores, in blocks of 8 rows by 128 lanes; memory holds NaN until written."""
    kernel = lib._affine_scan.pallas_tpu
    init, xs, shared = problem(4, length, (lanes,))
    for reverse in (False, True):
        with (
            mock.patch.dict(kernel.__globals__, VMEM_BYTES=8 * 128 * 100),
            pltpu.force_tpu_interpret_mode(two_cores_with_race_detection()),
            contextlib.redirect_stdout(io.StringIO()) as printed,
        ):
            got = kernel(step, init, xs, shared, reverse=reverse)
            jax.block_until_ready(got)
        assert "RACE" not in printed.getvalue().upper()
        assert_all_close(got, by_lax_scan(4, length, (lanes,), reverse))


# Mistakes in the package, and the laws that must detect them.
SCAN, AFFINE_MAP, BLOCKED, KERNEL = (
    f"_affine_scan/{name}.py" for name in ("__init__", "affine_map", "blocked", "pallas_tpu")
)
MUTANTS = {
    matches_lax_scan: (Mutant("composed backwards", AFFINE_MAP, "apply(then, first.b)", "apply(first, then.b)"),),
    differentiates_as_lax_scan: (
        Mutant("loop runs forward", SCAN, "scan_rows, step, reverse=reverse", "scan_rows, step, reverse=False"),
    ),
    differentiates_twice_as_lax_scan: (
        Mutant(
            "detached", SCAN, "[leaves[i] for i in moving], [d", "[lax.stop_gradient(leaves[i]) for i in moving], [d"
        ),
    ),
    differentiates_twice_around_a_loop: (
        Mutant("the bare kernel in a loop", SCAN, "kernel = not_split(kernel, step)", "pass"),
    ),
    differentiates_one_input_at_a_time: (
        Mutant("others are 0", SCAN, "dict(enumerate(leaves)) |", "dict(enumerate(map(jnp.zeros_like, leaves))) |"),
    ),
    forgets_before_a_cut: (Mutant("0 times NaN", AFFINE_MAP, "(a == 0) & ~jnp.isfinite(h), 0, h", "False, 0, h"),),
    batches_as_lax_scan: (
        Mutant(
            "numbers of all rows are 0",
            BLOCKED,
            "(entering, xs, shared)",
            "(entering, xs, jax.tree.map(jnp.zeros_like, shared))",
        ),
    ),
    kernel_matches_lax_scan: (
        Mutant("a race between blocks of time", KERNEL, '("parallel", "arbitrary")', '("parallel", "parallel")'),
        Mutant(
            "over the edge",
            KERNEL,
            "jnp.minimum(rows_in_block, length",
            "jnp.minimum(rows_in_block, rows_in_block + length",
        ),
    ),
}

LAWS = tuple(law for law in MUTANTS if law is not kernel_matches_lax_scan)
