"""Rollouts split over the devices of a mesh, by workers and by time: the same results, and few collectives."""

import contextlib
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from scaling_out import collective_bytes, collectives
from support import laws, scan_laws
from support.estimator_laws import ESTIMATORS, LAWS_OF_ALL
from support.laws import assert_close
from support.meshes import make_mesh, over_time
from support.oracle import oracle
from support.rollouts import EXAMPLES, random_rollout, rollouts
from support.versions import (
    derivatives_per_shard,
    gradients_on_explicit_axes,
    kernel_on_explicit_axes,
    set_mesh,
    shard_map_of_some_axes,
)

import gae_jax
from gae_jax import gae
from gae_jax._affine_scan import affine_scan

versions, slow = pytest.mark.versions, pytest.mark.slow
ROLLOUT = random_rollout(3, steps=40, batch=(16,), ends=0.1)
WANT = oracle(**ROLLOUT.arguments())
ARRAYS = {k: jnp.asarray(x) for k, x in ROLLOUT.arguments().items() if isinstance(x, np.ndarray)}
ARRAYS |= {"values": ARRAYS["values"][:-1], "bootstrap_value": ARRAYS["values"][-1]}
KINDS = Auto, Explicit = AxisType.Auto, AxisType.Explicit


def call(arrays, estimate=gae, **how):
    return estimate(**arrays, gamma=0.9, lambda_=0.8, **how)


def gradient(arrays, **how):
    floats = {k: x for k, x in arrays.items() if x.dtype == jnp.float32}
    return jax.grad(lambda floats: sum(jnp.sum(x**2) for x in call(arrays | floats, **how)))(floats)


def placed(mesh, time=None, workers=None):
    """Returns the arrays, with time and workers split over axes of the mesh, and their partition specs."""
    specs = {k: P(workers) if x.ndim == 1 else P(time, workers) for k, x in ARRAYS.items()}
    return {k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in ARRAYS.items()}, specs


# Workers.

SPLIT = ("gae", "vtrace with unequal clips", "n_step_advantages")
ONE_AXIS, TWO_AXES = {"a": 8}, {"a": 4, "b": 2}
BLOCKED, KERNEL = {"implementation": "blocked"}, {"implementation": "pallas"}


@pytest.mark.parametrize(
    ("name", "kind", "how", "axes", "mesh_is_in_context"),
    [
        *(pytest.param(name, kind, {}, ONE_AXIS, True, marks=versions) for name in SPLIT for kind in KINDS),
        pytest.param("gae", Auto, BLOCKED, ONE_AXIS, True, marks=slow),
        pytest.param("gae", Explicit, BLOCKED, TWO_AXES, False, marks=slow),
        pytest.param("gae", Explicit, KERNEL, ONE_AXIS, True, marks=(slow, versions, kernel_on_explicit_axes)),
        pytest.param("gae", Explicit, KERNEL, TWO_AXES, False, marks=(slow, kernel_on_explicit_axes)),
    ],
    ids=str,
)
def test_workers_split(name, kind, how, axes, mesh_is_in_context):
    """No collective, neither in the estimator nor in its gradient; results are split as the arguments are."""
    mesh, (estimator, reference) = make_mesh(kind, **axes), ESTIMATORS[name]
    arrays, specs = placed(mesh, workers=tuple(axes))
    how = how | {"estimate": estimator(gae_jax)}
    with scan_laws.interpreted_kernel(), set_mesh(mesh) if mesh_is_in_context else contextlib.nullcontext():
        forward = jax.jit(functools.partial(call, **how)).lower(arrays).compile()
        backward = jax.jit(functools.partial(gradient, **how)).lower(arrays).compile()
        output = forward(arrays)
    assert_close(output, reference(**ROLLOUT.arguments()))
    assert collectives(forward) == collectives(backward) == {}
    for x in (*output, backward(arrays)["rewards"]):
        assert x.sharding.is_equivalent_to(NamedSharding(mesh, specs["rewards"]), 2)


@slow
@versions
@pytest.mark.parametrize("name", ["gae", "vtrace", "n_step_advantages"])
@pytest.mark.usefixtures("fast_compilation")
def test_arguments_split_in_different_ways(name):
    """Over Explicit axes: all arguments are split as the first that is split, and so are results and gradients."""
    mesh, estimate = make_mesh(Explicit, a=4, b=2), ESTIMATORS[name][0](gae_jax)

    def total(rewards, arrays):
        return sum(jnp.sum(jnp.sin(x)) for x in call(arrays | {"rewards": rewards}, estimate))

    with_gradient = jax.jit(jax.value_and_grad(total) if gradients_on_explicit_axes else total)
    wanted = with_gradient(ARRAYS["rewards"], ARRAYS)
    splits = [P(), P("a"), P("b"), P(("a", "b")), None]
    of_arrays = [[splits[(i + first) % 5] for i in range(6)] for first in range(3)]
    for of_each in [*of_arrays, [None] * 5 + [P("a")]]:  # V(s_T) alone
        arrays = dict(ARRAYS)
        for (name, x), split in zip(ARRAYS.items(), of_each, strict=True):
            if split is not None:
                arrays[name] = jax.device_put(x, NamedSharding(mesh, P(*[None] * (x.ndim - 1), *split)))
        with set_mesh(mesh):
            got = with_gradient(arrays["rewards"], arrays)
        assert_close(jax.tree.leaves(got), jax.tree.leaves(wanted))
    specs = {"rewards": P(), "values": P(None, "a")}
    arrays = ARRAYS | {name: jax.device_put(ARRAYS[name], NamedSharding(mesh, spec)) for name, spec in specs.items()}
    assert call(arrays, estimate)[0].sharding.is_equivalent_to(arrays["values"].sharding, 2)


@versions
def test_the_compiler_is_not_asked_to_split_the_kernel():
    arrays, _ = placed(make_mesh(a=8), workers="a")
    program = jax.jit(call).trace(arrays).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" not in program
    with pytest.raises(NotImplementedError, match=r"cannot split a kernel .*shard_map.* Explicit; got Auto axes \['a'"):
        jax.jit(functools.partial(call, implementation="pallas")).trace(arrays).lower(lowering_platforms=("tpu",))


# Time.


@versions
@slow
@given(rollout=rollouts, devices=st.sampled_from([2, 8]), implementation=st.sampled_from([None, "blocked"]))
@hypothesis.settings(max_examples=max(1, hypothesis.settings().max_examples // 40))
def test_time_split_matches_oracle(rollout, devices, implementation):
    """Shards of four rows or one, with any kind of row at the seams."""
    split = over_time(functools.partial(gae, implementation=implementation), devices)
    assert_close(split(**rollout.arguments()), oracle(**rollout.arguments()))


@slow
@pytest.mark.usefixtures("fast_compilation")
@pytest.mark.parametrize(
    ("law", "devices"),
    [*((law, 3) for law in LAWS_OF_ALL), (laws.matches_oracle, 6)],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_time_split_obeys_the_law(law, devices):
    """With shards of two rows and of one; lambda_ varies beside a mask, varies without one, or does not vary."""
    split = over_time(gae, devices)
    for rollout in (EXAMPLES[0], EXAMPLES[3], EXAMPLES[7]):
        law(split, rollout)


@slow
def test_derivative_along_lambda_at_0_over_shards_of_one_row():
    """There the a of each shard is 0, and its derivative is not."""
    rollout = random_rollout(0, steps=6, batch=(3,), ends=0.0, truncation=None)

    def slope(fn):
        def of(lambda_):
            return fn(**rollout.replace(lambda_=lambda_).arguments()).advantages

        return jax.jvp(of, (jnp.zeros((6, 3)),), (jnp.ones((6, 3)),))[1]

    assert_close([slope(over_time(gae, 6))], [np.asarray(slope(gae))])


BOTH, TIME = ("time", "workers"), ("time",)


@slow
@pytest.mark.parametrize(
    ("implementation", "manual", "kind"),
    [
        (None, BOTH, Auto),
        (None, BOTH, Explicit),
        pytest.param("pallas", BOTH, Explicit, marks=(versions, derivatives_per_shard)),
        pytest.param(None, TIME, Auto, marks=versions),
        pytest.param(None, TIME, Explicit, marks=(versions, shard_map_of_some_axes)),
        pytest.param("blocked", TIME, Explicit, marks=shard_map_of_some_axes),
    ],
    ids=str,
)
def test_time_and_workers_split(implementation, manual, kind):
    """`shard_map` splits both; or `shard_map` splits time, and the compiler splits workers with more collectives."""
    mesh = make_mesh(kind, time=4, workers=2)
    arrays, specs = placed(mesh, "time", "workers")
    arrays["bootstrap_value"] = jax.device_put(arrays["bootstrap_value"], NamedSharding(mesh, P("workers")))
    if manual == TIME:
        specs = {k: P("time") if k != "bootstrap_value" else P() for k in specs}
    fn = jax.shard_map(
        functools.partial(call, time_axis_name="time", implementation=implementation),
        mesh=mesh,
        in_specs=(specs,),
        out_specs=specs["rewards"],
        axis_names=set(manual),
        check_vma=implementation != "pallas",  # Pallas's interpreter refuses it
    )
    with scan_laws.interpreted_kernel(), set_mesh(mesh):
        executable = jax.jit(fn).lower(arrays).compile()
        output = executable(arrays)
        slopes_of = jax.grad(lambda arrays: sum(jnp.sum(x**2) for x in fn(arrays)), allow_int=True)
        backward = jax.jit(slopes_of).lower(arrays).compile()
        slopes = backward(arrays)
    assert_close(output, WANT)
    assert_close([slopes["rewards"]], [np.asarray(gradient(ARRAYS)["rewards"])])
    if manual == BOTH:
        assert collectives(executable) == {"all-gather": 1}
        assert collectives(backward) == {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 1}  # a sum for V(s_T)
    assert (implementation == "blocked") <= (" while(" not in str(executable.as_text()))
    for x in output:
        assert x.sharding.is_equivalent_to(NamedSharding(mesh, P("time", "workers")), 2)


@slow
@pytest.mark.parametrize(
    ("varying", "masked", "want", "numbers"),
    [
        (False, False, {"all-gather": 1}, 8 * 2),
        (False, True, {"all-gather": 1}, 8 * 2),
        (True, False, {"all-gather": 1, "collective-permute": 1}, 8 * 2 + 1),
        (True, True, {"all-gather": 2}, 2 * 8 * 2),
    ],
)
def test_communication_does_not_depend_on_the_number_of_steps(varying, masked, want, numbers):
    """Per worker: an a and a b of each device; where lambda_ varies, also lambda_ before each shard."""
    workers = 16
    for steps in (64, 4096):
        rows, flags = jax.ShapeDtypeStruct((steps, workers), jnp.float32), jax.ShapeDtypeStruct((steps, workers), bool)
        arrays = {"rewards": rows, "values": rows, "terminated": flags}
        arrays |= ({"lambda_": rows} if varying else {}) | ({"mask": flags} if masked else {})

        def split(arrays):
            return gae(**{"lambda_": 0.8} | arrays, bootstrap_value=0.0, gamma=0.9, time_axis_name="time")

        fn = jax.shard_map(split, mesh=make_mesh(time=8), in_specs=P("time"), out_specs=P("time"))
        executable = jax.jit(fn).lower(arrays).compile()
        assert collectives(executable) == want
        assert collective_bytes(executable) == numbers * 4 * workers


@slow
@pytest.mark.parametrize(("implementation", "check_vma"), [(None, True), ("pallas", False)])
@pytest.mark.usefixtures("fast_compilation")
def test_affine_scan_split(implementation, check_vma):
    """Outputs as of `lax.scan`, the last carry on every device. Reads one device's first carry."""
    mesh, arguments = make_mesh(time=8), scan_laws.problem(5, 24, (3,))

    def split(init, xs, shared, *, reverse=False):
        def shard(init, xs, shared):
            is_first = jax.lax.axis_index("time") == (7 if reverse else 0)
            how = {"reverse": reverse, "axis_name": "time", "implementation": implementation}
            last, ys = affine_scan(scan_laws.step, jnp.where(is_first, init, jnp.nan), xs, shared, **how)
            return last[None], ys

        specs = {"in_specs": (P(), P("time"), P()), "out_specs": P("time")}
        return jax.shard_map(shard, mesh=mesh, check_vma=check_vma, **specs)(init, xs, shared)

    def whole(*arguments, reverse=False):
        last, ys = scan_laws.lax_scan(*arguments, reverse=reverse)
        return jnp.stack([last] * 8), ys

    with scan_laws.interpreted_kernel():
        got, want = (jax.jit(functools.partial(scan_laws.outputs, scan))(*arguments) for scan in (split, whole))
        scan_laws.assert_all_close(got, want)
