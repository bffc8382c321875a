"""What published agents store, and the estimators of the packages that are installed.

The calls are the blocks of examples/guides/migrating.md. For each agent, `STORED` has the flags, values and names that
it hands to its estimator, `PACKAGES` calls its own function, and `FORMULAS` has its TD errors if they are not GAE's.
"""

import contextlib
import importlib
import inspect
import re
import sys
import warnings
from collections import namedtuple
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from support import pages
from support.oracle import oracle
from support.rollouts import Rollout, random_rollout

PAGE = "examples/guides/migrating.md"
Names = dict[str, Any]


def kind_of_rollout(kind: str, seed: int, gamma: float, lambda_: float) -> Rollout:
    """A random rollout of 64 steps and 8 workers, with only what agents of this kind have arguments for.

    "terminated": no time limits; "dropped", "final_values": as in `random_rollout`; "next_row": V(s_{t+1}) stands for
    the final value; "tokens": a mask, no ends, and V(s_T) = 0.
    """
    truncation = {"dropped": "dropped", "final_values": "final_values", "next_row": "final_values"}.get(kind)
    shares = {"ends": 0.0, "masked_share": 0.3} if kind == "tokens" else {"ends": 0.05}
    rollout = random_rollout(seed, steps=64, batch=(8,), truncation=truncation, gamma=gamma, lambda_=lambda_, **shares)
    if rollout.truncated is not None:  # one flag at most, as gymnasium's wrappers and Brax's have it
        rollout = rollout.replace(truncated=rollout.truncated & ~rollout.terminated)
    if kind == "next_row":
        rollout = rollout.replace(final_values=rollout.values[1:])
    if kind == "tokens":
        rollout.values[-1] = 0
    return rollout


# What the agents store.


def parts(rollout: Rollout) -> Names:
    """A rollout in parts, [T, N], with V(s_T) apart; gamma and lambda by all their names."""
    zeros = np.zeros_like(rollout.rewards)
    truncated = zeros != 0 if rollout.truncated is None else rollout.truncated
    final_v = zeros if rollout.final_values is None else rollout.final_values
    ends, next_v = rollout.terminated | truncated, np.where(truncated, final_v, rollout.values[1:])
    names = {"r": rollout.rewards, "all_v": rollout.values, "v": rollout.values[:-1], "last": rollout.values[-1]}
    names |= {"final_v": final_v, "next_v": next_v, "mask": np.float32(rollout.live)}
    names |= {"terminated": rollout.terminated, "truncated": truncated, "ends": ends, "last_rows": ends.copy()}
    names["last_rows"][-1] = True
    gammas = dict.fromkeys(("gamma", "GAMMA", "discount", "discount_factor", "decay_gamma"), rollout.gamma)
    lambdas = "lambda_ GAE_LAMBDA LAMBDA gae_lambda lam lambd lmbda gae_param td_lambda tau bootstrapping_factor"
    numbers = gammas | dict.fromkeys([*lambdas.split(), "lambda_coefficient"], rollout.lambda_)
    agent = SimpleNamespace(**numbers, system=SimpleNamespace(**numbers))
    numbers |= {"config": numbers | {"RND_IS_EPISODIC": False}, "decay": rollout.gamma * rollout.lambda_}
    return names | numbers | {"self": agent, "args": agent, "agent": agent}


HELPERS = {  # the functions that STORED calls
    "batch": lambda **arrays: namedtuple("Batch", arrays)(**arrays),
    "before": lambda flags: np.concatenate([np.ones_like(flags[:1]), flags[:-1]]),  # of the step before each row
    # [N, T + 1], each row in the place of the next
    "next_row": lambda x: np.concatenate([np.full_like(x[:1], 9), x]).T,
    "column": lambda x: x[..., None],
    "path": lambda x: x.T.ravel(),  # one worker after another
    "q_values": lambda v: jnp.stack([v - 1, v, v - 2], -1),  # of three actions; arrays of JAX, as in a jitted agent
}
BRAX = "truncation, termination = np.float32(truncated), np.float32(terminated);"
BRAX += "rewards, values, bootstrap_value = r, v, last"
SKRL = "rewards, values, last_values, terminated, truncated, final_values ="
SKRL += "map(column, (r, v, last, terminated, truncated, final_v));"
PATHS = "stops = np.flatnonzero(path(last_rows)) + 1; closing = path(next_v * ~terminated)[stops - 1];"
TOKENS = "rewards, values, completion_mask = r.T, v.T, mask.T"
STORED = {  # by kind of rollout: the parts of the rollout under the agent's names
    "terminated": {  # no time limits, or they are in the flag
        "PureJaxRL, ppo.py": "traj_batch = batch(reward=r, value=v, done=terminated); last_val = last",
        "JaxMARL, ippo_rnn, mappo": "last_val = last;"
        "traj_batch = batch(reward=r, value=v, done=before(terminated), global_done=terminated)",
        "rejax": "trajectories = batch(reward=r, value=v, done=terminated); last_val = last",
        "Kinetix, util/learning": "rewards, values, dones, last_value = r, v, terminated, last",
        "gymnax-blines": "value, reward, done = all_v, np.vstack([r, r[:1]]), np.vstack([terminated, ends[:1]])",
        "Stoix, sebulba/ff_ppo": "config = agent;"
        "traj_batch = batch(reward=np.vstack([r, r[:1]]), value=all_v, done=np.vstack([terminated, ends[:1]]))",
        "flax, examples/ppo": "rewards, values, terminal_masks = r, all_v, np.float32(~terminated)",
        "Craftax_Baselines, ppo_rnd": "e, i = np.s_[..., ::2], np.s_[..., 1::2];"  # the channels
        "last_val_e, last_val_i = last[e], last[i];"
        "traj_batch = batch(reward_e=r[e], reward_i=r[i], value_e=v[e], value_i=v[i], done=terminated[e])",
        "labml": "n_workers, worker_steps = 8, 64; done, rewards, values = terminated.T, r.T, all_v.T",
        "PureJaxRL, ppo_rnn.py": "last_val, last_done = last, terminated[-1];"
        "traj_batch = batch(reward=r, value=v, done=before(terminated))",
        "CleanRL, JAX": "next_value, next_done = last, terminated[-1];"
        "storage = batch(rewards=r, values=v, dones=np.float32(before(terminated)))",
        "CleanRL, PyTorch": "next_value, next_done = all_v[-1:], np.float32(terminated[-1]);"
        "rewards, values, dones = r, v, np.float32(before(terminated))",
        "rsl_rl, from its storage": "last_values = column(last);"
        "st = batch(rewards=column(r), values=column(v), dones=column(np.uint8(terminated)))",
        "rl_games": "mb_rewards, mb_extrinsic_values, last_extrinsic_values = column(r), column(v), column(last);"
        "mb_fdones, fdones = np.float32(before(terminated)), np.float32(terminated[-1])",
        "rlax": "r_t, discount_t, values = r, np.float32(gamma) * ~terminated, all_v",
        "rlax.lambda_returns": "r_t, discount_t, v_t = r, np.float32(gamma) * ~terminated, all_v[1:]",
        "jumanji, A2C": "data, value = batch(reward=r, discount=np.float32(~terminated)), all_v",
        "PureJaxQL, pqn_atari, pqn_rnn": "reward, q_vals, done, last_q = r, q_values(v), terminated, last",
        "PureJaxQL, pqn_gymnax": "transitions, last_q = batch(reward=r, q_val=q_values(v), done=terminated), last",
        "rejax, PQN": "max_last_q = last;"
        "trajectories = batch(reward=r, next_q=q_values(all_v[1:]), done=jnp.asarray(terminated))",
        "PufferLib": "rewards, values, terminals = next_row(r), all_v.T, next_row(np.float32(terminated))",
        "PufferLib, with ratios": "rewards, values, terminals = next_row(r), all_v.T, next_row(np.float32(terminated));"
        "ratio, vtrace_rho_clip, vtrace_c_clip = np.exp(np.sin(values)), 1.2, 0.9",
    },
    "dropped": {
        "Stoix, rec_ppo": "config = agent; last_val, last_done, last_truncated = last, terminated[-1], truncated[-1];"
        "traj_batch = batch(reward=r, value=v, done=before(terminated), truncated=before(truncated))",
        "Brax": BRAX,
        "Brax, its own advantages": BRAX,
    },
    "final_values": {
        "stable-baselines3": "last_values, dones = last, ends[-1];"
        "rewards, values, episode_starts = r + gamma * truncated * final_v, v, np.float32(before(ends))",
        "rsl_rl, from the rewards of the environment": "rewards, values, dones, time_outs, last_values ="
        "map(column, (r, v, ends, truncated, last))",
        "sample-factory": "rewards, values, dones, time_outs = r.T, all_v.T, ends.T, truncated.T",
        "ksim": "rewards_bt, values_bt, dones_bt, successes_bt = r.T, v.T, ends.T, truncated.T",
        "Stoix, ff_ppo": "config = agent; r_t, v_tm1, v_t = r, v, next_v;"
        "traj_batch = batch(done=terminated, truncated=truncated)",
        "tianshou": "batch = batch(rew=path(r), terminated=path(terminated));"
        "v_s_, v_s, end_flag = map(path, (next_v, v, last_rows))",
        "torchrl": "reward, state_value, next_state_value, done, terminated ="
        "(column(x.T) for x in (r, v, next_v, ends, terminated))",
        "skrl, PyTorch": SKRL,
        "skrl, JAX": SKRL + "rewards = rewards + gamma * truncated * final_values; time_limit_bootstrap = True",
        "skrl, JAX, its default": SKRL + "time_limit_bootstrap = False",
        "ManiSkill": "next_value, next_done, final_values = all_v[-1:], np.float32(ends[-1]), final_v;"
        "rewards, values, dones = r, v, np.float32(before(ends))",
        "Spinning Up": PATHS + "rew_buf, val_buf, last_vals = path(r), path(v), closing",
        "OmniSafe": PATHS + "reward, value_r, last_values_r = path(r), path(v), closing; lam_c = 0.5;"
        "cost, value_c, last_values_c = 2 * reward, 2 * value_r, 2 * closing",
    },
    "next_row": {
        "EvoRL": "rewards, values, terminations, dones = r, all_v, np.float32(terminated), np.float32(ends)",
        "LocoMuJoCo": "config, last_val = agent, last;"
        "traj_batch = batch(reward=r, value=v, absorbing=terminated, done=ends)",
        "DreamerV3": "rew, boot, term, last = next_row(r), all_v.T, next_row(terminated), next_row(ends); disc = gamma",
    },
    "tokens": {
        "verl": "token_level_rewards, values, response_mask = r.T, v.T, mask.T",
        "tunix": TOKENS,
        "EasyDeL": TOKENS,
        "OpenRLHF": "rewards, values, action_mask = r.T, v.T, mask.T",
    },
}
AGENTS = {agent: kind for kind, agents in STORED.items() for agent in agents}


def names_of(agent: str, rollout: Rollout) -> Names:
    """What the agent has at the call of its estimator, by name."""
    return pages.run(STORED[AGENTS[agent]][agent], HELPERS | {"np": np, "jnp": jnp} | parts(rollout))


# What the blocks must compute: GAE, unless there is a formula. It is `td_errors[t] + decays[t] * (the same at t + 1)`,
# which begins with `start`, or 0, after the last row.

AT_LIMITS_V = "td_errors = r + gamma * ~terminated * np.where(truncated, v, all_v[1:]) - v; decays = decay * ~ends"
Q_TARGETS = "td_errors, decays, start = r + gamma * ~terminated * (1 - lambda_) * q, decay * ~terminated, last"
LAST_Q = "last * ~terminated[-1], last"
FORMULAS = {
    "Craftax_Baselines, ppo_rnd": "end = np.repeat(terminated[:, ::2], 2, 1) & (np.arange(8) % 2 == 0);"
    "td_errors, decays = r + gamma * ~end * all_v[1:] - v, decay * ~end",
    "rsl_rl, from the rewards of the environment": AT_LIMITS_V,
    "sample-factory": AT_LIMITS_V,
    "ksim": "td_errors = (1 - gamma) * r + gamma * truncated * v + gamma * ~ends * np.vstack([v[1:], v[-1:]]) - v;"
    "decays = decay * ~ends",
    "Brax, its own advantages": "later = ~ends * np.vstack([gae[1:], 0 * gae[:1]]); decays = np.zeros(r.shape);"
    "td_errors = np.where(truncated, 0, r + gamma * (~terminated * all_v[1:] + later) - v)",
    "skrl, JAX, its default": "td_errors, decays = r + gamma * ~terminated * all_v[1:] - v, decay * ~terminated",
    "ManiSkill": "td_errors, decays = r + gamma * np.where(ends, final_v, all_v[1:]) - v, decay * ~ends",
    "PureJaxQL, pqn_gymnax": f"q = np.vstack([v[1:-1], {LAST_Q}]); {Q_TARGETS}",
    "rejax, PQN": f"q = np.vstack([all_v[2:-1], {LAST_Q}]); {Q_TARGETS}",
    "PufferLib, with ratios": "ratio = np.exp(np.sin(v)); decays = decay * np.minimum(ratio, 0.9) * ~terminated;"
    "td_errors = np.minimum(ratio, 1.2) * (r + gamma * ~terminated * all_v[1:] - v)",
    "OmniSafe": "td_errors, decays = r + gamma * ~terminated * next_v - v, gamma * ~ends;"
    "td_errors, decays = td_errors[..., None] * [1, 2], decays[..., None] * [lambda_, 0.5]",
    "EasyDeL": "m = mask; m_next = np.vstack([m[1:], 0 * m[:1]]);"
    "td_errors, decays = m * r + gamma * m_next * all_v[1:] - m * v, decay * m_next",
    "OpenRLHF": "m = mask; td_errors = m * (r - v) + gamma * np.vstack([(m * v)[1:], 0 * v[:1]]);"
    "decays = np.full(r.shape, decay)",
}


def gae_of(agent: str, rollout: Rollout) -> np.ndarray:
    """The advantages, or the targets if the block has only these, by the definition of GAE."""
    return oracle(**rollout.arguments())["advantages" not in block_of(agent)]


def wanted(agent: str, rollout: Rollout) -> np.ndarray:
    """What the agent computes, in float64, [T, N]."""
    gae = gae_of(agent, rollout)
    if agent not in FORMULAS:
        return gae
    formula = pages.run(FORMULAS[agent], parts(rollout) | {"np": np, "gae": gae})
    td_errors, decays, following = formula["td_errors"], formula["decays"], formula.get("start", 0.0)
    result = np.zeros(td_errors.shape)
    for t in reversed(range(len(result))):
        result[t] = following = np.float64(td_errors[t]) + decays[t] * following
    return result


# The blocks of the page.


def calls() -> dict[str, str]:
    """The blocks, by the first words of their first line."""
    blocks = [block for block in pages.blocks(PAGE) if block.startswith("# ")]
    return {re.split(r"[:;\n]", block.removeprefix("# "))[0]: block for block in blocks}


def block_of(agent: str) -> str:
    """The block that replaces the call of an agent; Brax's own advantages need the targets of another block."""
    found = calls()
    first = found["Brax"] if agent == "Brax, its own advantages" else ""
    return first + found[agent.removesuffix(", its default")]


def call_of(agent: str, rollout: Rollout) -> tuple[Callable[[Names], Any], Names]:
    """The block as a function, which returns the advantages, or the targets if it has only these; and its arrays."""
    block, names = block_of(agent), names_of(agent, rollout)
    answer = "advantages" if "advantages" in block else "targets"
    arrays = {name: x for name, x in names.items() if isinstance(x, np.ndarray | jax.Array) or hasattr(x, "_fields")}
    return lambda arrays: pages.run(block, names | pages.imports(PAGE) | arrays)[answer], arrays


def run_call(agent: str, rollout: Rollout) -> np.ndarray:
    """What the block computes, [T, N]."""
    call, arrays = call_of(agent, rollout)
    return in_rows(call(arrays), rollout)


def in_rows(x: Any, rollout: Rollout) -> np.ndarray:
    """An answer in an agent's layout, as [T, N], with any channels after it."""
    steps, workers = rollout.rewards.shape
    if len(x) == steps:
        return np.asarray(x).reshape(steps, workers)
    rows = np.asarray(x).reshape(workers, steps, -1).swapaxes(0, 1)
    return rows[..., 0] if rows.shape[-1] == 1 else rows


# The packages.


def load(name: str) -> ModuleType:
    """Imports without output and warnings. What a missing requirement raises becomes an ImportError."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except Exception as error:
            raise ImportError(f"{name}: {error!r}") from error


@contextlib.contextmanager
def skip_import_errors():
    try:
        yield
    except ImportError as error:
        pytest.skip(f"cannot be imported: {error}")


@contextlib.contextmanager
def as_peers_want():
    """Packages rely on implicit promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def run_package(agent: str, rollout: Rollout) -> np.ndarray:
    """The advantages, or targets, of the package's own function, [T, N]."""
    with as_peers_want():
        return in_rows(np.asarray(PACKAGES[agent][1](SimpleNamespace(**names_of(agent, rollout)))), rollout)


def call_by_name(function: Any, x: Any, array: Any = jnp.asarray) -> Any:
    """Calls a function on those of the names that are its parameters, as arrays of its package."""
    names = {k: v for k, v in vars(x).items() if k in inspect.signature(function).parameters}
    return function(**{k: array(v) if isinstance(v, np.ndarray) else v for k, v in names.items()})


def ask(function: str, x: Any, array: Any = jnp.asarray) -> Any:
    """Calls `module:function`."""
    module, _, name = function.partition(":")
    return call_by_name(getattr(load(module), name), x, array)


def ask_torch(function: str, x: Any) -> Any:
    return ask(function, x, load("torch").tensor)


def rlax_advantages(r_t, discount_t, lambda_, values):
    one_worker = load("rlax").truncated_generalized_advantage_estimation
    return jax.vmap(one_worker, (1, 1, None, 1), 1)(*map(jnp.asarray, (r_t, discount_t, lambda_, values)))


def sb3_buffer(x, kind=None):
    """A rollout buffer of this kind, filled and computed."""
    space = load("gymnasium.spaces").Box(-1.0, 1.0, (1,))
    kind = kind or load("stable_baselines3.common.buffers").RolloutBuffer
    buffer = kind(len(x.rewards), space, space, "cpu", x.gae_lambda, x.gamma, n_envs=x.rewards.shape[1])
    buffer.rewards[:], buffer.values[:], buffer.episode_starts[:] = x.rewards, x.values, x.episode_starts
    buffer.compute_returns_and_advantage(load("torch").tensor(x.last_values), x.dones)
    return buffer


def rsl_rl_advantages(x, rewards, values, dones):
    rewards, values, dones, last_values = map(load("torch").tensor, (rewards, values, dones, x.last_values))
    returns, trainer = values.clone(), mock.Mock(gamma=x.gamma, lam=x.lam, normalize_advantage_per_mini_batch=True)
    storage = SimpleNamespace(rewards=rewards, values=values, dones=dones, returns=returns)
    storage.num_transitions_per_env, trainer.storage = len(rewards), storage
    trainer.critic.return_value.detach.return_value = last_values
    load("rsl_rl.algorithms.ppo").PPO.compute_returns(trainer, None)
    return storage.advantages


def tianshou_advantages(x):
    """The recursion in its `compute_episodic_return`."""
    estimator = load("tianshou.algorithm.algorithm_base")._gae
    return estimator(x.v_s, x.v_s_ * ~x.batch.terminated, x.batch.rew, x.end_flag, x.gamma, x.lam)


TORCHRL = "torchrl.objectives.value.functional"
BRAX_GAE, SKRL_GAE = "brax.training.agents.ppo.losses:compute_gae", "skrl.agents.jax.ppo.ppo:_compute_gae"
TUNIX_GAE = "tunix.rl.algo_core:compute_gae_advantages"
VERL_GAE = "verl.trainer.ppo.core_algos:compute_gae_advantage_return"
PACKAGES = {  # the distribution, and its answer
    "rejax": ("rejax", lambda x: load("rejax").PPO.calculate_gae(x.self, x.trajectories, x.last_val)[0]),
    "stable-baselines3": ("stable-baselines3", lambda x: sb3_buffer(x).advantages),
    "rsl_rl, from its storage": ("rsl-rl-lib", lambda x: rsl_rl_advantages(x, *x.st)),
    "rsl_rl, from the rewards of the environment": (
        "rsl-rl-lib",
        lambda x: rsl_rl_advantages(x, x.rewards + x.gamma * x.values * x.time_outs, x.values, x.dones),
    ),
    "Brax": ("brax", lambda x: ask(BRAX_GAE, x)[0] - x.values),
    "Brax, its own advantages": ("brax", lambda x: ask(BRAX_GAE, x)[1]),
    "tianshou": ("tianshou", tianshou_advantages),
    "torchrl": ("torchrl", lambda x: ask_torch(f"{TORCHRL}:generalized_advantage_estimate", x)[0]),
    "skrl, JAX": ("skrl", lambda x: ask(SKRL_GAE, x)[0] - x.values),
    "skrl, JAX, its default": ("skrl", lambda x: ask(SKRL_GAE, x)[0] - x.values),
    "EvoRL": ("evorl-jax", lambda x: ask("evorl.utils.rl_toolkits:compute_gae", x)[1]),
    "rlax": ("rlax", lambda x: rlax_advantages(x.r_t, x.discount_t, x.lambda_, x.values)),
    "rlax.lambda_returns": (
        "rlax",
        lambda x: jax.vmap(load("rlax").lambda_returns, (1, 1, 1, None), 1)(x.r_t, x.discount_t, x.v_t, x.lambda_),
    ),
    "rejax, PQN": ("rejax", lambda x: load("rejax").PQN.calculate_targets(x.self, x.trajectories, x.max_last_q)),
    "verl": ("verl", lambda x: np.asarray(ask_torch(VERL_GAE, x)[1]) - x.values),
    "tunix": ("google-tunix", lambda x: ask(TUNIX_GAE, x)[1] - x.values),
}
