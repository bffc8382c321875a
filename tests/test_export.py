"""Programs that `jax.export` writes: serialised with their results, for another platform, with symbolic shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from support.estimator_laws import ESTIMATORS, gae_of, n_steps_of, vtrace_of
from support.laws import assert_close
from support.rollouts import random_rollout

import gae_jax
from gae_jax import GAEOutput

T, N = 6, 20
ROLLOUT = random_rollout(0, steps=T, batch=(N,))
ARRAYS = {name: jnp.asarray(x) for name, x in ROLLOUT.arguments().items() if isinstance(x, np.ndarray)}


def with_symbols(symbols):
    """The shapes of the arrays, where "T" and "N" stand for a number that only a call knows."""
    scope = export.SymbolicScope()

    def symbolic(name, x):
        steps = ("T + 1" if name == "values" else "T") if "T" in symbols else str(x.shape[0])
        shape = export.symbolic_shape(f"{steps}, {'N' if 'N' in symbols else N}", scope=scope)
        return jax.ShapeDtypeStruct(shape, x.dtype)

    return {name: symbolic(name, x) for name, x in ARRAYS.items()}


def exported(estimate, arrays, platform="cpu"):
    call = jax.jit(lambda arrays: estimate(**arrays, gamma=0.9, lambda_=0.8))
    return export.export(call, platforms=[platform])(arrays)


@pytest.mark.versions
def test_gae_output_can_be_serialised():
    pytest.importorskip("flatbuffers", reason="jax.export needs it to serialise")
    program = export.deserialize(exported(gae_jax.gae, ARRAYS).serialize())
    output = program.call(ARRAYS)
    assert isinstance(output, GAEOutput)
    assert_close(output, ESTIMATORS["gae"][1](**ROLLOUT.arguments()))


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_symbolic_number_of_workers(name, platform):
    estimator, reference = ESTIMATORS[name]
    program = exported(estimator(gae_jax), with_symbols("N"), platform)
    assert "tpu_custom_call" not in program.mlir_module()
    if platform == "cpu":
        assert_close(program.call(ARRAYS), reference(**ROLLOUT.arguments()))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "estimator"), [("gae", gae_of), ("vtrace", vtrace_of)])
@pytest.mark.parametrize("symbols", ["T", pytest.param("TN", marks=pytest.mark.versions)])
def test_symbolic_number_of_steps_with_scan(symbols, name, estimator):
    program = exported(estimator(gae_jax, implementation="scan"), with_symbols(symbols))
    assert_close(program.call(ARRAYS), ESTIMATORS[name][1](**ROLLOUT.arguments()))


@pytest.mark.parametrize("implementation", [None, "blocked", "pallas"])
def test_symbolic_number_of_steps_without_scan_is_refused(implementation):
    with pytest.raises(NotImplementedError, match="a symbolic number of steps needs implementation='scan'"):
        exported(gae_of(gae_jax, implementation=implementation), with_symbols("TN"))


def test_symbolic_number_of_steps_is_refused_by_n_step_advantages():
    with pytest.raises(NotImplementedError, match="n_step_advantages needs a known number of steps; got T = T"):
        exported(n_steps_of(gae_jax), with_symbols("T"))
