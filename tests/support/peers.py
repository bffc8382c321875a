"""The real packages, each called by its own conventions, and what it is that some of them compute instead.

The rows of the README's table 'coming from ...' are read from there and run on the very arrays that the peer is called
with, under the peer's own names for them: the table is held to what it says.
"""

import contextlib
import dataclasses
import importlib
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gae_jax import GAE, GAEOutput, gae
from support.rollouts import Rollout, random_rollout

Names = dict[str, Any]  # a peer's arguments by its own names, as NumPy arrays and numbers


@dataclasses.dataclass(frozen=True)
class Peer:
    """A package, how it is given a rollout, and how it is called."""

    name: str  # its row in the README's table
    distribution: str  # whose version it is
    rollouts: str  # what it can be told of: a kind of rollout, as below
    arrays: Callable[[Rollout], Names]
    call: Callable[..., Any]  # of those names; returns the advantages as an array like its rewards
    remark: str  # what differs, and why


@dataclasses.dataclass(frozen=True)
class Deviation:
    """A way to call a peer that gives no GAE, and what it gives instead, computed with the library."""

    peer: str
    distribution: str
    what: str
    rollouts: str
    arrays: Callable[[Rollout], Names]
    call: Callable[..., Any]
    as_if: Callable[..., Any]  # of the same names; what the peer's answer equals
    remark: str


def kind_of_rollout(kind: str, seed: int, gamma: float, lambda_: float) -> Rollout:
    """A random rollout of 64 steps and 8 workers, with nothing in it that peers of this kind cannot be told.

    "terminated": no time limits; "dropped" and "final_values": with, as in `random_rollout`; "tokens": a mask, no ends.
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
    """Imports a peer, quietly: what it says and warns of at import is its own affair.

    Whatever it raises becomes an ImportError: where its requirements are not met, that may be anything.
    """
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except Exception as error:
            raise ImportError(f"{name}: {error!r}") from error


@contextlib.contextmanager
def as_peers_want():
    """Peers were not written for strict promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def slug(entry: Peer | Deviation) -> str:
    """A name for the test's report."""
    words = entry.name if isinstance(entry, Peer) else f"{entry.peer}, {entry.what}"
    return re.sub(r"[^\w=]+", "-", words).strip("-")


def time_major(x: Any, rollout: Rollout) -> Any:
    """An answer in a peer's layout, [T, N, 1], [N, T], [N, T, 1] or [N * T], as [T, N]."""
    steps, workers = rollout.rewards.shape
    return x.reshape(steps, workers) if len(x) == steps else x.reshape(workers, steps).T


def run_peer(peer: Peer | Deviation, names: Names) -> np.ndarray:
    with as_peers_want():
        return np.asarray(peer.call(**names))


# What the README says of them.


def readme() -> str:
    return (Path(__file__).parents[2] / "README.md").read_text()


def adapters() -> dict[str, str]:
    """The last column of the README's table 'coming from ...', by row."""
    _, found, table = readme().partition("| coming from | its call | with gae_jax |\n")
    assert found, "README.md has no table '| coming from | its call | with gae_jax |'"
    rows = re.match(r"(\|.*\n)*", table)
    assert rows
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows[0].splitlines()[1:]]
    return {name: code.strip("`") for name, _, code in cells}


def row_of(name: str) -> str:
    """What follows a comma in a peer's name is a variant of its call."""
    return name.split(",")[0]


def run_adapter(name: str, names: Names) -> Any:
    """What the README's row gives for these arrays."""
    return eval(adapters()[row_of(name)], {"gae": gae, "GAE": GAE, "np": np, "jnp": jnp}, names)


def advantages_by_readme(name: str, names: Names) -> Array:
    output = run_adapter(name, names)
    return output.advantages if isinstance(output, GAEOutput) else output


def brax_two_lines() -> str:
    """The README's lines for Brax's `advantages`."""
    (block,) = [x for x in re.findall(r"```python\n(.*?)```", readme(), re.S) if "brax_advantages = " in x]
    return block


# How each is called. Time-major [T, N] becomes what the peer wants, and what comes back stays in the peer's layout.


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
    exec(brax_two_lines(), scope)
    return scope["brax_advantages"]


def sb3_arrays(rollout):
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
    """Its buffer lays the workers one behind the other, in one axis."""
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
    del end_flag  # it finds that out from `buffer`
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
    del final_values  # it has no use for them
    returns, _ = load("skrl.agents.torch.ppo.ppo").compute_gae(**tensors(names))
    return returns.numpy() - names["values"]


def skrl_advantages(rewards, **names):
    """With what its agent then does to the rewards first, repeated here."""
    rewards = rewards + np.float32(names["discount_factor"]) * names["truncated"] * names["final_values"]
    return skrl_by_default(rewards=rewards, time_limit_bootstrap=True, **names)


def skrl_without_truncated(truncated, **names):
    return advantages_by_readme("skrl", names | {"truncated": np.zeros_like(truncated)})


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
    """With what its learner does to the rewards first (repeated here): V(s_t), not that of the final observation."""
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


# Code to copy, not packages to call: what their rows say is held to the library alone.


def purejaxrl_arrays(rollout):
    """`done` is stored with the step that it ends."""
    rows = SimpleNamespace(reward=rollout.rewards, value=rollout.values[:-1], done=rollout.terminated)
    return {"traj_batch": rows, "last_val": rollout.values[-1], "gamma": rollout.gamma, "lambda_": rollout.lambda_}


def cleanrl_arrays(rollout):
    """`dones[t]` is that of the step before t, and `next_done` that of the last."""
    return {
        "rewards": rollout.rewards,
        "values": rollout.values[:-1],
        "dones": np.float32(np.concatenate([np.zeros_like(rollout.terminated[:1]), rollout.terminated[:-1]])),
        "next_done": np.float32(rollout.terminated[-1]),
        "next_value": rollout.values[-1:],
        "gamma": rollout.gamma,
        "gae_lambda": rollout.lambda_,
    }


INLINE = {"PureJaxRL": purejaxrl_arrays, "CleanRL": cleanrl_arrays}

PEERS = (
    Peer(
        "rlax",
        "rlax",
        "terminated",
        rlax_arrays,
        rlax_advantages,
        "nothing; it is told of the end of an episode by a discount of 0, so truncation cannot be said",
    ),
    Peer(
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
        "final_values",
        sb3_arrays,
        sb3_advantages,
        "nothing; truncation is said by adding γ V(final observation) to the reward",
    ),
    Peer("tianshou", "tianshou", "final_values", tianshou_arrays, tianshou_advantages, "nothing"),
    Peer("torchrl", "torchrl", "final_values", torchrl_arrays, torchrl_advantages, "nothing"),
    Peer(
        "torchrl, `vec_`",
        "torchrl",
        "final_values",
        torchrl_arrays,
        torchrl_vec_advantages,
        "nothing; λ = 0 raises an IndexError",
    ),
    Peer(
        "verl",
        "verl",
        "tokens",
        verl_arrays,
        verl_advantages,
        "nothing in `returns - values` of live tokens; its `advantages` are whitened",
    ),
    Peer(
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
        "final_values",
        skrl_arrays,
        skrl_advantages,
        "nothing in `returns - values` with `time_limit_bootstrap=True`; its `advantages` are whitened",
    ),
    Peer(
        "sample-factory",
        "sample-factory",
        "terminated",
        sample_factory_arrays,
        sample_factory_advantages,
        "nothing as long as nothing is truncated",
    ),
    Peer("labml", "labml-nn", "terminated", labml_arrays, labml_advantages, "nothing; it knows no truncation"),
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
        "δ_t + γ A_{t+1}, without λ on the first hop: not GAE unless λ = 1; two lines of the README give it",
    ),
    Deviation(
        "skrl",
        "skrl",
        "its default",
        "final_values",
        skrl_arrays,
        skrl_by_default,
        skrl_without_truncated,
        "`truncated` is not looked at: the next episode leaks into the one before",
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
