"""One argument at a time: errors that name it, numbers that JAX would read as other numbers, and how to convert."""

import importlib
import inspect
import re
import sys
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.oracle import oracle
from support.rollouts import random_rollout
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


def call(**changes: Any):
    return gae(**GOOD | changes)


class Tensor:
    """An array of another library, which exchanges it by DLPack, as torch does."""

    def __init__(self, *shape, requires_grad=False, device=(1, 0)):
        self.array, self.requires_grad, self.device = zeros(*shape), requires_grad, device

    def __dlpack__(self, **how):
        return self.array.__dlpack__(**how)

    def __dlpack_device__(self):
        return self.device


class Variable:
    """An object that holds a JAX array, as a module's parameter does."""

    def __init__(self, *shape):
        self.shape = shape

    def __jax_array__(self):
        return jnp.zeros(self.shape)


FLAGS = ("terminated", "mask")
ASARRAY, FROM_DLPACK = ". Convert it with jnp.asarray(x).", ". Convert it with jnp.from_dlpack({})."
NO_ARRAYS: list[tuple[str, Any, str]] = [
    ("rewards", None, "NoneType"),
    ("terminated", None, "NoneType. Pass False if no episode ends."),
    ("gamma", None, "NoneType"),
    ("values", [[0.0] * N] * (T + 1), "list" + ASARRAY),
    ("values", tuple(zeros(T + 1, N)), "tuple" + ASARRAY),
    ("gamma", [0.9] * N, "list" + ASARRAY),
    ("lambda_", "0.95", "str"),
    ("values", np.ma.zeros((T + 1, N)), "MaskedArray"),
    ("mask", np.ma.zeros((T, N), bool), "MaskedArray"),
    ("rewards", Tensor(T, N), "Tensor" + FROM_DLPACK.format("x")),
    ("values", Tensor(T, N, requires_grad=True), "Tensor" + FROM_DLPACK.format("x.detach()")),
    ("rewards", Tensor(T, N, requires_grad=True, device=(2, 0)), "Tensor" + FROM_DLPACK.format("x.detach().cpu()")),
    ("rewards", Variable(T, N), "Variable" + ASARRAY),
    ("gamma", Variable(), "Variable" + ASARRAY),
]
STRUCTURE = np.dtype([("r", "f4")])
DTYPES = (np.complex64, jnp.float8_e4m3fn, jnp.float8_e5m2, object, "<U1", STRUCTURE, np.longdouble)
NEITHER = [(name, zeros(T, N, dtype=dtype)) for name in ("rewards", "terminated", "gamma") for dtype in DTYPES]
NEITHER += [("rewards", zeros(T, N, dtype=bool)), ("gamma", np.bool_(True)), ("values", jnp.zeros(T, jnp.float8_e5m2))]
HOLD = {True: "flags, bool or 0 and 1", False: "floating-point numbers of 16 to 64 bits or integers"}
TYPES: list[tuple[str, Any, str]] = [
    *((name, x, f"must be an array of {'flags' if name in FLAGS else 'numbers'}; got {y}") for name, x, y in NO_ARRAYS),
    *((name, x, f"must hold {HOLD[name in FLAGS]}; got dtype {x.dtype}") for name, x in NEITHER),
    ("gamma", True, f"must hold {HOLD[False]}; got dtype bool"),
    *(("time_axis", x, f"must be an integer; got {x!r}") for x in (1.0, "time", [0], True)),
    ("time_axis_name", ["time"], "must be a string; got ['time']"),
    ("implementation", ["scan"], "must be a string; got ['scan']"),
]
NATIVE = {">f4": "float32", ">i8": "int64", ">i4": "int32", ">f8": "float64"}
TYPES += [
    (name, zeros(T, N, dtype=dtype), f"must be in native byte order; got dtype {dtype}. Convert it to {NATIVE[dtype]}.")
    for name, dtype in (("rewards", ">f4"), ("values", ">i8"), ("terminated", ">i4"), ("lambda_", ">f8"))
]
WRAPPED = [np.full((T, N), x) for x in (2**40, 2**31, -(2**31) - 1, np.uint64(2**32))]
PARAMETERS = [("gamma", "[-1, 1]", -1), ("lambda_", "[0, 1]", 0)]
OUTSIDE = (1.5, 99, float("nan"), np.float32(1.5), np.int64(2), np.array(1.5), np.float64(-1.5), jnp.float32(1.5))
VALUES: list[tuple[str, Any, str]] = [
    ("time_axis_name", "time", "must name mesh axes of a jax.shard_map around this call; got 'time'"),
    ("implementation", "cuda", "must be None or one of 'scan', 'blocked', 'pallas'; got 'cuda'"),
    *(("rewards", x, "holds integers that ") for x in WRAPPED),
    ("gamma", 10**400, "holds integers that int32 cannot hold, and JAX reads them as int32; convert them to floating"),
    *((name, x, f"must lie in {range_}; got {x}") for name, range_, low in PARAMETERS for x in (*OUTSIDE, low - 0.1)),
]


@pytest.mark.parametrize(("name", "x", "message"), TYPES)
def test_type_error(name, x, message):
    with pytest.raises(TypeError, match=re.escape(f"`{name}` {message}") + "$"):
        call(**{name: x})


@pytest.mark.parametrize(("name", "x", "message"), VALUES)
def test_value_error(name, x, message):
    with pytest.raises(ValueError, match=re.escape(f"`{name}` {message}")):
        call(**{name: x})


def test_the_kernel_is_for_tpus():
    with pytest.raises(NotImplementedError, match=r"(?m)implementation='pallas' is for TPUs"):
        gae(**GOOD, implementation="pallas")


def test_the_axis_of_time_is_not_called_axis_name():
    """In JAX and in `normalize`, `axis_name` is the axis that data is split over."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'axis_name'"):
        call(axis_name="workers")


@pytest.mark.parametrize("estimate", [vtrace, n_step_advantages])
def test_the_other_estimators_raise_the_same_errors(estimate):
    others = {"log_rhos": zeros(T, N)} if estimate is vtrace else {"n": 2}
    arguments: dict[str, Any] = {name: x for name, x in GOOD.items() if name != "lambda_"} | others
    for error, cases in ((TypeError, TYPES), (ValueError, VALUES)):
        for name, x, message in cases:
            if name in inspect.signature(estimate).parameters:
                with pytest.raises(error, match=re.escape(f"`{name}` {message}")):
                    estimate(**arguments | {name: x})


def test_errors_do_not_depend_on_what_was_compiled_before():
    """JAX takes a compiled program for an array in another byte order, and reads other numbers."""
    rewards = np.arange(T * N, dtype=np.float32).reshape(T, N)
    call(rewards=rewards)
    with pytest.raises(TypeError, match="`rewards` must be in native byte order"):
        call(rewards=rewards.astype(">f4"))
    with pytest.raises(TypeError, match="`advantages` must be in native byte order"):
        normalize(rewards.astype(">f4"))


def test_conversions_that_the_errors_name():
    for rewards in (jnp.asarray([[1.0] * N] * T), jnp.asarray(Variable(T, N)), jnp.from_dlpack(Tensor(T, N))):
        assert call(rewards=rewards).advantages.shape == (T, N)


def test_gamma_from_minus_1_to_1():
    """A negative gamma: the value is the value for the other player to move."""
    arguments = random_rollout(3, steps=T, batch=(N,)).arguments()
    for gamma in (-1, -1.0, -0.5, 1, np.float32(-1), jnp.float32(-1), np.full((T, 1), -1.0)):
        arguments["gamma"] = gamma
        np.testing.assert_allclose(gae(**arguments).advantages, oracle(**arguments)[0], rtol=0, atol=1e-5)


def test_integers_of_64_bits_that_fit_are_accepted():
    """JAX reads them as int32 without x64, and 2 ** 40 as 0. Under x64, it reads them as they are."""
    fits, not_in_32_bits = np.full((T, N), 2**31 - 1), np.full((T, N), 2**40)
    np.testing.assert_array_equal(call(rewards=fits, lambda_=0.0).advantages, np.float32(2**31))
    with enable_x64(True):
        advantages = call(rewards=not_in_32_bits, lambda_=0.0).advantages
    np.testing.assert_array_equal(advantages, np.float32(2**40))
    with pytest.raises(ValueError, match="`advantages` holds integers that int32 cannot hold"):
        normalize(not_in_32_bits)
    assert normalize(zeros(0, N, dtype=np.int64)).shape == (0, N)  # there is no largest one


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
    """Without a warning of an overflow, which would be an error here; and a number of few bits gives no warning."""
    rewards = np.arange(T * N, dtype=np.float32).reshape(T, N)
    for epsilon in (1e39, 10**400):
        np.testing.assert_array_equal(normalize(1e6 * rewards, epsilon=epsilon), 0)
    arguments: dict[str, Any] = {k: x for k, x in GOOD.items() if k != "lambda_"}
    pairs: list[tuple[Any, Any]] = [(1e39, np.inf), (np.float16(0.5), 0.5), (jnp.bfloat16(0.5), 0.5)]
    for name in ("clip_rho", "clip_c", "clip_pg_rho"):
        clips: list[list[dict[str, Any]]] = [[{name: x} for x in pair] for pair in pairs]
        for one, same in clips:
            got, want = (vtrace(**arguments, log_rhos=np.ones((T, N), np.float32), **clip) for clip in (one, same))
            np.testing.assert_array_equal(got, want)
    got, want = (normalize(rewards, epsilon=x, ddof=x) for x in (np.float16(0.5), 0.5))
    np.testing.assert_array_equal(got, want)
    with enable_x64(True):
        np.testing.assert_allclose(normalize(1e39 * rewards.astype(np.float64), epsilon=1e39).std(), 0.81, atol=0.01)


def test_no_transfer_if_all_arguments_are_on_the_device():
    """Defaults are compiled in; a number of the caller is read, by an explicit transfer, and passed on as it is."""
    x, number = jnp.arange(15.0).reshape(T, N), jnp.float32(0.5)
    rollout: dict[str, Any] = {"rewards": x, "values": x, "terminated": x > 9, "bootstrap_value": x[0], "gamma": number}
    with jax.transfer_guard("disallow"):
        gae(**rollout, lambda_=number)
        n_step_advantages(**rollout, n=2)
        vtrace(**rollout, log_rhos=x)
        vtrace(**rollout, log_rhos=x, lambda_=number, clip_rho=number, clip_c=number, clip_pg_rho=number)
        normalize(x, rollout["terminated"])
        normalize(x, epsilon=number, ddof=number)


def test_numbers_compile_one_program(monkeypatch):
    traced, module = [], importlib.import_module("gae_jax._vtrace")
    canonical = module.canonical
    monkeypatch.setattr(module, "canonical", lambda *x: traced.append(1) or canonical(*x))
    arguments: dict[str, Any] = {k: x for k, x in GOOD.items() if k != "lambda_"} | {"log_rhos": zeros(T, N)}
    for number in (0.6, 0.7, 0.8):
        vtrace(**arguments, lambda_=number, clip_rho=number, clip_c=2 * number, clip_pg_rho=number)
    assert len(traced) == 1


def test_modules_can_be_imported_again():
    """`importlib.reload`, as by IPython's autoreload: the type of the result is registered already."""
    ours = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "gae_jax"}
    others = {name: module for name, module in sys.modules.items() if name not in ours}
    with mock.patch.dict(sys.modules, others, clear=True):
        again = importlib.import_module("gae_jax")
        for name in [name for name in sys.modules if name.startswith("gae_jax._")]:
            importlib.reload(sys.modules[name])
        again = importlib.reload(again)
        assert again.gae is not gae
        np.testing.assert_array_equal(again.gae(**GOOD).targets, 0)


def test_errors_of_the_object_name_its_arguments():
    estimate, (done, rewards, values) = GAE(N, T, 0.99, 0.95), (zeros(N, T), zeros(N, T), zeros(N, T + 1))
    cases: list[tuple[Any, Any, Any, type[Exception], str]] = [
        (done.tolist(), rewards, values, TypeError, "`done` must be an array of flags; got list"),
        (done.astype(np.complex64), rewards, values, TypeError, "`done` must hold flags, bool or 0 and 1; got dtype"),
        (done, rewards.tolist(), values, TypeError, "`rewards` must be an array of numbers; got list"),
        (done, rewards, values.tolist(), TypeError, "`values` must be an array of numbers; got list"),
        (done.T, rewards, values, ValueError, r"`done` must have shape \(3, 5\), \[n_workers, .* got \(5, 3\)"),
        (done, rewards.T, values, ValueError, r"`rewards` must have shape \(3, 5\), .* got \(5, 3\)"),
        (done, rewards, rewards, ValueError, r"`values` must have shape \(3, 6\), .* got \(3, 5\)\. The T \+ 1 rows"),
    ]
    for *arrays, error, message in cases:
        with pytest.raises(error, match=message):
            estimate(*arrays)
    with pytest.raises(ValueError, match=r"`gamma` must lie in \[-1, 1\]; got 9"):
        GAE(N, T, 9, 0.95)(done, rewards, values)
    for name, bad in (("n_workers", None), ("n_workers", 3.0), ("worker_steps", None), ("worker_steps", np.float32(5))):
        counts: dict[str, Any] = {"n_workers": N, "worker_steps": T} | {name: bad}
        with pytest.raises(TypeError, match=re.escape(f"`{name}` must be an integer; got {bad!r}")):
            GAE(**counts, gamma=0.99, lambda_=0.95)(done, rewards, values)
    count: Any = np.int64(N)
    assert GAE(count, T, 0.99, 0.95)(done, rewards, values).shape == (N, T)
