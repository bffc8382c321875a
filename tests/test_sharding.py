"""Workers, and time, split over the devices of a mesh: the same answer, and next to nothing exchanged."""

import contextlib
import functools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from scaling_out import collective_bytes, collectives
from support import laws
from support import scan_laws as affine
from support.laws import assert_close
from support.meshes import over_time
from support.oracle import oracle
from support.rollouts import random_rollout, rollouts
from test_mutants import EXAMPLES

import gae_jax
from gae_jax import affine_scan, gae

KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
ROLLOUT = random_rollout(3, steps=40, batch=(16,), ends=0.1)
WANT = oracle(**ROLLOUT.arguments())
ARRAYS = {k: jnp.asarray(x) for k, x in ROLLOUT.arguments().items() if isinstance(x, np.ndarray)}
ARRAYS |= {"values": ARRAYS["values"][:-1], "bootstrap_value": ARRAYS["values"][-1]}


def call(arrays, **how):
    return gae(**arrays, gamma=0.9, lambda_=0.8, **how)


def gradient(arrays, **how):
    floats = {k: x for k, x in arrays.items() if x.dtype == jnp.float32}
    return jax.grad(lambda floats: jnp.sum(call(arrays | floats, **how).advantages ** 2))(floats)


def make_mesh(kind="auto", **axes):
    devices = np.array(jax.devices()[: math.prod(axes.values())]).reshape(tuple(axes.values()))
    return Mesh(devices, tuple(axes), axis_types=(KINDS[kind],) * len(axes))


def placed(mesh, time=None, workers=None):
    """The arrays, split so."""
    specs = {k: P(workers) if x.ndim == 1 else P(time, workers) for k, x in ARRAYS.items()}
    return {k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in ARRAYS.items()}, specs


@pytest.mark.parametrize("context", [True, False], ids=["set_mesh", "by its arrays"])
@pytest.mark.parametrize("axes", [{"a": 8}, {"a": 4, "b": 2}], ids=str)
@pytest.mark.parametrize(
    ("kind", "implementation"),
    [*((kind, name) for kind in KINDS for name in (None, "scan", "blocked")), ("explicit", "interpreted")],
)
def test_workers_split(kind, implementation, axes, context):
    """No collective, neither in `gae` nor in its gradient, and the results are split as the arguments are."""
    mesh = make_mesh(kind, **axes)
    arrays, specs = placed(mesh, workers=tuple(axes))
    how = {"implementation": implementation}
    with affine.interpreted(gae_jax), jax.set_mesh(mesh) if context else contextlib.nullcontext():
        forward = jax.jit(functools.partial(call, **how)).lower(arrays).compile()
        backward = jax.jit(functools.partial(gradient, **how)).lower(arrays).compile()
        output = forward(arrays)
    assert_close(output, WANT)
    assert collectives(forward) == collectives(backward) == {}
    for x in (*output, backward(arrays)["rewards"]):
        assert x.sharding.is_equivalent_to(NamedSharding(mesh, specs["rewards"]), 2)


def test_the_count_can_tell():
    """Time split under plain jit: the compiler gathers what it cannot split."""
    arrays, _ = placed(make_mesh(a=8), time="a")
    executable = jax.jit(call).lower(arrays).compile()
    assert collectives(executable)["all-gather"] >= 1
    assert collective_bytes(executable) > ROLLOUT.rewards.nbytes


def test_the_kernel_is_not_left_to_the_compiler():
    arrays, _ = placed(make_mesh(a=8), workers="a")
    program = jax.jit(call).trace(arrays).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" not in program
    with pytest.raises(NotImplementedError, match=r"cannot split a kernel .*shard_map.* Explicit; got {'a': Auto}"):
        jax.jit(functools.partial(call, implementation="pallas")).trace(arrays).lower(lowering_platforms=("tpu",))


@given(rollout=rollouts, devices=st.sampled_from([2, 4, 8]), implementation=st.sampled_from([None, "scan", "blocked"]))
@hypothesis.settings(max_examples=max(1, hypothesis.settings().max_examples // 8))
def test_time_split(rollout, devices, implementation):
    """Pieces of four rows, two or one, whatever there is at the seams."""
    split = over_time(gae, devices, implementation=implementation)
    assert_close(split(**rollout.arguments()), oracle(**rollout.arguments()))


WHOLE = [law for law in laws.LAWS if law is not laws.a_cut_rollout_equals_the_uncut_one]  # that law cuts by itself
DIFFERENTIATING = [laws.nothing_dead_leaks, laws.gradients_are_those_of_the_definition]


@pytest.mark.parametrize(
    ("law", "check_vma"),
    [*((law, True) for law in WHOLE), *((law, False) for law in DIFFERENTIATING)],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_time_split_obeys_the_law(law, check_vma):
    split = laws.Library(over_time(gae, 3, check_vma=check_vma))
    for rollout in EXAMPLES[1::8]:
        law(split, rollout)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("manual", [("time", "workers"), ("time",)], ids=str)
@pytest.mark.parametrize("implementation", [None, "blocked", "interpreted"])
def test_time_and_workers_split(implementation, manual, kind):
    """By hand both; or time by hand and workers by the compiler, which is as right, and exchanges more."""
    if implementation == "interpreted" and manual == ("time",) and kind == "auto":
        pytest.skip("the compiler cannot split a kernel")
    mesh = make_mesh(kind, time=4, workers=2)
    arrays, specs = placed(mesh, "time", "workers")
    arrays["bootstrap_value"] = jax.device_put(arrays["bootstrap_value"], NamedSharding(mesh, P("workers")))
    if manual == ("time",):
        specs = {k: P("time") if k != "bootstrap_value" else P() for k in specs}
    fn = functools.partial(call, axis_name="time", implementation=implementation)
    fn = jax.shard_map(
        fn,
        mesh=mesh,
        in_specs=(specs,),
        out_specs=specs["rewards"],
        axis_names=set(manual),
        check_vma=implementation != "interpreted",  # which the interpreter does not know
    )
    with affine.interpreted(gae_jax), jax.set_mesh(mesh):
        executable = jax.jit(fn).lower(arrays).compile()
        output = executable(arrays)
    assert_close(output, WANT)
    assert manual == ("time",) or collectives(executable) == {"all-gather": 1}
    for x in output:
        assert x.sharding.is_equivalent_to(NamedSharding(mesh, P("time", "workers")), 2)


@pytest.mark.parametrize(
    ("varying", "masked", "want", "numbers"),
    [
        (False, False, {"all-gather": 1}, 8 * 2),
        (False, True, {"all-gather": 1}, 8 * 2),
        (True, False, {"all-gather": 1, "collective-permute": 1}, 8 * 2 + 1),
        (True, True, {"all-gather": 2}, 2 * 8 * 2),
    ],
)
def test_what_is_exchanged_does_not_depend_on_time(varying, masked, want, numbers):
    """A few numbers a worker: the a and b of each device, and where lambda_ varies what it is before the seam."""
    workers = 16
    for steps in (64, 4096):
        rows, flags = jax.ShapeDtypeStruct((steps, workers), jnp.float32), jax.ShapeDtypeStruct((steps, workers), bool)
        arrays = {"rewards": rows, "values": rows, "terminated": flags}
        arrays |= {"lambda_": rows} if varying else {}
        arrays |= {"mask": flags} if masked else {}
        how = {"gamma": 0.9, "axis_name": "time"} | ({} if varying else {"lambda_": 0.8})

        def split(arrays, last_value, how=how):
            return gae(**arrays, bootstrap_value=last_value, **how)

        fn = jax.shard_map(split, mesh=make_mesh(time=8), in_specs=(P("time"), P()), out_specs=P("time"))
        executable = jax.jit(fn).lower(arrays, jax.ShapeDtypeStruct((workers,), jnp.float32)).compile()
        assert collectives(executable) == want
        assert collective_bytes(executable) == numbers * 4 * workers


@pytest.mark.parametrize("implementation", [None, "blocked"])
def test_a_gradient_takes_a_reduce_scatter_more(implementation):
    def loss(rewards, values, terminated, last_value, mesh):
        how = {"gamma": 0.9, "lambda_": 0.8, "axis_name": "time", "implementation": implementation}
        fn = jax.shard_map(
            lambda *arrays: gae(*arrays[:3], bootstrap_value=arrays[3], **how),
            mesh=mesh,
            in_specs=(P("time"), P("time"), P("time"), P()),
            out_specs=P("time"),
        )
        return jnp.sum(fn(rewards, values, terminated, last_value).advantages ** 2)

    arrays = *(ARRAYS[name] for name in ("rewards", "values", "terminated", "bootstrap_value")), make_mesh(time=8)
    fn = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=4)
    assert collectives(fn.lower(*arrays).compile()) == {"all-gather": 1, "reduce-scatter": 1}


@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize(("implementation", "check_vma"), [(None, True), ("blocked", False), ("interpreted", False)])
def test_affine_scan_split(implementation, reverse, check_vma):
    """The rows of lax.scan, and its last carry on every device; with derivatives."""
    closed_over, init, xs = affine.problem(5, 24, (3,))

    def split(closed_over, init, xs):
        last, ys = affine_scan(
            affine.step_with(*closed_over), init, xs, reverse=reverse, axis_name="time", implementation=implementation
        )
        return last[None], ys

    def whole(closed_over, init, xs):
        last, ys = jax.lax.scan(affine.step_with(*closed_over), init, xs, reverse=reverse)
        return jnp.stack([last] * 8), ys

    def derivatives(fn):
        def loss(a, init):
            return sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(fn(closed_over, init, xs | {"a": a})))

        return jax.value_and_grad(loss, argnums=(0, 1))(xs["a"], init)

    fn = jax.shard_map(
        split, mesh=make_mesh(time=8), in_specs=(P(), P(), P("time")), out_specs=P("time"), check_vma=check_vma
    )
    with affine.interpreted(gae_jax):
        affine.assert_all_close(jax.jit(fn)(closed_over, init, xs), whole(closed_over, init, xs))
        affine.assert_all_close(jax.jit(derivatives, static_argnums=0)(fn), derivatives(whole), 1e-4)


def test_the_first_carry_is_read_where_the_scan_begins():
    """On all other devices it may be what it likes."""
    xs = jnp.arange(1.0, 9.0)
    for reverse, first in ((False, 0), (True, 3)):

        def split(xs, reverse=reverse, first=first):
            init = jnp.where(jax.lax.axis_index("time") == first, 1.0, jnp.nan)
            step = lambda carry, row: (carry / 2 + row, carry)  # noqa: E731
            return affine_scan(step, init, xs, reverse=reverse, axis_name="time")[1]

        got = jax.jit(jax.shard_map(split, mesh=make_mesh(time=4), in_specs=P("time"), out_specs=P("time")))(xs)
        _, want = jax.lax.scan(lambda carry, row: (carry / 2 + row, carry), 1.0, xs, reverse=reverse)
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_over_an_axis_of_vmap():
    """Collectives do not mind who named the axis."""
    pieces = jax.tree.map(lambda x: x.reshape(4, 10, 16), {k: x for k, x in ARRAYS.items() if x.ndim > 1})
    last_value = ARRAYS["bootstrap_value"]
    output = jax.vmap(lambda piece: call(piece | {"bootstrap_value": last_value}, axis_name="time"), axis_name="time")(
        pieces
    )
    assert_close([x.reshape(40, 16) for x in output], WANT)
