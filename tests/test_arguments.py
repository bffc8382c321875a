"""One argument at a time: errors that name it, numbers that JAX would read as other numbers, and how to convert."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from support.versions import enable_x64

from gae_jax import GAE, gae, n_step_advantages, normalize, vtrace

pytestmark = pytest.mark.versions

T, N = 5, 3


def zeros(*shape, dtype: Any = np.float32):
    return np.zeros(shape, dtype)


GOOD: dict[str, Any] = {
    "rewards": zeros(T, N),
    "values": zeros(T + 1, N),
    "terminated": zeros(T, N, dtype=bool),
    "gamma": 0.99,
    "lambda_": 0.95,
}


class Tensor:
    """An array of another library, which exchanges it by DLPack."""

    def __init__(self, *shape):
        self.array = zeros(*shape)

    def __dlpack__(self, **how):
        return self.array.__dlpack__(**how)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class Variable:
    """An object that holds a JAX array, as a module's parameter does."""

    def __init__(self, *shape):
        self.shape = shape

    def __jax_array__(self):
        return jnp.zeros(self.shape)


TYPES = [
    ({"rewards": None}, r"`rewards` must be an array of numbers; got NoneType$"),
    (
        {"values": [[0.0] * N] * (T + 1)},
        r"`values` must be an array of numbers; got list\. Convert it with jnp\.asarray",
    ),
    ({"terminated": None}, r"`terminated` must be an array of flags; got NoneType"),
    ({"mask": np.full((T, N), None)}, r"`mask` must hold flags, bool or 0 and 1; got dtype object"),
    ({"rewards": np.full((T, N), "1")}, r"`rewards` must hold floating-point .*; got dtype <U1"),
    (
        {"rewards": zeros(T, N, dtype=bool)},
        r"`rewards` must hold floating-point numbers of 16 to 64 bits or integers; got dtype bool",
    ),
    ({"values": zeros(T + 1, N, dtype=np.complex64)}, r"`values` must hold floating-point .* got dtype complex64"),
    (
        {"terminated": zeros(T, N, dtype=np.complex64)},
        r"`terminated` must hold flags, bool or 0 and 1; got dtype complex64",
    ),
    ({"gamma": [0.9] * N}, r"`gamma` must be an array of numbers; got list"),
    ({"time_axis": 1.0}, r"`time_axis` must be an integer; got 1.0"),
    ({"time_axis": "time"}, r"`time_axis` must be an integer; got 'time'"),
    ({"gamma": None}, r"`gamma` must be an array of numbers; got NoneType"),
    ({"gamma": True}, r"`gamma` must hold floating-point .*; got dtype bool"),
    ({"lambda_": "0.95"}, r"`lambda_` must be an array of numbers; got str"),
    ({"time_axis": [0]}, r"`time_axis` must be an integer; got \[0\]"),
    ({"time_axis_name": ["time"]}, r"`time_axis_name` must be a string; got \['time'\]"),
    ({"implementation": ["scan"]}, r"`implementation` must be a string; got \['scan'\]"),
    ({"values": np.ma.zeros((T + 1, N))}, r"`values` must be an array of numbers; got MaskedArray$"),
    ({"mask": np.ma.zeros((T, N), bool)}, r"`mask` must be an array of flags; got MaskedArray"),
    ({"rewards": zeros(T, N, dtype=[("r", "f4")])}, r"`rewards` must hold floating-point .*; got dtype \[\('r'"),
    ({"mask": zeros(T, N, dtype=[("m", "?")])}, r"`mask` must hold flags, .*; got dtype \[\('m'"),
    *(
        ({name: jnp.zeros((T, N), dtype)}, rf"`{name}` must hold .*; got dtype {dtype.dtype.name}")
        for name in ("rewards", "terminated", "gamma")
        for dtype in (jnp.float8_e4m3fn, jnp.float8_e5m2)
    ),
    ({"rewards": np.zeros((T, N), jnp.float8_e4m3fn)}, r"`rewards` must hold .*; got dtype float8_e4m3fn"),
    (
        {"values": tuple(zeros(T + 1, N))},
        r"`values` must be an array .*; got tuple\. Convert it with jnp\.asarray",
    ),
    (
        {"rewards": Tensor(T, N)},
        r"`rewards` must be an array .*; got Tensor\. Convert it with jnp\.from_dlpack\.",
    ),
    (
        {"rewards": Variable(T, N)},
        r"`rewards` must be an array .*; got Variable\. Convert it with jnp\.asarray\.",
    ),
    ({"gamma": Variable()}, r"`gamma` must be an array of numbers; got Variable\. Convert it with jnp\.asarray\."),
    ({"rewards": zeros(T, N, dtype=np.longdouble)}, rf"`rewards` must hold .*; got dtype {np.dtype(np.longdouble)}"),
    ({"gamma": np.longdouble(0.9)}, rf"`gamma` must hold .*; got dtype {np.dtype(np.longdouble)}"),
    (
        {"rewards": zeros(T, N, dtype=">f4")},
        r"`rewards` must be in native byte order; got dtype >f4\. .* float32",
    ),
    (
        {"values": zeros(T + 1, N, dtype=">i8")},
        r"`values` must be in native byte order; got dtype >i8\. .* int64",
    ),
    ({"terminated": zeros(T, N, dtype=">i4")}, r"`terminated` must be in native byte order; got dtype >i4"),
    ({"lambda_": zeros(T, 1, dtype=">f8")}, r"`lambda_` must be in native byte order; got dtype >f8"),
    ({"time_axis": True}, r"`time_axis` must be an integer; got True"),
]
WRAPPED = [
    ({"rewards": np.full((T, N), x)}, r"`rewards` holds integers that .* cannot hold.*convert them to floating point")
    for x in (2**40, 2**31, -(2**31) - 1, np.uint64(2**32))
] + [({"gamma": 10**400}, r"`gamma` holds integers that .* cannot hold")]
NAMES = [
    (
        {"time_axis_name": "time"},
        r"`time_axis_name` must name mesh axes of a jax\.shard_map around this call; got 'time'",
    ),
    ({"implementation": "cuda"}, r"`implementation` must be None or one of 'scan', 'blocked', 'pallas'; got 'cuda'"),
]
RANGES = [
    ({name: x}, rf"`{name}` must lie in {interval}; got {x}")
    for name, interval, below in (("gamma", r"\[-1, 1\]", -1), ("lambda_", r"\[0, 1\]", 0))
    for x in (1.5, 99, float("nan"), np.float32(1.5), np.int64(2), np.array(1.5), below - 0.1, np.float64(below - 0.5))
]
NOT_HERE = [({"implementation": "pallas"}, r"implementation='pallas' is for TPUs")]
CASES = [
    *((GOOD | change, ValueError, message) for change, message in NAMES + RANGES + WRAPPED),
    *((GOOD | change, TypeError, message) for change, message in TYPES),
    *((GOOD | change, NotImplementedError, message) for change, message in NOT_HERE),
]


@pytest.mark.parametrize(("arguments", "error", "message"), CASES, ids=[message for *_, message in CASES])
def test_bad_argument(arguments, error, message):
    with pytest.raises(error, match=f"(?m){message}"):
        gae(**arguments)


@pytest.mark.parametrize("estimate", [vtrace, n_step_advantages], ids=["vtrace", "n_step_advantages"])
def test_the_other_estimators_raise_the_same_errors(estimate):
    arguments: dict[str, Any] = {name: x for name, x in GOOD.items() if name != "lambda_"}
    arguments |= {"log_rhos": zeros(T, N)} if estimate is vtrace else {"n": 2}
    with pytest.raises(TypeError, match=r"`time_axis` must be an integer; got \[0\]"):
        estimate(**arguments, time_axis=[0])
    with pytest.raises(TypeError, match="`rewards` must be in native byte order"):
        estimate(**arguments | {"rewards": zeros(T, N, dtype=">f4")})
    for change, message in WRAPPED:
        with pytest.raises(ValueError, match=message):
            estimate(**arguments | change)


def test_errors_do_not_depend_on_what_was_compiled_before():
    """JAX takes a compiled program for an array in another byte order, and reads other numbers."""
    rewards: Any = np.arange(T * N, dtype=np.float32).reshape(T, N)
    gae(**GOOD | {"rewards": rewards})
    change: dict[str, Any] = {"rewards": rewards.astype(">f4")}
    with pytest.raises(TypeError, match="`rewards` must be in native byte order"):
        gae(**GOOD | change)
    with pytest.raises(TypeError, match="`advantages` must be in native byte order"):
        normalize(rewards.astype(">f4"))


def test_conversions_that_the_errors_name():
    converted = jnp.asarray([[1.0] * N] * T), jnp.asarray(Variable(T, N)), jnp.from_dlpack(Tensor(T, N))
    for rewards in converted:
        arguments: dict[str, Any] = GOOD | {"rewards": rewards}
        assert gae(**arguments).advantages.shape == (T, N)


def test_gamma_from_minus_1_to_1():
    """A negative gamma: the value is the value for the other player to move."""
    for gamma in (-1, -1.0, -0.5, 1, np.float32(-1), np.full((T, 1), -1.0)):
        arguments: dict[str, Any] = GOOD | {"gamma": gamma}
        assert np.isfinite(gae(**arguments)).all()


def test_integers_of_64_bits_that_fit_are_accepted():
    """JAX reads them as int32 without x64, and 2 ** 40 as 0. Under x64, it reads them as they are."""
    fits, not_in_32_bits = np.full((T, N), 2**31 - 1), np.full((T, N), 2**40)
    np.testing.assert_array_equal(gae(**GOOD | {"rewards": fits, "lambda_": 0.0}).advantages, np.float32(2**31))
    with enable_x64(True):
        advantages = gae(**GOOD | {"rewards": not_in_32_bits, "lambda_": 0.0}).advantages
    np.testing.assert_array_equal(advantages, np.float32(2**40))
    with pytest.raises(ValueError, match="`advantages` holds integers that int32 cannot hold"):
        normalize(not_in_32_bits)


def test_python_integers():
    flat: dict[str, Any] = {"rewards": zeros(T), "values": zeros(T), "terminated": zeros(T), "gamma": 1, "lambda_": 1}
    assert gae(**flat, bootstrap_value=2**31 - 1).advantages[0] == np.float32(2**31)
    with pytest.raises(ValueError, match="`bootstrap_value` holds integers that int32 cannot hold"):
        gae(**flat, bootstrap_value=2**31)
    with pytest.raises(ValueError, match="`advantages` holds integers that int32 cannot hold"):
        normalize(-(2**31) - 1)
    with enable_x64(True):
        assert gae(**flat, bootstrap_value=2**40).advantages[0] == 2**40
        with pytest.raises(ValueError, match="`bootstrap_value` holds integers that int64 cannot hold"):
            gae(**flat, bootstrap_value=2**63)


def test_numbers_beyond_float32_are_infinite():
    """Without a warning of an overflow, which would be an error here."""
    rewards = np.arange(T * N, dtype=np.float32).reshape(T, N)
    np.testing.assert_array_equal(normalize(rewards, epsilon=1e39), 0)
    arguments = {name: x for name, x in GOOD.items() if name != "lambda_"} | {"rewards": rewards}
    log_rhos = np.ones((T, N), np.float32)
    for name in ("clip_rho", "clip_c", "clip_pg_rho"):
        clips: list[dict[str, Any]] = [{name: x} for x in (1e39, np.inf)]
        got, want = (vtrace(**arguments, log_rhos=log_rhos, **clip) for clip in clips)
        np.testing.assert_array_equal(got, want)
    with enable_x64(True):
        np.testing.assert_allclose(normalize(1e39 * rewards.astype(np.float64), epsilon=1e39).std(), 0.81, atol=0.01)


class TestGAE:
    """Errors of the object name the arguments of the object."""

    def test_arrays(self):
        done, rewards, values = zeros(N, T), zeros(N, T), zeros(N, T + 1)
        estimate = GAE(n_workers=N, worker_steps=T, gamma=0.99, lambda_=0.95)
        with pytest.raises(TypeError, match="`done` must be an array of flags; got list"):
            estimate(done.tolist(), rewards, values)
        with pytest.raises(TypeError, match="`done` must hold flags, bool or 0 and 1; got dtype complex64"):
            estimate(done.astype(np.complex64), rewards, values)
        with pytest.raises(TypeError, match="`rewards` must be an array of numbers; got list"):
            estimate(done, rewards.tolist(), values)
        with pytest.raises(TypeError, match="`values` must be an array of numbers; got list"):
            estimate(done, rewards, values.tolist())

    def test_numbers(self):
        arrays = zeros(N, T), zeros(N, T), zeros(N, T + 1)
        with pytest.raises(ValueError, match=r"`gamma` must lie in \[-1, 1\]; got 9"):
            GAE(N, T, 9, 0.95)(*arrays)
        counts: list[tuple[Any, Any, str]] = [
            (None, T, "`n_workers` must be an integer; got None"),
            (3.0, T, r"`n_workers` must be an integer; got 3\.0"),
            (N, None, "`worker_steps` must be an integer; got None"),
            (N, np.float32(5), "`worker_steps` must be an integer; got"),
        ]
        for n_workers, worker_steps, message in counts:
            with pytest.raises(TypeError, match=message):
                GAE(n_workers, worker_steps, 0.99, 0.95)(*arrays)
        count: Any = np.int64(N)
        assert GAE(count, T, 0.99, 0.95)(*arrays).shape == (N, T)
