"""Each recipe of examples/guides/environments.md, run as printed on the kind of reset that it is for.

A small environment logs its transitions as they are before any reset. The oracle takes them episode by episode, so
nothing of the resetting is in the reference. Tests marked `slow` compare the environment with those of the libraries.
"""

import ast
import collections
import functools
import itertools
import warnings
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import pages
from support.oracle import oracle

PAGE = "examples/guides/environments.md"
N, STEPS = 4, 60
LIMIT = 12  # steps: short enough for time limits and terminations both to be frequent
PARAMETERS = {"gamma": 0.99, "lambda_": 0.95}
NEXT_STEP, OLD_GYMNAX = "gymnasium, `AutoresetMode.NEXT_STEP`, and envpool", "gymnax below 1.0"
BRAX, BRAX_FINAL = "Brax, its own wrappers", "Brax, the final observation kept"
PLAYGROUND, FIRST = "MuJoCo Playground, `full_reset=True`", "dm_env, jumanji and Dreamer's replay"
RECURRENT, STREAMS, ASYNC = "A recurrent critic", "Interleaved streams by id", "envpool, asynchronous"
SPLIT = "Workers split over devices"

# A mistake in each recipe, which its test must find: what is printed, and what stands there instead.
SAME_STEP = {
    "gymnasium, `AutoresetMode.SAME_STEP`": ("value_fn(final_obs)", "value_fn(obs)[1:]"),
    "gymnasium, `AutoresetMode.DISABLED`": ("value_fn(next_obs)", "value_fn(obs)[1:]"),
    "gymnax": ('value_fn(info["final_observation"])', "value_fn(obs)[1:]"),
    OLD_GYMNAX: ('info["terminated"], done', "done, done"),
    BRAX: ("done * (1 - truncated)", "done"),
    BRAX_FINAL: ("done * (1 - truncated)", "done"),
    PLAYGROUND: ("done * (1 - truncated)", "done"),
}
MISTAKES = SAME_STEP | {
    NEXT_STEP: ("mask=mask, ", ""),
    FIRST: ("rewards[1:]", "jnp.nan_to_num(rewards[:-1])"),
    RECURRENT: ("jnp.zeros_like(resets[1:])", "resets[1:]"),
    STREAMS: ("jnp.lexsort((steps, ids))", "jnp.argsort(ids, stable=True)"),
    ASYNC: ("end[1:] & ~no_step", "end[1:]"),
    SPLIT: (', axis_name="workers"', ""),
}


# The environment, and what libraries return of it.


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

    def begin(self):
        self.place, self.time = self.rng.uniform(-1, 1, 2).astype(np.float32), 0
        return self.place

    def move(self):
        obs, self.time = self.place, self.time + 1
        self.place = obs + np.float32(self.rng.uniform(-1, 1)) * np.array([0.5, -0.25], np.float32)
        self.log.append(Transition(obs, self.place[1], self.place[0] > 1, self.time == LIMIT, self.place))
        return self.log[-1]


def rows_of(walk, same_step):
    """The rows of one worker: the step that ends an episode also resets, or the step after it only resets."""
    obs, resets = walk.begin(), False
    while True:
        last = Transition(obs, np.float32(0), False, False, walk.begin()) if resets else walk.move()
        ended, final = last.terminated | last.truncated, last.next_obs
        following = walk.begin() if ended and same_step else final
        kept = {"truncation": np.float32(last.truncated & ~last.terminated), "obs": final}
        info = {"final_obs": final, "final_observation": final, "terminated": last.terminated} | kept
        info["AutoResetWrapper_preserve_info"] = kept
        row = last._asdict() | {"obs": obs, "following": following, "info": info, "done": np.float32(ended)}
        yield row | {"rewards": last.reward, "live": not resets}
        obs, resets = following, ended and not same_step


def batch(columns):
    return jax.tree.map(lambda *x: np.stack(x), *(next(column) for column in columns))


def rollouts(same_step, count=1):
    """Yields rollouts of the workers, one after another: what recipes use, and the log of each worker."""
    walks = [Walk(seed) for seed in range(N)]
    columns = [rows_of(walk, same_step) for walk in walks]
    for _ in range(count):
        names = jax.tree.map(lambda *x: np.stack(x), *(batch(columns) for _ in range(STEPS)))
        names["obs"] = np.concatenate([names["obs"], names["following"][-1:]])
        names["infos"] = [{"final_obs": x} for x in names["next_obs"]]
        assert names["info"]["truncation"].sum() >= 3 <= names["terminated"].sum()
        yield names, [walk.log for walk in walks]
        for walk in walks:
            walk.log = []


# The comparison.


def value_fn(obs):
    """A critic: linear, with random weights."""
    return jnp.asarray(obs, jnp.float32) @ np.array([0.7, -1.3], np.float32)


def values_of(log):
    """V(s_t) and V(s_{t+1}) of a log, by the critic without a state."""
    return value_fn(np.stack([x.obs for x in log])), value_fn(np.stack([x.next_obs for x in log]))


def reference(log, values_of=values_of, lost=False):
    """The advantage of each transition of one worker, an episode at a time; `lost`: final observations are unknown."""
    values, next_values = values_of(log)
    _, rewards, terminated, truncated, _ = (np.stack(x) for x in zip(*log, strict=True))
    known = {"final_values": None if lost else next_values, "bootstrap_value": next_values[-1]}
    return oracle(rewards, values, terminated, truncated, **known, **PARAMETERS)[0]


def results_of(heading, names, change=("", "")):
    """What the recipe computes; one that prints no call of `gae` goes on with the call that the page prints once."""
    code = pages.recipes(PAGE)[heading]
    assert change[0] in code
    (call,) = (x for x in pages.blocks(PAGE) if x.startswith("advantages, targets = gae("))
    code = code.replace(*change) + ("" if "gae(" in code else call)
    bases = {"GymnaxWrapper": object, "brax": SimpleNamespace(envs=SimpleNamespace(Wrapper=object))}
    bases["mujoco_playground"] = SimpleNamespace(wrapper=SimpleNamespace(Wrapper=object))
    return pages.run(code, pages.imports(PAGE) | PARAMETERS | bases | {"value_fn": value_fn} | names)


def difference(got, want):
    """The largest, relative to the root mean square."""
    return np.abs(np.asarray(got) - want).max() / np.sqrt(np.mean(np.square(want)))


def check_against(want, heading, names):
    """Asserts that the advantages of the recipe are `want`, and those of the recipe with its mistake are not."""
    result, wrong = results_of(heading, names), results_of(heading, names, MISTAKES[heading])
    assert difference(result["advantages"], want) < 1e-5 < 1e-2 < difference(wrong["advantages"], want)
    return result


def check(heading, names, logs, **how):
    """Asserts that the recipe gives each transition its advantage within its own episode."""
    want = np.zeros((STEPS, N))
    for n, log in enumerate(logs):
        want[names["live"][:, n], n] = reference(log, **how)
    return check_against(want, heading, names)


# The kinds of resets.


@pytest.mark.parametrize("heading", SAME_STEP)
def test_reset_in_the_same_step(heading):
    """The names of all libraries hold the same data."""
    ((names, logs),) = rollouts(same_step=True)
    result = check(heading, names, logs, lost=heading == BRAX)
    np.testing.assert_array_equal(result.get("keep", True), (names["info"]["truncation"] == 0) | (heading != BRAX))


def test_reset_in_the_next_step():
    """The second rollout begins with a row that only resets, and needs `ended` of the first one there."""
    none, two = {"ended": np.zeros(N, bool)}, rollouts(same_step=False, count=2)
    names, logs = next(two)
    ended = check(NEXT_STEP, names | none, logs)["ended"]
    names, logs = next(two)
    assert not names["live"][0].all()
    result = check(NEXT_STEP, names | {"ended": ended}, logs)
    np.testing.assert_array_equal(result["keep"], names["live"])
    assert difference(results_of(NEXT_STEP, names | none)["advantages"], result["advantages"]) > 0.01


def test_flags_of_the_first_observation():
    """Row t is about the step that led to its observation; the first reward is NaN, and not read."""
    ((names, logs),) = rollouts(same_step=False)
    shifted = {"rewards": names["rewards"], "is_first": ~names["live"], "is_terminal": names["terminated"]}
    first = {"rewards": np.float32(np.nan), "is_first": True, "is_terminal": False}
    names |= {name: np.concatenate([np.full((1, N), first[name]), x]) for name, x in shifted.items()}
    np.testing.assert_array_equal(check(FIRST, names, logs)["keep"], names["live"])


def test_flags_that_contain_the_time_limit():
    """Each row of the page's table gives the two flags; the limit and a termination may coincide."""
    terminated, truncated = np.array([[1, 0, 0, 1], [0, 1, 0, 1]], bool)
    dones, only = terminated | truncated, truncated & ~terminated
    names = {"terminated": terminated, "truncated": truncated, "dones": dones, "time_outs": only}
    names |= {"done": dones * 1.0, "truncation": only * 1.0}
    names |= {"masks": np.array([1, *~dones]), "bad_masks": np.array([1, *~only])}
    rows = pages.table(PAGE, "| your code stores | contains the limit | `terminated` | `truncated` |")
    for _, _, *codes in rows[:-1]:  # the last one links to a recipe
        flags = [np.asarray(eval(x.strip("`"), names)) != 0 for x in codes]
        np.testing.assert_array_equal([flags[0], flags[1] & ~flags[0]], [terminated, only])


# Flat lists of rows.


def test_interleaved_streams():
    """Rows in random order, inside jit; the streams have different lengths."""
    ((_, logs),) = rollouts(same_step=True)
    logs = [log[: STEPS - 7 * n] for n, log in enumerate(logs)]
    rows = [(n, t, *x) for n, log in enumerate(logs) for t, x in enumerate(log)]
    where = np.random.default_rng(0).permutation(len(rows))
    ids, steps, obs, rewards, terminated, truncated, next_obs = (np.stack(x)[where] for x in zip(*rows, strict=True))
    names = {"ids": ids, "steps": steps, "rewards": rewards, "terminated": terminated, "truncated": truncated}
    names |= {"values": value_fn(obs), "next_values": value_fn(next_obs)}
    result = check_against(np.concatenate([reference(log) for log in logs])[where], STREAMS, names)
    inside = jax.jit(lambda names: results_of(STREAMS, names)["advantages"])
    np.testing.assert_allclose(inside(names), result["advantages"], atol=1e-5)


def received(walk):
    """What an asynchronous pool returns of a worker: the reward and the flags of the step that led to obs."""
    rows = rows_of(walk, same_step=False)
    first = next(rows)
    yield first["obs"], np.float32(0), False, False
    for row in itertools.chain([first], rows):
        yield row["following"], row["rewards"], row["terminated"], row["truncated"]


def test_asynchronous_environments():
    """The second rollout begins with the last row of each environment; in that of the last one, an episode ended."""
    walks, rng, rows = [Walk(seed) for seed in range(N)], np.random.default_rng(0), []
    columns = [received(walk) for walk in walks]
    for error_of_mistake in 0, 0.01:  # the mistake is in the rows of the earlier rollout
        rows += [(n, *next(columns[n])) for n in rng.integers(N, size=240)]
        while not rows[-1][3]:
            rows.append((N - 1, *next(columns[N - 1])))
        columns_of_rows = [np.stack(x) for x in zip(*rows, strict=True)]
        names = dict(zip(("env_ids", "obs", "rewards", "terminated", "truncated"), columns_of_rows, strict=True))
        rows = [[x for x in rows if x[0] == n][-1] for n in range(N)]
        want = np.concatenate([reference(walk.log) for walk in walks])
        for walk in walks:
            walk.log = []
        result, wrong = results_of(ASYNC, names), results_of(ASYNC, names, MISTAKES[ASYNC])
        assert difference(result["advantages"][result["keep"]], want) < 1e-5
        values = result["targets"] - result["advantages"]
        np.testing.assert_allclose(values, value_fn(names["obs"])[result["rows"]], atol=1e-5)
        assert difference(wrong["advantages"][result["keep"]], want) >= error_of_mistake


# A recurrent critic, and devices.


def critic(hidden, obs, reset):
    hidden = jnp.tanh(0.9 * jnp.where(reset, 0, hidden) + obs[:, 0])
    return hidden, hidden + obs[:, 1]


def recurrent_values(log):
    """The same in float64, each episode from its first observation on."""
    hidden, pairs = 0.0, []
    for obs, _, terminated, truncated, next_obs in log:
        hidden = np.tanh(0.9 * hidden + obs[0])
        pairs.append((hidden + obs[1], np.tanh(0.9 * hidden + next_obs[0]) + next_obs[1]))
        hidden = 0.0 if terminated or truncated else hidden
    return np.transpose(pairs)


@pytest.mark.parametrize("same_step", [True, False])
def test_recurrent_critic(same_step):
    """With NEXT_STEP, its values are right if `resets[1:]` is `~mask`, as the page says, and not the flags before."""
    ((names, logs),) = rollouts(same_step)
    first, ends = np.ones((1, N), bool), names["done"] != 0
    resets = ends if same_step else ~names["live"]
    names |= {"critic": critic, "hidden": jnp.ones(N), "final_obs": names["next_obs"], "ended": np.zeros(N, bool)}
    names |= {"resets": np.concatenate([first, resets])}
    if same_step:
        check(RECURRENT, names, logs, values_of=recurrent_values)
        return
    assert "if `resets[1:]` is `~mask`" in pages.read(PAGE)
    values = results_of(RECURRENT, names)["values"]
    check(NEXT_STEP, names | {"value_fn": lambda _: values}, logs, values_of=recurrent_values)
    wrong = results_of(RECURRENT, names | {"resets": np.concatenate([first, ends])})["values"]
    assert difference(wrong[:-1][names["live"]], np.asarray(values[:-1])[names["live"]]) > 0.01


def test_workers_split_over_devices():
    """On a mesh as `jax.make_mesh` makes it; `normalize` sees all workers."""
    rng, workers = np.random.default_rng(0), 2 * jax.device_count()
    rewards, values = (rng.normal(size=(n, workers)).astype(np.float32) for n in (STEPS, STEPS + 1))
    names = {"rewards": rewards * np.arange(workers, dtype=np.float32), "values": values}
    names["terminated"] = rng.random(rewards.shape) < 0.1
    want, _ = oracle(**names, **PARAMETERS)
    check_against((want - want.mean()) / want.std(), SPLIT, names)


# Rows that are no samples.


@pytest.mark.parametrize("dtype", [bool, np.int32, np.float32])
@pytest.mark.parametrize("masked", [True, False])
def test_rows_that_are_kept(dtype, masked):
    """`terminated` wins where both flags are set, so the row is not dropped; Brax's flags are floats."""
    (code,) = (x for x in pages.blocks(PAGE) if x.startswith("keep = "))
    code = code if masked else "".join(x for x in code.splitlines(keepends=True) if not x.startswith("keep &= mask"))
    terminated, truncated = jnp.asarray([[1, 1, 0, 0, 1, 0], [0, 1, 1, 0, 0, 0]], dtype)
    names = {"terminated": terminated, "truncated": truncated, "mask": np.array([1, 1, 1, 0, 0, 1], bool)}
    names |= {"advantages": np.array([1, 3, 0, 0, 5, 3], np.float32), "losses": np.arange(6, dtype=np.float32)}
    result = pages.run(code, pages.imports(PAGE) | names)
    keep = np.array([1, 1, 0, 0, 0, 1] if masked else [1, 1, 0, 1, 1, 1], bool)
    np.testing.assert_array_equal(result["keep"], keep)
    np.testing.assert_allclose(result["loss"], np.flatnonzero(keep).mean())
    np.testing.assert_allclose(result["advantages"][keep].mean(), 0, atol=1e-6)
    assert not result["advantages"][~keep].any()


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


OldState = collections.namedtuple("OldState", "place time")


def old_step_env(key, state, action, params):
    """As in gymnax below 1.0: `done` has the limit in it."""
    state = OldState(state.place + action, state.time + 1)
    return state.place, state, 1.0, (state.place[0] > 1) | (state.time >= params.max_steps_in_episode), {}


@pytest.mark.parametrize("terminates", [True, False])
@pytest.mark.parametrize("limit", [LIMIT, LIMIT + 1])
def test_old_gymnax_wrapper(terminates, limit):
    """Finds the termination also where the limit is reached in the same step."""
    first = OldState(jnp.zeros(2), jnp.array(0))
    inner = SimpleNamespace(step_env=old_step_env, reset_env=lambda *_: (first.place, first))
    env = wrapper_of(OLD_GYMNAX, GymnaxWrapper=SimpleNamespace, jax=jax, jnp=jnp)(_env=inner)
    params = SimpleNamespace(max_steps_in_episode=limit, replace=lambda **changes: SimpleNamespace(**changes))
    state, action = OldState(jnp.zeros(2), jnp.array(LIMIT - 1)), jnp.array([2.0 if terminates else 0.5, 1.0])
    obs, state, _, done, info = env.step(jax.random.key(0), state, action, params)
    assert (done, info["terminated"]) == (terminates or limit == LIMIT, terminates)
    np.testing.assert_array_equal(info["final_obs"], action)
    np.testing.assert_array_equal(obs, jnp.zeros(2) if done else action)
    assert state.time == (0 if done else LIMIT)


@pytest.fixture
def as_libraries_are():
    """Environments rely on implicit promotion, and warn."""
    with warnings.catch_warnings(), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")
        yield


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP", "DISABLED"])
def test_rows_of_gymnasium(mode):
    gymnasium = pytest.importorskip("gymnasium", "1.1")

    class Env(Walk, gymnasium.Env):
        observation_space, action_space = gymnasium.spaces.Box(-9, 9, (2,)), gymnasium.spaces.Discrete(2)

        def reset(self, **_):
            return self.begin(), {}

        def step(self, _):
            _, reward, terminated, truncated, obs = self.move()
            return obs, float(reward), bool(terminated), truncated, {}

    envs = [functools.partial(Env, seed) for seed in range(N)]
    envs = gymnasium.vector.SyncVectorEnv(envs, autoreset_mode=gymnasium.vector.AutoresetMode[mode])
    columns = [rows_of(Walk(seed), same_step=mode != "NEXT_STEP") for seed in range(N)]
    obs, _ = envs.reset()
    for want in (batch(columns) for _ in range(STEPS)):
        np.testing.assert_array_equal(obs, want["obs"])
        obs, *row, infos = envs.step(np.zeros(N, int))
        np.testing.assert_allclose(row, [want[name] for name in ("rewards", "terminated", "truncated")])
        if (ends := want["done"] != 0).any() and mode != "NEXT_STEP":
            final_obs = obs[ends] if mode == "DISABLED" else np.stack(infos["final_obs"][ends])
            np.testing.assert_array_equal(final_obs, want["next_obs"][ends])
            obs = envs.reset(options={"reset_mask": ends})[0] if mode == "DISABLED" else obs


@pytest.mark.slow
@pytest.mark.parametrize("interface", ["gymnasium", "gym"])
def test_rows_of_envpool(interface, as_libraries_are):
    """The row after an end only resets: CartPole's step counter is 0 there, and its reward is 1 elsewhere."""
    envpool = pytest.importorskip("envpool")
    envs = envpool.make("CartPole-v1", env_type=interface, num_envs=N, max_episode_steps=LIMIT, seed=0)
    rng, (obs, _), ended, kinds = np.random.default_rng(0), envs.reset(), np.zeros(N, bool), np.zeros(2)
    for _ in range(3 * STEPS):
        obs, rewards, terminated, truncated, info = envs.step(rng.integers(2, size=N).astype(np.int32))
        np.testing.assert_array_equal([info["elapsed_step"] == 0, rewards == 0], [ended, ended])
        assert not (ended & (terminated | truncated)).any()
        assert np.abs(obs[ended]).max(initial=0) < 0.05  # a first observation
        ended, kinds = terminated | truncated, np.add(kinds, [terminated.sum(), truncated.sum()])
    assert kinds.min() >= 3


@pytest.mark.slow
def test_final_observation_of_gymnax(as_libraries_are):
    """`step_env` from the same state is the transition without the reset."""
    gymnax = pytest.importorskip("gymnax")
    env, params = gymnax.make("CartPole-v1")
    key, params = jax.random.key(0), params.replace(max_steps_in_episode=LIMIT)
    _, state = env.reset(key, params)
    for t in range(1, LIMIT + 1):
        final_obs, *_ = env.step_env(key, state, t % 2, params)
        obs, state, _, terminated, truncated, info = env.step(key, state, t % 2, params)
        np.testing.assert_allclose(info["final_observation"], final_obs, rtol=1e-5)
        assert (bool(terminated), bool(truncated)) == (False, t == LIMIT)
        assert (np.abs(obs - final_obs).max() > 1e-3) == (t == LIMIT)  # the reset overwrites it


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
def test_wrappers_of_brax_and_playground(heading, as_libraries_are):
    """The walk without any wrapper, from the same states, has the final observations and the terminations."""
    training, envs = (pytest.importorskip(f"brax.envs{x}") for x in (".wrappers.training", ""))
    playground = pytest.importorskip("mujoco_playground") if heading == PLAYGROUND else None
    env = JaxWalk(playground.State if playground else envs.State)
    wrapped = training.EpisodeWrapper(training.VmapWrapper(env), LIMIT, action_repeat=1)
    wrapped = wrapper_of(heading, brax=SimpleNamespace(envs=envs), mujoco_playground=playground)(wrapped)
    if playground:
        wrapped = playground.wrapper.BraxAutoResetWrapper(wrapped, full_reset=True)
    else:
        wrapped = training.AutoResetWrapper(wrapped)
    state = wrapped.reset(jax.random.split(jax.random.PRNGKey(0), N))
    step, true_step, ages, kinds = jax.jit(wrapped.step), jax.vmap(env.step), np.zeros(N), np.zeros(2)
    for t in range(STEPS):
        actions = jax.random.uniform(jax.random.key(t), (N, 1), minval=-1, maxval=1)
        true, state, ages = true_step(state, actions), step(state, actions), ages + 1
        terminated, limit, kept = np.asarray(true.done) > 0, ages == LIMIT, state.info
        if playground:
            assert not kept["truncation"].any()  # why the recipe keeps it elsewhere
            kept = kept["AutoResetWrapper_preserve_info"]
        np.testing.assert_array_equal(state.done, terminated | limit)
        np.testing.assert_array_equal(kept["truncation"], limit & ~terminated)
        np.testing.assert_allclose(kept["obs" if playground else "final_obs"], true.obs, rtol=1e-6)
        overwritten = np.abs(state.obs - true.obs).max(axis=1) > 1e-3
        np.testing.assert_array_equal(overwritten, terminated | limit)
        ages, kinds = np.where(state.done, 0, ages), np.add(kinds, [terminated.sum(), limit.sum()])
    assert kinds.min() >= 3
