"""How the arguments of an estimator fit together: shapes, one number for an array, dtypes, compilations."""

import functools
import importlib
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from support.estimators import ESTIMATORS, GOOD, N, T, advantages_by, each_estimator, zeros
from support.laws import assert_close
from support.oracle import oracle
from support.rollouts import random_rollout
from support.versions import enable_x64

from gae_jax import gae, n_step_advantages, vtrace

pytestmark = pytest.mark.versions

# Shapes.

SPLIT = GOOD | {"values": zeros(T, N), "bootstrap_value": zeros(N)}
ONE: dict[str, Any] = GOOD | {"rewards": zeros(T), "values": zeros(T + 1), "terminated": zeros(T)}
TEAM = GOOD | {"rewards": zeros(T, N, 2), "values": zeros(T + 1, N, 2), "terminated": zeros(T, N, 2)}
TIME_AXIS_1 = {"time_axis": 1}
CUT = GOOD | {"truncated": True}
ROWS, LONGER = (T, N), (T + 1, N)

SWAPPED = "Time and batch look swapped: all arrays are [T, *B], or with time_axis=1 all are [N, T]."
TOO_MANY = "It has a row too many: there is one row per transition."
NO_TIME = "It has no axis of time: there is one flag per transition."
V_LAST = "It looks like V(s_T): pass it as `bootstrap_value=`."
BOTH = "Its last row would be V(s_T), and so is `bootstrap_value`: pass one of the two."
NEXT = "If these are V(s_{t+1}) of every row, pass the last row alone."
DROP = "Drop its axis of length 1."
MANY = "If one entry stands for many, pass jnp.broadcast_to(x, (5, 3))."
STATES = (
    "The T + 1 rows are V(s_0) ... V(s_T). If V(s_T) is missing, the value of the state after the last transition, "
    "append it or pass `bootstrap_value`; if the rows are V(s_1) ... V(s_T), put V(s_0) first."
)
TIME_IS = "If time is axis {0} of all arrays, pass time_axis={0}."
SHARED = "If the last axes share it, pass jnp.broadcast_to(x[..., {}], {})."
SHAPES = [  # the other arguments, the name of the wrong one, what is passed, the shape that is wanted, and the advice
    (GOOD, "terminated", zeros(N, T), ROWS, SWAPPED),
    (GOOD, "terminated", zeros(T + 1, N), ROWS, TOO_MANY),
    (GOOD, "terminated", zeros(1, N, dtype=bool), ROWS, MANY),
    (GOOD, "truncated", zeros(T, 1), ROWS, MANY),
    (GOOD, "truncated", zeros(N), ROWS, V_LAST),
    (GOOD, "truncated", zeros(1, N), ROWS, V_LAST),
    (GOOD, "truncated", zeros(N, dtype=bool), ROWS, NO_TIME),
    (ONE, "truncated", 0.5, (T,), V_LAST),
    (GOOD, "mask", True, ROWS, MANY),
    (GOOD, "mask", zeros(T, N, 2), ROWS, ""),
    (GOOD | {"terminated": zeros(T, N)}, "mask", zeros(1, N), ROWS, MANY),
    (CUT, "final_values", zeros(T + 1, N), ROWS, TOO_MANY),
    (GOOD, "values", zeros(T, N), LONGER, STATES),
    (GOOD, "values", zeros(T, N, 1), LONGER, f"{DROP} {STATES}"),
    (GOOD, "values", zeros(N, T + 1), LONGER, SWAPPED),
    (GOOD, "values", zeros(T, N + 1), LONGER, TIME_IS.format(1)),
    (GOOD | TIME_AXIS_1, "values", zeros(T + 1, N), (T, N + 1), TIME_IS.format(0)),
    (GOOD, "values", zeros(2, N), LONGER, ""),
    (SPLIT, "values", zeros(T + 1, N), ROWS, BOTH),
    (SPLIT, "bootstrap_value", zeros(1, N), (N,), DROP),
    (SPLIT, "bootstrap_value", zeros(T), (N,), TIME_IS.format(1)),
    (SPLIT, "bootstrap_value", zeros(T, N), (N,), NEXT),
    (SPLIT | TIME_AXIS_1, "bootstrap_value", zeros(N), (T,), TIME_IS.format(0)),
    (GOOD, "rewards", zeros(T, N, 1), ROWS, DROP),
    (GOOD, "rewards", zeros(T + 1, N), ROWS, TOO_MANY),
    (GOOD, "rewards", zeros(N, T), ROWS, SWAPPED),
    (GOOD, "rewards", zeros(0, N), ROWS, ""),
    (TEAM, "terminated", zeros(N, T, 2), (T, N, 2), SWAPPED),
    (TEAM, "terminated", zeros(T, N), (T, N, 2), SHARED.format("None", (T, N, 2))),
    (TEAM, "mask", zeros(T), (T, N, 2), SHARED.format("None, None", (T, N, 2))),
    (TEAM, "values", zeros(T + 1, N), (T + 1, N, 2), SHARED.format("None", (T + 1, N, 2))),
    (TEAM | TIME_AXIS_1, "mask", zeros(T), (T, N, 2), ""),
]
MEANINGS = {
    "rewards": "the shape of the other arrays",
    "values": "the shape of `rewards` with T + 1 rows of time",
    "bootstrap_value": "the shape of `rewards` without time",
}


def message_of(base, name, x, want, advice):
    meaning = MEANINGS.get(name, "the shape of `rewards`")
    if name == "values" and "bootstrap_value" in base:
        meaning = "the shape of `rewards` beside `bootstrap_value`"
    return f"must have shape {want}, {meaning}; got {np.shape(x)}. {advice}".rstrip()


BROADCAST = (
    "must broadcast to the shape of `rewards`, (5, 3); got {}. Shapes align from the last axis: where arrays are [T, "
    "N], one per worker is [N] and one per step is [T, 1]."
)
EMPTY = "must hold at least one transition; got shape (0, 3), so T = 0 on axis 0"
CASES = [
    *((*case[:3], message_of(*case)) for case in SHAPES),
    *((GOOD, name, zeros(T), BROADCAST.format((T,))) for name in ("gamma", "lambda_")),
    (GOOD, "gamma", zeros(1, T, N), BROADCAST.format((1, T, N))),
    (GOOD, "rewards", 0.0, "must have an axis of time, shape [T, *B]; got a scalar, shape ()"),
    (GOOD | {"values": zeros(1, N), "terminated": False}, "rewards", zeros(0, N), EMPTY),
    *((GOOD, "time_axis", k, f"must be an axis of `rewards`, whose shape is (5, 3); got {k}") for k in (2, -3)),
    (GOOD, "final_values", zeros(T, N), "is read only where `truncated` is set: pass `truncated`, too"),
]


@pytest.fixture(params=["enable_asserts", "disable_asserts"])
def chex_asserts(request):
    getattr(chex, request.param)()
    yield
    chex.enable_asserts()


@pytest.mark.usefixtures("chex_asserts")
@pytest.mark.parametrize(("arguments", "name", "x", "message"), CASES)
def test_bad_argument(arguments, name, x, message):
    """The message is the same where chex's own assertions are disabled."""
    with pytest.raises(ValueError, match=f"(?m)^{re.escape(f'`{name}` {message}')}$"):
        gae(**arguments | {name: x})


def test_symbolic_shapes():
    """With a symbolic N, the same errors."""
    scope = export.SymbolicScope()
    sizes = dict(zip((N, N + 1), export.symbolic_shape("n, n + 1", scope=scope), strict=True))

    def symbolic(x):
        return jax.ShapeDtypeStruct(tuple(sizes.get(size, size) for size in np.shape(x)), jnp.asarray(x).dtype)

    def call(arguments):
        static = {k: arguments.pop(k) for k in ("time_axis", "gamma", "lambda_") if np.ndim(arguments.get(k, ())) == 0}
        return export.export(jax.jit(functools.partial(gae, **static)))(**jax.tree.map(symbolic, arguments))

    for arguments in (GOOD, SPLIT):
        call(arguments.copy())
    for arguments, name, x, _ in CASES:
        if np.ndim(x):
            with pytest.raises(ValueError, match=f"^`{name}` (must|is)"):
                call(arguments | {name: x})


def test_errors_are_raised_while_tracing():
    """Inside jit and vmap the message is the same, and nothing has run before."""
    call = functools.partial(gae, gamma=0.99, lambda_=0.95)
    with pytest.raises(ValueError, match=r"`values` must have shape \(6, 3\)"):
        jax.eval_shape(jax.jit(call), zeros(T, N), zeros(T, N), zeros(T, N))
    with pytest.raises(ValueError, match=r"`truncated` must have shape \(5,\), .* got \(\)\. It looks like V"):
        jax.vmap(call, in_axes=(1, 1, 1, 0))(zeros(T, N), zeros(T, N), zeros(T, N), zeros(N))
    with pytest.raises(ValueError, match=r"`lambda_` must lie in"):
        jax.jit(lambda r: gae(r, zeros(T + 1), zeros(T), gamma=0.99, lambda_=2.0))(jnp.zeros(T))


# Dtypes, and one number.

TYPED = random_rollout(7, steps=12, batch=(4,), ends=0.2, masked_share=0.1)
WANT_TYPED = oracle(**TYPED.arguments())
NUMBERS = [
    {"terminated": False, "bootstrap_value": 2.0, "final_values": 3.0},
    {"terminated": True, "bootstrap_value": 1},
    {"terminated": 0, "truncated": True, "final_values": -1.0, "bootstrap_value": 0.0},
]


@each_estimator
@pytest.mark.usefixtures("fast_compilation")
def test_one_number_equals_an_array_of_it(estimator):
    """A number of Python, NumPy or JAX."""
    base = TYPED.replace(values=TYPED.values[:-1]).arguments()
    for numbers in NUMBERS:
        shapes = dict.fromkeys(numbers, (12, 4)) | {"bootstrap_value": (4,)}
        want = advantages_by(estimator, base | {name: np.full(shapes[name], x) for name, x in numbers.items()})
        for convert in (jnp.asarray, np.asarray, lambda x: x):
            arguments = base | {name: convert(x) for name, x in numbers.items()}
            np.testing.assert_array_equal(advantages_by(estimator, arguments), want)
        by_worker = {name: x.T if np.ndim(x) == 2 else x for name, x in arguments.items()}
        np.testing.assert_array_equal(advantages_by(estimator, by_worker | {"time_axis": 1}).T, want)


@pytest.mark.parametrize("x64", [False, True])
def test_float64_stays_float64_under_x64_only(x64):
    with enable_x64(x64):
        wide = TYPED.map_arrays(lambda x: x if x.dtype == bool else x.astype(np.float64)).arguments()
        for arguments, dtype in ((TYPED.arguments(), np.float32), (wide, np.float64 if x64 else np.float32)):
            output = gae(**arguments)
            assert output.advantages.dtype == output.targets.dtype == dtype
            assert_close(output, WANT_TYPED, rtol=1e-14 if dtype == np.float64 else 1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_floats_in_and_out_but_not_between(dtype):
    """The result equals float32 arithmetic on the rounded inputs, rounded once."""
    rounded = TYPED.map_arrays(lambda x: x if x.dtype == bool else x.astype(dtype))
    wide = rounded.map_arrays(lambda x: x if x.dtype == bool else x.astype(np.float32))
    output = gae(**rounded.arguments())
    assert output.advantages.dtype == output.targets.dtype == dtype
    for got, want in zip(output, gae(**wide.arguments()), strict=True):
        np.testing.assert_array_equal(got, want.astype(dtype))


def dtype_of(estimator, arguments):
    return jax.eval_shape(lambda: advantages_by(estimator, arguments)).dtype


@each_estimator
def test_each_array_of_numbers_promotes_the_result(estimator):
    wide = TYPED.arguments() | {"bootstrap_value": TYPED.values[-1], "values": TYPED.values[:-1]}
    wide["log_rhos"] = TYPED.rewards
    numbers = {name: x for name, x in wide.items() if np.ndim(x) and x.dtype == np.float32}
    arguments = wide | {name: x.astype(jnp.bfloat16) for name, x in numbers.items()}
    for name, x in numbers.items():
        promotes = name != "log_rhos" or estimator is vtrace
        assert dtype_of(estimator, arguments | {name: x}) == (jnp.float32 if promotes else jnp.bfloat16), name
        assert dtype_of(estimator, arguments | {name: x.astype(np.int32)}) == jnp.bfloat16, name
    assert dtype_of(estimator, arguments | {"bootstrap_value": 0.0, "final_values": 0.0}) == jnp.bfloat16


@each_estimator
def test_neither_flags_nor_parameters_decide_the_dtype(estimator):
    wide = {"gamma": np.full((12, 1), 0.9), "lambda_": np.full((12, 1), 0.8)}
    for dtype, flags in ((np.float16, np.float32), (np.float16, np.float64), (np.float32, np.float64)):
        rollout = TYPED.map_arrays(lambda x, dtype=dtype, flags=flags: x.astype(flags if x.dtype == bool else dtype))
        with enable_x64(flags == np.float64):
            assert dtype_of(estimator, rollout.replace(**wide).arguments()) == dtype


def test_integers_alone_give_floats():
    output = gae(np.arange(3), np.arange(4), np.zeros(3, int), gamma=1, lambda_=1)
    assert output.advantages.dtype == jnp.float32
    np.testing.assert_array_equal(output.targets, [6, 6, 5])


# What is compiled once.

ONE_PROGRAM: list[tuple[Any, list[dict[str, Any]]]] = [
    *((estimator, [{"time_axis": 1, "gamma": 0.9}, {"time_axis": -1, "gamma": 0.8}]) for estimator in ESTIMATORS),
    (n_step_advantages, [{"n": n} for n in (200, 100, np.int64(6), jnp.array(8))]),
    (vtrace, [{"lambda_": x, "clip_rho": x, "clip_c": 2 * x, "clip_pg_rho": x} for x in (0.6, 0.7, 0.8)]),
]


@pytest.mark.parametrize(("estimator", "changes"), ONE_PROGRAM)
def test_compiles_once(estimator, changes, monkeypatch):
    """For an axis of time counted from either end, for any n beyond the rollout, and for any numbers."""
    traced, module = [], importlib.import_module(estimator.__module__)
    canonical = module.canonical
    monkeypatch.setattr(module, "canonical", lambda *x: traced.append(1) or canonical(*x))
    arguments = random_rollout(1, steps=6, batch=(7,)).map_arrays(np.transpose).arguments() | {"time_axis": 1}
    for change in changes:
        advantages_by(estimator, arguments | change)
    assert len(traced) == 1
