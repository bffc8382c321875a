"""Each recipe of examples/guides/environments.md, run as printed on the kind of reset that it is for.

gymnasium steps a small environment that knows its final observations, and which steps were made. The oracle takes
these steps episode by episode, so nothing of the resetting is in the reference.
"""

import collections
from types import SimpleNamespace
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from support import pages
from support.oracle import oracle, standardized

pytestmark = pytest.mark.usefixtures("fast_compilation")
PAGE = "examples/guides/environments.md"
N, STEPS = 4, 64
LIMIT = 12  # steps: short enough for time limits and terminations both to be frequent
NO_WORKER, ALL_WORKERS = np.zeros(N, bool), np.ones(N, bool)
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


# The environment, and the comparison.


class Walk(gymnasium.Env[Any, Any]):
    """Adds random steps to a random place, terminates beyond a bound, and is cut off at a limit."""

    observation_space, action_space = gymnasium.spaces.Box(-9, 9, (2,)), gymnasium.spaces.Discrete(2)

    def __init__(self, seed):
        self.rng, self.moves = np.random.default_rng(seed), 0

    def reset(self, **_):
        self.place, self.age = self.rng.uniform(-1, 1, 2).astype(np.float32), 0
        return self.place, {}

    def step(self, action):
        self.place = self.place + np.float32(self.rng.uniform(-1, 1)) * np.array([0.5, -0.25], np.float32)
        self.final, self.age, self.moves = self.place, self.age + 1, self.moves + 1
        return self.place, float(self.place[1]), bool(self.place[0] > 0.5), self.age == LIMIT, {}


def rollout(mode, first=0):
    """What N environments return from row `first` on. `live`: a step was made; `final`: its own next observation."""
    walks = [Walk(seed) for seed in range(N)]
    makers = [lambda walk=walk: walk for walk in walks]
    envs = gymnasium.vector.SyncVectorEnv(makers, autoreset_mode=gymnasium.vector.AutoresetMode[mode])
    obs, rows = [envs.reset()[0]], []
    for _ in range(first + STEPS):
        next_obs, rewards, terminated, truncated, infos = envs.step(np.zeros(N, int))
        final, moves = np.stack([walk.final for walk in walks]), np.array([walk.moves for walk in walks])
        rows.append((next_obs, rewards, terminated, truncated, infos, final, moves))
        ends = terminated | truncated
        by_hand = mode == "DISABLED" and ends.any()
        obs.append(envs.reset(options={"reset_mask": ends})[0] if by_hand else next_obs)
    columns = ("next_obs", "rewards", "terminated", "truncated", "infos", "final", "moves")
    names = dict(zip(columns, map(np.stack, zip(*rows, strict=True)), strict=True)) | {"obs": np.stack(obs)}
    names["live"] = np.diff(names.pop("moves"), axis=0, prepend=0) == 1
    names = {name: x[first:] for name, x in names.items()}
    assert [names[kind].any(axis=0).all() for kind in ("terminated", "truncated")] == [True, True]  # in each worker
    return names


def value_fn(obs):
    """A critic: linear, with random weights."""
    return jnp.asarray(obs, jnp.float32) @ np.array([0.7, -1.3], np.float32)


def reference(names, *values, lost=False):
    """The advantages of the steps that were made; `lost`: final observations are unknown."""
    values, final_values = values or map(value_fn, (names["obs"], names["final"]))
    arrays = {name: names[name] for name in ("rewards", "terminated", "truncated")}
    arrays |= {"values": values, "final_values": None if lost else final_values, "mask": names["live"]}
    advantages, _ = oracle(**arrays, **PARAMETERS)
    return advantages


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


def check(heading, names, want):
    """Asserts that the advantages of the recipe are `want`, and those of the recipe with its mistake are not."""
    result, wrong = results_of(heading, names), results_of(heading, names, MISTAKES[heading])
    assert difference(result["advantages"], want) < 1e-5 < 1e-2 < difference(wrong["advantages"], want)
    return result


# The kinds of resets.


@pytest.mark.parametrize("heading", SAME_STEP)
def test_reset_in_the_same_step(heading):
    """The other libraries return under their names what gymnasium returns."""
    names = rollout("DISABLED" if "DISABLED" in heading else "SAME_STEP")
    final, terminated = names["final"], names["terminated"]
    kept = {"truncation": np.float32(names["truncated"] & ~terminated), "obs": final}
    info = kept | {"final_obs": final, "final_observation": final, "terminated": terminated}
    info["AutoResetWrapper_preserve_info"] = kept
    done = np.float32(terminated | names["truncated"])
    result = check(heading, names | {"info": info, "done": done}, reference(names, lost=heading == BRAX))
    np.testing.assert_array_equal(result.get("keep", True), (kept["truncation"] == 0) | (heading != BRAX))


def test_reset_in_the_next_step():
    """The second rollout begins with a row that only resets, and needs `ended` of the first one there."""
    ended = NO_WORKER
    for names in rollout("NEXT_STEP"), rollout("NEXT_STEP", first=STEPS):
        result = check(NEXT_STEP, names | {"ended": ended}, reference(names))
        np.testing.assert_array_equal(result["keep"], names["live"])
        ended = result["ended"]
    assert not names["live"][0].all()
    without_ended = results_of(NEXT_STEP, names | {"ended": NO_WORKER})["advantages"]
    assert difference(without_ended, reference(names)) > 0.01


def test_flags_of_the_first_observation():
    """Row t is about the step that led to its observation; the first reward is NaN, and not read."""
    names = rollout("NEXT_STEP")
    shifted = {"rewards": names["rewards"], "is_first": ~names["live"], "is_terminal": names["terminated"]}
    first = {"rewards": np.nan, "is_first": True, "is_terminal": False}
    shifted = {name: np.concatenate([np.full((1, N), first[name]), x]) for name, x in shifted.items()}
    result = check(FIRST, names | shifted, reference(names))
    np.testing.assert_array_equal(result["keep"], names["live"])


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


def steps_between(names, starts, stops):
    """The steps of each worker from one row to another: no others are live, and the last one bootstraps."""
    time = np.arange(STEPS)[:, None]
    live, truncated = names["live"] & (time >= starts) & (time < stops), names["truncated"] | (time == stops - 1)
    return names | {"live": live, "truncated": truncated}


def test_interleaved_streams():
    """Rows in random order, inside jit; the streams have different lengths."""
    names, rng = rollout("SAME_STEP"), np.random.default_rng(0)
    part = steps_between(names, 0, STEPS - 7 * np.arange(N))
    steps, ids = rng.permutation(np.argwhere(part["live"])).T
    rows = {name: names[name][steps, ids] for name in ("rewards", "terminated", "truncated", "obs", "final")}
    rows |= {"ids": ids, "steps": steps, "values": value_fn(rows["obs"]), "next_values": value_fn(rows["final"])}
    result = check(STREAMS, rows, reference(part)[steps, ids])
    inside = jax.jit(lambda rows: results_of(STREAMS, rows)["advantages"])
    np.testing.assert_allclose(inside(rows), result["advantages"], atol=1e-5)


def test_asynchronous_environments():
    """Rows of four environments, interleaved at random; the first row of the last one ends an episode."""
    names, rng = rollout("NEXT_STEP"), np.random.default_rng(0)
    starts, stops = np.array([0, 3, 5, 1 + names["terminated"][:, -1].argmax()]), STEPS - 7 * np.arange(N)
    time = np.arange(STEPS + 1)[:, None]
    workers, times = np.nonzero(((time >= starts) & (time <= stops)).T)  # of each row, one worker after another
    ids, received = rng.permutation(workers), np.zeros_like(times)
    received[np.argsort(ids, stable=True)] = times  # of each row as it arrives, in order within a worker
    returned = {name: np.pad(names[name], [(1, 0), (0, 0)]) for name in ("rewards", "terminated", "truncated")}
    rows = {name: x[received, ids] for name, x in (returned | {"obs": names["obs"]}).items()} | {"env_ids": ids}
    want = np.pad(reference(steps_between(names, starts, stops)), [(0, 1), (0, 0)])[times, workers][:-1]
    result = check(ASYNC, rows, want)
    np.testing.assert_array_equal(result["keep"], want != 0)
    values = result["targets"] - result["advantages"]
    np.testing.assert_allclose(values, value_fn(rows["obs"])[result["rows"]], atol=1e-5)


# A recurrent critic, and devices.


def critic(hidden, obs, reset):
    hidden = jnp.tanh(0.9 * jnp.where(reset, 0, hidden) + obs[:, 0])
    return hidden, hidden + obs[:, 1]


def recurrent_values(obs, first, final):
    """The values of the observations, and of the final ones, in float64; each episode from its first observation on."""
    hidden = np.zeros((STEPS + 2, N))
    for t in range(STEPS + 1):
        hidden[t] = np.tanh(0.9 * hidden[t - 1] * ~first[t] + obs[t, :, 0])
    return hidden[:-1] + obs[..., 1], np.tanh(0.9 * hidden[:-2] + final[..., 0]) + final[..., 1]


@pytest.mark.parametrize("mode", ["SAME_STEP", "NEXT_STEP"])
def test_recurrent_critic(mode):
    """With NEXT_STEP, its values are right if `resets[1:]` is `~mask`, as the page says, and not the flags before."""
    names = rollout(mode)
    ends = names["terminated"] | names["truncated"]
    first = np.stack([ALL_WORKERS, *(ends if mode == "SAME_STEP" else ~names["live"])])
    want = reference(names, *recurrent_values(names["obs"], first, names["final"]))
    names |= {"critic": critic, "hidden": jnp.ones(N), "final_obs": names["final"], "ended": NO_WORKER}
    if mode == "SAME_STEP":
        check(RECURRENT, names | {"resets": first}, want)
        return
    assert "if `resets[1:]` is `~mask`" in pages.read(PAGE)
    flags_before = np.stack([ALL_WORKERS, *ends])
    right, wrong = (results_of(RECURRENT, names | {"resets": x})["values"] for x in (first, flags_before))
    check(NEXT_STEP, names | {"value_fn": lambda _: right}, want)
    assert difference(results_of(NEXT_STEP, names | {"value_fn": lambda _: wrong})["advantages"], want) > 0.01


def test_workers_split_over_devices():
    """On a mesh as `jax.make_mesh` makes it; `normalize` sees all workers."""
    rng, workers = np.random.default_rng(0), 2 * jax.device_count()
    rewards, values = (rng.normal(size=(n, workers)).astype(np.float32) for n in (STEPS, STEPS + 1))
    names = {"rewards": rewards * np.arange(workers, dtype=np.float32), "values": values}
    names["terminated"] = rng.random(rewards.shape) < 0.1
    want, _ = oracle(**names, **PARAMETERS)
    check(SPLIT, names, standardized(want))


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
    return pages.run(pages.recipes(PAGE)[heading].partition("\n\n")[0], names)["KeepFinal"]


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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("interface", ["gymnasium", "gym"])
def test_rows_of_envpool(interface, implicit_promotion):
    """The row after an end only resets: CartPole's step counter is 0 there, and its reward is 1 elsewhere."""
    envpool = pytest.importorskip("envpool")
    envs = envpool.make("CartPole-v1", env_type=interface, num_envs=N, max_episode_steps=LIMIT, seed=0)
    envs.reset()
    actions = np.random.default_rng(0).integers(2, size=(3 * STEPS, N)).astype(np.int32)
    obs, rewards, terminated, truncated, infos = zip(*map(envs.step, actions), strict=True)
    ends, first = np.array(terminated) | truncated, np.array([info["elapsed_step"] == 0 for info in infos])
    np.testing.assert_array_equal([first[1:], np.equal(rewards, 0)[1:]], [ends[:-1], ends[:-1]])
    assert not (first & ends).any()
    assert np.abs(np.array(obs)[first]).max() < 0.05  # a first observation
    assert np.sum(terminated) >= 3 <= np.sum(truncated)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_final_observation_of_gymnax(implicit_promotion):
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
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("heading", [BRAX_FINAL, PLAYGROUND])
def test_wrappers_of_brax_and_playground(heading, implicit_promotion):
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
    actions = jax.random.uniform(jax.random.key(0), (STEPS, N, 1), minval=-1, maxval=1)

    def step(state, action):
        after = wrapped.step(state, action)
        return after, (after, jax.vmap(env.step)(state, action))

    first = jax.jit(wrapped.reset)(jax.random.split(jax.random.PRNGKey(0), N))
    _, (after, true) = jax.jit(lambda: lax.scan(step, first, actions))()
    done, terminated, kept, age = after.done > 0, true.done > 0, after.info, np.zeros(N)
    for t in range(STEPS):
        age += 1
        np.testing.assert_array_equal(done[t], terminated[t] | (age == LIMIT))
        age[done[t]] = 0
    if playground:
        assert not kept["truncation"].any()  # why the recipe keeps it elsewhere
        kept = kept["AutoResetWrapper_preserve_info"]
    np.testing.assert_array_equal(kept["truncation"], done & ~terminated)
    np.testing.assert_allclose(kept["obs" if playground else "final_obs"], true.obs, rtol=1e-6)
    np.testing.assert_array_equal(np.abs(after.obs - true.obs).max(axis=2) > 1e-3, done)  # the reset overwrites it
    assert terminated.sum() >= 3 <= kept["truncation"].sum()
