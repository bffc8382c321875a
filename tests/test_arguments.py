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
from support.estimators import ESTIMATORS, GOOD, N, T, advantages_by, zeros
from support.oracle import oracle
from support.rollouts import random_rollout
from support.versions import enable_x64

from gae_jax import GAE, gae, n_step_advantages, normalize, vtrace

pytestmark = [pytest.mark.versions, pytest.mark.usefixtures("fast_compilation")]


class Tensor:
    """An array of another library, which exchanges it by DLPack; with `requires_grad`, as torch does."""

    def __init__(self, *shape, device=(1, 0), **attributes):
        self.array, self.device = zeros(*shape), device
        vars(self).update(attributes)

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
    ("values", [[0.0] * N] * (T + 1), "list" + ASARRAY),
    ("values", tuple(zeros(T + 1, N)), "tuple" + ASARRAY),
    ("lambda_", "0.95", "str"),
    ("values", np.ma.zeros((T + 1, N)), "MaskedArray"),
    ("mask", np.ma.zeros((T, N), bool), "MaskedArray"),
    ("rewards", Tensor(T, N), "Tensor" + FROM_DLPACK.format("x")),
    ("values", Tensor(T, N, requires_grad=True), "Tensor" + FROM_DLPACK.format("x.detach()")),
    ("rewards", Tensor(T, N, requires_grad=True, device=(2, 0)), "Tensor" + FROM_DLPACK.format("x.detach().cpu()")),
    ("rewards", Variable(T, N), "Variable" + ASARRAY),
]
DTYPES = (np.complex64, jnp.float8_e4m3fn, jnp.float8_e5m2, object, "<U1", [("r", "f4")], np.longdouble)
NEITHER = [(name, zeros(T, N, dtype=dtype)) for name in ("rewards", "terminated", "gamma") for dtype in DTYPES]
NEITHER += [("rewards", zeros(T, N, dtype=bool)), ("gamma", np.bool_(True)), ("values", jnp.zeros(T, jnp.float8_e5m2))]
HOLD = {True: "flags, bool or 0 and 1", False: "floating-point numbers of 16 to 64 bits or integers"}
NATIVE = {">f4": "float32", ">i8": "int64", ">i4": "int32", ">f8": "float64"}
REVERSED = (("rewards", ">f4"), ("values", ">i8"), ("terminated", ">i4"), ("lambda_", ">f8"))
TYPES: list[tuple[str, Any, str]] = [
    *((name, x, f"must be an array of {'flags' if name in FLAGS else 'numbers'}; got {y}") for name, x, y in NO_ARRAYS),
    *((name, x, f"must hold {HOLD[name in FLAGS]}; got dtype {x.dtype}") for name, x in NEITHER),
    ("gamma", True, f"must hold {HOLD[False]}; got dtype bool"),
    *(("time_axis", x, f"must be an integer; got {x!r}") for x in (1.0, "time", [0], True)),
    *((name, [name], f"must be a string; got ['{name}']") for name in ("time_axis_name", "implementation")),
    *(
        (name, zeros(T, N, dtype=x), f"must be in native byte order; got dtype {x}. Convert it to {NATIVE[x]}.")
        for name, x in REVERSED
    ),
]
PARAMETERS = [("gamma", "[-1, 1]", -1), ("lambda_", "[0, 1]", 0)]
OUTSIDE = (1.5, 99, float("nan"), np.float32(1.5), np.int64(2), np.array(1.5), np.float64(-1.5), jnp.float32(1.5))
VALUES: list[tuple[str, Any, str]] = [
    ("time_axis_name", "time", "must name mesh axes of a jax.shard_map around this call; got 'time'"),
    ("implementation", "cuda", "must be None or one of 'scan', 'blocked', 'pallas'; got 'cuda'"),
    ("rewards", np.full((T, N), np.uint64(2**32)), "holds integers that uint32 cannot hold"),
    ("gamma", 10**400, "holds integers that int32 cannot hold, and JAX reads them as int32; convert them to floating"),
    *((name, x, f"must lie in {range_}; got {x}") for name, range_, low in PARAMETERS for x in (*OUTSIDE, low - 0.1)),
]


@pytest.mark.parametrize(
    ("error", "name", "x", "message"), [(TypeError, *case) for case in TYPES] + [(ValueError, *case) for case in VALUES]
)
def test_bad_argument(error, name, x, message):
    """The errors do not depend on what was compiled before: JAX takes a program for an array in another byte order."""
    for estimator in ESTIMATORS:
        if name in inspect.signature(estimator).parameters:
            advantages_by(estimator, GOOD)
            with pytest.raises(error, match=f"(?m)^{re.escape(f'`{name}` {message}')}" + "$" * (error is TypeError)):
                advantages_by(estimator, GOOD | {name: x})


def test_conversions_that_the_errors_name():
    for rewards in (jnp.asarray([[1.0] * N] * T), jnp.asarray(Variable(T, N)), jnp.from_dlpack(Tensor(T, N))):
        assert advantages_by(gae, GOOD | {"rewards": rewards}).shape == (T, N)


def test_gamma_from_minus_1_to_1():
    """A negative gamma: the value is the value for the other player to move."""
    arguments = random_rollout(3, steps=T, batch=(N,)).arguments()
    for gamma in (-1, -1.0, -0.5, 1, np.float32(-1), jnp.float32(-1), np.full((T, 1), -1.0)):
        arguments["gamma"] = gamma
        np.testing.assert_allclose(gae(**arguments).advantages, oracle(**arguments)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "shape"), [("bootstrap_value", ()), ("rewards", (T,))], ids=["Python", "NumPy"])
def test_integers_that_jax_would_wrap(name, shape):
    """JAX reads integers of 64 bits as int32 without x64, and 2 ** 40 as 0; under x64, it reads them as they are."""

    def integers(x: int) -> Any:
        return np.full(shape, x) if shape else x

    def last_advantage(x: Any) -> Any:
        base: dict[str, Any] = {"rewards": zeros(T), "values": zeros(T), "terminated": False, "bootstrap_value": 0.0}
        return gae(**base | {name: x}, gamma=1, lambda_=1).advantages[-1]

    assert last_advantage(integers(2**31 - 1)) == np.float32(2**31)
    for x in (2**31, -(2**31) - 1, 2**40):
        for argument, call in ((name, last_advantage), ("advantages", normalize)):
            with pytest.raises(ValueError, match=f"`{argument}` holds integers that int32 cannot hold"):
                call(integers(x))
    with enable_x64(True):
        assert last_advantage(integers(2**40)) == 2**40
        with pytest.raises(ValueError, match="`bootstrap_value` holds integers that int64 cannot hold"):
            gae(zeros(T), zeros(T), False, bootstrap_value=2**63, gamma=1, lambda_=1)
    assert normalize(zeros(0, N, dtype=np.int64)).shape == (0, N)  # there is no largest one


def test_numbers_beyond_float32_are_infinite():
    """Without a warning of an overflow, which would be an error here; and a number of few bits gives no warning."""
    rewards = np.arange(T * N, dtype=np.float32).reshape(T, N)
    for epsilon in (1e39, 10**400):
        np.testing.assert_array_equal(normalize(1e6 * rewards, epsilon=epsilon), 0)
    for name in ("clip_rho", "clip_c", "clip_pg_rho"):
        for number, same in ((1e39, np.inf), (np.float16(0.5), 0.5), (jnp.bfloat16(0.5), 0.5)):
            arguments = GOOD | {"rewards": rewards, "log_rhos": rewards}
            got, want = (advantages_by(vtrace, arguments | {name: x}) for x in (number, same))
            np.testing.assert_array_equal(got, want)
    got, want = (normalize(rewards, epsilon=x, ddof=x) for x in (np.float16(0.5), 0.5))
    np.testing.assert_array_equal(got, want)
    with enable_x64(True):
        np.testing.assert_allclose(normalize(1e39 * rewards.astype(np.float64), epsilon=1e39).std(), 0.81, atol=0.01)
        np.testing.assert_array_equal(normalize(rewards, epsilon=10**400), 0)


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


GOOD_OBJECT: dict[str, Any] = {"n_workers": N, "worker_steps": T, "gamma": 0.99, "lambda_": 0.95}
GOOD_OBJECT |= {"done": zeros(N, T), "rewards": zeros(N, T), "values": zeros(N, T + 1)}


def call_object(n_workers, worker_steps, gamma, lambda_, **arrays):
    return GAE(n_workers, worker_steps, gamma, lambda_)(**arrays)


@pytest.mark.parametrize(
    ("name", "x", "error", "message"),
    [
        ("done", [[0]], TypeError, "must be an array of flags; got list"),
        ("done", zeros(N, T, dtype=np.complex64), TypeError, "must hold flags, bool or 0 and 1; got dtype"),
        ("rewards", [[0]], TypeError, "must be an array of numbers; got list"),
        ("values", [[0]], TypeError, "must be an array of numbers; got list"),
        ("done", zeros(T, N), ValueError, "must have shape (3, 5), [n_workers, worker_steps]; got (5, 3)."),
        ("rewards", zeros(T, N), ValueError, "must have shape (3, 5), [n_workers, worker_steps]; got (5, 3)."),
        ("values", zeros(N, T), ValueError, "must have shape (3, 6), the shape of `rewards` with T + 1 rows of time;"),
        ("gamma", 9, ValueError, "must lie in [-1, 1]; got 9"),
        *(
            (name, x, TypeError, f"must be an integer; got {x!r}")
            for name in ("n_workers", "worker_steps")
            for x in (None, np.float32(5))
        ),
    ],
)
def test_bad_argument_of_the_object(name, x, error, message):
    assert call_object(**GOOD_OBJECT | {"n_workers": np.int64(N)}).shape == (N, T)
    with pytest.raises(error, match="^" + re.escape(f"`{name}` {message}")):
        call_object(**GOOD_OBJECT | {name: x})
