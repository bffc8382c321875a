"""Published agents, trained by their own code with their own advantage estimator, and with `gae` in its place.

    python examples/swap_in.py                               # examples/guides/agents.md shows what it prints
    python examples/swap_in.py --agent rejax --seeds 1 --steps 1
    python examples/swap_in.py --agent --out examples        # trains nothing: shows what earlier runs wrote there

Each agent is trained from every seed with every estimator. No file of an agent is changed: a replacement has the
signature of the agent's own estimator, and takes its place as an attribute. One more training records the calls of the
agent's own estimator; the replacements are compared with it on the recorded arguments.
"""

import dataclasses
import importlib
import importlib.metadata
import json
import math
import os
import pathlib
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before JAX: XLA logs each program that it reads from the cache

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array, lax

from gae_jax import gae

ITERATION = 2048  # environment steps between two updates
EVALUATIONS = 10  # per training
RECORDED_CALLS = 200  # that are compared, at most
HEADER = (
    *("agent", "version", "jax", "seeds", "in place of its estimator"),
    *("advantages differ by", "targets differ by", "return, theirs", "return, with gae"),
)
Estimator = Callable[..., tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line."""

    agent: tuple[Literal["brax", "rejax"], ...] = ("brax", "rejax")  # which agents to train
    seeds: int = 3  # trainings of each agent with each estimator
    steps: int = 204_800  # environment steps of a training, rounded up to a multiple of 20,480
    # a directory, for swap_in.png and swap_in.json, which keeps earlier agents
    out: pathlib.Path = pathlib.Path("runs")


class Agent(NamedTuple):
    """An agent, and how it is trained."""

    task: str
    owner: Any  # the module or class that holds the agent's estimator
    attribute: str  # the name of the estimator there
    replacements: dict[str, Estimator]
    train: Callable[[int, int], list[float]]  # from seed and iterations per evaluation to the return of each evaluation
    targets_first: bool  # in what the estimator returns


# Brax


def brax_gae(
    truncation: Array, termination: Array, rewards: Array, values: Array, bootstrap_value: Array,
    lambda_: float = 1.0, discount: float = 0.99,
) -> tuple[Array, Array]:  # fmt: skip
    """GAE for both losses. Brax calls its estimator inside the loss, so the results are detached."""
    advantages, targets = gae(
        rewards, values, termination, truncation, gamma=discount, lambda_=lambda_, bootstrap_value=bootstrap_value
    )
    return lax.stop_gradient(targets), lax.stop_gradient(advantages)


def brax_as_it_is(**rollout: Any) -> tuple[Array, Array]:
    """Brax's own results, by `gae`: its policy advantage is δ_t + γ A_{t+1}, without λ on the first hop."""
    targets, _ = brax_gae(**rollout)
    next_values = jnp.concatenate([targets[1:], rollout["bootstrap_value"][None]])
    discounted = rollout["discount"] * jnp.where(rollout["termination"], 0, next_values)
    advantages = jnp.where(rollout["truncation"], 0, rollout["rewards"] + discounted - rollout["values"])
    return targets, lax.stop_gradient(advantages)


def brax_agent() -> Agent:
    """Brax's `ppo.train` on a pole to balance, with Brax's wrappers, networks and evaluator."""
    if jax.__version_info__ >= (0, 10):
        raise ImportError(f"the trainer of brax needs jax < 0.10, and this is jax {jax.__version__}")
    from brax import envs
    from brax.training.agents.ppo import losses
    from brax.training.agents.ppo import train as ppo

    env = envs.get_environment("inverted_pendulum", backend="generalized")

    def train(seed: int, iterations: int) -> list[float]:
        returns = []
        ppo.train(
            environment=env,
            num_timesteps=EVALUATIONS * iterations * ITERATION,
            num_envs=64,
            episode_length=1000,
            unroll_length=32,
            batch_size=16,
            num_minibatches=4,
            num_updates_per_batch=4,
            learning_rate=1e-3,
            entropy_cost=1e-3,
            discounting=0.99,
            gae_lambda=0.95,
            clipping_epsilon=0.2,
            reward_scaling=0.1,
            normalize_observations=True,
            num_evals=EVALUATIONS + 1,
            num_eval_envs=16,
            deterministic_eval=True,
            progress_fn=lambda _, metrics: returns.append(float(metrics["eval/episode_reward"])),
            seed=seed,
        )
        return returns

    replacements = {"its policy advantage, by gae": brax_as_it_is, "GAE": brax_gae}
    return Agent("inverted_pendulum", losses, "compute_gae", replacements, train, targets_first=True)


# rejax


def rejax_gae(self: Any, trajectories: Any, last_val: Array) -> tuple[Array, Array]:
    """For rejax, whose rewards have an axis of length 1 in some environments."""
    rewards, values = trajectories.reward.reshape(trajectories.value.shape), trajectories.value
    return gae(rewards, values, trajectories.done, gamma=self.gamma, lambda_=self.gae_lambda, bootstrap_value=last_val)


def rejax_agent() -> Agent:
    """The PPO of rejax on CartPole: its iteration and its evaluation, each compiled once and called in a loop."""
    rejax: Any = importlib.import_module("rejax")  # an `import` would fail every type checker that lacks it

    def train(seed: int, iterations: int) -> list[float]:
        agent = rejax.PPO.create(
            env="CartPole-v1", num_envs=16, num_steps=128, num_minibatches=8, learning_rate=5e-4, max_grad_norm=0.5
        )
        # One seed at a time: the orthogonal initializers of several seeds, vmapped, hang in jaxlib 0.10.1 and 0.10.2.
        state = jax.jit(agent.init_state)(jax.random.PRNGKey(seed))
        iterate = jax.jit(lambda state: agent.train_iteration(state))
        evaluate = jax.jit(lambda state: agent.eval_callback(agent, state, state.rng)[1].mean())
        returns = [float(evaluate(state))]
        for _ in range(EVALUATIONS):
            for _ in range(iterations):
                state = iterate(state)
            returns.append(float(evaluate(state)))
        return returns

    return Agent("CartPole-v1", rejax.PPO, "calculate_gae", {"GAE": rejax_gae}, train, targets_first=False)


AGENTS: dict[str, Callable[[], Agent]] = {"brax": brax_agent, "rejax": rejax_agent}

# The comparison.


def recorded_calls(agent: Agent, iterations: int) -> list[tuple[Any, Any, Any]]:
    """Trains with the agent's own estimator, and returns arguments, keyword arguments and results of its calls."""
    theirs, calls = getattr(agent.owner, agent.attribute), []

    def recording(*args: Any, **kwargs: Any) -> tuple[Array, Array]:
        results = theirs(*args, **kwargs)
        jax.debug.callback(lambda call: calls.append(jax.tree.map(np.array, call)), (args, kwargs, results))
        return results

    with mock.patch.object(agent.owner, agent.attribute, recording):
        agent.train(0, iterations)
    jax.effects_barrier()
    return calls[:: math.ceil(len(calls) / RECORDED_CALLS)]


def differences(agent: Agent, replacement: Estimator, calls: list[tuple[Any, Any, Any]]) -> list[str]:
    """Largest difference and largest magnitude over the calls, of the advantages and of the targets."""
    largest = np.zeros((2, 2))
    for args, kwargs, results in calls:
        pairs = zip(results, replacement(*args, **kwargs), strict=True)
        largest = np.maximum(largest, [(np.abs(x - y).max(), np.abs(x).max()) for x, y in pairs])
    texts = [f"{difference:.1e} of {size:.3g}" for difference, size in largest]
    return texts[::-1] if agent.targets_first else texts


def compare(name: str, agent: Agent, options: Options) -> dict[str, Any]:
    """Compares the estimators, and trains with each from each seed; returns what a file of results has of an agent."""
    iterations = math.ceil(options.steps / (EVALUATIONS * ITERATION))
    calls = recorded_calls(agent, iterations)
    estimators = {"theirs": getattr(agent.owner, agent.attribute), **agent.replacements}
    returns: dict[str, list[list[float]]] = {label: [] for label in estimators}
    for seed in range(options.seeds):
        for label, estimator in estimators.items():
            with mock.patch.object(agent.owner, agent.attribute, estimator):
                returns[label].append(agent.train(seed, iterations))
            print(f"{name}, {label}, seed {seed}: return {returns[label][-1][-1]:.4g}", flush=True)
    about = [name, importlib.metadata.version(name), jax.__version__, str(options.seeds)]
    last = {label: f"{np.mean(x, 0)[-1]:.4g} ± {np.std(x, 0)[-1]:.2g}" for label, x in returns.items()}
    rows = [
        [*about, label, *differences(agent, replacement, calls), last["theirs"], last[label]]
        for label, replacement in agent.replacements.items()
    ]
    steps = [n * iterations * ITERATION for n in range(EVALUATIONS + 1)]
    return {"task": agent.task, "steps": steps, "returns": returns, "rows": rows}


# What is shown.


def table(results: dict[str, Any]) -> str:
    """The rows of all agents, in Markdown."""
    rows = [row for result in results.values() for row in result["rows"]]
    return "\n".join(f"| {' | '.join(row)} |" for row in [HEADER, ["---"] * len(HEADER), *rows])


def draw(path: pathlib.Path, results: dict[str, Any]) -> None:
    """Returns over steps, a panel for each agent: mean over seeds, and twice its standard error."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(results), 3.4), layout="constrained")
    # Curves that are equal cover each other: theirs is wide and light, and those above it are narrow and dark.
    styles = [
        {"color": "#f2b65a", "linewidth": 6, "elinewidth": 3},
        {"color": "#1b3a6b", "linewidth": 1.6, "marker": "o", "markersize": 4, "capsize": 3},
        {"color": "#7a1f4d", "linewidth": 1.6, "linestyle": ":", "marker": "x", "markersize": 7, "capsize": 5},
    ]
    for axes, (name, result) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        for (label, returns), style in zip(result["returns"].items(), styles, strict=False):
            error = 2 * np.std(returns, axis=0) / np.sqrt(len(returns))
            axes.errorbar(result["steps"], np.mean(returns, axis=0), error, label=label, **style)
        seeds = len(result["returns"]["theirs"])
        axes.set(title=f"{name}, {result['task']}, {seeds} seeds", xlabel="environment steps", ylabel="return")
        axes.locator_params(axis="x", nbins=4)
        axes.legend(title="estimator", fontsize=8, title_fontsize=8)
    figure.savefig(path, dpi=120)


# The program.


def read_options() -> Options:
    """Returns the options, checked before anything takes time."""
    options = tyro.cli(Options, description=__doc__)
    if options.seeds < 1 or options.steps < 1:
        sys.exit(f"error: --seeds and --steps must be at least 1; got {options.seeds} and {options.steps}")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"error: --out: {error}")
    if not options.agent and not (options.out / "swap_in.json").exists():
        sys.exit(f"error: --agent: name an agent; there is no swap_in.json in {options.out} to show")
    return options


def main() -> None:
    """Prints the table and draws the picture."""
    options = read_options()
    warnings.simplefilter("ignore")  # the agents warn of their own upkeep
    file = options.out / "swap_in.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    with tempfile.TemporaryDirectory() as programs:  # a seed is data: all seeds of a training share their programs
        jax.config.update("jax_compilation_cache_dir", programs)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        for name in options.agent:
            try:
                agent = AGENTS[name]()
            except ImportError as error:
                sys.exit(f"error: {name}: {error}; run: pip install -e '.[agents]'")
            results[name] = compare(name, agent, options)
            file.write_text(json.dumps(results))
    print(f"\n{jax.devices()[0].device_kind}, {os.cpu_count()} cores\n\n{table(results)}")
    draw(options.out / "swap_in.png", results)


if __name__ == "__main__":
    main()
