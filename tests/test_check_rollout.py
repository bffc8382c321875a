"""`check_rollout` finds each wrong entry that is read, and warns of arguments that `gae` reads otherwise than meant."""

import functools
import re
import warnings
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import PartitionSpec as P
from support.laws import assert_close
from support.meshes import make_mesh
from support.rollouts import Rollout

import gae_jax
from gae_jax.testing import check_rollout

pytestmark = pytest.mark.usefixtures("fast_compilation")
T, N = 6, 2
# Worker 0 is cut in row 1 and ends in the last row; worker 1 has two masked rows at its end, and goes on.
MASK = np.array([[1, 1], [1, 1], [1, 1], [1, 1], [1, 0], [1, 0]], np.float32)
ROLLOUT = Rollout(
    rewards=MASK,
    values=np.ones((T, N), np.float32),
    terminated=np.array([[0, 0], [0, 0], [0, 0], [0, 0], [0, 0], [1, 0]], np.float32),
    truncated=np.array([[0, 0], [1, 0], [0, 0], [0, 0], [0, 0], [0, 0]], np.float32),
    final_values=np.ones((T, N), np.float32),
    mask=MASK,
    gamma=np.full((T, N), 0.9, np.float32),
    lambda_=np.full((T, N), 0.8, np.float32),
)
ARGUMENTS: dict[str, Any] = ROLLOUT.arguments() | {"bootstrap_value": np.ones(N, np.float32)}
nan, inf = float("nan"), float("inf")

FINITE, FLAG = "must hold finite numbers", "must hold 0 and 1"
GAMMA, LAMBDA = "must lie in [-1, 1]", "must lie in [0, 1]"
READ = [
    ("rewards", (0, 0), nan, FINITE),
    ("rewards", (1, 0), inf, FINITE),
    ("values", (2, 1), nan, FINITE),
    ("bootstrap_value", (1,), -inf, FINITE),
    ("final_values", (1, 0), nan, FINITE),
    ("terminated", (0, 0), 0.5, FLAG),
    ("truncated", (0, 0), 2.0, FLAG),
    ("truncated", (0, 0), nan, FLAG),
    ("mask", (0, 0), -1.0, FLAG),
    *(("gamma", (0, 0), x, GAMMA) for x in (1.5, -1.01, nan)),
    *(("lambda_", (3, 1), x, LAMBDA) for x in (1.01, -0.1)),
]


def check(**changes: Any) -> None:
    check_rollout(**ARGUMENTS | changes)


def with_entry(name: str, index: Any, x: float) -> dict[str, Any]:
    array = ARGUMENTS[name].copy()
    array[index] = x
    return {name: array}


def transposed(**changes: Any) -> dict[str, Any]:
    return {name: x.T for name, x in (ARGUMENTS | changes).items()} | {"time_axis": 1}


NO_MASK: dict[str, Any] = {"mask": None}
DROPPED = NO_MASK | {"final_values": None} | with_entry("rewards", (1, 0), nan)
ONE_NUMBER = NO_MASK | {"terminated": False, "truncated": True, "final_values": 0.0, "bootstrap_value": 1}
ALL_MASKED = {"mask": np.array([[1, 0]] * T), "bootstrap_value": np.array([1, nan], np.float32)}
ALL_MASKED |= {x: np.where(ALL_MASKED["mask"], ARGUMENTS[x], nan) for x in ("rewards", "values", "gamma", "lambda_")}
ENDS = np.broadcast_to(np.arange(T)[:, None] == T - 1, (T, N))
FINALS = np.where(ENDS, nan, 1).astype(np.float32)
ACCEPTED: list[dict[str, Any]] = [
    with_entry("rewards", (4, 1), nan),  # of a masked row
    with_entry("rewards", (4, 1), -inf),
    with_entry("values", (5, 1), nan),
    with_entry("terminated", (4, 1), nan),
    with_entry("truncated", (5, 1), nan),
    with_entry("final_values", (4, 1), nan),
    with_entry("gamma", (4, 1), 7.0),
    with_entry("lambda_", (5, 1), nan),
    with_entry("final_values", (0, 0), nan),  # not truncated
    with_entry("bootstrap_value", (0,), nan),  # the worker has ended
    *(with_entry("gamma", (0, 0), x) for x in (-1.0, 0.0, 1.0)),  # the ends of the intervals
    *(with_entry("lambda_", (0, 0), x) for x in (0.0, 1.0)),
    # Where both flags are set, the final value is not read, and neither is V(s_T) after the last row.
    NO_MASK | {"terminated": ENDS, "truncated": True, "final_values": FINALS, "bootstrap_value": FINALS[-1]},
    ALL_MASKED,  # V(s_T) of a worker whose rows are all masked
    *({name: x[:steps, :0] if x.ndim == 2 else x[:0] for name, x in ARGUMENTS.items()} for steps in (1, T)),
    {name: x[:, :0] if x.ndim == 2 else x[:0] for name, x in ARGUMENTS.items()} | NO_MASK | {"gamma": 0.9},
    ONE_NUMBER,
    {"terminated": False, "final_values": 0.0, "bootstrap_value": 0.0},
    {"terminated": False, "gamma": ROLLOUT.gamma * 0.75},  # as the advice for probabilities says
    DROPPED,  # the reward of a dropped row
]
LONGER = np.ones((T + 1, N), np.float32)
LONGER[T, 1] = nan
LAST_ROW: dict[str, Any] = {name: x[-1:, 1:] if x.ndim == 2 else x[1:] for name, x in ARGUMENTS.items()} | NO_MASK
ONE_WORKER = {"rewards": MASK[:, 0], "values": MASK[:, 0], "terminated": False, "gamma": 0.9, "lambda_": 0.8}
ONE_WORKER |= dict.fromkeys(("truncated", "final_values", "mask"))
ADVICE = "12, the first at [0, 0]. If these are probabilities p, pass terminated=False and gamma=gamma * (1 - p)"
REFUSED: list[tuple[str, str, str, dict[str, Any]]] = [
    *((name, words, f"1, the first at {[*index]}", with_entry(name, index, x)) for name, index, x, words in READ),
    ("bootstrap_value", FINITE, "1, the first at [1]", NO_MASK | {"bootstrap_value": ALL_MASKED["bootstrap_value"]}),
    ("bootstrap_value", FINITE, "1, the first at [1]", {"bootstrap_value": inf}),
    ("rewards", FINITE, "4, the first at [0, 2]", transposed(**with_entry("rewards", slice(2, 4), nan))),
    ("values", FINITE, "1, the first at [6, 1]", NO_MASK | {"values": LONGER, "bootstrap_value": None}),
    ("values", FINITE, "1, the first at [1, 0]", LAST_ROW | {"values": LONGER[-2:, 1:], "bootstrap_value": None}),
    ("bootstrap_value", FINITE, "1", ONE_WORKER | {"bootstrap_value": nan}),
    *(
        (name, must, f"{np.size(x)}, the first at {[0] * x.ndim}", NO_MASK | {name: x})
        for name, must in (("gamma", GAMMA), ("lambda_", LAMBDA))
        for x in (jnp.full(N, 1.5), jnp.full((T, 1), 1.5))
    ),
    ("terminated", FLAG, "12, the first at [0, 0]", ONE_NUMBER | {"terminated": 2}),
    ("final_values", FINITE, "12, the first at [0, 0]", ONE_NUMBER | {"final_values": nan}),
    ("rewards", FINITE, "2, the first at [0, 0]", DROPPED | with_entry("rewards", ([0, 1], [0, 1]), nan)),
    ("terminated", FLAG, ADVICE, NO_MASK | {"terminated": np.full((T, N), 0.25, np.float32)}),
]


@functools.partial(jax.jit, static_argnames="time_axis")
def checked(*, time_axis=0, **arguments):
    """Returns the error of the same checks in a compiled program."""
    return checkify.checkify(lambda: check_rollout(**arguments, time_axis=time_axis))()[0]


@pytest.mark.parametrize(("name", "words", "found", "changes"), REFUSED)
def test_finds_wrong_entries_that_are_read(name, words, found, changes):
    """The message counts the entries, and shows the index of the first, in the layout of the caller."""
    message = re.escape(f"`{name}` {words} where it is read; wrong entries: {found}")
    with pytest.raises(ValueError, match=rf"^{message}(\. If these are probabilities .*)?$"):
        check(**changes)
    with pytest.raises(checkify.JaxRuntimeError, match=message):
        checked(**ARGUMENTS | changes).throw()


@pytest.mark.parametrize("changes", ACCEPTED)
def test_accepts_entries_that_are_not_read_or_at_the_end_of_an_interval(changes):
    check(**changes)


def test_refuses_shapes_as_gae_does():
    with pytest.raises(ValueError, match=r"`terminated` must have shape \(6, 2\)"):
        check(terminated=ROLLOUT.terminated.T)


# Warnings.

MASKED = "`{}` is not read where `mask` is False; entries other than 0 there: {}"
PADDED: dict[str, Any] = {"values": np.ones((T + 1, N), np.float32), "bootstrap_value": None}
PADDING = (
    "the last row of `values` is used as V(s_T), though `mask` is False in the last row of time and no flag ends the "
    "episode; workers: 1, the first at [1]. If that row"
)
LIMITS = (
    "`terminated` is set wherever `truncated` is, and wins, so that no row bootstraps from V(final observation); rows: "
    "1, the first at [1, 0]. If time limits"
)
DONE = {"terminated": ROLLOUT.terminated + ROLLOUT.truncated}
UNREAD = [("rewards", 4, 1.0), ("rewards", 5, -1e-30), ("terminated", 4, 1.0), ("terminated", 4, 0.5)]
NO_FINAL_VALUE = with_entry("truncated", (5, 1), 1) | with_entry("final_values", (5, 1), nan)
LATE_REWARDS = with_entry("rewards", slice(4, 6), 7)
WARNINGS: list[tuple[dict[str, Any], list[str]]] = [
    *((with_entry(name, (row, 1), x), [MASKED.format(name, f"1, the first at [{row}, 1]")]) for name, row, x in UNREAD),
    (NO_FINAL_VALUE, [MASKED.format("truncated", "1, the first at [5, 1]. 'What arrives")]),
    (transposed(**LATE_REWARDS), [MASKED.format("rewards", "2, the first at [1, 4]")]),
    (NO_MASK | LATE_REWARDS, []),
    *((PADDED | with_entry("mask", (4, 1), x), [PADDING]) for x in (0, 1)),
    *((PADDED | with_entry(flag, (3, 1), 1), []) for flag in ("terminated", "truncated")),
    (PADDED | {"mask": MASK[::-1], "rewards": MASK[::-1]}, []),
    (DONE, [LIMITS]),
    (DONE | with_entry("truncated", (2, 1), 1), []),  # another time limit, which does not terminate
    # No unmasked row has a time limit.
    (DONE | with_entry("mask", (1, 0), 0), [MASKED.format(x, "1, ") for x in ("rewards", "terminated", "truncated")]),
]


@pytest.mark.parametrize(("changes", "messages"), WARNINGS)
def test_warns_of_what_is_given_and_not_read(changes, messages):
    """Of concrete arrays, at the line that calls `check_rollout`; other warnings are errors."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        check(**changes)
    for warning, message in zip(warned, messages, strict=True):
        assert str(warning.message).startswith(message)
        assert warning.filename == __file__
    checked(**ARGUMENTS | changes).throw()  # a warning would be an error


# Inside other functions.


def checks_then_gae(arguments):
    check_rollout(**arguments)
    return gae_jax.gae(**arguments)


@pytest.mark.versions
def test_chexify(monkeypatch):
    # Chex remembers each chexified function, and at exit warns of it.
    monkeypatch.setattr("chex._src.asserts_internal.CHEXIFY_STORAGE.wait_fns", [])
    fn = chex.chexify(jax.jit(checks_then_gae), async_check=False)
    assert_close(fn(ARGUMENTS), gae_jax.gae(**ARGUMENTS), rtol=1e-6)
    with pytest.raises(checkify.JaxRuntimeError, match=r"`gamma` must lie in \[-1, 1\].* 1, the first at \[0, 0\]"):
        fn(ARGUMENTS | with_entry("gamma", (0, 0), 1.5))


def test_jax_refuses_a_check_in_a_compiled_function_without_checkify():
    with pytest.raises(ValueError, match="not functionalized"):
        jax.jit(checks_then_gae)(ARGUMENTS)


def test_with_time_split_over_devices():
    """Each device checks its shard. V(s_T) is read on the last device, and not on the others."""

    @jax.jit
    def error(rewards, last_value, where):
        def on_each(rewards, last_value, where):
            last_value = jnp.where(jax.lax.axis_index("time") == where, last_value, 1.0)
            rollout = {"rewards": rewards, "values": jnp.ones_like(rewards), "bootstrap_value": last_value}
            check_rollout(**rollout, terminated=False, gamma=0.9, lambda_=0.8, time_axis_name="time")
            return rewards

        specs = {"in_specs": (P("time"), P(), P()), "out_specs": P("time")}
        fn = jax.shard_map(on_each, mesh=make_mesh(time=3), **specs)
        return checkify.checkify(fn)(rewards, last_value, where)[0]

    rewards = jnp.asarray(ROLLOUT.rewards)
    error(rewards, jnp.ones(N), 2).throw()
    error(rewards, jnp.full(N, nan), 1).throw()
    with pytest.raises(checkify.JaxRuntimeError, match=r"`bootstrap_value` must hold"):
        error(rewards, jnp.full(N, nan), 2).throw()
    with pytest.raises(checkify.JaxRuntimeError, match=r"`rewards` must hold finite numbers"):
        error(rewards.at[0].set(inf), jnp.ones(N), 2).throw()
    with pytest.raises(ValueError, match="`time_axis_name` must name mesh axes"):
        check(time_axis_name="time")
