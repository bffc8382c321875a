"""Each recipe of examples/guides/environments.md, run as printed on the kind of reset that it is for.

A small environment steps through episodes and logs its transitions as they are before any reset. The oracle takes them
episode by episode, so nothing of the resetting is in the reference. The tests marked `slow` compare the rows of this
environment with those of the libraries.
"""

import ast
import contextlib
import functools
import itertools
import re
import types
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import pages
from support.oracle import oracle

import gae_jax

PAGE = "examples/guides/environments.md"
N, STEPS = 4, 60
LIMIT = 12  # steps: short enough for time limits and terminations both to be frequent
PARAMETERS = {"gamma": 0.99, "lambda_": 0.95}

NEXT_STEP, SAME_STEP = "gymnasium, `AutoresetMode.NEXT_STEP`, and envpool", "gymnasium, `AutoresetMode.SAME_STEP`"
DISABLED, OLD_GYMNAX = "gymnasium, `AutoresetMode.DISABLED`", "gymnax below 1.0"
BRAX, BRAX_FINAL = "Brax, its own wrappers", "Brax, the final observation kept"
PLAYGROUND, FIRST = "MuJoCo Playground, `full_reset=True`", "dm_env, jumanji and Dreamer's replay"
RECURRENT, STREAMS, ASYNC = "A recurrent critic", "Interleaved streams by id", "envpool, asynchronous"
SPLIT = "Workers split over devices"

# A mistake in each recipe, which its test must find: what is printed, and what stands there instead.
MISTAKES = {
    NEXT_STEP: ("mask=mask, ", ""),
    SAME_STEP: ("value_fn(final_obs)", "value_fn(obs)[1:]"),
    DISABLED: ("value_fn(next_obs)", "value_fn(obs)[1:]"),
    "gymnax": ('value_fn(info["final_observation"])', "value_fn(obs)[1:]"),
    OLD_GYMNAX: ('info["terminated"], done', "done, done"),
    BRAX: ("done * (1 - truncated)", "done"),
    BRAX_FINAL: ("done * (1 - truncated)", "done"),
    PLAYGROUND: ("done * (1 - truncated)", "done"),
    FIRST: ("rewards[1:]", "jnp.nan_to_num(rewards[:-1])"),
    RECURRENT: ("jnp.zeros_like(resets[1:])", "resets[1:]"),
    STREAMS: ("jnp.lexsort((steps, ids))", "jnp.argsort(ids, stable=True)"),
    ASYNC: ("end[1:] & ~no_step", "end[1:]"),
    SPLIT: (', axis_name="workers"', ""),
}


class Transition(NamedTuple):
    obs: Any
    reward: Any
    terminated: Any
    truncated: Any
    next_obs: Any  # from before any reset


class Walk:
    """Adds random steps to a random place, terminates beyond a bound, is cut off at a limit, and keeps a log."""

    def __init__(self, seed):
        self.rng, self.log = np.random.default_rng(seed), []

    def reset(self):
        self.place, self.time = self.rng.uniform(-1, 1, 2).astype(np.float32), 0
        return self.place

    def step(self):
        obs, self.time = self.place, self.time + 1
        self.place = obs + np.float32(self.rng.uniform(-1, 1)) * np.array([0.5, -0.25], np.float32)
        self.log.append(Transition(obs, self.place[1], self.place[0] > 1, self.time == LIMIT, self.place))
        return self.log[-1]


def rows_of(walk, same_step):
    """What one worker's environment returns: the step that ends an episode also resets, or the step after it does."""
    obs, resets = walk.reset(), False
    while True:
        last = Transition(obs, np.float32(0), False, False, walk.reset()) if resets else walk.step()
        ended, final = last.terminated | last.truncated, last.next_obs
        following = walk.reset() if ended and same_step else final
        kept = {"truncation": np.float32(last.truncated & ~last.terminated), "obs": final}
        info = {"final_obs": final, "final_observation": final, "terminated": last.terminated} | kept
        flags = {
            "terminated": last.terminated,
            "truncated": last.truncated,
            "done": np.float32(ended),
            "live": not resets,
        }
        info["AutoResetWrapper_preserve_info"] = kept
        yield flags | {"obs": obs, "following": following, "rewards": last.reward, "next_obs": final, "info": info}
        obs, resets = following, ended and not same_step


class Recording(NamedTuple):
    names: dict[str, Any]  # that recipes use
    live: np.ndarray  # [T, N], the rows that are transitions
    logs: list[list[Transition]]  # the transitions of each worker


def stacked(rows, logs):
    """A recording of the rows, each a dict of arrays [N, ...]; empties the logs."""
    names = jax.tree.map(lambda *x: np.stack(x), *rows)
    names["obs"] = np.concatenate([names["obs"], names.pop("following")[-1:]])
    taken = [log[:] for log in logs]
    for log in logs:
        log.clear()
    every = [x for log in taken for x in log]
    assert min(sum(x.terminated for x in every), sum(x.truncated > x.terminated for x in every)) >= 3
    return Recording(names, names.pop("live", np.ones(names["rewards"].shape, bool)), taken)


def walks(same_step, rollouts=1):
    """Recordings of the walks, one after another."""
    workers = [Walk(seed) for seed in range(N)]
    columns = [rows_of(walk, same_step) for walk in workers]
    for _ in range(rollouts):
        rows = [jax.tree.map(lambda *x: np.stack(x), *(next(column) for column in columns)) for _ in range(STEPS)]
        yield stacked(rows, [walk.log for walk in workers])


def value_fn(obs):
    """A critic: linear, with random weights."""
    weights = np.random.default_rng(0).normal(size=obs.shape[-1]).astype(np.float32)
    return jnp.asarray(obs, jnp.float32) @ weights


def episodes(log):
    """The transitions of each episode, or of the part of it that the log holds."""
    ends = [t + 1 for t, x in enumerate(log) if x.terminated or x.truncated]
    return [log[i:j] for i, j in zip([0, *ends], [*ends, len(log)], strict=True) if i < j]


def reference(log, values_of=value_fn, lost=False):
    """The advantage of each transition of one worker; `lost`: final observations are not known."""
    results = []
    for episode in episodes(log):
        obs, rewards, terminated, truncated, next_obs = (np.stack(x) for x in zip(*episode, strict=True))
        values = np.asarray(values_of(np.concatenate([obs, next_obs[-1:]])))
        final_values = None if lost else values[1:]
        results.append(oracle(rewards, values, terminated, truncated, final_values=final_values, **PARAMETERS)[0])
    return np.concatenate(results)


def results_of(heading, names, change=("", "")):
    """What the recipe computes; one that prints no call of `gae` goes on with the call that the page prints once."""
    code = pages.recipes(PAGE)[heading]
    assert change[0] in code
    (call,) = (x for x in pages.blocks(PAGE) if x.startswith("advantages, targets = gae("))
    code = code.replace(*change) + ("" if "gae(" in code else call)
    bases = {"GymnaxWrapper": object, "brax": types.SimpleNamespace(envs=types.SimpleNamespace(Wrapper=object))}
    bases["mujoco_playground"] = types.SimpleNamespace(wrapper=types.SimpleNamespace(Wrapper=object))
    return pages.run(code, pages.imports(PAGE) | PARAMETERS | bases | {"value_fn": value_fn} | names)


def check(heading, recording, names=None, **how):
    """Asserts that the recipe gives each transition its advantage within its own episode, and a mistake does not."""
    want = np.zeros(recording.live.shape)
    for n, log in enumerate(recording.logs):
        want[recording.live[:, n], n] = reference(log, **how)
    names = recording.names | (names or {})
    result = results_of(heading, names)
    assert difference(result["advantages"], want) < 1e-5
    wrong = results_of(heading, names, MISTAKES[heading])["advantages"]
    assert difference(wrong, want) > 0.01
    return result


def difference(got, want):
    """The largest, relative to the root mean square."""
    return np.abs(np.asarray(got) - want).max() / np.sqrt(np.mean(np.square(want)))


# The kinds of resets.


@pytest.mark.parametrize("heading", [SAME_STEP, DISABLED, "gymnax", OLD_GYMNAX, BRAX, BRAX_FINAL, PLAYGROUND])
def test_reset_in_the_same_step(heading):
    """The names of all libraries hold the same data here; `infos` is gymnasium's list."""
    (recording,) = walks(same_step=True)
    infos = [{"final_obs": x} for x in recording.names["next_obs"]]
    result = check(heading, recording, {"infos": infos}, lost=heading == BRAX)
    truncation = recording.names["info"]["truncation"]
    np.testing.assert_array_equal(result.get("keep", truncation == 0), truncation == 0)


def test_reset_in_the_next_step():
    """The second rollout begins with a row that only resets, and needs `ended` of the first one there."""
    first, second = walks(same_step=False, rollouts=2)
    assert not second.live[0].all()
    ended = check(NEXT_STEP, first, {"ended": np.zeros(N, bool)})["ended"]
    result = check(NEXT_STEP, second, {"ended": ended})
    np.testing.assert_array_equal(result["keep"], second.live)
    forgotten = results_of(NEXT_STEP, second.names | {"ended": np.zeros(N, bool)})["advantages"]
    assert difference(forgotten, np.asarray(result["advantages"])) > 0.01


def test_flags_of_the_first_observation():
    """Row t is about the step that led to its observation; the first reward is NaN, and not read."""
    (recording,) = walks(same_step=False)
    names = recording.names
    for name, first, rest in (
        ("rewards", np.nan, names["rewards"]),
        ("is_first", True, ~recording.live),
        ("is_terminal", False, names["terminated"]),
    ):
        names[name] = np.concatenate([np.full((1, N), first, rest.dtype), rest])
    np.testing.assert_array_equal(check(FIRST, recording)["keep"], recording.live)


def test_flags_that_contain_the_time_limit():
    """Each row of the page's table gives the two flags; the limit and a termination may coincide."""
    terminated, truncated = np.array([[1, 0, 0, 1], [0, 1, 0, 1]], bool)
    dones, only = terminated | truncated, truncated & ~terminated
    stored = {"terminated": terminated, "truncated": truncated, "dones": dones, "time_outs": only}
    stored |= {
        "done": dones * 1.0,
        "truncation": only * 1.0,
        "masks": np.array([1, *~dones]),
        "bad_masks": np.array([1, *~only]),
    }
    head = "| your code stores | contains the limit | `terminated` | `truncated` |"
    rows = [row[2:] for row in pages.table(PAGE, head)]
    assert len(rows) == 5
    for code in rows[:4]:
        flags = [np.asarray(eval(x.strip("`"), stored)) != 0 for x in code]
        np.testing.assert_array_equal(flags[0], terminated)
        np.testing.assert_array_equal(flags[1] & ~flags[0], only)


def test_stored_values_stand_for_the_critic():
    """The page's line for an agent that has stored V(s_t) and V(s_T)."""
    (recording,) = walks(same_step=True)
    *values, last_val = value_fn(recording.names["obs"])
    (code,) = re.findall(r"`(jnp\.concatenate\(\[traj_batch[^`]*)`\s+in its place", pages.read(PAGE))
    stored = {"jnp": jnp, "last_val": last_val, "traj_batch": types.SimpleNamespace(value=jnp.stack(values))}
    np.testing.assert_array_equal(eval(code, stored), value_fn(recording.names["obs"]))


# Flat lists of rows.


def test_interleaved_streams():
    """Rows in random order; the streams end where the list ends."""
    (recording,) = walks(same_step=True)
    rng = np.random.default_rng(0)
    logs = [log[: 60 - 7 * n] for n, log in enumerate(recording.logs)]
    rows = [(n, t, *x) for n, log in enumerate(logs) for t, x in enumerate(log)]
    where = rng.permutation(len(rows))
    ids, steps, obs, rewards, terminated, truncated, next_obs = (np.stack(x)[where] for x in zip(*rows, strict=True))
    names = {"ids": ids, "steps": steps, "rewards": rewards, "terminated": terminated, "truncated": truncated}
    names |= {"values": value_fn(obs), "next_values": value_fn(next_obs)}
    want = np.concatenate([reference(log) for log in logs])[where]
    inside = jax.jit(lambda names: results_of(STREAMS, names)["advantages"])
    assert difference(inside(names), want) < 1e-5
    assert difference(results_of(STREAMS, names, MISTAKES[STREAMS])["advantages"], want) > 0.01


def received(walk):
    """The rows that an asynchronous pool returns: the reward and the flags are about the step that led to obs."""
    rows = rows_of(walk, same_step=False)
    first = next(rows)
    yield first["obs"], np.float32(0), False, False
    for row in itertools.chain([first], rows):
        yield row["following"], row["rewards"], row["terminated"], row["truncated"]


def test_asynchronous_environments():
    """The second rollout begins with the last row of each environment, of which some end an episode."""
    workers, rng = [Walk(seed) for seed in range(N)], np.random.default_rng(3)
    columns = [received(walk) for walk in workers]
    rows = []
    for _ in range(2):
        rows += [(n, *next(columns[n])) for n in rng.integers(N, size=240)]
        env_ids, obs, rewards, terminated, truncated = (np.stack(x) for x in zip(*rows, strict=True))
        rows = [[x for x in rows if x[0] == n][-1] for n in range(N)]
        names = {"env_ids": env_ids, "obs": obs, "rewards": rewards, "terminated": terminated, "truncated": truncated}
        want = np.concatenate([reference(walk.log) for walk in workers])
        for walk in workers:
            walk.log.clear()
        result = results_of(ASYNC, names)
        assert difference(result["advantages"][result["keep"]], want) < 1e-5
        np.testing.assert_allclose(result["targets"], result["advantages"] + value_fn(obs)[result["rows"]], atol=1e-5)
        wrong = results_of(ASYNC, names, MISTAKES[ASYNC])
        assert difference(wrong["advantages"][result["keep"]], want) > 0.01
    assert any(end or cut for *_, end, cut in rows)


# A recurrent critic, and devices.


def recurrent_critic(hidden, obs, reset):
    hidden = jnp.tanh(0.9 * jnp.where(reset, 0, hidden) + obs[:, 0])
    return hidden, hidden + obs[:, 1]


def recurrent_values(obs):
    """The same for one episode from its first observation on, in float64."""
    hidden = np.zeros(len(obs) + 1)
    for t, x in enumerate(obs):
        hidden[t] = np.tanh(0.9 * hidden[t - 1] + x[0])
    return hidden[:-1] + obs[:, 1]


def recurrent_names(recording):
    """The hidden state before the rollout is not 0, but reset in the first row."""
    ends = recording.names["terminated"] | recording.names["truncated"]
    resets = np.concatenate([np.ones((1, N), bool), ends])
    names = {"final_obs": recording.names["next_obs"], "resets": resets, "ended": np.zeros(N, bool)}
    return names | {"critic": recurrent_critic, "hidden": jnp.ones(N)}


def test_recurrent_critic():
    """Each episode by itself, with its final observation; also with a pair as the hidden state, as the page has it."""
    (recording,) = walks(same_step=True)
    names = recurrent_names(recording)
    check(RECURRENT, recording, names, values_of=recurrent_values)
    after_reset = results_of(RECURRENT, recording.names | names, ("hiddens[:-1]", "hiddens[1:]"))["advantages"]
    printed = re.search(r"write `(jax\.tree\.map[^`]*)` for\s+`(hiddens\[:-1\])`", pages.read(PAGE)).groups()

    def critic(hidden, obs, reset):
        hidden, value = recurrent_critic(hidden[0], obs, reset)
        return (hidden, -hidden), value

    pair = names | {"critic": critic, "hidden": (names["hidden"], names["hidden"])}
    of_pair = results_of(RECURRENT, recording.names | pair, printed[::-1])["advantages"]
    assert difference(of_pair, results_of(RECURRENT, recording.names | names)["advantages"]) < 1e-6
    assert difference(after_reset, np.asarray(of_pair)) > 0.01


def test_recurrent_critic_in_the_next_step():
    """Where `resets[1:]` is `~mask`, as the page says, and not where it is the flags of the step before."""
    (recording,) = walks(same_step=False)
    names = recording.names | recurrent_names(recording)
    assert "if `resets[1:]` is `~mask`" in pages.read(PAGE)
    for resets in ~recording.live, names["resets"][1:]:
        names["resets"][1:] = resets
        values = results_of(RECURRENT, names)["values"]
        result = results_of(NEXT_STEP, names | {"value_fn": lambda _, values=values: values})["advantages"]
        want = np.concatenate([reference(log, recurrent_values) for log in recording.logs])
        right = difference(result.T[recording.live.T], want) < 1e-5
        assert right == (resets is not names["resets"][1:])


def test_workers_split_over_devices():
    """On a mesh as `jax.make_mesh` makes it; `normalize` sees all workers."""
    rng = np.random.default_rng(0)
    scales = np.arange(1, 2 * jax.device_count() + 1, dtype=np.float32)
    names = {"rewards": scales * rng.normal(size=(STEPS, len(scales))).astype(np.float32)}
    names |= {
        "values": 0 * names["rewards"][[0, *range(STEPS)]],
        "terminated": rng.random(names["rewards"].shape) < 0.1,
    }
    want, _ = oracle(**names, **PARAMETERS)
    want = (want - want.mean()) / want.std()
    assert difference(results_of(SPLIT, names)["advantages"], want) < 1e-5
    assert difference(results_of(SPLIT, names, MISTAKES[SPLIT])["advantages"], want) > 0.01


# Rows that are no samples.


def sample_lines(*, mask):
    """The lines of the page, the one of the mask if there is a mask."""
    (first, second, *others) = next(x for x in pages.blocks(PAGE) if x.startswith("keep = ")).splitlines(keepends=True)
    assert second.startswith("keep &= mask")
    return "".join([first, second if mask else "", *others])


def test_dropped_rows_are_no_samples():
    """The figure of the page: what `normalize` makes of them, and what it gives with the lines that are printed."""
    rewards = np.random.default_rng(0).normal(1, 1, (256, 8)).astype(np.float32)
    figures = r"time limit of (\d+) steps, γ = (\S+) and λ = (\S+), the normalized .* dropped rows was (-\d\.\d)"
    ((limit, *parameters, figure),) = re.findall(figures, pages.read(PAGE).replace("\n", " "))
    assert [float(x) for x in parameters] == [*PARAMETERS.values()]
    truncated = np.broadcast_to(np.arange(1, 257)[:, None] % int(limit) == 0, rewards.shape)
    advantages, _ = gae_jax.gae(rewards, 0 * rewards, False, truncated, **PARAMETERS, bootstrap_value=0.0)
    np.testing.assert_allclose(gae_jax.normalize(advantages)[truncated], float(figure), atol=0.05)
    names = {"advantages": advantages, "terminated": np.zeros(rewards.shape, bool), "truncated": truncated}
    names |= pages.imports(PAGE) | {"losses": np.where(truncated, np.nan, rewards)}
    result = pages.run(sample_lines(mask=False), names)
    assert not result["advantages"][truncated].any()
    live = result["advantages"][~truncated]
    np.testing.assert_allclose([live.mean(), live.std()], [0, 1], atol=1e-6)
    np.testing.assert_allclose(result["loss"], rewards[~truncated].mean(), rtol=1e-5)


@pytest.mark.parametrize("dtype", [bool, np.int32, np.float32])
def test_rows_that_are_kept(dtype):
    """`terminated` wins where both flags are set, so the row is not dropped; Brax's flags are floats."""
    terminated, truncated = jnp.asarray([[1, 1, 0, 0, 1], [0, 1, 1, 0, 0]], dtype)
    names = {"terminated": terminated, "truncated": truncated, "mask": np.array([1, 1, 1, 0, 0], bool)}
    names |= pages.imports(PAGE) | {"advantages": np.ones(5, np.float32), "losses": np.ones(5, np.float32)}
    for mask, want in (True, [1, 1, 0, 0, 0]), (False, [1, 1, 0, 1, 1]):
        np.testing.assert_array_equal(pages.run(sample_lines(mask=mask), names)["keep"], want)


def test_every_recipe_has_a_test_and_is_short():
    recipes = pages.recipes(PAGE)
    assert set(recipes) == set(MISTAKES)
    assert max(len(code.splitlines()) for code in recipes.values()) <= 14


# The wrappers that the page defines, and the libraries themselves.


def wrapper_of(heading, **names):
    """The class that a recipe defines."""
    body = ast.parse(pages.recipes(PAGE)[heading]).body
    exec(compile(ast.Module([x for x in body if isinstance(x, ast.ClassDef)], []), heading, "exec"), names)
    return names["KeepFinal"]


class OldParams(NamedTuple):
    max_steps_in_episode: Any
    replace = property(lambda self: self._replace)


class OldState(NamedTuple):
    place: Any
    time: Any


class OldWalk:
    """Has the methods of an environment of gymnax below 1.0: `done` contains the time limit."""

    def reset_env(self, key, params):
        return jnp.zeros(2), OldState(jnp.zeros(2), jnp.array(0))

    def step_env(self, key, state, action, params):
        state = OldState(state.place + action, state.time + 1)
        done = (state.place[0] > 1) | (state.time >= params.max_steps_in_episode)
        return state.place, state, jnp.float32(1), done, {"discount": jnp.float32(~done)}


class GymnaxWrapper:
    def __init__(self, env):
        self._env = env


@pytest.mark.parametrize("terminates", [True, False])
@pytest.mark.parametrize("limit", [LIMIT, LIMIT + 1])
def test_old_gymnax_wrapper(terminates, limit):
    """Finds the termination also where the limit is reached in the same step."""
    env = wrapper_of(OLD_GYMNAX, GymnaxWrapper=GymnaxWrapper, jax=jax, jnp=jnp)(OldWalk())
    state, action = OldState(jnp.zeros(2), jnp.array(LIMIT - 1)), jnp.array([2.0 if terminates else 0.5, 1.0])
    obs, state, _, done, info = jax.jit(env.step)(jax.random.key(0), state, action, OldParams(limit))
    assert (done, info["terminated"]) == (terminates or limit == LIMIT, terminates)
    np.testing.assert_array_equal(info["final_obs"], action)
    np.testing.assert_array_equal(obs, jnp.zeros(2) if done else action)
    assert state.time == (0 if done else LIMIT)


@contextlib.contextmanager
def as_libraries_are():
    """Environments rely on implicit promotion, and warn."""
    with warnings.catch_warnings(), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")
        yield


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP", "DISABLED"])
def test_rows_of_gymnasium(mode):
    gymnasium = pytest.importorskip("gymnasium", "1.1")

    class Env(gymnasium.Env):
        observation_space, action_space = gymnasium.spaces.Box(-9, 9, (2,)), gymnasium.spaces.Discrete(2)

        def __init__(self, seed):
            self.walk = Walk(seed)

        def reset(self, **_):
            return self.walk.reset(), {}

        def step(self, _):
            _, reward, terminated, truncated, obs = self.walk.step()
            return obs, float(reward), bool(terminated), truncated, {}

    envs = [functools.partial(Env, seed) for seed in range(N)]
    envs = gymnasium.vector.SyncVectorEnv(envs, autoreset_mode=gymnasium.vector.AutoresetMode[mode])
    columns = [rows_of(Walk(seed), same_step=mode != "NEXT_STEP") for seed in range(N)]
    obs, _ = envs.reset()
    for _ in range(STEPS):
        want = jax.tree.map(lambda *x: np.stack(x), *(next(column) for column in columns))
        np.testing.assert_array_equal(obs, want["obs"])
        obs, *row, infos = envs.step(np.zeros(N, int))
        ends = want["done"] != 0
        if mode == "DISABLED":
            np.testing.assert_array_equal(obs, want["next_obs"])
            obs = envs.reset(options={"reset_mask": ends})[0] if ends.any() else obs
        if mode == "SAME_STEP" and ends.any():
            np.testing.assert_array_equal(np.stack(infos["final_obs"][ends]), want["next_obs"][ends])
        for got, name in zip(row, ("rewards", "terminated", "truncated"), strict=True):
            np.testing.assert_allclose(got, want[name])


@pytest.mark.slow
@pytest.mark.parametrize("interface", ["gymnasium", "gym"])
def test_rows_of_envpool(interface):
    """The row after an end only resets: CartPole's step counter is 0 there, and its reward is 1 elsewhere."""
    with as_libraries_are():
        envpool = pytest.importorskip("envpool")
        envs = envpool.make("CartPole-v1", env_type=interface, num_envs=N, max_episode_steps=LIMIT, seed=0)
    rng, (obs, _), ended = np.random.default_rng(0), envs.reset(), np.zeros(N, bool)
    kinds = np.zeros(3, int)
    for _ in range(3 * STEPS):
        obs, rewards, terminated, truncated, info = envs.step(rng.integers(2, size=N).astype(np.int32))
        np.testing.assert_array_equal(info["elapsed_step"] == 0, ended)
        np.testing.assert_array_equal(rewards, ~ended)
        assert not (ended & (terminated | truncated)).any()
        assert np.abs(obs[ended]).max(initial=0) < 0.05  # a first observation
        kinds += [ended.sum(), terminated.sum(), truncated.sum()]
        ended = terminated | truncated
    assert kinds.min() >= 3


@pytest.mark.slow
def test_envpool_interfaces_that_the_page_advises_against():
    """A time limit looks like a termination in `dm`, and the step counter goes on after a lost life."""
    pytest.importorskip("dm_env")
    with as_libraries_are():
        envpool = pytest.importorskip("envpool")
        envs = envpool.make_dm("CartPole-v1", num_envs=1, seed=0, max_episode_steps=3)
        breakout = envpool.make_gymnasium("Breakout-v5", num_envs=1, seed=0, episodic_life=True)
    envs.reset()
    steps = [envs.step(np.zeros(1, np.int32)) for _ in range(3)]
    assert [(int(x.step_type[0]), float(x.discount[0])) for x in steps] == [(1, 1.0), (1, 1.0), (2, 0.0)]
    breakout.reset()
    assert any(breakout.step(np.ones(1, np.int32))[2][0] for _ in range(1000))
    _, rewards, terminated, truncated, info = breakout.step(np.ones(1, np.int32))
    assert (rewards[0], terminated[0], truncated[0], info["lives"][0]) == (0, False, False, 4)
    assert info["elapsed_step"][0] > 0


@pytest.mark.slow
def test_final_observation_of_gymnax():
    """`step_env` from the same state is the transition without the reset."""
    gymnax = pytest.importorskip("gymnax")
    env, params = gymnax.make("CartPole-v1")
    key, params = jax.random.key(0), params.replace(max_steps_in_episode=LIMIT)
    with as_libraries_are():
        _, state = env.reset(key, params)
        for t in range(1, LIMIT + 1):
            final_obs, *_ = env.step_env(key, state, t % 2, params)
            obs, state, _, terminated, truncated, info = env.step(key, state, t % 2, params)
            np.testing.assert_array_equal(info["final_observation"], final_obs)
            assert (bool(terminated), bool(truncated)) == (False, t == LIMIT)
    assert np.abs(obs - final_obs).max() > 1e-3  # the reset overwrites it


class JaxWalk(NamedTuple):
    """An environment with the methods of Brax and Playground, in the state class of either."""

    state_of: Any

    def reset(self, rng):
        place = jax.random.uniform(rng, (2,), minval=-1, maxval=1)
        return self.state_of(place, place, jnp.zeros(()), jnp.zeros(()), {}, {})

    def step(self, state, action):
        place = state.obs + jnp.array([0.5, -0.25]) * action
        return state.replace(obs=place, reward=place[1], done=(place[0] > 1).astype(jnp.float32))


@pytest.mark.slow
@pytest.mark.parametrize("heading", [BRAX_FINAL, PLAYGROUND])
def test_wrappers_of_brax_and_playground(heading):
    """The walk without any wrapper, from the same states, has the final observations and the terminations."""
    training, envs = (pytest.importorskip(f"brax.envs{x}") for x in (".wrappers.training", ""))
    playground = pytest.importorskip("mujoco_playground") if heading == PLAYGROUND else types.SimpleNamespace()
    reset = training.AutoResetWrapper
    if heading == PLAYGROUND:
        reset = functools.partial(playground.wrapper.BraxAutoResetWrapper, full_reset=True)
    env = JaxWalk(playground.State if heading == PLAYGROUND else envs.State)
    wrapped = training.EpisodeWrapper(training.VmapWrapper(env), LIMIT, action_repeat=1)
    keep_final = wrapper_of(heading, brax=types.SimpleNamespace(envs=envs), mujoco_playground=playground)
    wrapped, true_step, ages, kinds = reset(keep_final(wrapped)), jax.vmap(env.step), np.zeros(N), np.zeros(3, int)
    with as_libraries_are():
        state = wrapped.reset(jax.random.split(jax.random.PRNGKey(0), N))
        for t in range(STEPS):
            actions = jax.random.uniform(jax.random.key(t), (N, 1), minval=-1, maxval=1)
            true, state, ages = true_step(state, actions), jax.jit(wrapped.step)(state, actions), ages + 1
            kept, terminated, limit = state.info, np.asarray(true.done) > 0, ages == LIMIT
            if heading == PLAYGROUND:
                assert not kept["truncation"].any()  # why the recipe keeps it elsewhere
                kept = kept["AutoResetWrapper_preserve_info"]
            np.testing.assert_array_equal(state.done, terminated | limit)
            np.testing.assert_array_equal(kept["truncation"], limit & ~terminated)
            np.testing.assert_allclose(kept["final_obs" if heading == BRAX_FINAL else "obs"], true.obs, rtol=1e-6)
            moved = np.abs(state.obs - true.obs).max(axis=1) > 1e-3
            np.testing.assert_array_equal(moved, terminated | limit)  # the reset overwrites the observation
            kinds += [terminated.sum(), limit.sum(), N]
            ages = np.where(state.done, 0, ages)
    assert kinds.min() >= 3
