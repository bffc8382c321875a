"""`check_rollout` finds each wrong entry that is read, and warns of arguments that `gae` reads otherwise than meant."""

import re
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
    ("gamma", (0, 0), 1.5, GAMMA),
    ("gamma", (0, 0), -1.01, GAMMA),
    ("gamma", (0, 0), nan, GAMMA),
    ("lambda_", (3, 1), -0.1, LAMBDA),
    ("lambda_", (3, 1), 1.01, LAMBDA),
]
ACCEPTED = [
    ("rewards", (4, 1), nan),  # of a masked row
    ("rewards", (4, 1), -inf),
    ("values", (5, 1), nan),
    ("terminated", (4, 1), nan),
    ("truncated", (5, 1), nan),
    ("final_values", (4, 1), nan),
    ("gamma", (4, 1), 7.0),
    ("lambda_", (5, 1), nan),
    ("final_values", (0, 0), nan),  # not truncated
    ("bootstrap_value", (0,), nan),  # the worker has ended
    *(("gamma", (0, 0), x) for x in (-1.0, 0.0, 1.0)),  # the ends of the intervals
    *(("lambda_", (0, 0), x) for x in (0.0, 1.0)),
]


def check(**changes: Any) -> None:
    check_rollout(**ARGUMENTS | changes)


def with_entry(name: str, index: tuple[int, ...], x: float) -> dict[str, Any]:
    array = ARGUMENTS[name].copy()
    array[index] = x
    return {name: array}


@jax.jit
def checked(arguments):
    """The same checks, in a compiled program."""
    return checkify.checkify(lambda: check_rollout(**arguments))()[0]


@pytest.mark.parametrize(("name", "index", "x", "words"), READ)
def test_finds_a_wrong_entry_that_is_read(name, index, x, words):
    changes = with_entry(name, index, x)
    message = re.escape(f"`{name}` {words} where it is read; wrong entries: 1, the first at {list(index)}")
    with pytest.raises(ValueError, match=message):
        check(**changes)
    with pytest.raises(checkify.JaxRuntimeError, match=message):
        checked(ARGUMENTS | changes).throw()


@pytest.mark.parametrize(("name", "index", "x"), ACCEPTED)
def test_accepts_an_entry_that_is_not_read_or_at_the_end_of_its_interval(name, index, x):
    changes = with_entry(name, index, x)
    check(**changes)
    checked(ARGUMENTS | changes).throw()


def test_accepts_an_end_that_wins_over_a_cut():
    """Where both flags are set, the final value is not read, and neither is V(s_T) after the last row."""
    ends = np.broadcast_to(np.arange(T)[:, None] == T - 1, (T, N))
    finals = np.where(ends, nan, 1).astype(np.float32)
    check(mask=None, terminated=ends, truncated=True, final_values=finals, bootstrap_value=finals[-1])


def test_accepts_the_final_value_of_a_row_that_is_masked_and_truncated():
    changes = with_entry("truncated", (4, 1), 1) | with_entry("final_values", (4, 1), nan)
    checked(ARGUMENTS | changes).throw()


def test_accepts_a_worker_whose_rows_are_all_masked():
    """Its V(s_T) is not read."""
    mask, last_value = np.array([[1, 0]] * T), np.array([1, nan], np.float32)
    poisoned = {name: np.where(mask, ARGUMENTS[name], nan) for name in ("rewards", "values", "gamma", "lambda_")}
    check(**poisoned | {"mask": mask, "bootstrap_value": last_value})
    with pytest.raises(ValueError, match=r"`bootstrap_value` must hold finite numbers .* 1, the first at \[1\]"):
        check(mask=None, bootstrap_value=last_value)


@pytest.mark.parametrize("steps", [1, T])
def test_no_workers(steps):
    arguments = {name: x[:steps, :0] if x.ndim == 2 else x[:0] for name, x in ARGUMENTS.items()}
    check(**arguments)
    checked(arguments).throw()
    check(**arguments | {"gamma": 0.9, "lambda_": 0.8, "mask": None, "final_values": None})


def test_counts_and_finds_the_first_entry_in_the_layout_of_the_caller():
    rewards, values = ROLLOUT.rewards.copy(), np.ones((T + 1, N), np.float32)
    rewards[2:4] = values[T] = nan
    with pytest.raises(ValueError, match=r"`rewards` .* wrong entries: 4, the first at \[0, 2\]"):
        check(**{name: x.T for name, x in (ARGUMENTS | {"rewards": rewards}).items()}, time_axis=1)
    with pytest.raises(ValueError, match=r"`values` .* wrong entries: 1, the first at \[6, 1\]"):
        check(values=values, bootstrap_value=None, mask=None)


@pytest.mark.parametrize("name", ["gamma", "lambda_"])
def test_counts_the_entries_of_a_parameter_as_it_was_given(name):
    for shape, where in (((N,), r"\[0\]"), ((T, 1), r"\[0, 0\]")):
        bad = jnp.full(shape, 1.5)
        with pytest.raises(ValueError, match=f"`{name}` .* wrong entries: {bad.size}, the first at {where}$"):
            check(mask=None, **{name: bad})


def test_one_number_for_an_array():
    numbers: dict[str, Any] = {"terminated": False, "truncated": True, "final_values": 0.0, "bootstrap_value": 1}
    check(mask=None, **numbers)
    checked(ARGUMENTS | numbers | {"mask": None}).throw()
    check(terminated=False, final_values=0.0, bootstrap_value=0.0)
    for name, x in (("terminated", 2), ("final_values", nan)):
        with pytest.raises(ValueError, match=rf"`{name}` must hold .*, the first at \[0, 0\]"):
            check(mask=None, **numbers | {name: x})
    with pytest.raises(ValueError, match=r"`bootstrap_value` must hold .* 1, the first at \[1\]"):
        check(bootstrap_value=inf)


def test_does_not_look_at_the_reward_of_a_dropped_row():
    rewards = ROLLOUT.rewards.copy()
    rewards[1, 0] = nan
    check(mask=None, final_values=None, rewards=rewards)
    rewards[0, 0] = nan
    with pytest.raises(ValueError, match=r"`rewards` .* wrong entries: 1, the first at \[0, 0\]"):
        check(mask=None, final_values=None, rewards=rewards)


def test_refuses_shapes_as_gae_does():
    with pytest.raises(ValueError, match=r"`terminated` must have shape \(6, 2\)"):
        check(terminated=ROLLOUT.terminated.T)


def test_probabilities_of_an_end_belong_in_gamma():
    advice = "If these are probabilities p, pass terminated=False and gamma=gamma * (1 - p)"
    p = np.full((T, N), 0.25, np.float32)
    with pytest.raises(ValueError, match=f"`terminated` must hold 0 and 1 .*{re.escape(advice)}"):
        check(mask=None, terminated=p)
    check(terminated=False, gamma=ROLLOUT.gamma * (1 - p))


# Warnings.

MASKED = [("rewards", 4, 1.0), ("rewards", 5, -1e-30), ("terminated", 4, 1.0), ("terminated", 4, 0.5)]


@pytest.mark.parametrize(("name", "row", "x"), [*MASKED, ("truncated", 5, 1.0)])
def test_warns_of_what_a_masked_row_holds(name, row, x):
    changes = with_entry(name, (row, 1), x)
    message = (
        f"`{name}` is not read where `mask` is False; entries other than 0 there: 1, the first at [{row}, 1]. 'What "
    )
    with pytest.warns(UserWarning, match="^" + re.escape(message)) as warned:
        check(**changes)
    assert [warning.filename for warning in warned] == [__file__]
    checked(ARGUMENTS | changes).throw()  # a warning would be an error


def test_warnings_count_in_the_layout_of_the_caller():
    rewards = ROLLOUT.rewards.copy()
    rewards[4:] = 7
    with pytest.warns(UserWarning, match=r"`rewards` .* there: 2, the first at \[1, 4\]"):
        check(**{name: x.T for name, x in (ARGUMENTS | {"rewards": rewards}).items()}, time_axis=1)
    check(mask=None, rewards=rewards)


def test_warns_of_padding_that_is_read_as_the_last_value():
    """`mask` is False at the end, no flag ends the episode, and the last row of `values` is V(s_T)."""
    padded: dict[str, Any] = {"values": np.ones((T + 1, N), np.float32), "bootstrap_value": None}
    with pytest.warns(UserWarning, match=r"last row of `values` is used as V\(s_T\).* workers: 1, the first at \[1\]"):
        check(**padded)
    checked(ARGUMENTS | padded).throw()
    for flag in ("terminated", "truncated"):
        check(**padded | with_entry(flag, (3, 1), 1))
    check(**padded, mask=MASK[::-1], rewards=MASK[::-1])


def test_warns_if_all_time_limits_terminate():
    done = ROLLOUT.terminated + ROLLOUT.truncated
    with pytest.warns(UserWarning, match=r"`terminated` is set wherever .* 1, the first at \[1, 0\]\. If time limits"):
        check(terminated=done)
    check(terminated=done, **with_entry("truncated", (2, 1), 1))  # another time limit, which does not terminate
    with pytest.warns(UserWarning, match="is not read where `mask` is False") as warned:
        check(terminated=done, **with_entry("mask", (1, 0), 0))
    assert len(warned) == 3  # of the reward and both flags: no unmasked row has a time limit


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


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [jax.vmap, jax.checkpoint, jax.grad], ids=lambda wrap: wrap.__name__)
def test_inside_other_transformations(wrap):
    def loss(rewards, terminated):
        arguments = {"rewards": rewards, "values": jnp.zeros(T + 1), "terminated": terminated}
        return jnp.sum(checks_then_gae(arguments | {"gamma": 0.9, "lambda_": 0.8}).advantages)

    rewards, terminated = jnp.ones((T, T)), jnp.full((T, T), 3)
    arguments = (rewards, terminated) if wrap is jax.vmap else (rewards[0], terminated[0])
    error, _ = jax.jit(checkify.checkify(wrap(loss)))(*arguments)
    with pytest.raises(checkify.JaxRuntimeError, match="`terminated` must hold 0 and 1"):
        error.throw()


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
