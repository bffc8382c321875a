"""Programs that `jax.export` writes: serialised with their results, for another platform, with symbolic shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from support.laws import assert_close
from support.rollouts import random_rollout

from gae_jax import GAEOutput, gae, n_step_advantages, vtrace

T, N = 6, 20
ROLLOUT = random_rollout(0, steps=T, batch=(N,)).arguments()
ARRAYS = {name: jnp.asarray(x) for name, x in ROLLOUT.items() if isinstance(x, np.ndarray)}


def estimate(arrays, implementation=None):
    return gae(**arrays, gamma=0.9, lambda_=0.8, implementation=implementation)


def estimate_off_policy(arrays, implementation=None):
    return vtrace(**arrays, log_rhos=jnp.sin(arrays["rewards"]), gamma=0.9, clip_c=0.5, implementation=implementation)


def with_symbols(symbols):
    """The shapes of the arrays, where "T" and "N" stand for a number that only a call knows."""
    scope = export.SymbolicScope()

    def symbolic(name, x):
        steps = ("T + 1" if name == "values" else "T") if "T" in symbols else str(x.shape[0])
        shape = export.symbolic_shape(f"{steps}, {'N' if 'N' in symbols else N}", scope=scope)
        return jax.ShapeDtypeStruct(shape, x.dtype)

    return {name: symbolic(name, x) for name, x in ARRAYS.items()}


def exported(fn, arrays, platform="cpu", **how):
    return export.export(jax.jit(lambda arrays: fn(arrays, **how)), platforms=[platform])(arrays)


@pytest.mark.versions
def test_gae_output_can_be_serialised():
    pytest.importorskip("flatbuffers", reason="jax.export needs it to serialise")
    program = export.deserialize(exported(estimate, ARRAYS).serialize())
    output = program.call(ARRAYS)
    assert isinstance(output, GAEOutput)
    assert_close(output, [np.asarray(x) for x in estimate(ARRAYS)], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("fn", [estimate, estimate_off_policy])
def test_symbolic_number_of_workers(fn, platform):
    program = exported(fn, with_symbols("N"), platform)
    assert "tpu_custom_call" not in program.mlir_module()
    if platform == "cpu":
        assert_close(program.call(ARRAYS), [np.asarray(x) for x in fn(ARRAYS)], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("fn", [estimate, estimate_off_policy])
@pytest.mark.parametrize("symbols", ["T", pytest.param("TN", marks=pytest.mark.versions)])
def test_symbolic_number_of_steps_with_scan(symbols, fn):
    program = exported(fn, with_symbols(symbols), implementation="scan")
    assert_close(program.call(ARRAYS), [np.asarray(x) for x in fn(ARRAYS)], rtol=1e-6)


@pytest.mark.parametrize("implementation", [None, "blocked", "pallas"])
@pytest.mark.parametrize("symbols", ["T", "TN"])
def test_symbolic_number_of_steps_without_scan_is_refused(symbols, implementation):
    with pytest.raises(NotImplementedError, match="a symbolic number of steps needs implementation='scan'"):
        exported(estimate, with_symbols(symbols), implementation=implementation)


def test_symbolic_number_of_steps_is_refused_by_n_step_advantages():
    with pytest.raises(NotImplementedError, match="n_step_advantages needs a known number of steps; got T = T"):
        exported(lambda arrays: n_step_advantages(**arrays, n=3, gamma=0.9), with_symbols("T"))
