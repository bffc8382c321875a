"""`check_rollout` finds each bad entry that is read, and warns of rewards and flags that are not."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import PartitionSpec as P
from support.laws import assert_close
from support.rollouts import Rollout, random_rollout

import gae_jax
from gae_jax.testing import check_rollout

T, N = 6, 2
# Worker 0 is cut in row 1 and ends in the last row; worker 1 has two dead rows at its end, and goes on.
ROLLOUT = Rollout(
    rewards=np.array([[1, 1], [1, 1], [1, 1], [1, 1], [1, 0], [1, 0]], np.float32),
    values=np.ones((T + 1, N), np.float32),
    terminated=np.array([[0, 0], [0, 0], [0, 0], [0, 0], [0, 0], [1, 0]], np.float32),
    truncated=np.array([[0, 0], [1, 0], [0, 0], [0, 0], [0, 0], [0, 0]], np.float32),
    final_values=np.ones((T, N), np.float32),
    mask=np.array([[1, 1], [1, 1], [1, 1], [1, 1], [1, 0], [1, 0]], np.float32),
    gamma=np.full((T, N), 0.9, np.float32),
    lambda_=np.full((T, N), 0.8, np.float32),
)
nan, inf = float("nan"), float("inf")

FINITE, FLAG = "must hold finite numbers", "must hold 0 and 1"
GAMMA, LAMBDA = r"must lie in \[-1, 1\]", r"must lie in \[0, 1\]"
READ = [
    ("rewards", (0, 0), nan, FINITE),
    ("rewards", (1, 0), inf, FINITE),
    ("values", (2, 1), nan, FINITE),
    ("values", (T, 1), -inf, FINITE),
    ("final_values", (1, 0), nan, FINITE),
    ("terminated", (0, 0), 0.5, FLAG),
    ("truncated", (0, 0), 2.0, FLAG),
    ("truncated", (0, 0), nan, FLAG),
    ("mask", (0, 0), -1.0, FLAG),
    ("gamma", (0, 0), 1.5, GAMMA),
    ("gamma", (0, 0), -1.01, GAMMA),
    ("gamma", (0, 0), nan, GAMMA),
    ("lambda_", (3, 1), -0.1, LAMBDA),
]
UNREAD = [
    ("rewards", (4, 1), nan),
    ("rewards", (4, 1), -inf),
    ("values", (5, 1), nan),
    ("values", (T, 0), nan),
    ("final_values", (0, 0), nan),
    ("terminated", (4, 1), nan),
    ("truncated", (5, 1), nan),
    ("gamma", (4, 1), 7.0),
    ("lambda_", (5, 1), nan),
]


def with_entry(name: str, index: tuple[int, int], x: float) -> dict[str, Any]:
    array = getattr(ROLLOUT, name).copy()
    array[index] = x
    return ROLLOUT.replace(**{name: array}).arguments()


@jax.jit
def checked(arguments):
    """The same checks, in a compiled program."""
    return checkify.checkify(lambda: check_rollout(**arguments))()[0]


@pytest.mark.parametrize(("name", "index", "x", "words"), READ)
def test_finds_a_bad_entry_that_is_read(name, index, x, words):
    arguments = with_entry(name, index, x)
    message = rf"`{name}` {words} where it is read; wrong entries: 1, the first at \[{index[0]}, {index[1]}\]"
    with pytest.raises(ValueError, match=message):
        check_rollout(**arguments)
    with pytest.raises(checkify.JaxRuntimeError, match=message):
        checked(arguments).throw()


@pytest.mark.parametrize(("name", "index", "x"), UNREAD)
def test_does_not_look_at_entries_that_are_not_read(name, index, x):
    arguments = with_entry(name, index, x)
    check_rollout(**arguments)
    checked(arguments).throw()


@pytest.mark.parametrize(
    ("name", "index", "x"),
    [
        ("rewards", (4, 1), 1.0),
        ("rewards", (5, 1), -1e-30),
        ("terminated", (4, 1), 1.0),
        ("terminated", (4, 1), 0.5),
        ("truncated", (5, 1), 1.0),
    ],
)
def test_warns_of_what_a_masked_row_holds(name, index, x):
    arguments = with_entry(name, index, x)
    where = rf"1, the first at \[{index[0]}, {index[1]}\]\. 'What arrives between my own steps' in examples/guides/tokens.md "
    message = rf"^`{name}` is not read where `mask` is False; entries other than 0 there: {where}"
    with pytest.warns(UserWarning, match=message) as warned:
        check_rollout(**arguments)
    [warning] = warned
    assert warning.filename == __file__
    checked(arguments).throw()  # a warning would be an error


def test_warnings_count_in_the_layout_of_the_caller():
    rewards = ROLLOUT.rewards.copy()
    rewards[4:] = 7
    arguments = ROLLOUT.replace(rewards=rewards, final_values=None).arguments()
    batch_major = {k: x.T if np.ndim(x) else x for k, x in arguments.items()}
    with pytest.warns(UserWarning, match=r"`rewards` .* there: 2, the first at \[1, 4\]"):
        check_rollout(**batch_major, time_axis=1)
    mask, ones = np.array(arguments["mask"], bool), np.ones((T, N), int)
    arguments |= {"mask": mask, "terminated": ones == 1, "truncated": ones}
    with pytest.warns(UserWarning, match="is not read") as warned:
        check_rollout(**arguments)
    assert [str(w.message).split()[0] for w in warned] == ["`rewards`", "`terminated`", "`truncated`"]
    arguments["mask"] = None
    check_rollout(**arguments)


def test_gamma_may_be_negative():
    """It is the discount where the next value belongs to the other player."""
    for gamma in (-1.0, np.full((T, N), -1.0, np.float32), jnp.float32(-0.99)):
        check_rollout(**ROLLOUT.replace(gamma=gamma).arguments())


@pytest.mark.parametrize("steps", [1, T])
def test_no_workers(steps):
    rollout = ROLLOUT.map_arrays(lambda x: x[:, :0]).rows(0, steps)
    check_rollout(**rollout.arguments())
    checked(rollout.arguments()).throw()
    check_rollout(**rollout.replace(gamma=0.9, lambda_=0.8, mask=None, final_values=None).arguments())


def test_counts_and_finds_the_first_entry_in_the_layout_of_the_caller():
    rewards = ROLLOUT.rewards.copy()
    rewards[2:4] = nan
    batch_major = ROLLOUT.replace(rewards=rewards).map_arrays(np.transpose).arguments()
    with pytest.raises(ValueError, match=r"`rewards` .* wrong entries: 4, the first at \[0, 2\]"):
        check_rollout(**batch_major, time_axis=1)
    arguments = ROLLOUT.replace(values=ROLLOUT.values[:-1]).arguments()
    with pytest.raises(ValueError, match=r"`bootstrap_value` must hold finite numbers .* 1, the first at \[1\]"):
        check_rollout(**arguments, bootstrap_value=np.array([0, nan], np.float32))
    check_rollout(**arguments, bootstrap_value=np.array([nan, 0], np.float32))


@pytest.mark.parametrize("name", ["gamma", "lambda_"])
def test_counts_the_entries_of_a_parameter_as_it_was_given(name):
    for shape, where in (((), ""), ((N,), r", the first at \[0\]"), ((T, 1), r", the first at \[0, 0\]")):
        bad = jnp.full(shape, 1.5)
        with pytest.raises(ValueError, match=rf"`{name}` must lie in .* wrong entries: {max(1, bad.size)}{where}$"):
            check_rollout(**ROLLOUT.replace(mask=None, **{name: bad}).arguments())


def test_does_not_look_at_the_reward_of_a_dropped_row():
    dropped = ROLLOUT.replace(final_values=None, mask=None)
    rewards = dropped.rewards.copy()
    rewards[1, 0] = nan
    check_rollout(**dropped.replace(rewards=rewards).arguments())
    rewards[0, 0] = nan
    with pytest.raises(ValueError, match=r"`rewards` .* wrong entries: 1, the first at \[0, 0\]"):
        check_rollout(**dropped.replace(rewards=rewards).arguments())


def test_accepts_random_rollouts_in_which_unread_entries_are_nan():
    for seed in range(20):
        rollout = random_rollout(seed, batch=(3,), dead=0.3, gamma="both", lambda_="step")
        arguments = rollout.arguments()
        is_read = {"rewards": rollout.live, "gamma": rollout.live}
        is_read |= {"final_values": rollout.live & arguments["truncated"] & ~arguments["terminated"]}
        for name, read in is_read.items():
            arguments[name] = np.where(read, arguments[name], nan)
        for name in ("terminated", "truncated"):
            arguments[name] = arguments[name] & rollout.live
        check_rollout(**arguments)


def test_refuses_shapes_as_gae_does():
    with pytest.raises(ValueError, match=r"`terminated` must have shape \(6, 2\)"):
        check_rollout(**ROLLOUT.replace(terminated=ROLLOUT.terminated.T).arguments())
    with pytest.raises(TypeError, match="`rewards` must be an array of numbers; got list"):
        check_rollout(**ROLLOUT.replace(rewards=ROLLOUT.rewards.tolist()).arguments())


def checks_then_gae(arguments):
    check_rollout(**arguments)
    return gae_jax.gae(**arguments)


@pytest.mark.versions
def test_chexify(monkeypatch):
    # Chex remembers each chexified function, and at exit warns of it.
    monkeypatch.setattr("chex._src.asserts_internal.CHEXIFY_STORAGE.wait_fns", [])
    fn = chex.chexify(jax.jit(checks_then_gae), async_check=False)
    assert_close(fn(ROLLOUT.arguments()), gae_jax.gae(**ROLLOUT.arguments()), rtol=1e-6)
    with pytest.raises(checkify.JaxRuntimeError, match=r"`gamma` must lie in \[-1, 1\].* 1, the first at \[0, 0\]"):
        fn(with_entry("gamma", (0, 0), 1.5))


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
        jax.jit(checks_then_gae)(ROLLOUT.arguments())


def test_with_time_split_over_devices():
    """Each device checks its shard. V(s_T) is read on the last device, and not on the others."""
    rewards, values = jnp.asarray(ROLLOUT.rewards), jnp.asarray(ROLLOUT.values[:-1])

    @jax.jit
    def error(rewards, last_value, where):
        def on_each(rollout, last_value, where):
            here = jax.lax.axis_index("time")
            last_value = jnp.where(here == where, last_value, 1.0)
            check_rollout(**rollout, gamma=0.9, lambda_=0.8, bootstrap_value=last_value, time_axis_name="time")
            return rollout["rewards"]

        rollout = {"rewards": rewards, "values": values, "terminated": jnp.zeros((T, N), bool)}
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:3]), ("time",))
        fn = jax.shard_map(on_each, mesh=mesh, in_specs=(P("time"), P(), P()), out_specs=P("time"))
        return checkify.checkify(fn)(rollout, last_value, where)[0]

    error(rewards, jnp.ones(N), 2).throw()
    error(rewards, jnp.full(N, nan), 1).throw()
    with pytest.raises(checkify.JaxRuntimeError, match=r"`bootstrap_value` must hold"):
        error(rewards, jnp.full(N, nan), 2).throw()
    with pytest.raises(checkify.JaxRuntimeError, match=r"`rewards` must hold finite numbers"):
        error(rewards.at[0].set(inf), jnp.ones(N), 2).throw()
