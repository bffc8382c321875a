"""Every implementation of `affine_scan` against `jax.lax.scan`; and which one runs where."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import export, lax
from jax.experimental import checkify
from support import scan_laws
from support.scan_laws import assert_all_close, interpreted_kernel, problem, scanned

import gae_jax
from gae_jax._affine_scan import affine_scan

IMPLEMENTATIONS = ["blocked", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pallas", None))]
LENGTH, LANES = 16, 32
ABSTRACT = jax.eval_shape(lambda: problem(0, LENGTH, (LANES,)))


@pytest.fixture
def kernel_in_an_interpreter():
    with interpreted_kernel():
        yield


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)  # "scan" is `lax.scan`
@pytest.mark.parametrize("law", scan_laws.LAWS, ids=lambda law: law.__name__)
@pytest.mark.usefixtures("fast_compilation", "kernel_in_an_interpreter")
def test_law(law, implementation):
    law(gae_jax, implementation)


@pytest.mark.parametrize("implementation", ["scan", *IMPLEMENTATIONS])
@pytest.mark.usefixtures("fast_compilation", "kernel_in_an_interpreter")
def test_inside_scan_and_checkify(implementation):
    init, xs, shared = problem(0, 5, (2,))
    want = scanned(None, None, init, xs, shared)
    scan = functools.partial(scanned, gae_jax, implementation)
    _, stacked = lax.scan(lambda _, init: (0.0, scan(init, xs, shared)), 0.0, init[None])
    assert_all_close(jax.tree.map(lambda x: x[0], stacked), want)
    error, got = checkify.checkify(jax.jit(lambda init: scan(init, xs, shared)))(init)
    error.throw()
    assert_all_close(got, want)
    with jax.checking_leaks(), jax.debug_nans(True):
        assert_all_close(jax.jit(lambda init: scan(init, xs, shared))(init), want)


@pytest.mark.parametrize("implementation", ["scan", "blocked", None])
def test_without_jit(implementation):
    arguments = problem(0, 5, (2,))
    want = scanned(None, None, *arguments)
    assert_all_close(scanned(gae_jax, implementation, *arguments), want)
    with jax.disable_jit():
        assert_all_close(scanned(gae_jax, implementation, *arguments), want)


def test_without_rows_to_read_or_outputs():
    """The rows may be shared by all, and the step may return no output."""

    def double(carry, row, shared):
        return 2 * carry + row * 0, ()

    last, ys = affine_scan(double, jnp.ones(2), jnp.zeros((3, 2)), ())
    assert ys == ()
    assert last.tolist() == [8, 8]


def test_unknown_implementation():
    with pytest.raises(ValueError, match=r"`implementation` must be None or one of 'scan', .*; got 'cuda'"):
        scanned(gae_jax, "cuda", *problem(0, 5, (2,)))


# The choice by platform.


def lowered(implementation, platform, fn=scanned):
    call = functools.partial(fn, gae_jax, implementation)
    return jax.jit(call).trace(*ABSTRACT).lower(lowering_platforms=(platform,)).as_text()


def gradient(lib, implementation, init, xs, shared):
    def loss(init, a, shared):
        last, ys = scanned(lib, implementation, init, xs | {"a": a}, shared)
        return jnp.sum(last**2) + sum(jnp.sum(y**2) for y in jax.tree.leaves(ys))

    return jax.grad(loss, argnums=(0, 1, 2))(init, xs["a"], shared)


@pytest.mark.versions
@pytest.mark.parametrize(
    ("platform", "loops", "kernels"), [("cpu", 1, 0), ("cuda", 0, 0), ("rocm", 0, 0), ("tpu", 0, 1)]
)
def test_choice_of_each_platform(platform, loops, kernels):
    program = lowered(None, platform)
    assert program.count("stablehlo.while") == loops
    assert program.count("tpu_custom_call") == kernels


@pytest.mark.versions
@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize("implementation", ["scan", "blocked", None])
def test_gradient_has_the_two_loops_of_lax_scan(implementation, platform):
    """One forward, one backward; the results themselves come from the implementation."""
    assert lowered(implementation, platform, gradient).count("stablehlo.while") == 2


@pytest.mark.versions
@pytest.mark.parametrize("transformation", [lambda fn: fn, jax.jit, jax.grad], ids=["eager", "jit", "grad"])
def test_named_kernel_on_another_platform(transformation):
    _, xs, shared = problem(0, 5, (32,))

    def loss(init):
        return jnp.sum(scanned(gae_jax, "pallas", init, xs, shared)[0])

    with pytest.raises(NotImplementedError, match=r"implementation='pallas' is for TPUs.* not found for platform cpu"):
        transformation(loss)(jnp.ones(32))


@pytest.mark.versions
@pytest.mark.parametrize("implementation", ["scan", "blocked"])
def test_export_of_a_named_implementation_for_all_platforms(implementation):
    """Without a name, there is one artifact a platform: JAX refuses a program of all of them, with the TPU's kernel."""
    call = jax.jit(functools.partial(scanned, gae_jax, implementation))
    exported = export.export(call, platforms=("cpu", "cuda", "tpu"))(*ABSTRACT)
    assert exported.mlir_module().count("stablehlo.while") == (implementation == "scan")


@pytest.mark.versions
@pytest.mark.parametrize(("platform", "loops", "kernels"), [("cpu", 1, 0), ("cuda", 0, 0), ("tpu", 0, 1)])
def test_export_of_one_artifact_a_platform(platform, loops, kernels):
    call = jax.jit(functools.partial(scanned, gae_jax, None))
    program = export.export(call, platforms=(platform,))(*ABSTRACT).mlir_module()
    assert program.count("stablehlo.while") == loops
    assert program.count("tpu_custom_call") == kernels


@pytest.mark.versions
def test_symbolic_number_of_rows():
    rows, lanes = export.symbolic_shape("T, N")
    arrays = jax.ShapeDtypeStruct((lanes,), jnp.float32), jax.ShapeDtypeStruct((rows, lanes), jnp.float32)

    def call(implementation, init, xs):
        return affine_scan(lambda h, x, _: (h / 2 + x, h), init, xs, (), implementation=implementation)

    export.export(jax.jit(functools.partial(call, "scan")))(*arrays)
    with pytest.raises(NotImplementedError, match="a symbolic number of steps needs implementation='scan'"):
        export.export(jax.jit(functools.partial(call, None)))(*arrays)


# The memory of a gradient.


@pytest.mark.slow
def test_memory_of_a_gradient_grows_as_the_number_of_rows():
    def scratch(length):
        fn = jax.jit(functools.partial(gradient, gae_jax, "blocked"))
        with scan_laws.short_blocks(gae_jax):
            memory = fn.lower(*jax.eval_shape(lambda: problem(0, length, (64,)))).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    assert 0 < scratch(160) < 6 * scratch(40)
