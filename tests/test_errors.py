"""Bad input is refused while tracing, in words that name the argument and say what was got and what was wanted."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gae_jax import GAE, gae, n_step_advantages, normalize, vtrace

T, N = 5, 3
GOOD: dict[str, Any] = {
    "rewards": np.zeros((T, N), np.float32),
    "values": np.zeros((T + 1, N), np.float32),
    "terminated": np.zeros((T, N), bool),
    "gamma": 0.99,
    "lambda_": 0.95,
}
SPLIT = GOOD | {"values": np.zeros((T, N), np.float32), "bootstrap_value": np.zeros(N, np.float32)}


def zeros(*shape, dtype: Any = np.float32):
    return np.zeros(shape, dtype)


SHAPES = [
    (
        {"terminated": zeros(N, T)},
        r"`terminated` must have shape \(5, 3\).* got \(3, 5\)\. Time and batch look swapped",
    ),
    ({"terminated": zeros(T + 1, N)}, r"`terminated` must have shape \(5, 3\).* got \(6, 3\)\. It has a row too many"),
    ({"terminated": zeros(T)}, r"`terminated` must have shape \(5, 3\), that of `rewards`; got \(5,\)"),
    ({"terminated": zeros(1, N)}, r"`terminated` must have shape \(5, 3\), that of `rewards`; got \(1, 3\)"),
    ({"terminated": False}, r"`terminated` must have shape \(5, 3\), that of `rewards`; got \(\)"),
    ({"truncated": zeros(T, 1)}, r"`truncated` must have shape \(5, 3\), that of `rewards`; got \(5, 1\)"),
    ({"truncated": zeros(N, T)}, r"`truncated` .* Time and batch look swapped"),
    (
        {"final_values": zeros(T + 1, N), "truncated": zeros(T, N)},
        r"`final_values` must have shape \(5, 3\).* It has a row too many",
    ),
    (
        {"values": zeros(T, N)},
        r"`values` must have shape \(6, 3\).* got \(5, 3\)\. Append V\(s_T\).* or pass `bootstrap_value`",
    ),
    ({"values": zeros(N, T + 1)}, r"`values` must have shape \(6, 3\).* got \(3, 6\)\. Time and batch look swapped"),
    (
        {"values": zeros(T, N + 1)},
        r"`values` must have shape \(6, 3\).* got \(5, 4\)\. Time and batch look swapped.*time_axis=1",
    ),
    (
        {"values": zeros(2, N)},
        r"`values` must have shape \(6, 3\), that of `rewards` with T \+ 1 rows of time; got \(2, 3\)",
    ),
    ({"rewards": zeros()}, r"`rewards` must have an axis of time, shape \[T, \*B\]; got a scalar, shape \(\)"),
    ({"rewards": zeros(0, N)}, r"`rewards` must hold at least one transition; got shape \(0, 3\), so T = 0"),
    ({"time_axis": 2}, r"`time_axis` must be an axis of `rewards`, whose shape is \(5, 3\); got 2"),
    ({"time_axis": -3}, r"`time_axis` must be an axis of `rewards`, whose shape is \(5, 3\); got -3"),
]
SPLIT_SHAPES = [
    ({"values": zeros(T + 1, N)}, r"`values` must have shape \(5, 3\), .* got \(6, 3\)\. .* pass one of the two"),
    (
        {"bootstrap_value": zeros(1, N)},
        r"`bootstrap_value` must have shape \(3,\).* got \(1, 3\)\. Drop its axis of length 1",
    ),
    (
        {"bootstrap_value": zeros()},
        r"`bootstrap_value` must have shape \(3,\), that of `rewards` without time; got \(\)",
    ),
    (
        {"bootstrap_value": zeros(T)},
        r"`bootstrap_value` must have shape \(3,\), that of `rewards` without time; got \(5,\)",
    ),
]
TYPES = [
    ({"rewards": None}, r"`rewards` must be an array of numbers; got NoneType"),
    ({"values": [[0.0] * N] * (T + 1)}, r"`values` must be an array of numbers; got list"),
    ({"terminated": None}, r"`terminated` must be an array of flags; got NoneType"),
    ({"mask": np.full((T, N), None)}, r"`mask` must be an array of flags; got dtype object"),
    ({"rewards": np.full((T, N), "1")}, r"`rewards` must be an array of numbers; got dtype <U1"),
    ({"rewards": zeros(T, N, dtype=bool)}, r"`rewards` must hold floating-point numbers or integers; got dtype bool"),
    ({"values": zeros(T + 1, N, dtype=np.complex64)}, r"`values` must hold floating-point .* got dtype complex64"),
    (
        {"terminated": zeros(T, N, dtype=np.complex64)},
        r"`terminated` must hold flags, bool or 0 and 1; got dtype complex64",
    ),
    ({"gamma": [0.9] * N}, r"`gamma` must be an array of numbers; got list"),
    ({"time_axis": 1.0}, r"`time_axis` must be an integer; got 1.0"),
    ({"time_axis": "time"}, r"`time_axis` must be an integer; got 'time'"),
    ({"gamma": None}, r"`gamma` must be an array of numbers; got NoneType"),
    ({"gamma": True}, r"`gamma` must hold floating-point numbers or integers; got dtype bool"),
    ({"lambda_": "0.95"}, r"`lambda_` must be an array of numbers; got str"),
    ({"time_axis": [0]}, r"`time_axis` must be an integer; got \[0\]"),
    ({"axis_name": ["time"]}, r"`axis_name` must be a string; got \['time'\]"),
    ({"implementation": ["scan"]}, r"`implementation` must be a string; got \['scan'\]"),
    ({"values": np.ma.zeros((T + 1, N))}, r"`values` must be an array of numbers; got MaskedArray"),
    ({"mask": np.ma.zeros((T, N), bool)}, r"`mask` must be an array of flags; got MaskedArray"),
    ({"rewards": zeros(T, N, dtype=[("r", "f4")])}, r"`rewards` must be an array of numbers; got dtype \[\('r'"),
    ({"mask": zeros(T, N, dtype=[("m", "?")])}, r"`mask` must be an array of flags; got dtype \[\('m'"),
    *(
        ({name: jnp.zeros((T, N), dtype)}, rf"`{name}` must hold .*; got dtype {dtype.dtype.name}")
        for name in ("rewards", "terminated", "gamma")
        for dtype in (jnp.float8_e4m3fn, jnp.float8_e5m2)
    ),
    ({"rewards": np.zeros((T, N), jnp.float8_e4m3fn)}, r"`rewards` must hold .*; got dtype float8_e4m3fn"),
]
DROPPED = [({"final_values": zeros(T, N)}, r"`final_values` is read only where `truncated` is set: pass `truncated`")]
WRAPPED = [
    ({"rewards": np.full((T, N), x)}, r"`rewards` holds integers that .* cannot hold.*convert them to floating point")
    for x in (2**40, 2**31, -(2**31) - 1, np.uint64(2**32))
]
NAMES = [
    (
        {"axis_name": "time"},
        r"`axis_name` must be an axis of the mesh, inside a jax\.shard_map .*; got 'time', which no",
    ),
    ({"implementation": "cuda"}, r"`implementation` must be None or one of 'scan', 'blocked', 'pallas'; got 'cuda'"),
]
RANGES = [
    ({name: x}, rf"`{name}` must lie in \[0, 1\]; got {x}")
    for name in ("gamma", "lambda_")
    for x in (1.5, -0.1, 99, 10**400, float("nan"), np.float32(1.5), np.float64(-0.5), np.int64(2), np.array(1.5))
]
NOT_HERE = [
    ({"implementation": "pallas"}, r"implementation='pallas' is for TPUs; this program is compiled for cpu"),
]
CASES = [
    *((GOOD | change, ValueError, message) for change, message in SHAPES + NAMES + RANGES + DROPPED + WRAPPED),
    *((SPLIT | change, ValueError, message) for change, message in SPLIT_SHAPES),
    *((GOOD | change, TypeError, message) for change, message in TYPES),
    *((GOOD | change, NotImplementedError, message) for change, message in NOT_HERE),
]


@pytest.mark.parametrize(("arguments", "error", "message"), CASES, ids=[message for _, _, message in CASES])
def test_bad_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        gae(**arguments)


@pytest.mark.parametrize("arguments", [GOOD, SPLIT])
def test_good_arguments_are_taken(arguments):
    assert gae(**arguments).advantages.shape == (T, N)


def test_batch_major_arrays_by_mistake():
    """[N, T] throughout, with values [N, T+1]: the one array that gives the mistake away."""
    with pytest.raises(ValueError, match=r"`values` .*time_axis=1"):
        gae(zeros(N, T), zeros(N, T + 1), zeros(N, T), gamma=0.99, lambda_=0.95)


def test_integers_of_64_bits_that_fit_are_taken():
    """JAX reads them as int32 without x64, and 2 ** 40 as 0. Under x64, it reads them as they are."""
    fits, not_in_32_bits = np.full((T, N), 2**31 - 1), np.full((T, N), 2**40)
    np.testing.assert_array_equal(gae(**GOOD | {"rewards": fits, "lambda_": 0.0}).advantages, np.float32(2**31))
    with jax.enable_x64(True):
        advantages = gae(**GOOD | {"rewards": not_in_32_bits, "lambda_": 0.0}).advantages
    np.testing.assert_array_equal(advantages, np.float32(2**40))
    with pytest.raises(ValueError, match="`advantages` holds integers that int32 cannot hold, and JAX reads int64"):
        normalize(not_in_32_bits)


LOG_RHOS: dict[str, Any] = {"log_rhos": zeros(T, N)}


@pytest.mark.parametrize("name", ["clip_rho", "clip_c", "clip_pg_rho"])
def test_bad_clip(name):
    def call(x: Any):
        return vtrace(**(GOOD | LOG_RHOS | {name: x}))

    for x in (None, "1", 1j, [1.0], True, np.complex64(1), np.array("1")):
        with pytest.raises(TypeError, match=rf"`{name}` must be a number; got"):
            call(x)
    for x in (0.0, -1, 1e-60, math.nan, np.float32(-1), jnp.array(-1.0), np.array(-1.0)):
        with pytest.raises(ValueError, match=rf"`{name}` must be positive, at least 1\.2e-38; got"):
            call(x)
    with pytest.raises(ValueError, match=rf"`{name}` must be one number; got shape \(3,\)"):
        call(zeros(N))
    with pytest.raises(ValueError, match=rf"`{name}` must be a number that float64 can hold"):
        call(10**400)
    for x in (1e-30, 2, 2**40, math.inf, np.float64(1), jnp.array(1.0)):
        assert np.isfinite(call(x)).all()
    assert np.isfinite(jax.jit(call)(1.0)).all()


def test_bad_number_of_steps():
    def call(n: Any):
        return n_step_advantages(**{name: x for name, x in GOOD.items() if name != "lambda_"}, n=n)

    for n in (1.5, True, None, "1", np.float32(1)):
        with pytest.raises(TypeError, match="`n` must be an integer; got"):
            call(n)
    with pytest.raises(TypeError, match="`n` must be an integer that is known while tracing; got"):
        jax.jit(call)(2)
    with pytest.raises(ValueError, match="`n` must be at least 1; got 0"):
        call(np.int64(0))
    assert call(jnp.array(2)).shape == (T, N)


@pytest.mark.parametrize("estimate", [vtrace, n_step_advantages], ids=["vtrace", "n_step_advantages"])
def test_the_other_estimators_refuse_the_same(estimate):
    arguments = {name: x for name, x in GOOD.items() if name != "lambda_"}
    arguments |= LOG_RHOS if estimate is vtrace else {"n": 2}
    with pytest.raises(TypeError, match=r"`time_axis` must be an integer; got \[0\]"):
        estimate(**arguments, time_axis=[0])
    for change, message in DROPPED + WRAPPED:
        with pytest.raises(ValueError, match=message):
            estimate(**arguments | change)


def test_errors_come_while_tracing():
    """Inside somebody's jit, vmap and grad the message is the same, and comes before anything runs."""
    call = functools.partial(gae, gamma=0.99, lambda_=0.95)
    with pytest.raises(ValueError, match=r"`values` must have shape \(6, 3\)"):
        jax.eval_shape(jax.jit(call), zeros(T, N), zeros(T, N), zeros(T, N))
    with pytest.raises(ValueError, match=r"`values` must have shape \(6,\)"):
        jax.vmap(call, in_axes=1)(zeros(T, N), zeros(T, N), zeros(T, N))
    with pytest.raises(ValueError, match=r"`lambda_` must lie in"):
        jax.jit(lambda r: gae(r, zeros(T + 1), zeros(T), gamma=0.99, lambda_=2.0))(jnp.zeros(T))


class TestGAE:
    """The object names its own arguments."""

    estimate = GAE(n_workers=N, worker_steps=T, gamma=0.99, lambda_=0.95)

    @pytest.mark.parametrize(
        ("done", "rewards", "values", "message"),
        [
            (
                zeros(T, N),
                zeros(N, T),
                zeros(N, T + 1),
                r"`done` must have shape \(3, 5\), \[n_workers, .* got \(5, 3\)",
            ),
            (zeros(N, T), zeros(T, N), zeros(N, T + 1), r"`rewards` must have shape \(3, 5\), .* got \(5, 3\)"),
            (
                zeros(N, T),
                zeros(N, T),
                zeros(N, T),
                r"`values` must have shape \(3, 6\), .* got \(3, 5\)\. Append V\(s_T\)",
            ),
        ],
    )
    def test_shapes(self, done, rewards, values, message):
        with pytest.raises(ValueError, match=message):
            self.estimate(done, rewards, values)

    def test_lists(self):
        done, rewards, values = zeros(N, T), zeros(N, T), zeros(N, T + 1)
        with pytest.raises(TypeError, match="`done` must be an array of flags; got list"):
            self.estimate(done.tolist(), rewards, values)
        with pytest.raises(TypeError, match="`rewards` must be an array of numbers; got list"):
            self.estimate(done, rewards.tolist(), values)
        with pytest.raises(TypeError, match="`values` must be an array of numbers; got list"):
            self.estimate(done, rewards, values.tolist())

    def test_range(self):
        with pytest.raises(ValueError, match=r"`gamma` must lie in \[0, 1\]; got 9"):
            GAE(N, T, 9, 0.95)(zeros(N, T), zeros(N, T), zeros(N, T + 1))
