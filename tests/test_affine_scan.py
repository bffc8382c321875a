"""Every implementation of `affine_scan` against `jax.lax.scan`; and which one runs where."""

import jax
import jax.numpy as jnp
import pytest
from jax import export, lax
from jax.experimental import checkify
from support import scan_laws
from support.scan_laws import assert_all_close, interpreted_kernel, lax_scan, problem, scan_of

import gae_jax

IMPLEMENTATIONS = ["blocked", pytest.param("pallas", marks=pytest.mark.slow)]
LENGTH, LANES = 257, 32  # three stages of blocks


@pytest.fixture
def kernel_in_an_interpreter():
    with interpreted_kernel():
        yield


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)  # "scan" is `lax.scan`, and so is None on a CPU
@pytest.mark.parametrize("law", scan_laws.LAWS, ids=lambda law: law.__name__)
@pytest.mark.usefixtures("fast_compilation", "kernel_in_an_interpreter")
def test_law(law, implementation):
    scan_laws.assert_obeys(law, gae_jax, implementation)


@pytest.mark.parametrize("implementation", ["scan", None, *IMPLEMENTATIONS])
@pytest.mark.usefixtures("fast_compilation", "kernel_in_an_interpreter", "leak_checks")
def test_inside_scan_and_checkify(implementation):
    init, xs, shared = problem(0, 5, (2,))
    want = lax_scan(init, xs, shared)
    scan = scan_of(gae_jax, implementation)
    _, stacked = lax.scan(lambda _, init: (0.0, scan(init, xs, shared)), 0.0, init[None])
    assert_all_close(jax.tree.map(lambda x: x[0], stacked), want)
    with jax.debug_nans(True):
        error, got = checkify.checkify(jax.jit(lambda init: scan(init, xs, shared)))(init)
    error.throw()
    assert_all_close(got, want)


@pytest.mark.parametrize("implementation", ["scan", "blocked", None])
def test_without_jit(implementation):
    arguments = problem(0, 5, (2,))
    with jax.disable_jit():
        assert_all_close(scan_of(gae_jax, implementation)(*arguments), lax_scan(*arguments))


# The choice by platform.


def lowered(implementation, platform, lanes=LANES, transformation=lambda scan: scan):
    call = transformation(scan_of(gae_jax, implementation))
    arguments = jax.eval_shape(lambda: problem(0, LENGTH, (lanes,)))
    return jax.jit(call).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.versions
@pytest.mark.parametrize(
    ("implementation", "platform", "lanes", "loops", "kernels"),
    [
        (None, "cpu", 16, 1, 0),
        (None, "cuda", 16, 0, 0),
        (None, "rocm", 16, 0, 0),
        (None, "tpu", 16, 0, 1),
        (None, "tpu", 15, 0, 0),
        ("pallas", "tpu", 15, 0, 1),
        ("blocked", "tpu", 16, 0, 0),
        ("scan", "tpu", 16, 1, 0),
    ],
)
def test_choice_of_each_platform(implementation, platform, lanes, loops, kernels):
    """On a TPU, the kernel unless the batch is narrow; and what is named."""
    program = lowered(implementation, platform, lanes)
    assert program.count("stablehlo.while") == loops
    assert program.count("tpu_custom_call") == kernels


@pytest.mark.versions
@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize("implementation", ["scan", "blocked", None])
def test_gradient_has_the_two_loops_of_lax_scan(implementation, platform):
    """One forward, one backward; the results themselves come from the implementation."""
    assert lowered(implementation, platform, transformation=scan_laws.gradient_of).count("stablehlo.while") == 2


@pytest.mark.versions
@pytest.mark.parametrize("transformation", [lambda fn: fn, jax.jit, jax.grad], ids=["eager", "jit", "grad"])
def test_named_kernel_on_another_platform(transformation):
    init, xs, shared = problem(0, 5, (32,))
    loss = transformation(lambda init: jnp.sum(scan_of(gae_jax, "pallas")(init, xs, shared)[0]))
    with pytest.raises(NotImplementedError, match=r"implementation='pallas' is for TPUs.* not found for platform cpu"):
        loss(init)


@pytest.mark.versions
@pytest.mark.parametrize("implementation", ["scan", "blocked"])
def test_export_of_a_named_implementation_for_all_platforms(implementation):
    """Without a name, there is one artifact a platform: JAX refuses a program of all of them, with the TPU's kernel."""
    arguments = jax.eval_shape(lambda: problem(0, LENGTH, (LANES,)))
    exported = export.export(jax.jit(scan_of(gae_jax, implementation)), platforms=("cpu", "cuda", "tpu"))(*arguments)
    assert exported.mlir_module().count("stablehlo.while") == (implementation == "scan")
