"""`affine_scan` is `lax.scan`, for steps that are affine in their carry."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import checkify
from support import laws
from support.rollouts import random_rollout
from support.scan_laws import (
    LAWS,
    assert_all_close,
    interpreted,
    is_lax_scan,
    kernel_is_lax_scan,
    problem,
    scanned,
    shares_as_lax_scan,
)

import gae_jax
from gae_jax import affine_scan
from gae_jax._affine_scan.pallas_tpu import pallas_tpu

NAMES = ["scan", "blocked", "interpreted", None]


@pytest.fixture(autouse=True)
def kernel():
    """The kernel for TPUs, in an interpreter, is one implementation more."""
    with interpreted(gae_jax):
        yield


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(law, name):
    if (law, name) == (shares_as_lax_scan, "interpreted"):
        with pytest.raises(NotImplementedError, match=r"rows in the shape of the carry, \(3, 2\); got \(2,\)"):
            law(gae_jax, name)
    else:
        law(gae_jax, name)


GAE_LAWS = laws.matches_oracle, laws.nothing_dead_leaks, laws.gradients_are_those_of_the_definition


@pytest.mark.parametrize("name", ["blocked", "interpreted"])
@pytest.mark.parametrize("law", GAE_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("dead", [0.0, 0.3])
def test_gae_in_parallel(law, dead, name):
    rollout = random_rollout(0, steps=20, batch=(2,), dead=dead, gamma="step", lambda_="both")
    law(laws.Library(functools.partial(gae_jax.gae, implementation=name)), rollout)


@pytest.mark.parametrize("name", ["blocked", "interpreted"])
@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (4, 1, 2)], ids=str)
def test_any_batch_axes(batch, name):
    is_lax_scan(gae_jax, name, 20, batch)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 128, 129, 257])
def test_any_length(length):
    """Whole blocks, one row more, one less; one stage, two, three."""
    is_lax_scan(gae_jax, "blocked", length)


@pytest.mark.parametrize(("length", "lanes"), [(1, 1), (70, 1), (40, 130)])
def test_kernel_of_any_size(length, lanes):
    kernel_is_lax_scan(gae_jax, length, lanes)


@pytest.mark.parametrize("name", NAMES)
def test_as_strict_as_jax_can_be(name):
    arguments = problem(0, 20, (2,))
    with jax.checking_leaks(), jax.debug_nans(True):
        got = jax.jit(lambda *arguments: scanned(gae_jax, name, *arguments))(*arguments)
    assert_all_close(got, scanned(None, None, *arguments))


@pytest.mark.parametrize("name", NAMES)
def test_without_jit_inside_scan_and_checkify(name):
    closed_over, init, xs = problem(0, 5, (2,))
    want = scanned(None, None, closed_over, init, xs)
    assert_all_close(scanned(gae_jax, name, closed_over, init, xs), want)
    _, stacked = lax.scan(lambda _, init: (0.0, scanned(gae_jax, name, closed_over, init, xs)), 0.0, init[None])
    assert_all_close(jax.tree.map(lambda x: x[0], stacked), want)
    error, got = checkify.checkify(jax.jit(lambda init: scanned(gae_jax, name, closed_over, init, xs)))(init)
    error.throw()
    assert_all_close(got, want)
    with jax.disable_jit():
        assert_all_close(scanned(gae_jax, name, closed_over, init, xs), want)


@pytest.mark.parametrize("name", NAMES)
def test_results_of_any_tree_and_type(name):
    """Integers and flags go in and come out, what the step ignores may be anything, and no result is a result."""
    xs = {"x": jnp.arange(20.0), "count": jnp.arange(20), "unread": jnp.zeros((20, 3, 3), jnp.int8)}

    def step(carry, row):
        return carry / 2 + row["x"], (row["count"] + 1, row["x"] > 3, None) if name != "interpreted" else ()

    assert_all_close(affine_scan(step, 1, xs, implementation=name), lax.scan(step, 1.0, xs))
    for ignores_the_row in (lambda carry, row: (carry * 2, None), lambda carry, row: (carry, ())):
        assert_all_close(
            affine_scan(ignores_the_row, jnp.ones(2), xs, implementation=name),
            lax.scan(ignores_the_row, jnp.ones(2), xs),
        )


@pytest.mark.parametrize("name", ["scan", "blocked", None])
def test_a_gradient_remembers_so_much_a_row(name):
    """Its memory grows as time does, not as its square."""

    def scratch(length):
        closed_over, init, xs = problem(0, length, (64,))

        def loss(init, xs):
            return jnp.sum(scanned(gae_jax, name, closed_over, init, xs)[1]["squared"][0])

        memory = jax.jit(jax.grad(loss, argnums=(0, 1), allow_int=True)).lower(init, xs).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    assert 0 < scratch(160) < 6 * scratch(40)


def clip(carry, row):
    return jnp.clip(carry, -1, 1) + row, None


def branch(carry, row):
    return lax.cond(jnp.sum(carry) > 0, lambda h: 2 * h, lambda h: h + row, carry), None


@pytest.mark.parametrize(
    ("step", "culprit"),
    [
        (lambda carry, row: (carry * carry, row), r"`mul` at .*test_affine_scan.py:\d+"),
        (lambda carry, row: (row / carry, row), r"`integer_pow` at .*test_affine_scan.py:\d+"),
        (lambda carry, row: (jnp.abs(carry), row), r"`ge` at .*test_affine_scan.py:\d+"),
        (lambda carry, row: (jnp.where(carry > 0, carry, row), row), r"`gt` at .*test_affine_scan.py:\d+"),
        (lambda carry, row: (jax.jit(jnp.sin)(carry), row), r"`cos` at .*test_affine_scan.py:\d+"),
        (clip, r"`max` at .*test_affine_scan.py:\d+:.*\(clip\)"),
        (branch, r"`reduce_sum` at .*test_affine_scan.py:\d+:.*\(branch\)"),
    ],
)
def test_a_step_that_is_not_affine_is_refused(step, culprit):
    with pytest.raises(ValueError, match=r"`step` must be affine in its carry.* depends on the carry: " + culprit):
        affine_scan(step, jnp.ones(2), jnp.ones((3, 2)))


@pytest.mark.parametrize("name", NAMES)
def test_a_branch_on_the_row_is_affine(name):
    def step(carry, row):
        return lax.cond(row > 0, lambda h: 2 * h, lambda h: h + row, carry), None

    if name == "interpreted":
        with pytest.raises(NotImplementedError, match="the kernel runs elementwise operations only; got `cond`"):
            affine_scan(step, 1.0, jnp.arange(-2.0, 3.0), implementation=name)
    else:
        last, _ = affine_scan(step, 1.0, jnp.arange(-2.0, 3.0), implementation=name)
        assert last == (1 - 2 - 1 + 0) * 2 * 2


def test_a_step_that_prints_runs_row_by_row(capfd):
    def step(carry, row):
        jax.debug.print("from {}", jnp.sum(carry), ordered=True)
        return carry / 2 + row, carry

    for name in (None, "scan"):
        jax.block_until_ready(affine_scan(step, 2.0, jnp.ones(3), implementation=name))
        jax.effects_barrier()
        assert capfd.readouterr().out == "from 2.0\nfrom 2.0\nfrom 2.0\n"
    with pytest.raises(NotImplementedError, match=r"`step` has effects, .*; only implementation='scan'"):
        affine_scan(step, 2.0, jnp.ones(3), implementation="blocked")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"implementation": "cuda"}, ValueError, r"`implementation` must be None or one of 'scan', .*; got 'cuda'"),
        ({"implementation": "pallas"}, NotImplementedError, r"'pallas' is for TPUs; this program is compiled for cpu"),
        ({"init": (1.0, 2.0)}, TypeError, r"`init`, the carry, must be one floating-point array; got \(Shape"),
        ({"init": 1}, TypeError, r"`init`, the carry, must be one floating-point array; got Shape.*int32"),
        ({"xs": jnp.ones(0)}, ValueError, r"`xs` must hold at least one row; got T = 0"),
        ({"xs": None}, ValueError, r"no values to scan over"),
        ({"xs": (jnp.ones(2), jnp.ones(3))}, ValueError, r"different leading axis sizes: 2, 3"),
        ({"step": lambda carry, row: (jnp.stack([carry, carry]), row)}, TypeError, r"carry input and carry output"),
    ],
)
def test_bad_argument(arguments, error, message):
    good = {"step": lambda carry, row: (carry, row), "init": 1.0, "xs": jnp.ones(3)}
    with pytest.raises(error, match=message):
        affine_scan(**(good | arguments))


def a_loop_inside(carry, row):
    return lax.scan(lambda h, _: (h / 2 + row, None), carry, jnp.zeros((3, 2)))


@pytest.mark.parametrize(
    ("step", "dtype", "message"),
    [
        (a_loop_inside, float, "elementwise operations only; got `scan`"),
        (lambda carry, row: (carry + jnp.sum(row), None), float, "elementwise operations only; got `reduce_sum`"),
        (lambda carry, row: (carry, row[0]), float, "writes 32 bits in the shape of the carry"),
        (lambda carry, row: (carry, row > 0), float, "writes 32 bits in the shape of the carry"),
        (lambda carry, row: (carry * row.astype(float), carry), jnp.bfloat16, "reads flags and 32 bits; got bfloat16"),
    ],
)
def test_what_the_kernel_refuses(step, dtype, message):
    with pytest.raises(NotImplementedError, match=message):
        pallas_tpu(step, jnp.ones(2), jnp.ones((3, 2), dtype), reverse=False)
