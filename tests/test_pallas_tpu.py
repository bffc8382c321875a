"""The kernel for TPUs, in a simulator and in Pallas's interpreter."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from support import estimator_laws, scan_laws
from support.rollouts import random_rollout
from support.versions import kernel_on_explicit_axes, set_mesh

import gae_jax
from gae_jax._affine_scan import affine_scan
from gae_jax._affine_scan.pallas_tpu import obstacle_to_kernel


@pytest.mark.slow
@pytest.mark.parametrize(("length", "lanes"), [(1, 1), pytest.param(12, 130, marks=pytest.mark.versions)])
def test_simulated_on_a_tpu(length, lanes):
    """Blocks that are full and not, one block and several; no race between the cores."""
    scan_laws.kernel_matches_lax_scan(gae_jax, length, lanes)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [(), (4, 1, 2)], ids=str)
def test_any_batch_axes(batch):
    with scan_laws.interpreted_kernel():
        scan_laws.assert_obeys(scan_laws.outputs, gae_jax, "pallas", 20, batch)


@pytest.mark.slow
@pytest.mark.parametrize("law", estimator_laws.LAWS_OF_ALL, ids=lambda law: law.__name__)
def test_gae_obeys_the_law(law):
    """With every argument, and with parameters that vary over time and that do not."""
    estimate = estimator_laws.gae_of(gae_jax, implementation="pallas")
    with scan_laws.interpreted_kernel():
        law(estimate, random_rollout(0, steps=20, batch=(2,), masked_share=0.3, gamma="step", lambda_="both"))
        law(estimate, random_rollout(0, steps=20, batch=(2,)))


def pallas_scan(init, xs):
    return affine_scan(lambda h, x, _: (h / 2 + x, h), init, xs, (), implementation="pallas")


@pytest.mark.versions
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int8])
def test_other_widths_are_refused(dtype):
    with pytest.raises(NotImplementedError, match=r"the kernel reads flags and 32 bits; got (bfloat16|int8)"):
        jax.eval_shape(pallas_scan, jnp.ones(2), jnp.ones((3, 2), dtype))


@pytest.mark.versions
@pytest.mark.parametrize(
    "kind", [AxisType.Auto, pytest.param(AxisType.Explicit, marks=kernel_on_explicit_axes)], ids=str
)
def test_auto_axes_are_refused(kind):
    """Of more than one device: the compiler cannot split a kernel."""
    for devices in (1, 2):
        mesh = Mesh(np.array(jax.devices()[:devices]), ("workers",), axis_types=(kind,))
        with set_mesh(mesh):
            init = jax.device_put(jnp.ones(4), NamedSharding(mesh, P("workers")))
            assert bool(obstacle_to_kernel(init, init[None], ())) == (devices == 2 and kind == AxisType.Auto)


@pytest.mark.versions
def test_without_pallas_the_other_implementations_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.tpu", None)
    with pytest.raises(NotImplementedError, match=r"the kernel needs Pallas for TPUs: "):
        pallas_scan(jnp.ones(32), jnp.ones((3, 32)))
    last, _ = affine_scan(lambda h, x, _: (h / 2 + x, h), jnp.ones(32), jnp.ones((3, 32)), ())
    np.testing.assert_array_equal(last, 1 / 8 + 1 / 4 + 1 / 2 + 1)
