"""examples/swap_in.py: each replacement equals the estimator whose place it takes, and an agent trains with it alike.

PureJaxRL is not a package: a loop of its form, written here, is trained with its form of the estimator and with ours.
"""

import ast
import inspect
import json
import re
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import agents
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import swap_in
from jax import lax
from support import pages
from support.laws import assert_close
from support.oracle import oracle
from support.peers import as_peers_want, sb3_arrays, skrl_jax_arrays
from support.rollouts import random_rollout

pytestmark = pytest.mark.examples
GAMMA, LAMBDA = 0.9, 0.8
EXAMPLES = Path(__file__).parents[2] / "examples"


def rollout_and_oracle(truncation=None, dead=0.0):
    rollout = random_rollout(0, steps=16, batch=(4,), truncation=truncation, dead=dead, gamma=GAMMA, lambda_=LAMBDA)
    if rollout.truncated is not None:  # Brax sets one flag at most
        rollout = rollout.replace(truncated=rollout.truncated & ~rollout.terminated)
    return rollout, oracle(**rollout.arguments())


# Brax


def brax_arguments(rollout) -> dict[str, Any]:
    return {
        "truncation": jnp.float32(rollout.truncated),
        "termination": jnp.float32(rollout.terminated),
        "rewards": jnp.asarray(rollout.rewards),
        "values": jnp.asarray(rollout.values[:-1]),
        "bootstrap_value": jnp.asarray(rollout.values[-1]),
        "lambda_": LAMBDA,
        "discount": GAMMA,
    }


def test_brax_gae_matches_oracle():
    rollout, (advantages, targets) = rollout_and_oracle("dropped")
    assert_close(agents.brax_gae(**brax_arguments(rollout)), (targets, advantages))


def test_brax_as_it_is_has_no_lambda_on_the_first_hop():
    """δ_t + γ A_{t+1} in place of δ_t + γ λ A_{t+1}; a truncated row is dropped."""
    rollout, (advantages, targets) = rollout_and_oracle("dropped")
    goes_on = ~(rollout.terminated | rollout.truncated)
    next_advantages = np.concatenate([advantages[1:], np.zeros_like(advantages[:1])])
    wanted = advantages + GAMMA * (1 - LAMBDA) * goes_on * next_advantages
    assert_close(agents.brax_as_it_is(**brax_arguments(rollout)), (targets, wanted))


@pytest.mark.parametrize("swap", [agents.brax_gae, agents.brax_as_it_is])
def test_brax_replacements_are_detached(swap):
    """Brax differentiates its loss with the estimator in it."""
    rollout, _ = rollout_and_oracle("dropped")

    def loss(values, bootstrap_value):
        targets, advantages = swap(**brax_arguments(rollout) | {"values": values, "bootstrap_value": bootstrap_value})
        return (targets * advantages).sum()

    for gradient in jax.grad(loss, (0, 1))(jnp.asarray(rollout.values[:-1]), jnp.asarray(rollout.values[-1])):
        assert not gradient.any()


def test_brax_agrees_and_has_that_signature():
    with swap_in.quiet():
        losses = pytest.importorskip("brax.training.agents.ppo.losses")
    rollout, _ = rollout_and_oracle("dropped")
    with as_peers_want():
        targets, advantages = losses.compute_gae(**brax_arguments(rollout))
    assert_close(agents.brax_as_it_is(**brax_arguments(rollout)), (targets, advantages))
    assert_close(agents.brax_gae(**brax_arguments(rollout))[:1], [targets])
    theirs = inspect.signature(losses.compute_gae).parameters
    for swap in (agents.brax_gae, agents.brax_as_it_is):
        ours = inspect.signature(swap).parameters
        assert list(ours) == list(theirs)
        assert [p.default for p in ours.values()] == [p.default for p in theirs.values()]


# rejax

Trajectories = namedtuple("Trajectories", "reward value done")


def rejax_arguments(rollout, reward_axes=()):
    agent = SimpleNamespace(gamma=GAMMA, gae_lambda=LAMBDA)
    rewards = jnp.asarray(rollout.rewards).reshape(*rollout.rewards.shape, *reward_axes)
    return agent, Trajectories(rewards, rollout.values[:-1], rollout.terminated), jnp.asarray(rollout.values[-1])


@pytest.mark.parametrize("reward_axes", [(), (1,)])
def test_rejax_gae_matches_oracle(reward_axes):
    rollout, wanted = rollout_and_oracle()
    assert_close(agents.rejax_gae(*rejax_arguments(rollout, reward_axes)), wanted)


def test_rejax_agrees():
    with swap_in.quiet():
        rejax = pytest.importorskip("rejax")
    arguments = rejax_arguments(rollout_and_oracle()[0])
    with as_peers_want():
        theirs = rejax.PPO.calculate_gae(*arguments)
    assert_close(agents.rejax_gae(*arguments), theirs)


# tunix


def tunix_rollout():
    """Completions, batch-major, whose padding holds zeros, as tunix passes them."""
    rollout, _ = rollout_and_oracle(dead=0.3)
    rewards, values = rollout.rewards * rollout.live, rollout.values[:-1] * rollout.live
    rollout = rollout.replace(
        rewards=rewards,
        values=np.concatenate([values, np.zeros_like(values[:1])]),
        terminated=np.zeros_like(rollout.live),
    )
    return rollout, oracle(**rollout.arguments())


def tunix_arguments(rollout) -> dict[str, Any]:
    arrays = {"rewards": rollout.rewards, "values": rollout.values[:-1], "completion_mask": rollout.live}
    return {name: jnp.asarray(x.T) for name, x in arrays.items()} | {"gamma": GAMMA, "gae_lambda": LAMBDA}


def test_tunix_gae_matches_oracle_standardized_with_bessels_correction():
    rollout, (advantages, targets) = tunix_rollout()
    live = advantages[rollout.live]
    wanted = np.where(rollout.live, (advantages - live.mean()) / live.std(ddof=1), 0)
    assert_close(agents.tunix_gae(**tunix_arguments(rollout)), (wanted.T, targets.T))


def test_tunix_agrees_on_live_tokens():
    with swap_in.quiet():
        algo_core = pytest.importorskip("tunix.rl.algo_core")
    arguments = tunix_arguments(tunix_rollout()[0])
    live = arguments["completion_mask"]
    with as_peers_want():
        theirs = algo_core.compute_gae_advantages(**arguments)
    assert_close([x[live] for x in agents.tunix_gae(**arguments)], [x[live] for x in theirs])


# sbx, with the rollout buffer of stable-baselines3


def test_sbx_gae_matches_oracle():
    """A time limit is γ V(final observation) in the reward."""
    rollout, wanted = rollout_and_oracle("final_values")
    assert_close(agents.sbx_gae(**sb3_arrays(rollout)), wanted)


def sb3_buffers(names) -> list[Any]:
    """A buffer of stable-baselines3 and one with `sbx_gae`, filled and computed."""
    torch, buffers, spaces = map(pytest.importorskip, ("torch", "stable_baselines3.common.buffers", "gymnasium.spaces"))
    space, filled = spaces.Box(-1.0, 1.0, (1,)), []
    for buffer_class in (buffers.RolloutBuffer, agents.buffer_with(agents.sbx_gae)):
        buffer = buffer_class(16, space, space, "cpu", LAMBDA, GAMMA, n_envs=4)
        for name in ("rewards", "values", "episode_starts"):
            getattr(buffer, name)[:] = names[name]
        buffer.compute_returns_and_advantage(torch.tensor(names["last_values"]), names["dones"])
        filled.append(buffer)
    return filled


def test_buffer_with_sbx_gae_agrees():
    theirs, ours = sb3_buffers(sb3_arrays(rollout_and_oracle("final_values")[0]))
    assert_close([ours.advantages, ours.returns], [theirs.advantages, theirs.returns])
    ours.full = True
    (batch,) = ours.get()  # what an agent learns from
    assert_close(np.sort(batch.returns.numpy()), np.sort(theirs.returns, axis=None))


def test_sbx_records_what_its_buffer_computes():
    pytest.importorskip("sbx")
    names = sb3_arrays(rollout_and_oracle("final_values")[0])
    theirs, _ = sb3_buffers(names)
    assert_close(agents.sbx_agent().theirs(**names), [theirs.advantages, theirs.returns])


# skrl


@pytest.mark.parametrize("bootstrap", [True, False])
def test_skrl_gae_matches_oracle_standardized(bootstrap):
    rollout, (advantages, targets) = rollout_and_oracle("final_values")
    names = skrl_jax_arrays(rollout) | {"time_limit_bootstrap": bootstrap}
    if not bootstrap:  # then `truncated` is not read
        rewards = names["rewards"][..., 0]
        advantages, targets = oracle(**rollout.replace(rewards=rewards, truncated=None, final_values=None).arguments())
    wanted = (advantages - advantages.mean()) / advantages.std()
    assert_close(agents.skrl_gae(**names), (targets[..., None], wanted[..., None]))


@pytest.mark.parametrize("bootstrap", [True, False])
def test_skrl_agrees_and_has_that_signature(bootstrap):
    with swap_in.quiet():
        theirs = pytest.importorskip("skrl.agents.jax.ppo.ppo")._compute_gae
    names = skrl_jax_arrays(rollout_and_oracle("final_values")[0]) | {"time_limit_bootstrap": bootstrap}
    with as_peers_want():
        wanted = theirs(**names)
    assert_close(agents.skrl_gae(**names), wanted)
    ours, theirs = (inspect.signature(function).parameters for function in (agents.skrl_gae, theirs))
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]


def test_first_calls_are_timed():
    pytest.importorskip("skrl.agents.jax.ppo.ppo")
    with as_peers_want():
        head, row = swap_in.compile_times([2])
    assert head == ["T", "skrl", "gae"]
    assert row[0] == "2"
    assert all(re.fullmatch(r"\d+\.\d s", cell) for cell in row[1:])


# PureJaxRL

CONFIG = {
    "GAMMA": GAMMA,
    "GAE_LAMBDA": LAMBDA,
    "NUM_ENVS": 8,
    "NUM_STEPS": 16,
    "NUM_UPDATES": 40,
    "UPDATE_EPOCHS": 4,
    "NUM_MINIBATCHES": 4,
    "LR": 0.5,
    "CLIP_EPS": 0.2,
    "VF_COEF": 0.5,
}
CELLS = 5

Transition = namedtuple("Transition", "done action value reward log_prob obs")


def corridor(rng, position, action):
    """Cells in a row: action 1 goes right, but for one time in ten; a step costs 0.1, the last cell pays 1 and ends."""
    right = (action == 1) ^ jax.random.bernoulli(rng, 0.1)
    position = jnp.clip(position + jnp.where(right, 1, -1), 0, CELLS - 1)
    done = position == CELLS - 1
    return jnp.where(done, 0, position), jnp.where(done, 1.0, -0.1), done


def two_carry_gae(traj_batch, last_val, config):
    """The form that PureJaxRL and its kin have it in: two carries, the advantage and the value of the row after."""

    def one_step(carry, row):
        advantage, next_value = carry
        goes_on = 1 - row.done.astype(jnp.float32)
        delta = row.reward + config["GAMMA"] * next_value * goes_on - row.value
        advantage = delta + config["GAMMA"] * config["GAE_LAMBDA"] * goes_on * advantage
        return (advantage, row.value), advantage

    _, advantages = lax.scan(one_step, (jnp.zeros_like(last_val), last_val), traj_batch, reverse=True)
    return advantages, advantages + traj_batch.value


def make_train(config, calculate_gae):
    """PPO in one function to be jitted: a scan over updates, each a scan over steps, then scans over epochs."""

    def loss(params, row, advantage, target):
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(params["logits"][row.obs]), row.action[:, None], 1)[:, 0]
        ratio = jnp.exp(log_prob - row.log_prob)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        clipped = jnp.clip(ratio, 1 - config["CLIP_EPS"], 1 + config["CLIP_EPS"])
        policy_loss = -jnp.minimum(ratio * advantage, clipped * advantage).mean()
        return policy_loss + config["VF_COEF"] * jnp.square(params["values"][row.obs] - target).mean()

    def env_step(runner_state, _):
        params, obs, rng = runner_state
        rng, action_rng, step_rng = jax.random.split(rng, 3)
        logits = jax.nn.log_softmax(params["logits"][obs])
        action = jax.random.categorical(action_rng, logits)
        log_prob = jnp.take_along_axis(logits, action[:, None], 1)[:, 0]
        next_obs, reward, done = jax.vmap(corridor)(jax.random.split(step_rng, len(obs)), obs, action)
        return (params, next_obs, rng), Transition(done, action, params["values"][obs], reward, log_prob, obs)

    def update_minibatch(params, batch):
        gradient = jax.grad(loss)(params, *batch)
        return jax.tree.map(lambda p, g: p - config["LR"] * g, params, gradient), None

    def update_step(runner_state, _):
        (params, obs, rng), traj_batch = lax.scan(env_step, runner_state, length=config["NUM_STEPS"])
        batch = traj_batch, *calculate_gae(traj_batch, params["values"][obs], config)
        size = config["NUM_STEPS"] * config["NUM_ENVS"]

        def update_epoch(params, rng):
            rows = jax.random.permutation(rng, size).reshape(config["NUM_MINIBATCHES"], -1)
            return lax.scan(update_minibatch, params, jax.tree.map(lambda x: x.reshape(size)[rows], batch))

        rng, epochs_rng = jax.random.split(rng)
        params, _ = lax.scan(update_epoch, params, jax.random.split(epochs_rng, config["UPDATE_EPOCHS"]))
        return (params, obs, rng), (traj_batch.reward.mean(), batch[1], batch[2])

    def train(rng):
        params = {"logits": jnp.zeros((CELLS, 2)), "values": jnp.zeros(CELLS)}
        runner_state = params, jnp.zeros(config["NUM_ENVS"], jnp.int32), rng
        (params, _, _), metrics = lax.scan(update_step, runner_state, length=config["NUM_UPDATES"])
        return params, metrics

    return jax.jit(train)


@pytest.mark.parametrize("seed", [0, 1])
def test_purejaxrl_loop_trains_alike(seed):
    """Advantages and targets of every update, and what is learned, are equal but for rounding; and it does learn."""
    key = jax.random.key(seed)
    theirs, (rewards, *their_estimates) = make_train(CONFIG, two_carry_gae)(key)
    ours, (our_rewards, *our_estimates) = make_train(CONFIG, agents.purejaxrl_gae)(key)
    assert_close(our_estimates, their_estimates)
    assert_close(jax.tree.leaves(ours), jax.tree.leaves(theirs))
    np.testing.assert_array_equal(our_rewards, rewards)
    assert rewards[0] < 0 < rewards[-5:].mean()
    assert (ours["logits"][: CELLS - 1].argmax(axis=1) == 1).all()


# The comparison, with an agent that is no package


def half_off(rewards, values, completion_mask):
    """An estimator that is wrong by 0.5 in its advantages, and by 9 where nothing is live."""
    advantages, targets = unit_estimator(rewards, values, completion_mask)
    return advantages + jnp.where(completion_mask, 0.5, 9.0), targets


def unit_estimator(rewards, values, completion_mask):
    del completion_mask
    return rewards - values, rewards


def toy_agent(targets_first=False):
    module = SimpleNamespace(estimate=unit_estimator)

    def train(seed, steps, report):
        rewards = jnp.full((2, 3), float(seed))
        mask = jnp.array([[True, True, False]] * 2)
        step = jax.jit(lambda: module.estimate(rewards=rewards, values=-rewards - 1, completion_mask=mask))
        report(steps, float(step()[0].mean()))
        return agents.Training(
            [0, steps], [0.0, float(step()[0][0, 0])], [0.25 if module.estimate is half_off else 0.5]
        )

    return agents.Agent(
        name="toy",
        task="none",
        theirs=unit_estimator,
        swaps={"half off": half_off},
        targets_first=targets_first,
        installed=lambda estimator: agents.replaced(module, "estimate", estimator),
        train=train,
    )


@pytest.mark.parametrize("targets_first", [False, True])
def test_table_states_what_differs(monkeypatch, targets_first):
    monkeypatch.setitem(swap_in.SOURCES, "toy", swap_in.Source("jax", "none", toy_agent))
    agent = toy_agent(targets_first)
    works = []

    def run(what, work):
        works.append(what)
        return work(lambda steps, latest: None)

    first, result = swap_in.compare(agent, 2, 64, run)  # after each seed
    assert works == ["toy, recording", *(f"toy, {x}, seed {n}" for n in (0, 1) for x in ("theirs", "half off"))]
    assert result["task"] == "none"
    assert result["curves"]["half off"] == {"steps": [0, 64], "returns": [[0.0, 1.5], [0.0, 3.5]]}
    assert first["curves"]["half off"] == {"steps": [0, 64], "returns": [[0.0, 1.5]]}
    (row,) = result["rows"]
    row = dict(zip(swap_in.HEADER, row, strict=True))
    first, second = ("targets", "advantages")[:: 1 if targets_first else -1]
    assert row[f"{first} differ by"] == "5.0e-01 of 1"  # the 9 is where nothing is live
    assert row[f"{second} differ by"] == "0.0e+00 of 0"
    assert row["seeds"] == "2"
    assert row["return, theirs"] == "2 ± 1"
    assert row["return, with gae"] == "2.5 ± 1"
    assert row["iteration, theirs"] == "500 ms"
    assert row["with gae / theirs"] == "0.50"


def test_calls_are_recorded_and_the_estimator_is_put_back():
    agent = toy_agent()
    with agent.installed(half_off):
        assert agent.train(0, 64, lambda steps, latest: None).returns[-1] == 1.5
    assert agent.train(0, 64, lambda steps, latest: None).returns[-1] == 1.0
    for _, arguments, answer in swap_in.recorded_calls(agent, 64, lambda steps, latest: None):
        np.testing.assert_array_equal(arguments["values"], -np.ones((2, 3)))
        np.testing.assert_array_equal(answer[0], np.ones((2, 3)))


def test_lines_changed_counts_all_but_the_docstring():
    agent = toy_agent()
    assert swap_in.lines_changed(agent, half_off) == 4
    lines = [swap_in.lines_changed(agent, swap) for swap in (agents.brax_as_it_is, agents.brax_gae)]
    assert lines[0] - lines[1] == 2
    assert swap_in.lines_changed(agent._replace(lines_to_place=6), half_off) == 9


@pytest.mark.parametrize("steps", [1, 2048, 2049, 30_000, 204_800, 10**6])
def test_schedule_has_enough_steps_and_few_evaluations(steps):
    evaluations, chunk = agents.schedule(steps)
    trained = evaluations * chunk * agents.ITERATION
    assert steps <= trained
    assert trained - steps < chunk * agents.ITERATION
    assert evaluations <= agents.EVALUATIONS


RESULT = {
    "task": "none",
    "rows": [["toy", *(["-"] * 11)]],
    "curves": {label: {"steps": [0, 64], "returns": [[0.0, 1.0], [0.0, 3.0]]} for label in ("theirs", "GAE")},
}


def test_picture_has_a_panel_for_each_agent(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure").Figure
    panels = []
    monkeypatch.setattr(figure, "savefig", lambda self, path, dpi: panels.extend(self.axes))
    swap_in.draw(tmp_path / "a.png", {"toy": RESULT, "other": RESULT})
    assert [axes.get_title() for axes in panels] == ["toy, none, 2 seeds", "other, none, 2 seeds"]
    line, *_ = panels[0].lines
    np.testing.assert_array_equal(line.get_ydata(), [0.0, 2.0])  # the mean over the seeds


def run_main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["swap_in.py", *map(str, arguments)])
    swap_in.main()


def test_results_of_earlier_runs_are_shown_and_kept(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("rich")
    results, picture = tmp_path / "results.json", tmp_path / "a.png"
    results.write_text(json.dumps({"rejax": RESULT}))
    monkeypatch.setitem(swap_in.SOURCES, "jax", swap_in.Source("jax", "none", lambda: toy_agent()._replace(name="jax")))
    run_main(monkeypatch, "--agent", "jax", "--seeds", 1, "--steps", 64, "--results", results, "--picture", picture)
    assert "| toy |" in capsys.readouterr().out
    assert set(json.loads(results.read_text())) == {"rejax", "jax"}
    picture.unlink()
    run_main(monkeypatch, "--agent", "--results", results, "--picture", picture)  # shows, and trains nothing
    shown = capsys.readouterr().out
    assert "| toy |" in shown
    assert "| jax |" in shown
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_table_of_the_page_is_of_the_results():
    results = json.loads((EXAMPLES / "agents.json").read_text())
    rows = [row for result in results.values() for row in result["rows"]]
    assert pages.table("examples/guides/agents.md", f"| {' | '.join(swap_in.HEADER)} |") == rows


@pytest.mark.parametrize(
    "swap",
    [getattr(agents, f"{name}_gae") for name in ("brax", "rejax", "tunix", "sbx", "skrl", "purejaxrl")],
    ids=lambda swap: swap.__name__,
)
def test_page_shows_the_lines_that_run(swap):
    (function,) = ast.parse(inspect.getsource(swap)).body
    assert isinstance(function, ast.FunctionDef)
    blocks = re.findall(r"```python\n(.*?)```", (EXAMPLES / "agents.md").read_text(), re.DOTALL)
    shown = {ast.dump(node) for block in blocks for node in ast.walk(ast.parse(block))}
    for statement in function.body[1:]:
        last = isinstance(statement, ast.Return) and statement.value  # in PureJaxRL's file, nothing is returned
        assert ast.dump(last or statement) in shown


# The options


def test_nothing_of_the_extra_is_imported_before_the_options_are_read():
    heavy = ["brax", "flax", "matplotlib", "optax", "rejax", "rich", "sbx", "skrl", "torch", "tunix"]
    code = f"import sys, swap_in; print(sorted(sys.modules.keys() & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=EXAMPLES, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--agent", "dqn"], "--agent"),
        (["--seeds", "0"], "--seeds: must be a whole number from 1 to 1,000; got 0"),
        (["--seeds", "9" * 23], "--seeds: must be a whole number from 1 to 1,000"),
        (["--steps", "many"], "--steps: must be a whole number"),
        (["--steps", "9" * 23], "--steps: must be a whole number from 1 to 1,000,000,000"),
        (["--steps", "9" * 5000], "--steps: must be a whole number from 1 to 1,000,000,000"),
        (["--compile-times", "0"], "--compile-times: must be a whole number from 1 to 1,024"),
        (["--picture", ""], "--picture: the name must end in .png or .pdf or .svg; got ''"),
        (["--picture", "x.bogus"], "--picture: the name must end in"),
        (["--picture", "no/such/place.png"], "--picture: cannot write 'no/such/place.png': No such file or directory"),
        (["--picture", "x" * 300 + ".png"], "File name too long"),
        (["--picture", "directory.png"], "--picture: cannot write 'directory.png': Is a directory"),
        (["--results", "directory.json"], "--results: cannot write 'directory.json': Is a directory"),
        (["--results", "other.json"], "--results: other.json was not written by this script"),
        (["--agent"], "nothing to show"),
    ],
    ids=lambda x: " ".join(x)[:30] if isinstance(x, list) else "",
)
def test_bad_options_are_refused_in_one_line(monkeypatch, tmp_path, capsys, arguments, complaint):
    """Before any agent is made, and without leaving a file."""
    (tmp_path / "directory.png").mkdir()
    (tmp_path / "directory.json").mkdir()
    (tmp_path / "other.json").write_text('{"rejax": [1, 2]}')
    before = sorted(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(swap_in, "make_agents", None)
    with pytest.raises(SystemExit) as exit_:
        run_main(monkeypatch, *arguments)
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line
    assert sorted(tmp_path.iterdir()) == before


def test_script_without_the_library_says_what_to_install(tmp_path):
    """As in a checkout in which nothing is installed: `--help` fails in one line."""
    script = str(EXAMPLES / "swap_in.py")
    code = f"import runpy, sys; sys.path[:0] = [{str(EXAMPLES)!r}]; runpy.run_path({script!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "gae_jax" in line
    assert "pip install -e ." in line


def test_agents_that_are_not_here_are_named_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(swap_in.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as exit_:
        swap_in.make_agents(["brax", "sbx"])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    for name, extra in (("brax", "agents"), ("sbx", "agents-gymnasium")):
        assert f"{name} (not installed; run: pip install -e '.[{extra}]')" in line
