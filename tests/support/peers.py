"""The real packages and agents, each called by its own conventions, and what some of them compute instead of GAE.

The rows of the tables in examples/guides/migrating.md are read from the page and run on the same arrays as the peer, under the
peer's own names for them.
"""

import contextlib
import dataclasses
import importlib
import re
import sys
import warnings
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gae_jax import GAE, GAEOutput, gae
from support import pages
from support.rollouts import Rollout, random_rollout

PAGE = "examples/guides/migrating.md"
HEAD = "| coming from | its call | with gae_jax |"

Names = dict[str, Any]  # a peer's arguments by its own names, as NumPy arrays and numbers


@dataclasses.dataclass(frozen=True)
class Peer:
    """A package, and how it is called on a rollout."""

    name: str
    row: str  # of the tables in examples/guides/migrating.md
    distribution: str  # the name of the installed package, which has a version
    rollouts: str  # the kind of rollout, as below, that the peer has arguments for
    arrays: Callable[[Rollout], Names]
    call: Callable[..., Any]  # of those names; returns the advantages as an array like its rewards
    remark: str  # what differs, and why


@dataclasses.dataclass(frozen=True)
class Agent:
    """Code that is copied, not installed: its formula, in float64, stands for the call."""

    row: str
    rollouts: str
    arrays: Callable[[Rollout], Names]
    formula: Callable[..., np.ndarray]  # of those names; the advantages
    is_gae: bool
    remark: str


@dataclasses.dataclass(frozen=True)
class Deviation:
    """A way to call a peer whose result is not GAE, and the library's call that has the same result."""

    peer: str
    distribution: str
    what: str
    rollouts: str
    arrays: Callable[[Rollout], Names]
    call: Callable[..., Any]
    as_if: Callable[..., Any]  # of the same names
    remark: str


def kind_of_rollout(kind: str, seed: int, gamma: float, lambda_: float) -> Rollout:
    """A random rollout of 64 steps and 8 workers, with only what peers of this kind have arguments for.

    "terminated": no time limits; "dropped", "final_values": as in `random_rollout`; "tokens": a mask, no ends.
    """
    truncation = kind if kind in ("dropped", "final_values") else None
    dead = 0.3 if kind == "tokens" else 0.0
    ends = 0.0 if kind == "tokens" else 0.05
    rollout = random_rollout(
        seed, steps=64, batch=(8,), ends=ends, truncation=truncation, dead=dead, gamma=gamma, lambda_=lambda_
    )
    if rollout.truncated is not None:  # one flag at most, as gymnasium's wrappers and Brax's have it
        return rollout.replace(truncated=rollout.truncated & ~rollout.terminated)
    if kind == "tokens":  # a generation ends with its last token: nothing of value follows
        return rollout.replace(values=np.concatenate([rollout.values[:-1], np.zeros_like(rollout.values[-1:])]))
    return rollout


def load(name: str) -> ModuleType:
    """Imports a peer without its output and warnings.

    Whatever the import raises becomes an ImportError: where requirements are not met, that may be any exception.
    """
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except Exception as error:
            raise ImportError(f"{name}: {error!r}") from error


@contextlib.contextmanager
def as_peers_want():
    """Peers rely on implicit promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def slug(entry: Peer | Agent | Deviation) -> str:
    """The name of a test's parameter."""
    words = title(entry)
    return re.sub(r"[^\w=]+", "-", words).strip("-")


def title(entry: Peer | Agent | Deviation) -> str:
    """The first cell of its row in the table of conformance."""
    if isinstance(entry, Deviation):
        return f"{entry.peer}: {entry.what}"
    return entry.name if isinstance(entry, Peer) else entry.row


def time_major(x: Any, rollout: Rollout) -> Any:
    """An answer in a peer's layout, [T, N, 1], [N, T], [N, T, 1] or [N * T], as [T, N]."""
    steps, workers = rollout.rewards.shape
    return x.reshape(steps, workers) if len(x) == steps else x.reshape(workers, steps).T


def run_peer(peer: Peer | Agent | Deviation, names: Names) -> np.ndarray:
    call = peer.formula if isinstance(peer, Agent) else peer.call
    with as_peers_want():
        return np.asarray(call(**names))


# What the page prints.


def adapters() -> dict[str, str]:
    """The last column of the tables, by row."""
    return {row: code.strip("`") for table in pages.tables(PAGE, HEAD) for row, _, code in table}


def run_adapter(row: str, names: Names) -> Any:
    """The value of the row's expression."""
    return eval(adapters()[row], pages.imports(PAGE), names)


def run_adapter_inside_jit(row: str, names: Names) -> Any:
    """The same, where arrays and tuples of arrays are arguments of a jitted function."""
    arrays = {name: x for name, x in names.items() if isinstance(x, np.ndarray | tuple)}
    return jax.jit(lambda arrays: run_adapter(row, names | arrays))(arrays)


def advantages_of(output: GAEOutput | Array) -> Array:
    return output.advantages if isinstance(output, GAEOutput) else output


def advantages_by_page(row: str, names: Names) -> Array:
    return advantages_of(run_adapter(row, names))


def block_with(name: str) -> str:
    """The block of the page that computes this name."""
    (block,) = [code for code in pages.blocks(PAGE) if f"{name} = " in code]
    return block


# How each is called. Time-major arrays [T, N] become the peer's layout; the result stays in that layout.


def rlax_arrays(rollout):
    discount_t = np.float32(rollout.gamma) * ~rollout.terminated
    return {"r_t": rollout.rewards, "discount_t": discount_t, "lambda_": rollout.lambda_, "values": rollout.values}


def rlax_advantages(r_t, discount_t, lambda_, values):
    one_worker = load("rlax").truncated_generalized_advantage_estimation
    r_t, discount_t, values = map(jnp.asarray, (r_t, discount_t, values))
    return jax.vmap(one_worker, (1, 1, None, 1), 1)(r_t, discount_t, lambda_, values)


def brax_arrays(rollout):
    return {
        "truncation": np.float32(rollout.truncated),
        "termination": np.float32(rollout.terminated),
        "rewards": rollout.rewards,
        "values": rollout.values[:-1],
        "bootstrap_value": rollout.values[-1],
        "lambda_": rollout.lambda_,
        "discount": rollout.gamma,
    }


def brax_outputs(**names):
    compute_gae = load("brax.training.agents.ppo.losses").compute_gae
    return compute_gae(**jax.tree.map(lambda x: jnp.asarray(x) if np.ndim(x) else x, names))


def brax_targets_minus_values(**names):
    return brax_outputs(**names)[0] - names["values"]


def brax_advantages(**names):
    return brax_outputs(**names)[1]


def brax_advantages_from_gae(**names):
    advantages, targets = run_adapter("Brax", names)
    scope = {"jnp": jnp, "advantages": advantages, "targets": targets, **names}
    return pages.run(block_with("brax_advantages"), scope)["brax_advantages"]


def sb3_arrays(rollout) -> Names:
    """Flags say whether a step starts an episode; its collector adds the value of a final observation to the reward."""
    ends = rollout.terminated | rollout.truncated
    return {
        "rewards": rollout.rewards + np.float32(rollout.gamma) * rollout.truncated * rollout.final_values,
        "values": rollout.values[:-1],
        "episode_starts": np.float32(np.concatenate([np.ones_like(ends[:1]), ends[:-1]])),
        "last_values": rollout.values[-1],
        "dones": ends[-1],
        "gamma": rollout.gamma,
        "gae_lambda": rollout.lambda_,
    }


def sb3_advantages(rewards, values, episode_starts, last_values, dones, gamma, gae_lambda):
    space = load("gymnasium.spaces").Box(-1.0, 1.0, (1,))
    steps, n_envs = rewards.shape
    buffer = load("stable_baselines3.common.buffers").RolloutBuffer(
        steps, space, space, device="cpu", gamma=gamma, gae_lambda=gae_lambda, n_envs=n_envs
    )
    buffer.rewards[:], buffer.values[:], buffer.episode_starts[:] = rewards, values, episode_starts
    buffer.compute_returns_and_advantage(load("torch").tensor(last_values), dones)
    return buffer.advantages


def tianshou_arrays(rollout):
    """Its buffer concatenates the workers in one axis."""
    tianshou = load("tianshou.data")
    steps, workers = rollout.rewards.shape
    buffer = tianshou.VectorReplayBuffer(steps * workers, workers)
    for t in range(steps):
        nothing = np.zeros(workers)
        flags = {"terminated": rollout.terminated[t], "truncated": rollout.truncated[t]}
        buffer.add(tianshou.Batch(obs=nothing, act=nothing, obs_next=nothing, rew=rollout.rewards[t], **flags))
    batch, indices = buffer.sample(0)
    next_values = np.where(rollout.truncated, rollout.final_values, rollout.values[1:])
    unfinished = np.isin(indices, buffer.unfinished_index())
    return {
        "batch": batch,
        "buffer": buffer,
        "indices": indices,
        "v_s_": next_values.T.ravel(),
        "v_s": rollout.values[:-1].T.ravel(),
        "end_flag": batch.terminated | batch.truncated | unfinished,
        "gamma": rollout.gamma,
        "gae_lambda": rollout.lambda_,
    }


def tianshou_advantages(end_flag, v_s_, v_s, **names):
    del end_flag  # the call computes it from `buffer`
    algorithm = load("tianshou.algorithm.algorithm_base").Algorithm
    torch = load("torch")
    return algorithm.compute_episodic_return(v_s_=torch.tensor(v_s_), v_s=torch.tensor(v_s), **names)[1]


def torchrl_arrays(rollout):
    """[N, T, 1], and for every transition the value of what followed it."""

    def layout(x):
        return np.ascontiguousarray(x.T[..., None])

    return {
        "gamma": rollout.gamma,
        "lmbda": rollout.lambda_,
        "state_value": layout(rollout.values[:-1]),
        "next_state_value": layout(np.where(rollout.truncated, rollout.final_values, rollout.values[1:])),
        "reward": layout(rollout.rewards),
        "done": layout(rollout.terminated | rollout.truncated),
        "terminated": layout(rollout.terminated),
    }


def torchrl_advantages(**names):
    functional = load("torchrl.objectives.value.functional")
    return functional.generalized_advantage_estimate(**tensors(names))[0]


def torchrl_vec_advantages(**names):
    functional = load("torchrl.objectives.value.functional")
    return functional.vec_generalized_advantage_estimate(**tensors(names))[0]


def tensors(names):
    torch = load("torch")
    return {name: torch.tensor(x) if isinstance(x, np.ndarray) else x for name, x in names.items()}


def token_arrays(rollout, rewards, mask, lambda_):
    """[B, T] tokens, under a trainer's names for them; after the last one the value is taken for 0."""
    return {
        rewards: rollout.rewards.T,
        "values": rollout.values[:-1].T,
        mask: np.float32(rollout.live.T),
        "gamma": rollout.gamma,
        lambda_: rollout.lambda_,
    }


def verl_arrays(rollout):
    return token_arrays(rollout, "token_level_rewards", "response_mask", "lam")


def verl_advantages(**names):
    """Before they are whitened: that is returns - values."""
    _, returns = load("verl.trainer.ppo.core_algos").compute_gae_advantage_return(**tensors(names))
    return np.where(names["response_mask"] != 0, returns.numpy() - names["values"], 0)


def tunix_arrays(rollout):
    return token_arrays(rollout, "rewards", "completion_mask", "gae_lambda")


def tunix_advantages(**names):
    """Before they are whitened: that is returns - values."""
    _, returns = load("tunix.rl.algo_core").compute_gae_advantages(**names)
    return np.where(names["completion_mask"] != 0, returns - names["values"], 0)


def whitened(name, names):
    """The advantages as verl, tunix and skrl return them."""
    if name == "verl":
        return load("verl.trainer.ppo.core_algos").compute_gae_advantage_return(**tensors(names))[0].numpy()
    if name == "tunix":
        return load("tunix.rl.algo_core").compute_gae_advantages(**names)[0]
    names = {key: x for key, x in names.items() if key != "final_values"}
    return load("skrl.agents.torch.ppo.ppo").compute_gae(**tensors(names))[1].numpy()


def skrl_arrays(rollout):
    """[T, N, 1]."""
    return {
        "rewards": rollout.rewards[..., None],
        "terminated": rollout.terminated[..., None],
        "truncated": rollout.truncated[..., None],
        "values": rollout.values[:-1, :, None],
        "last_values": rollout.values[-1][:, None],
        "final_values": rollout.final_values[..., None],
        "discount_factor": rollout.gamma,
        "lambda_coefficient": rollout.lambda_,
    }


def skrl_by_default(final_values, **names):
    """Before they are whitened: that is returns - values."""
    del final_values  # not an argument of the call
    returns, _ = load("skrl.agents.torch.ppo.ppo").compute_gae(**tensors(names))
    return returns.numpy() - names["values"]


def skrl_advantages(rewards, **names):
    """Repeats what its agent adds to the rewards before the call."""
    rewards = rewards + np.float32(names["discount_factor"]) * names["truncated"] * names["final_values"]
    return skrl_by_default(rewards=rewards, time_limit_bootstrap=True, **names)


def skrl_jax_arrays(rollout) -> Names:
    """The agent has added the values of final observations to the rewards, and stores flags as int8."""
    names = skrl_arrays(rollout)
    final_values, gamma = names.pop("final_values"), np.float32(rollout.gamma)
    flags = {name: names[name].astype(np.int8) for name in ("terminated", "truncated")}
    rewards = names["rewards"] + gamma * np.where(rollout.truncated[..., None], final_values, 0)
    return names | flags | {"rewards": rewards, "time_limit_bootstrap": True}


def skrl_jax_advantages(**names):
    """Before they are whitened: that is returns - values."""
    returns, _ = load("skrl.agents.jax.ppo.ppo")._compute_gae(**names)
    return returns - names["values"]


def skrl_without_truncated(truncated, **names):
    return advantages_by_page("skrl", names | {"truncated": np.zeros_like(truncated)})


def sample_factory_arrays(rollout):
    """[N, T] and values [N, T+1]."""
    truncated = np.zeros_like(rollout.terminated) if rollout.truncated is None else rollout.truncated
    return {
        "rewards": rollout.rewards.T,
        "dones": (rollout.terminated | truncated).T,
        "time_outs": truncated.T,
        "values": rollout.values.T,
        "gamma": rollout.gamma,
        "gae_lambda": rollout.lambda_,
    }


def sample_factory_advantages(rewards, dones, time_outs, values, gamma, gae_lambda):
    """Repeats what its learner adds to the rewards before the call: V(s_t), not V(final observation)."""
    gae_advantages = load("sample_factory.algo.utils.rl_utils").gae_advantages
    rewards = rewards + np.float32(gamma) * values[:, :-1] * (time_outs & dones)
    rewards, dones, values = map(load("torch").tensor, (rewards, dones, values))
    return gae_advantages(rewards, dones, values, load("torch").ones_like(values), gamma, gae_lambda)


def sample_factory_final_value_is_the_value_before(rewards, dones, time_outs, values, gamma, gae_lambda):
    parameters = {"gamma": gamma, "lambda_": gae_lambda, "time_axis": 1}
    return gae(rewards, values, dones & ~time_outs, time_outs, final_values=values[:, :-1], **parameters).advantages


def labml_arrays(rollout):
    """[N, T] and values [N, T+1]."""
    workers, steps = rollout.rewards.T.shape
    sizes = {"n_workers": workers, "worker_steps": steps, "gamma": rollout.gamma, "lambda_": rollout.lambda_}
    return sizes | {"done": rollout.terminated.T, "rewards": rollout.rewards.T, "values": rollout.values.T}


def labml_advantages(done, rewards, values, **sizes):
    return load("labml_nn.rl.ppo.gae").GAE(**sizes)(done, rewards, values)


def labml_one_value_too_few(values, **names):
    return labml_advantages(values=values[:, :-1], **names)


def labml_last_value_twice(done, rewards, values, **sizes):
    return GAE(**sizes)(done, rewards, values[:, [*range(rewards.shape[1]), -2]])


# Agents whose code is copied.


class TrajectoryBatch(NamedTuple):
    """PureJaxRL's `Transition`, with the fields that some agents of its form add."""

    reward: np.ndarray
    value: np.ndarray
    done: np.ndarray
    global_done: np.ndarray | None = None  # JaxMARL
    truncated: np.ndarray | None = None  # Stoix
    bootstrap_value: np.ndarray | None = None  # Stoix: of every transition, [T, N]


class RNDBatch(NamedTuple):
    """The `Transition` of Craftax_Baselines' `ppo_rnd`, with extrinsic and intrinsic rewards."""

    reward_e: np.ndarray
    reward_i: np.ndarray
    value_e: np.ndarray
    value_i: np.ndarray
    done: np.ndarray


class Storage(NamedTuple):
    """CleanRL's."""

    rewards: np.ndarray
    values: np.ndarray
    dones: np.ndarray


def two_carry_formula(rewards, values, ends, last_values, gamma, lambda_):
    """The recursion as these agents write it, [T, N], with the flag of the end of row t in ends[t]."""
    rewards, values, live = (np.asarray(x, np.float64) for x in (rewards, values, 1.0 - ends))
    advantages, advantage, next_values = np.zeros_like(rewards), 0.0, np.asarray(last_values, np.float64)
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + gamma * next_values * live[t] - values[t]
        advantages[t] = advantage = delta + gamma * lambda_ * live[t] * advantage
        next_values = values[t]
    return advantages


def before(flags):
    """The flag of the step before each row; the first row begins an episode or not, which no formula reads."""
    return np.concatenate([np.ones_like(flags[:1]), flags[:-1]])


def purejaxrl_arrays(rollout):
    """`done` is the flag of the step in its row."""
    return {
        "traj_batch": TrajectoryBatch(rollout.rewards, rollout.values[:-1], rollout.terminated),
        "last_val": rollout.values[-1],
        "config": {"GAMMA": rollout.gamma, "GAE_LAMBDA": rollout.lambda_},
    }


def purejaxrl_formula(traj_batch, last_val, config):
    parameters = last_val, config["GAMMA"], config["GAE_LAMBDA"]
    return two_carry_formula(traj_batch.reward, traj_batch.value, traj_batch.done, *parameters)


def rejax_arrays(rollout):
    """`done` is the flag of the step in its row."""
    names = purejaxrl_arrays(rollout)
    agent = SimpleNamespace(gamma=rollout.gamma, gae_lambda=rollout.lambda_)
    return {"self": agent, "trajectories": names["traj_batch"], "last_val": names["last_val"]}


def rejax_formula(self, trajectories, last_val):
    rewards, values, ends, *_ = trajectories
    return two_carry_formula(rewards, values, ends, last_val, self.gamma, self.gae_lambda)


def xland_arrays(rollout):
    names = purejaxrl_arrays(rollout)
    parameters = {"gamma": rollout.gamma, "gae_lambda": rollout.lambda_}
    return parameters | {"transitions": names["traj_batch"], "last_val": names["last_val"]}


def xland_formula(transitions, last_val, gamma, gae_lambda):
    rewards, values, ends, *_ = transitions
    return two_carry_formula(rewards, values, ends, last_val, gamma, gae_lambda)


def kinetix_arrays(rollout):
    arrays = {"rewards": rollout.rewards, "values": rollout.values[:-1], "dones": rollout.terminated}
    return arrays | {"last_value": rollout.values[-1], "gamma": rollout.gamma, "lambd": rollout.lambda_}


def kinetix_formula(rewards, values, dones, last_value, gamma, lambd):
    return two_carry_formula(rewards, values, dones, last_value, gamma, lambd)


def gymnax_blines_arrays(rollout):
    """The buffer has T + 1 rows. The last one has a value, and a reward and a flag that nothing reads."""
    unread = rollout.rewards[:1]
    return {
        "reward": np.concatenate([rollout.rewards, unread]),
        "value": rollout.values,
        "done": np.concatenate([rollout.terminated, unread > 0]).astype(np.uint8),
        "self": SimpleNamespace(discount=rollout.gamma, gae_lambda=rollout.lambda_),
    }


def gymnax_blines_formula(self, reward, value, done):
    return two_carry_formula(reward[:-1], value[:-1], done[:-1], value[-1], self.discount, self.gae_lambda)


def recurrent_arrays(rollout):
    """`done` is the flag of the step before: the network resets its state by it. `last_done` is of the last step."""
    names = purejaxrl_arrays(rollout)
    traj_batch = names["traj_batch"]._replace(done=before(rollout.terminated))
    return names | {"traj_batch": traj_batch, "last_done": rollout.terminated[-1]}


def recurrent_formula(traj_batch, last_val, last_done, config):
    """The row above hands down its own flag: the flag of the step before it, which is the step of this row."""
    ends = np.concatenate([traj_batch.done[1:], last_done[None]])
    return purejaxrl_formula(traj_batch._replace(done=ends), last_val, config)


def rnd_arrays(rollout):
    """Every other worker is the intrinsic channel of the worker before it; both have the flags of the latter."""
    first, second = slice(0, None, 2), slice(1, None, 2)
    return {
        "traj_batch": RNDBatch(
            reward_e=rollout.rewards[:, first],
            reward_i=rollout.rewards[:, second],
            value_e=rollout.values[:-1, first],
            value_i=rollout.values[:-1, second],
            done=rollout.terminated[:, first],
        ),
        "last_val_e": rollout.values[-1, first],
        "last_val_i": rollout.values[-1, second],
        "config": {"GAMMA": rollout.gamma, "GAE_LAMBDA": rollout.lambda_, "RND_IS_EPISODIC": False},
    }


def rnd_formula(traj_batch, last_val_e, last_val_i, config):
    """Two calls, one for each kind of reward; intrinsic rewards end with the episode only if they are episodic."""
    parameters = config["GAMMA"], config["GAE_LAMBDA"]
    ends = traj_batch.done & config["RND_IS_EPISODIC"]
    extrinsic = two_carry_formula(traj_batch.reward_e, traj_batch.value_e, traj_batch.done, last_val_e, *parameters)
    intrinsic = two_carry_formula(traj_batch.reward_i, traj_batch.value_i, ends, last_val_i, *parameters)
    return np.stack([extrinsic, intrinsic], axis=-1)


def stoix_arrays(rollout):
    """`bootstrap_value` of the batch has the value of every next observation: the final one, where an episode ends."""
    next_values = np.where(rollout.truncated, rollout.final_values, rollout.values[1:])
    traj_batch = TrajectoryBatch(
        rollout.rewards,
        rollout.values[:-1],
        rollout.terminated,
        truncated=rollout.truncated,
        bootstrap_value=next_values,
    )
    system = SimpleNamespace(gamma=rollout.gamma, gae_lambda=rollout.lambda_)
    names = {"r_t": rollout.rewards, "v_tm1": rollout.values[:-1], "v_t": next_values}
    return names | {"traj_batch": traj_batch, "config": SimpleNamespace(system=system)}


def stoix_formula(r_t, v_tm1, v_t, traj_batch, config):
    """The value of every next observation is at hand, and an advantage ends at both kinds of ends."""
    discounts = config.system.gamma * (1.0 - traj_batch.done)
    deltas = np.float64(r_t) + discounts * v_t - v_tm1
    advantages, advantage = np.zeros_like(deltas), 0.0
    for t in reversed(range(len(deltas))):
        goes_on = discounts[t] * (1.0 - traj_batch.truncated[t])
        advantages[t] = advantage = deltas[t] + config.system.gae_lambda * goes_on * advantage
    return advantages


def pufferlib_arrays(rollout):
    """[N, T+1]: reward and flag of a transition stand in the row after it, so the first of each are not read."""
    unread = rollout.rewards[:1]
    return {
        "values": rollout.values.T,
        "rewards": np.concatenate([unread, rollout.rewards]).T,
        "terminals": np.float32(np.concatenate([unread > 0, rollout.terminated])).T,
        "gamma": rollout.gamma,
        "gae_lambda": rollout.lambda_,
    }


def pufferlib_with_ratios_arrays(rollout):
    """Ratios around 1, on both sides of the clips."""
    names = pufferlib_arrays(rollout)
    ratio = np.float32(np.exp(np.sin(names["values"])))
    return names | {"ratio": ratio, "vtrace_rho_clip": 1.2, "vtrace_c_clip": 0.9}


def pufferlib_formula(values, rewards, terminals, gamma, gae_lambda, ratio=None, vtrace_rho_clip=1, vtrace_c_clip=1):
    """Weights of importance on the TD error and on what follows; without ratios they are 1."""
    values, rewards, goes_on = (np.asarray(x, np.float64) for x in (values, rewards, 1.0 - terminals))
    ratio = np.asarray(np.ones_like(values) if ratio is None else ratio, np.float64)
    advantages, advantage = np.zeros_like(values[:, 1:]), 0.0
    for t in reversed(range(advantages.shape[1])):
        delta = rewards[:, t + 1] + gamma * values[:, t + 1] * goes_on[:, t + 1] - values[:, t]
        weight = gamma * gae_lambda * np.minimum(ratio[:, t], vtrace_c_clip) * goes_on[:, t + 1]
        advantages[:, t] = advantage = np.minimum(ratio[:, t], vtrace_rho_clip) * delta + weight * advantage
    return advantages


def recurrent_jaxmarl_arrays(rollout):
    """`done` is the flag of the step before: the agent's network resets its state by it."""
    names = purejaxrl_arrays(rollout)
    flags = {"done": before(rollout.terminated), "global_done": rollout.terminated}
    return names | {"traj_batch": names["traj_batch"]._replace(**flags)}


def recurrent_jaxmarl_formula(traj_batch, last_val, config):
    return purejaxrl_formula(traj_batch._replace(done=traj_batch.global_done), last_val, config)


def cleanrl_arrays(rollout):
    """`dones[t]` is the flag of the step before t, `next_done` the flag of the last step."""
    return {
        "rewards": rollout.rewards,
        "values": rollout.values[:-1],
        "dones": np.float32(before(rollout.terminated)),
        "next_done": np.float32(rollout.terminated[-1]),
        "next_value": rollout.values[-1:],
        "args": SimpleNamespace(gamma=rollout.gamma, gae_lambda=rollout.lambda_),
    }


def cleanrl_formula(rewards, values, dones, next_done, next_value, args):
    ends = np.concatenate([dones[1:], next_done[None]])
    return two_carry_formula(rewards, values, ends, next_value[0], args.gamma, args.gae_lambda)


def cleanrl_jax_arrays(rollout):
    """The same in a `Storage`; envpool's flags are bool, and `next_value` is `[N]`."""
    names = cleanrl_arrays(rollout)
    storage = Storage(*(names.pop(name) for name in Storage._fields))
    return names | {"storage": storage, "next_done": rollout.terminated[-1], "next_value": rollout.values[-1]}


def cleanrl_jax_formula(storage, next_done, next_value, args):
    rewards, values, dones = storage
    return cleanrl_formula(rewards, values, dones, np.float32(next_done), next_value[None], args)


def openrlhf_arrays(rollout):
    names = token_arrays(rollout, "rewards", "action_mask", "lambd")
    return names | {"action_mask": rollout.live.T}


def openrlhf_formula(rewards, values, action_mask, gamma, lambd):
    """A masked token is a step with reward and value 0; nothing of value follows the last one."""
    rewards, values, none = (rewards * action_mask).T, (values * action_mask).T, np.zeros(rewards.T.shape)
    return two_carry_formula(rewards, values, none, none[0], gamma, lambd).T


def easydel_arrays(rollout):
    return token_arrays(rollout, "rewards", "completion_mask", "lam")


def easydel_formula(rewards, values, completion_mask, gamma, lam):
    """A sum of its own for each run of live tokens: at a hole, and at the end, nothing of value follows."""
    live = completion_mask != 0
    ends = ~np.concatenate([live[:, 1:], np.zeros_like(live[:, :1])], axis=1)
    none = np.zeros(len(values))
    advantages = two_carry_formula((rewards * live).T, (values * live).T, ends.T, none, gamma, lam).T
    return np.where(live, advantages, 0)


def trl_arrays(rollout):
    names = openrlhf_arrays(rollout)
    args = SimpleNamespace(gamma=names.pop("gamma"), lam=names.pop("lambd"))
    return names | {"mask": names.pop("action_mask"), "args": args}


def trl_formula(rewards, values, mask, args):
    return openrlhf_formula(rewards, values, mask, args.gamma, args.lam)


NO_LIMITS = "nothing; no argument for time limits"
MASKED_STEP = "a masked token inside an answer is a step with r = V = 0, not skipped"

AGENTS = (
    Agent("PureJaxRL", "terminated", purejaxrl_arrays, purejaxrl_formula, True, NO_LIMITS),
    Agent("JaxMARL, feed-forward (`ippo_ff_*`)", "terminated", purejaxrl_arrays, purejaxrl_formula, True, NO_LIMITS),
    Agent(
        "JaxMARL with `global_done` (`ippo_rnn_*`, `mappo_*`)",
        "terminated",
        recurrent_jaxmarl_arrays,
        recurrent_jaxmarl_formula,
        True,
        "nothing with `global_done`; `done` is the flag of the step before",
    ),
    Agent(
        "PureJaxRL, recurrent (`ppo_rnn`, `ppo_s5`)",
        "terminated",
        recurrent_arrays,
        recurrent_formula,
        True,
        "nothing; `done` is the flag of the step before, `last_done` of the last step",
    ),
    Agent("rejax", "terminated", rejax_arrays, rejax_formula, True, NO_LIMITS),
    Agent("xland-minigrid", "terminated", xland_arrays, xland_formula, True, NO_LIMITS),
    Agent("Kinetix, `util/learning`", "terminated", kinetix_arrays, kinetix_formula, True, NO_LIMITS),
    Agent("gymnax-blines", "terminated", gymnax_blines_arrays, gymnax_blines_formula, True, NO_LIMITS),
    Agent(
        "Craftax_Baselines, `ppo_rnd`",
        "terminated",
        rnd_arrays,
        rnd_formula,
        False,
        "the intrinsic channel has no ends unless `RND_IS_EPISODIC`",
    ),
    Agent("Stoix, `ff_ppo`", "final_values", stoix_arrays, stoix_formula, True, "nothing"),
    Agent("PufferLib", "terminated", pufferlib_arrays, pufferlib_formula, True, NO_LIMITS),
    Agent(
        "PufferLib, with ratios",
        "terminated",
        pufferlib_with_ratios_arrays,
        pufferlib_formula,
        False,
        "ratios weight the TD errors: the targets of `vtrace` minus the values",
    ),
    Agent(
        "CleanRL, JAX (`ppo_atari_envpool_xla_jax`)",
        "terminated",
        cleanrl_jax_arrays,
        cleanrl_jax_formula,
        True,
        "nothing; `dones` are the flags of the step before",
    ),
    Agent(
        "CleanRL, PyTorch",
        "terminated",
        cleanrl_arrays,
        cleanrl_formula,
        True,
        "nothing; `dones` are the flags of the step before",
    ),
    Agent(
        "EasyDeL",
        "tokens",
        easydel_arrays,
        easydel_formula,
        False,
        "a masked token inside an answer ends it: nothing of value follows the token before",
    ),
    Agent("OpenRLHF", "tokens", openrlhf_arrays, openrlhf_formula, False, MASKED_STEP),
    Agent("TRL", "tokens", trl_arrays, trl_formula, False, MASKED_STEP),
)

PEERS = (
    Peer(
        "rlax",
        "rlax",
        "rlax",
        "terminated",
        rlax_arrays,
        rlax_advantages,
        "nothing; a discount of 0 marks the end of an episode; no argument for time limits",
    ),
    Peer(
        "Brax",
        "Brax",
        "brax",
        "dropped",
        brax_arrays,
        brax_targets_minus_values,
        "nothing in `vs - values`; truncated rows are dropped, as here without `final_values`",
    ),
    Peer(
        "stable-baselines3",
        "stable-baselines3",
        "stable-baselines3",
        "final_values",
        sb3_arrays,
        sb3_advantages,
        "nothing; a time limit is γ V(final observation) added to the reward",
    ),
    Peer("tianshou", "tianshou", "tianshou", "final_values", tianshou_arrays, tianshou_advantages, "nothing"),
    Peer("torchrl", "torchrl", "torchrl", "final_values", torchrl_arrays, torchrl_advantages, "nothing"),
    Peer(
        "torchrl, `vec_`",
        "torchrl",
        "torchrl",
        "final_values",
        torchrl_arrays,
        torchrl_vec_advantages,
        "nothing; λ = 0 raises an IndexError",
    ),
    Peer(
        "verl",
        "verl",
        "verl",
        "tokens",
        verl_arrays,
        verl_advantages,
        "nothing in `returns - values` of live tokens; its `advantages` are whitened",
    ),
    Peer(
        "tunix",
        "tunix",
        "google-tunix",
        "tokens",
        tunix_arrays,
        tunix_advantages,
        "nothing in `returns - values` of live tokens; its `advantages` are whitened",
    ),
    Peer(
        "skrl",
        "skrl",
        "skrl",
        "final_values",
        skrl_arrays,
        skrl_advantages,
        "nothing in `returns - values` with `time_limit_bootstrap=True`; its `advantages` are whitened",
    ),
    Peer(
        "skrl, JAX",
        "skrl, JAX",
        "skrl",
        "final_values",
        skrl_jax_arrays,
        skrl_jax_advantages,
        "nothing in `returns - values` with `time_limit_bootstrap=True`; its `advantages` are whitened",
    ),
    Peer(
        "sample-factory",
        "sample-factory",
        "sample-factory",
        "terminated",
        sample_factory_arrays,
        sample_factory_advantages,
        "nothing as long as nothing is truncated",
    ),
    Peer(
        "labml",
        "labml",
        "labml-nn",
        "terminated",
        labml_arrays,
        labml_advantages,
        "nothing; no argument for time limits",
    ),
)

DEVIATIONS = (
    Deviation(
        "Brax",
        "brax",
        "its `advantages`",
        "dropped",
        brax_arrays,
        brax_advantages,
        brax_advantages_from_gae,
        "δ_t + γ A_{t+1}, without λ on the first hop: not GAE unless λ = 1; the lines in examples/guides/migrating.md give it",
    ),
    Deviation(
        "skrl",
        "skrl",
        "its default",
        "final_values",
        skrl_arrays,
        skrl_by_default,
        skrl_without_truncated,
        "`truncated` is not read: the next episode leaks into the one before",
    ),
    Deviation(
        "sample-factory",
        "sample-factory",
        "`value_bootstrap=True`",
        "final_values",
        sample_factory_arrays,
        sample_factory_advantages,
        sample_factory_final_value_is_the_value_before,
        "its learner adds γ V(s_t) to a truncated reward, so V(s_t) stands for V(final observation)",
    ),
    Deviation(
        "labml",
        "labml-nn",
        "`values` of [N, T]",
        "terminated",
        labml_arrays,
        labml_one_value_too_few,
        labml_last_value_twice,
        "one value too few is not refused: V(s_{T-1}) is taken for V(s_T)",
    ),
)
