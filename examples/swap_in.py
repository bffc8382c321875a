"""Agents from the package index, trained with their own advantage estimator and with `gae` in its place.

    python examples/swap_in.py                                 # examples/agents.md shows what it prints
    python examples/swap_in.py --agent rejax --seeds 1 --steps 4096

An agent is trained once per seed with its own estimator, and once per seed with each replacement. The agent's files are
not changed: a replacement is a function with the signature of the agent's own estimator, put in its place by one line.

    Brax        brax.training.agents.ppo.losses.compute_gae = brax_gae
    rejax       rejax.PPO.calculate_gae = rejax_gae
    tunix       registry.register("advantage_estimator", "gae_jax")(tunix_gae)
    PureJaxRL   purejaxrl_gae has the lines for its ppo.py. PureJaxRL is not a package, so it is not in the table;
                tests/test_swap_in.py trains a loop of its form with them.

One more training records the arguments of the agent's own estimator; the estimators are compared on those.
"""

import argparse
import ast
import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import io
import logging
import math
import os
import pathlib
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before JAX: XLA logs each program that it reads from the cache

import jax
import jax.numpy as jnp
import numpy as np
from command_line import Parser, refuse, require
from jax import Array, lax

from gae_jax import gae, normalize

PACKAGES = {"brax": "brax", "rejax": "rejax", "tunix": "google-tunix"}  # by the name of the module
ITERATION = 2048  # environment steps between two updates; for tunix, tokens
EVALUATIONS = 10  # per training
COMPARED_CALLS = 200  # of the recorded calls, at most


# The replacements.


def brax_gae(
    truncation: Array, termination: Array, rewards: Array, values: Array, bootstrap_value: Array,
    lambda_: float = 1.0, discount: float = 0.99,
) -> tuple[Array, Array]:  # fmt: skip
    """GAE for both losses. Brax calls its estimator inside the loss, so the results are detached."""
    advantages, targets = gae(
        rewards, values, termination, truncation, gamma=discount, lambda_=lambda_, bootstrap_value=bootstrap_value
    )
    return lax.stop_gradient(targets), lax.stop_gradient(advantages)


def brax_as_it_is(
    truncation: Array, termination: Array, rewards: Array, values: Array, bootstrap_value: Array,
    lambda_: float = 1.0, discount: float = 0.99,
) -> tuple[Array, Array]:  # fmt: skip
    """Brax's own answer, by `gae`: its policy advantage is δ_t + γ A_{t+1}, without λ on the first hop."""
    _, targets = gae(
        rewards, values, termination, truncation, gamma=discount, lambda_=lambda_, bootstrap_value=bootstrap_value
    )
    next_targets = jnp.concatenate([targets[1:], bootstrap_value[None]])
    advantages = jnp.where(truncation, 0, rewards + discount * jnp.where(termination, 0, next_targets) - values)
    return lax.stop_gradient(targets), lax.stop_gradient(advantages)


def rejax_gae(self: Any, trajectories: Any, last_val: Array) -> tuple[Array, Array]:
    """For rejax, whose rewards have an axis of length 1 in some environments."""
    rewards, values = trajectories.reward.reshape(trajectories.value.shape), trajectories.value
    return gae(rewards, values, trajectories.done, gamma=self.gamma, lambda_=self.gae_lambda, bootstrap_value=last_val)


def tunix_gae(
    rewards: Array, values: Array, completion_mask: Array, gamma: float, gae_lambda: float
) -> tuple[Array, Array]:
    """For tunix, which standardizes advantages over all live tokens, with Bessel's correction."""
    no_ends, no_value = jnp.zeros(values.shape, bool), jnp.zeros(len(values))  # nothing of value follows a completion
    advantages, targets = gae(
        rewards, values, no_ends, gamma=gamma, lambda_=gae_lambda, bootstrap_value=no_value, mask=completion_mask,
        time_axis=1,
    )  # fmt: skip
    live = completion_mask.sum()
    return normalize(advantages, completion_mask) * jnp.sqrt((live - 1) / live), targets


def purejaxrl_gae(traj_batch: Any, last_val: Array, config: dict[str, Any]) -> tuple[Array, Array]:
    """For PureJaxRL's ppo.py: the body stands in place of its `_calculate_gae` and the call of it."""
    return gae(
        traj_batch.reward, traj_batch.value, traj_batch.done,
        gamma=config["GAMMA"], lambda_=config["GAE_LAMBDA"], bootstrap_value=last_val,
    )  # fmt: skip


# The agents.

Estimator = Callable[..., tuple[Array, Array]]
Report = Callable[[int, float], None]  # takes the steps so far and the latest return


class Training(NamedTuple):
    """What came of one training."""

    steps: Sequence[int]  # at each evaluation
    returns: Sequence[float]  # mean over the episodes of each evaluation
    seconds: Sequence[float]  # of the iterations that compiled nothing


Trainings = dict[str, list[Training]]  # by estimator, one a seed
Work = Callable[[Report], Any]


class Agent(NamedTuple):
    """An agent, and how it is trained."""

    name: str
    task: str
    theirs: Estimator
    swaps: dict[str, Estimator]  # what stands in its place
    targets_first: bool  # in what the estimator returns
    installed: Callable[[Estimator], contextlib.AbstractContextManager[None]]
    train: Callable[[int, int, Report], Training]  # from a seed, for a number of environment steps


def schedule(steps: int) -> tuple[int, int]:
    """Evaluations, and iterations before each, for at least so many steps."""
    iterations = math.ceil(steps / ITERATION)
    chunk = math.ceil(iterations / EVALUATIONS)
    return math.ceil(iterations / chunk), chunk


@contextlib.contextmanager
def replaced(owner: Any, name: str, estimator: Estimator) -> Iterator[None]:
    """Puts an estimator in the place of an attribute, and then puts the attribute back."""
    original = getattr(owner, name)
    setattr(owner, name, estimator)
    try:
        yield
    finally:
        setattr(owner, name, original)


def brax_agent() -> Agent:
    """Brax's `ppo.train` on a pole to balance, with Brax's wrappers, networks and evaluator."""
    if not hasattr(jax, "device_put_replicated"):
        raise ImportError(f"its trainer needs jax < 0.10, and this is jax {jax.__version__}")
    from brax import envs
    from brax.training.agents.ppo import losses
    from brax.training.agents.ppo import train as ppo

    env = envs.get_environment("inverted_pendulum", backend="generalized")

    def train(seed: int, steps: int, report: Report) -> Training:
        evaluations, chunk = schedule(steps)
        rows: list[tuple[int, float, float]] = []

        def progress(step: int, metrics: Mapping[str, Any]) -> None:
            seconds = ITERATION / metrics.get("training/sps", math.nan)
            rows.append((int(step), float(metrics["eval/episode_reward"]), float(seconds)))
            report(*rows[-1][:2])

        ppo.train(
            environment=env,
            num_timesteps=evaluations * chunk * ITERATION,
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
            num_evals=evaluations + 1,
            num_eval_envs=16,
            deterministic_eval=True,
            progress_fn=progress,
            seed=seed,
        )
        at, returns, seconds = zip(*rows, strict=True)
        return Training(at, returns, seconds[2:])  # the first is of no training, the second compiled

    return Agent(
        name="brax",
        task="inverted_pendulum",
        theirs=losses.compute_gae,
        swaps={"its policy advantage, by gae": brax_as_it_is, "GAE": brax_gae},
        targets_first=True,
        installed=lambda estimator: replaced(losses, "compute_gae", estimator),
        train=train,
    )


def rejax_agent() -> Agent:
    """The PPO of rejax on CartPole: its iteration and its evaluation, each compiled once and called in a loop."""
    rejax: Any = importlib.import_module("rejax")  # an `import` would fail every type checker that lacks it

    def train(seed: int, steps: int, report: Report) -> Training:
        agent = rejax.PPO.create(
            env="CartPole-v1", num_envs=16, num_steps=128, num_minibatches=8, learning_rate=5e-4, max_grad_norm=0.5
        )
        # One seed at a time: the orthogonal initializers of several seeds, vmapped, hang in jaxlib 0.10.1 and 0.10.2.
        state = jax.jit(agent.init_state)(jax.random.PRNGKey(seed))
        iterate = jax.jit(lambda state: agent.train_iteration(state))
        evaluate = jax.jit(lambda state: agent.eval_callback(agent, state, state.rng)[1].mean())
        evaluations, chunk = schedule(steps)
        at, returns, seconds = [0], [float(evaluate(state))], []
        for _ in range(evaluations):
            for _ in range(chunk):
                start = time.perf_counter()
                state = jax.block_until_ready(iterate(state))
                seconds.append(time.perf_counter() - start)
            at.append(at[-1] + chunk * ITERATION)
            returns.append(float(evaluate(state)))
            report(at[-1], returns[-1])
        return Training(at, returns, seconds[2:])  # the first two compile: the types of the state settle

    return Agent(
        name="rejax",
        task="CartPole-v1",
        theirs=rejax.PPO.calculate_gae,
        swaps={"GAE": rejax_gae},
        targets_first=False,
        installed=lambda estimator: replaced(rejax.PPO, "calculate_gae", estimator),
        train=train,
    )


class Letters:
    """A tokenizer for tunix: a token is a letter.

    No text ends before the limit: tunix drops the token after a text, so the choice of that token has no gradient, and
    a model of this size comes to write nothing but that.
    """

    alphabet = "abcdefgh"

    def encode(self, text: str, **_: Any) -> list[int]:
        """Maps letters to tokens."""
        return [1 + self.alphabet.index(letter) for letter in text]

    def decode(self, ids: Any, **_: Any) -> str:
        """Maps tokens to letters, and skips the others."""
        return "".join(self.alphabet[int(i) - 1] for i in ids if i >= 1)

    def bos_id(self) -> int:
        """Returns the token before a text."""
        return 0

    def eos_id(self) -> int:
        """Returns what ends a text: no token of the model."""
        return -1

    def pad_id(self) -> int:
        """Returns what fills up a batch: no token of the model."""
        return -1


def tunix_agent() -> Agent:
    """The PPO of tunix on a language model of one layer, from random weights: nothing is downloaded.

    A completion has up to 8 tokens, and its score is how many of them are the letter a. The return is the mean score
    of the completions that were sampled for training.
    """
    import optax
    from flax import nnx

    modules = "models.qwen3.model", "rl.algo_core", "rl.rl_cluster", "rl.utils", "rl.ppo.ppo_learner"
    qwen3, algo_core, rl_cluster, rl_utils, ppo = (importlib.import_module(f"tunix.{name}") for name in modules)

    tokens, updates = 8, 2
    completions = ITERATION // tokens
    letters = Letters()
    shape = qwen3.ModelConfig(
        num_layers=1,
        vocab_size=1 + len(letters.alphabet),
        embed_dim=32,
        hidden_dim=64,
        num_heads=2,
        head_dim=16,
        num_kv_heads=2,
        rope_theta=10_000,
        norm_eps=1e-6,
    )
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))

    def cluster(seed: int, iterations: int) -> Any:
        with mesh:
            actor, reference = (qwen3.Qwen3(shape, rngs=nnx.Rngs(seed)) for _ in range(2))
            critic = rl_utils.create_critic_model(actor, seed)
        training = rl_cluster.RLTrainingConfig(
            actor_optimizer=optax.adam(1e-3),
            critic_optimizer=optax.adam(1e-3),
            mini_batch_size=completions,
            train_micro_batch_size=completions,
            max_steps=updates * iterations,
            eval_every_n_steps=updates * iterations + 1,  # never
        )
        rollout = rl_cluster.base_rollout.RolloutConfig(
            max_tokens_to_generate=tokens,
            max_prompt_length=4,
            kv_cache_size=tokens + 8,
            temperature=1.0,
            top_p=1.0,
            seed=seed,
            eos_tokens=[letters.eos_id()],
        )
        config = rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(rl_cluster.Role, mesh), training_config=training, rollout_config=rollout
        )
        return rl_cluster.RLCluster(
            actor=actor, critic=critic, reference=reference, tokenizer=letters, cluster_config=config
        )

    def train(seed: int, steps: int, report: Report) -> Training:
        evaluations, chunk = schedule(steps)
        scores, times = [], []

        def score(prompts: Any, completions: Sequence[str], **_: Any) -> list[float]:
            counts = [float(text.count("a")) for text in completions]
            scores.append(np.mean(counts))
            times.append(time.perf_counter())
            report(len(scores) * ITERATION, float(scores[-1]))
            return counts

        # Without a penalty on the divergence from the reference, tunix keeps rewards as integers: the scores are whole.
        options = ppo.PPOConfig(
            advantage_estimator="gae_jax", num_iterations=updates, beta=0.0, entropy_coef=0.01, gamma=1.0
        )
        parts = cluster(seed, evaluations * chunk)
        learner = ppo.PPOLearner(parts, options, reward_fns=score)
        prompts = np.random.default_rng(seed).choice(list(letters.alphabet), (evaluations * chunk, completions))
        learner.train([{"prompts": batch} for batch in prompts])
        parts.close()
        means = np.reshape(scores, (evaluations, chunk)).mean(axis=1)
        at = ITERATION * chunk * np.arange(1, evaluations + 1)
        return Training(at.tolist(), means.tolist(), np.diff(times)[2:].tolist())  # the first two compile

    @contextlib.contextmanager
    def installed(estimator: Estimator) -> Iterator[None]:
        algo_core.registry.register("advantage_estimator", "gae_jax")(estimator)
        yield

    return Agent(
        name="tunix",
        task="letters",
        theirs=algo_core.registry.get("advantage_estimator", "gae"),
        swaps={"GAE": tunix_gae},
        targets_first=False,
        installed=installed,
        train=train,
    )


# The comparison.


def recorded_calls(agent: Agent, steps: int, report: Report) -> list[Any]:
    """Trains the agent once more, with its own estimator, and returns the arguments of the estimator's calls."""
    calls: list[Any] = []

    def recording(*args: Any, **kwargs: Any) -> tuple[Array, Array]:
        jax.debug.callback(lambda call: calls.append(jax.tree.map(np.asarray, call)), (args, kwargs))
        return agent.theirs(*args, **kwargs)

    with agent.installed(recording):
        agent.train(0, steps, report)
    jax.effects_barrier()
    return calls[:: math.ceil(len(calls) / COMPARED_CALLS)]


class Differences(NamedTuple):
    """Of two estimators, over recorded calls: the largest difference, and the largest magnitude."""

    advantages: tuple[float, float]
    targets: tuple[float, float]


def differences(agent: Agent, swap: Estimator, calls: list[Any]) -> Differences:
    """Calls both estimators with the same arguments. Where the agent has a mask, live entries alone count."""
    theirs, ours = jax.jit(agent.theirs), jax.jit(swap)
    worst = np.zeros((2, 2))
    for args, kwargs in calls:
        live = np.asarray(kwargs.get("completion_mask", True), bool)
        answers = zip(theirs(*args, **kwargs), ours(*args, **kwargs), strict=True)
        now = [(np.abs(x - y)[live | np.zeros(x.shape, bool)].max(), np.abs(x).max()) for x, y in answers]
        worst = np.maximum(worst, now)
    first, second = ((float(difference), float(size)) for difference, size in worst)
    return Differences(second, first) if agent.targets_first else Differences(first, second)


def lines_changed(swap: Estimator) -> int:
    """The lines of a replacement without its docstring, and the line that puts it in place."""
    source = inspect.getsource(swap)
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    docstring = function.body[0]
    return len(source.splitlines()) - (docstring.end_lineno or 0) + docstring.lineno - 1 + 1


HEADER = (
    *("agent", "version", "jax", "in place of its estimator", "advantages differ by", "targets differ by"),
    *("return, theirs", "return, with gae", "iteration, theirs", "with gae / theirs", "lines"),
)


def rows(agent: Agent, trainings: Trainings, calls: list[Any]) -> Iterator[list[str]]:
    """Yields the lines of the table, one a replacement."""
    theirs = trainings["theirs"]
    for label, swap in agent.swaps.items():
        found, ours = differences(agent, swap, calls), trainings[label]
        yield [
            agent.name,
            importlib.metadata.version(PACKAGES[agent.name]),
            jax.__version__,
            label,
            *(f"{difference:.1e} of {size:.3g}" for difference, size in found),
            spread(theirs),
            spread(ours),
            f"{1e3 * typical_seconds(theirs):.0f} ms" if theirs[0].seconds else "-",
            f"{typical_seconds(ours) / typical_seconds(theirs):.2f}" if theirs[0].seconds else "-",
            str(lines_changed(swap)),
        ]


def spread(trainings: list[Training]) -> str:
    """Mean and standard deviation over seeds of the last return."""
    last = [training.returns[-1] for training in trainings]
    return f"{np.mean(last):.4g} ± {np.std(last):.2g}"


def typical_seconds(trainings: list[Training]) -> float:
    """The median over the iterations of all seeds."""
    return float(np.median(np.concatenate([training.seconds for training in trainings])))


def draw(path: pathlib.Path, results: list[tuple[Agent, Trainings]]) -> None:
    """Returns over steps: a panel for each agent, a colour for each estimator, a thin line for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(results), 3.6), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, (agent, trainings) in zip(panels, results, strict=True):
        # Curves that are equal cover each other: theirs is wide, and those above it are narrow and dashed.
        styles = zip(("0.6", "C0", "C1"), (5.0, 2.0, 2.0), ("-", "-", "--"), strict=True)
        for (label, runs), (colour, width, dashes) in zip(trainings.items(), styles, strict=False):
            for run in runs:
                axes.plot(run.steps, run.returns, color=colour, linewidth=0.3 * width, linestyle=dashes, alpha=0.5)
            mean = np.mean([run.returns for run in runs], axis=0)
            axes.plot(runs[0].steps, mean, color=colour, linewidth=width, linestyle=dashes, label=label)
        axes.set_title(f"{agent.name}, {agent.task}")
        axes.set_xlabel("tokens" if agent.name == "tunix" else "environment steps")
        axes.locator_params(axis="x", nbins=4)
        axes.legend(title="estimator", fontsize=8, title_fontsize=8)
    figure.axes[0].set_ylabel("return")
    figure.savefig(path, dpi=150)


# The program.


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps back what the agents print and warn of: their own upkeep, and packages that they could do without."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def make_agents(names: Sequence[str]) -> list[Agent]:
    """Builds the agents that are here; names those that are not in one line."""
    makers = {"brax": brax_agent, "rejax": rejax_agent, "tunix": tunix_agent}
    agents, missing = [], []
    for name in names:
        if importlib.util.find_spec(name) is None:
            missing.append(f"{name} (not installed)")
            continue
        try:
            with quiet():
                agents.append(makers[name]())
        except ImportError as error:
            missing.append(f"{name} ({error})")
    advice = f"left out: {', '.join(missing)}; run: pip install -e '.[agents]'"
    if not agents:
        refuse(advice)
    if missing:
        print(advice)
    return agents


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """Lets JAX keep what it compiles until the end: a seed is data, so all seeds of a training share their programs."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:  # the user has a place for it
        yield
        return
    with tempfile.TemporaryDirectory() as directory:
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        yield


@contextlib.contextmanager
def display(total: int) -> Iterator[Callable[[str, Work], Any]]:
    """Yields a function that does a piece of work, of all `total` steps, and shows how far it is."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console, done = Console(file=sys.stdout), 0  # the output of now: `quiet` puts another in its place
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal, redirect_stdout=False) as bar:
        task = bar.add_task("", total=total)

        def run(what: str, work: Work) -> Any:
            nonlocal done
            start, reached = time.perf_counter(), 0

            def report(steps: int, latest: float) -> None:
                nonlocal reached
                reached = steps
                bar.update(task, completed=done + steps, description=f"{what}: return {latest:.4g}")

            bar.update(task, description=f"{what}: compiling")
            with quiet():
                result = work(report)
            done += reached
            if not console.is_terminal:
                print(f"{done / total:4.0%}: {what}, {time.perf_counter() - start:.0f} s", flush=True)
            return result

        yield run


def compare(agent: Agent, seeds: int, steps: int, run: Callable[[str, Work], Any]) -> tuple[Trainings, list[Any]]:
    """Trains with every estimator from every seed; returns the trainings and the calls that were recorded."""
    estimators = {"theirs": agent.theirs, **agent.swaps}
    trainings: Trainings = {label: [] for label in estimators}
    for seed in range(seeds):
        for label, estimator in estimators.items():
            with agent.installed(estimator):
                training = run(f"{agent.name}, {label}, seed {seed}", functools.partial(agent.train, seed, steps))
            trainings[label].append(training)
    return trainings, run(f"{agent.name}, recording", functools.partial(recorded_calls, agent, steps))


def parse() -> argparse.Namespace:
    """Reads the options, and refuses bad ones before anything else is imported."""
    parser = Parser(__doc__ or "")
    parser.add_argument("--agent", nargs="+", choices=PACKAGES, default=list(PACKAGES), help="which agents to train")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each agent with each estimator")
    parser.add_argument(
        "--steps", type=int, default=204_800, help=f"environment steps of a training; rounded up to {ITERATION} or more"
    )
    parser.add_argument("--picture", type=pathlib.Path, default=pathlib.Path("swap_in.png"), help="where to draw")
    options = parser.parse_args()
    for name in ("seeds", "steps"):
        if getattr(options, name) < 1:
            refuse(f"--{name} must be positive; got {getattr(options, name)}")
    if options.picture.suffix not in (".png", ".pdf", ".svg"):
        refuse(f"--picture must end in .png, .pdf or .svg; got {options.picture}")
    if not options.picture.parent.is_dir():
        refuse(f"--picture: there is no directory {options.picture.parent}")
    require("agents", "matplotlib", "rich")
    return options


def main() -> None:
    """Prints the table and draws the picture."""
    options, start = parse(), time.perf_counter()
    agents = make_agents(list(dict.fromkeys(options.agent)))
    evaluations, chunk = schedule(options.steps)
    pieces = sum(options.seeds * (1 + len(agent.swaps)) + 1 for agent in agents)
    lines, results = [], []
    with compiled_once(), display(pieces * evaluations * chunk * ITERATION) as run:
        for agent in agents:
            trainings, calls = compare(agent, options.seeds, options.steps, run)
            with quiet():
                lines += rows(agent, trainings, calls)
            results.append((agent, trainings))
    device = jax.devices()[0].device_kind
    print(f"\n{options.seeds} seeds, {options.steps:,} steps, {device}, {os.cpu_count()} cores\n")
    for line in (HEADER, ["---"] * len(HEADER), *lines):
        print("| " + " | ".join(line) + " |")
    draw(options.picture, results)
    print(f"\nwrote {options.picture}; {time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
