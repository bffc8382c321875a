"""The arguments of the estimators: errors that name the argument, dtypes, and what a call depends on."""

import functools
import importlib
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import random_calls
from support.laws import assert_close, flags_of
from support.oracle import oracle
from support.rollouts import random_rollout
from support.versions import enable_x64

import gae_jax
from gae_jax import GAE, gae, n_step_advantages

pytestmark = pytest.mark.versions

# Errors.

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
    ({"terminated": zeros(T)}, r"`terminated` must have shape \(5, 3\), the shape of `rewards`; got \(5,\)"),
    ({"terminated": zeros(1, N)}, r"`terminated` must have shape \(5, 3\), the shape of `rewards`; got \(1, 3\)"),
    ({"terminated": False}, r"`terminated` must have shape \(5, 3\), the shape of `rewards`; got \(\)"),
    ({"truncated": zeros(T, 1)}, r"`truncated` must have shape \(5, 3\), the shape of `rewards`; got \(5, 1\)"),
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
        r"`values` must have shape \(6, 3\), the shape of `rewards` with T \+ 1 rows of time; got \(2, 3\)",
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
        r"`bootstrap_value` must have shape \(3,\), the shape of `rewards` without time; got \(\)",
    ),
    (
        {"bootstrap_value": zeros(T)},
        r"`bootstrap_value` must have shape \(3,\), the shape of `rewards` without time; got \(5,\)",
    ),
]
DROPS = r"Drop its axis of length 1\."
SHAPES += [
    ({"values": zeros(T + 1, N, 1)}, rf"`values` must have shape \(6, 3\), .* got \(6, 3, 1\)\. {DROPS}$"),
    ({"values": zeros(T, N, 1)}, rf"`values` .* got \(5, 3, 1\)\. {DROPS} Append V\(s_T\)"),
    ({"rewards": zeros(T), "terminated": zeros(T), "values": zeros(T + 1, 1)}, rf"`values` .* got \(6, 1\)\. {DROPS}$"),
    ({"terminated": zeros(T, N, 1)}, rf"`terminated` must have shape \(5, 3\), .* got \(5, 3, 1\)\. {DROPS}$"),
]
SPLIT_SHAPES += [({"values": zeros(T, N, 1)}, rf"`values` must have shape \(5, 3\), .* got \(5, 3, 1\)\. {DROPS}$")]
TEAM = GOOD | {"rewards": zeros(T, N, 2), "values": zeros(T + 1, N, 2), "terminated": zeros(T, N, 2)}
TEAM_SHAPES = [
    (
        {"terminated": zeros(T, N)},
        r"`terminated` .* got \(5, 3\)\. If the last axes share it, pass .*\(x\[\.\.\., None\], \(5, 3, 2\)\)\.$",
    ),
    ({"mask": zeros(T)}, r"`mask` .* got \(5,\)\. .* pass jnp.broadcast_to\(x\[\.\.\., None, None\], \(5, 3, 2\)\)\.$"),
    (
        {"values": zeros(T + 1, N)},
        r"`values` .* got \(6, 3\)\. .* jnp.broadcast_to\(x\[\.\.\., None\], \(6, 3, 2\)\)\.$",
    ),
    ({"mask": zeros(T), "time_axis": 1}, r"`mask` must have shape \(5, 3, 2\), the shape of `rewards`; got \(5,\)\.$"),
]
DROPPED = [({"final_values": zeros(T, N)}, r"`final_values` is read only where `truncated` is set: pass `truncated`")]
CASES = [
    *((GOOD | change, message) for change, message in SHAPES + DROPPED),
    *((SPLIT | change, message) for change, message in SPLIT_SHAPES),
    *((TEAM | change, message) for change, message in TEAM_SHAPES),
]


@pytest.mark.parametrize(("arguments", "message"), CASES, ids=[message for _, message in CASES])
def test_bad_argument(arguments, message):
    with pytest.raises(ValueError, match=f"(?m){message}"):
        gae(**arguments)


@pytest.mark.parametrize("arguments", [GOOD, SPLIT])
def test_good_arguments_are_accepted(arguments):
    assert gae(**arguments).advantages.shape == (T, N)


def test_batch_major_arrays_by_mistake():
    """[N, T] throughout, with values [N, T+1]: only `values` shows the mistake."""
    with pytest.raises(ValueError, match=r"`values` .*time_axis=1"):
        gae(zeros(N, T), zeros(N, T + 1), zeros(N, T), gamma=0.99, lambda_=0.95)


def test_errors_are_raised_while_tracing():
    """Inside jit and vmap the message is the same, and nothing has run before."""
    call = functools.partial(gae, gamma=0.99, lambda_=0.95)
    with pytest.raises(ValueError, match=r"`values` must have shape \(6, 3\)"):
        jax.eval_shape(jax.jit(call), zeros(T, N), zeros(T, N), zeros(T, N))
    with pytest.raises(ValueError, match=r"`values` must have shape \(6,\)"):
        jax.vmap(call, in_axes=1)(zeros(T, N), zeros(T, N), zeros(T, N))
    with pytest.raises(ValueError, match=r"`lambda_` must lie in"):
        jax.jit(lambda r: gae(r, zeros(T + 1), zeros(T), gamma=0.99, lambda_=2.0))(jnp.zeros(T))


class TestGAE:
    """Errors of the object name the arguments of the object."""

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


# Dtypes.

TYPED = random_rollout(7, steps=12, batch=(4,), ends=0.2, dead=0.1)
WANT_TYPED = oracle(**TYPED.arguments())


def test_float64_under_x64():
    with enable_x64(True):
        output = gae(**TYPED.map_arrays(lambda x: x if x.dtype == bool else x.astype(np.float64)).arguments())
        assert output.advantages.dtype == output.targets.dtype == jnp.float64
        assert_close(output, WANT_TYPED, rtol=1e-14)


@pytest.mark.parametrize("x64", [False, True])
def test_float32_stays_float32(x64):
    with enable_x64(x64):
        output = gae(**TYPED.arguments())
        assert output.advantages.dtype == output.targets.dtype == jnp.float32
        assert_close(output, WANT_TYPED)


@pytest.mark.parametrize("dtype", [bool, np.int32, np.uint8, np.float32])
def test_flags_of_any_kind(dtype):
    arguments = TYPED.arguments() | {k: v.astype(dtype) for k, v in flags_of(TYPED).items() if v is not None}
    assert_close(gae(**arguments), WANT_TYPED)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_floats_in_and_out_but_not_between(dtype):
    """The result equals float32 arithmetic on the rounded inputs, rounded once."""
    rounded = TYPED.map_arrays(lambda x: x if x.dtype == bool else x.astype(dtype))
    wide = rounded.map_arrays(lambda x: x if x.dtype == bool else x.astype(np.float32))
    output = gae(**rounded.arguments())
    assert output.advantages.dtype == output.targets.dtype == dtype
    for got, want in zip(output, gae(**wide.arguments()), strict=True):
        np.testing.assert_array_equal(got, want.astype(dtype))


def test_floats_promote_and_integers_do_not_take_part():
    arguments: dict[str, Any] = TYPED.arguments() | {"rewards": np.arange(48, dtype=np.int32).reshape(12, 4)}
    assert_close(gae(**arguments), oracle(**arguments))
    arguments |= {"values": TYPED.values.astype(jnp.bfloat16)}
    output = gae(**arguments)
    assert output.advantages.dtype == jnp.float32  # of final_values
    assert_close(output, oracle(**arguments))


def test_random_calls():
    """A few; `python tests/conformance.py --random 600` makes many. A planted mistake is found."""
    assert random_calls.run(gae_jax, np.inf, most=4, of_a_kind=1, seed=6)[1] < 20
    wrong = types.SimpleNamespace(**vars(gae_jax) | {"gae": lambda *x, gamma, **y: gae(*x, gamma=abs(gamma), **y)})
    assert random_calls.run(wrong, np.inf, most=4, of_a_kind=1, seed=6)[1] > 1e4


def estimated(estimator, arguments):
    """Returns the advantages of an estimator for the arguments of `gae`."""
    if estimator == "n_step_advantages":
        return n_step_advantages(**{k: x for k, x in arguments.items() if k != "lambda_"}, n=3)
    others = {"log_rhos": jnp.zeros_like(arguments["rewards"])} if estimator == "vtrace" else {}
    return getattr(gae_jax, estimator)(**arguments, **others).advantages


@pytest.mark.parametrize("estimator", ["gae", "vtrace", "n_step_advantages"])
def test_neither_flags_nor_parameters_decide_the_dtype(estimator):
    wide = {"gamma": np.full((12, 1), 0.9), "lambda_": np.full((12, 1), 0.8)}
    rollout = TYPED.map_arrays(lambda x: x.astype(np.float64 if x.dtype == bool else np.float32)).replace(**wide)
    narrow = rollout.map_arrays(lambda x: x.astype(jnp.float16 if x.dtype == np.float32 else np.float32)).replace(
        **wide
    )

    def dtype(rollout):
        return jax.eval_shape(lambda: estimated(estimator, rollout.arguments())).dtype

    assert dtype(narrow) == jnp.float16
    with enable_x64(True):
        assert dtype(rollout) == jnp.float32
        assert dtype(narrow) == jnp.float16

        def iteration(rewards, _):
            return estimated(estimator, rollout.arguments() | {"rewards": rewards}), None

        carry, _ = jax.eval_shape(lambda: jax.lax.scan(iteration, rollout.rewards, length=2))
        assert carry.dtype == jnp.float32


def test_jax_arrays_equal_numpy_arrays():
    arguments: dict[str, Any] = {k: x if x is None else jnp.asarray(x) for k, x in TYPED.arguments().items()}
    for got, want in zip(gae(**arguments), gae(**TYPED.arguments()), strict=True):
        np.testing.assert_array_equal(got, want)


def test_weak_types_do_not_promote():
    """A bootstrap value of 0.0 does not widen bfloat16."""
    rewards = jnp.ones((3,), jnp.bfloat16)
    output = gae(rewards, rewards, rewards == 0, gamma=0.5, lambda_=0.5, bootstrap_value=0.0)
    assert output.advantages.dtype == jnp.bfloat16


def test_integers_alone_give_floats():
    output = gae(np.arange(3), np.arange(4), np.zeros(3, int), gamma=1, lambda_=1)
    assert output.advantages.dtype == jnp.float32
    np.testing.assert_array_equal(output.targets, [6, 6, 5])


def test_gamma_is_not_rounded_to_the_type_of_the_rewards():
    """0.999 is 1.0 in bfloat16: with lambda 1 and without an end, the results would differ."""
    rewards = jnp.zeros((1000,), jnp.bfloat16)
    output = gae(rewards, rewards, rewards != 0, gamma=0.999, lambda_=1.0, bootstrap_value=jnp.bfloat16(1))
    np.testing.assert_allclose(output.advantages[0].astype(np.float32), 0.999**1000, rtol=1e-2)


@pytest.mark.parametrize(("gamma", "lambda_"), [(0.999, 0.99)])
def test_no_drift_over_a_long_rollout_in_bfloat16(gamma, lambda_):
    """The error of the recursion is below 2% of the root mean square of the advantages."""
    rng = np.random.default_rng(0)
    rewards, values = (rng.normal(size=(n, 2)).astype(jnp.bfloat16) for n in (2048, 2049))
    terminated = np.zeros((2048, 2), bool)
    got = gae(rewards, values, terminated, gamma=gamma, lambda_=lambda_).advantages
    want, _ = oracle(rewards, values, terminated, gamma=gamma, lambda_=lambda_)
    assert got.dtype == jnp.bfloat16
    assert np.abs(np.asarray(got, np.float64) - want).max() < 0.02 * np.sqrt(np.mean(want**2))


# What a call depends on.


def count_traces(monkeypatch, module):
    """Returns a list that grows by one item whenever an estimator of the module is traced."""
    traced, canonical = [], importlib.import_module(module).canonical
    monkeypatch.setattr(f"{module}.canonical", lambda *x: traced.append(1) or canonical(*x))
    return traced


def test_n_beyond_the_rollout_compiles_once(monkeypatch):
    traced = count_traces(monkeypatch, "gae_jax._n_step")
    arguments = random_rollout(1, steps=7, batch=(5,)).arguments()
    del arguments["lambda_"]
    numbers: tuple[Any, ...] = (200, 100, np.int64(7), jnp.array(8))
    for n in numbers:
        n_step_advantages(**arguments, n=n)
    assert len(traced) == 1


@pytest.mark.parametrize("estimator", ["gae", "vtrace"])
def test_time_axis_counted_from_either_end_compiles_once(estimator, monkeypatch):
    traced = count_traces(monkeypatch, f"gae_jax._{estimator}")
    arguments = random_rollout(1, steps=5, batch=(3,)).map_arrays(np.transpose).arguments()
    if estimator == "vtrace":
        arguments["log_rhos"] = np.zeros((3, 5), np.float32)
    for time_axis in (1, -1):
        getattr(gae_jax, estimator)(**arguments, time_axis=time_axis)
    assert len(traced) == 1


def test_float64_arrays_give_float64_under_x64_only():
    arrays = {k: np.asarray(x, np.float64) for k, x in TYPED.arguments().items() if k in ("rewards", "values")}
    arguments = TYPED.replace(**arrays, final_values=None).arguments()
    assert gae(**arguments).advantages.dtype == jnp.float32
    with enable_x64(True):
        assert gae(**arguments).advantages.dtype == jnp.float64
