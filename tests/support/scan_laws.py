"""What every implementation of `affine_scan` must return: the results of `jax.lax.scan`, under every transformation.

A law is a function of a scan and its arguments. With an implementation of the package it must return what it returns
with `lax_scan`.
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

from support.versions import two_cores_with_race_detection

PALLAS_CALL, PLATFORM_DEPENDENT = pl.pallas_call, lax.platform_dependent


def step(carry, row, shared):
    """A step over a tree of rows, which forgets the carry where `cut`."""
    slope, offset = shared
    new_carry = row["a"] * slope * jnp.where(~row["cut"], carry, 0) + offset * row["b"][0] - row["b"][1]
    return new_carry, {"before": carry * row["a"], "squared": (new_carry * new_carry, carry + offset)}


def problem(seed, length, batch):
    """Returns the first carry, the rows and the shared arrays of a scan with `step`."""
    rng = np.random.default_rng(seed)
    shape = (length, *batch)
    a, b, c = (rng.uniform(-1.1, 1.1, shape).astype(np.float32) for _ in range(3))
    xs = {"a": a, "b": (b, c), "cut": rng.random(shape) < 0.2}
    shared = tuple(rng.uniform(0.5, 1, batch).astype(np.float32) for _ in range(2))
    return jax.tree.map(jnp.asarray, (rng.normal(size=batch).astype(np.float32), xs, shared))


def lax_scan(init, xs, shared, *, reverse=False):
    return lax.scan(lambda carry, row: step(carry, row, shared), init, xs, reverse=reverse)


def scan_of(lib, implementation):
    """Returns the scan of the package with `step`."""
    return functools.partial(lib._affine_scan.affine_scan, step, implementation=implementation)


def assert_obeys(law, lib, implementation, length=19, batch=(4, 4)):
    """By default in two stages of blocks, over a batch that is wide enough for the kernel."""
    arguments = problem(0, length, batch)
    got = jax.jit(functools.partial(law, scan_of(lib, implementation)))(*arguments)
    assert_all_close(got, _by_lax_scan(law, length, batch), LAWS[law])


@functools.cache
def _by_lax_scan(law, length, batch):
    return jax.jit(functools.partial(law, lax_scan))(*problem(0, length, batch))


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


# The laws.


def outputs(scan, *arguments):
    """The last carry and the outputs, in either direction."""
    return [scan(*arguments, reverse=reverse) for reverse in (False, True)]


def loss_of(scan, xs):
    """Returns a function of the first carry, the rows and the shared arrays that is not linear in any of them."""

    def loss(inputs):
        init, floats, shared = inputs
        last, ys = scan(init, xs | floats, shared, reverse=True)
        return jnp.sum(jnp.sin(last)) + sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(ys))

    return loss, {name: xs[name] for name in ("a", "b")}


def gradient_of(scan):
    """Returns the gradient of this loss, as a function of the arguments of the scan."""

    def gradient(init, xs, shared):
        loss, floats = loss_of(scan, xs)
        return jax.grad(loss)((init, floats, shared))

    return gradient


def slope_of(fn, inputs):
    return jax.jvp(fn, (inputs,), (jax.tree.map(jnp.sin, inputs),))[1]


def derivatives(scan, init, xs, shared):
    """Along the first carry, the rows and the shared arrays at once: forward, reverse, and one over the other."""
    loss, floats = loss_of(scan, xs)
    inputs = init, floats, shared
    return {
        "forward": slope_of(loss, inputs),
        "reverse": jax.grad(loss)(inputs),
        "forward over reverse": slope_of(jax.grad(loss), inputs),
        "reverse over forward": jax.grad(functools.partial(slope_of, loss))(inputs),
    }


def derivatives_along_one_input(scan, init, xs, shared):
    """Where the other inputs have no tangent: along the first carry, the rows, or the shared arrays."""
    return (
        slope_of(lambda x: scan(x, xs, shared), init),
        slope_of(lambda x: scan(init, xs | {"a": x}, shared), xs["a"]),
        slope_of(lambda x: scan(init, xs, (x, shared[1])), shared[0]),
    )


def second_derivatives_around_a_loop(scan, init, xs, shared):
    """Of `lax.scan` over minibatches, along numbers that all rows read, as gamma and lambda: JAX splits such a loop."""
    minibatches = jax.tree.map(lambda x: jnp.stack([x[:5], x[5:10]]), xs)

    def loss(numbers):
        def minibatch(weight, rows):
            rows = rows | {"a": rows["a"] * numbers[0]}
            last, ys = scan(init * weight, rows, (numbers[1], shared[1]), reverse=True)
            return weight + jnp.mean(jnp.sin(last)) + jnp.mean(jnp.sin(ys["before"])), None

        return lax.scan(minibatch, jnp.float32(0.5), minibatches)[0]

    numbers = jnp.array([0.9, 0.8])
    return jax.hessian(loss)(numbers), jax.grad(lambda x: jnp.sum(jax.grad(loss)(x) ** 2))(numbers)


def forgets_before_a_cut(scan, init, xs, shared):
    """Where the step forgets the carry, a carry of NaN changes nothing after the cut."""
    xs = xs | {"cut": jnp.zeros_like(xs["cut"]).at[10].set(True)}
    results = [scan(init * jnp.nan, xs, shared, reverse=reverse) for reverse in (False, True)]
    return [
        (last, jax.tree.map(lambda y, rows=rows: y[rows], ys))
        for (last, ys), rows in zip(results, (slice(11, None), slice(0, 10)), strict=True)
    ]


def batched(scan, init, xs, shared):
    """`jax.vmap` over all arrays, along any axis, twice, and of a gradient; and over some of the arrays."""
    scan = functools.partial(scan, reverse=True)
    row, one_shared = jax.tree.map(lambda x: x[:, 0], xs), jax.tree.map(lambda x: x[0], shared)
    return {
        "along the first axis": jax.vmap(scan, in_axes=(0, 1, 0), out_axes=(0, 1))(init, xs, shared),
        "along the last axis": jax.vmap(scan, in_axes=(1, 2, 1), out_axes=(1, 2))(init, xs, shared),
        "twice": jax.vmap(jax.vmap(scan, in_axes=(0, 1, 0)), in_axes=(0, 1, 0))(init, xs, shared),
        "of a gradient": jax.vmap(gradient_of(scan), in_axes=(0, 1, 0))(init, xs, shared),
        "over the first carry": jax.vmap(scan, in_axes=(0, None, None))(init, row, one_shared),
        "over the rows": jax.vmap(scan, in_axes=(None, 1, None))(init[0], xs, one_shared),
        "over the shared arrays": jax.vmap(scan, in_axes=(None, None, 0))(init[0], row, shared),
    }


def kernel_matches_lax_scan(lib, length=12, lanes=130):
    """The kernel in a simulator of two cores, in blocks of 8 rows by 128 lanes; memory holds NaN until written."""
    kernel, arguments = lib._affine_scan.pallas_tpu, problem(4, length, (lanes,))
    for reverse in (False, True):
        with (
            mock.patch.dict(kernel.__globals__, VMEM_BYTES=8 * 128 * 100),
            pltpu.force_tpu_interpret_mode(two_cores_with_race_detection()),
            contextlib.redirect_stdout(io.StringIO()) as printed,
        ):
            got = kernel(step, *arguments, reverse=reverse)
            jax.block_until_ready(got)
        assert "RACE" not in printed.getvalue().upper()
        assert_all_close(got, lax_scan(*arguments, reverse=reverse))


LAWS: dict[Any, float] = {  # and their tolerances
    outputs: 1e-5,
    derivatives: 1e-3,
    derivatives_along_one_input: 1e-4,
    second_derivatives_around_a_loop: 1e-3,
    forgets_before_a_cut: 1e-5,
    batched: 1e-4,
}

# Mistakes in the package, by the law that must detect them: a name, a file, a fragment, the fragment in its place.
SCAN, AFFINE_MAP, BLOCKED, KERNEL = (
    f"_affine_scan/{name}.py" for name in ("__init__", "affine_map", "blocked", "pallas_tpu")
)
MUTANTS = {
    outputs: [("composed backwards", AFFINE_MAP, "apply(then, first.b)", "apply(first, then.b)")],
    derivatives: [
        ("the loop runs forward", SCAN, "scan_rows, step, reverse=reverse", "scan_rows, step, reverse=False"),
        ("detached", SCAN, "[leaves[i] for i in moving], [d", "[lax.stop_gradient(leaves[i]) for i in moving], [d"),
    ],
    derivatives_along_one_input: [
        ("others are 0", SCAN, "dict(enumerate(leaves)) |", "dict(enumerate(map(jnp.zeros_like, leaves))) |"),
    ],
    second_derivatives_around_a_loop: [("the bare kernel", SCAN, "kernel = not_split(kernel, step)", "pass")],
    forgets_before_a_cut: [("0 times NaN", AFFINE_MAP, "(a == 0) & ~jnp.isfinite(h), 0, h", "False, 0, h")],
    batched: [("shared arrays exchanged", BLOCKED, "[in_order], xs, shared)[1]", "[in_order], xs, shared[::-1])[1]")],
    kernel_matches_lax_scan: [
        ("a race between blocks of time", KERNEL, '("parallel", "arbitrary")', '("parallel", "parallel")'),
        ("over the edge", KERNEL, "jnp.minimum(rows_in_block,", "jnp.minimum(rows_in_block, rows_in_block +"),
    ],
}
