"""Published agents: for each one the function that replaces its advantage estimator, and a small training.

A replacement has the signature of the agent's own estimator. `swap_in.py` puts it in place, trains, and compares;
agents.md shows the lines.

    Brax        brax.training.agents.ppo.losses.compute_gae = brax_gae
    rejax       rejax.PPO.calculate_gae = rejax_gae
    tunix       registry.register("advantage_estimator", "gae_jax")(tunix_gae)
    sbx         sbx.PPO(..., rollout_buffer_class=a buffer that calls sbx_gae)
    skrl        skrl.agents.jax.ppo.ppo._compute_gae = skrl_gae
    PureJaxRL   is a file to copy, not a package; `purejaxrl_gae` has the lines for it, and
                tests/test_swap_in.py trains a loop of its form with them
"""

import contextlib
import importlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gae_jax import gae, normalize

ITERATION = 2048  # environment steps between two updates; for tunix, tokens
EVALUATIONS = 10  # per training

Estimator = Callable[..., tuple[Array, Array]]
Report = Callable[[int, float], None]  # takes the steps so far and the latest return


class Training(NamedTuple):
    """What came of one training."""

    steps: list[int]  # at each evaluation
    returns: list[float]  # mean over the episodes of each evaluation
    seconds: list[float]  # of the iterations that compiled nothing


class Agent(NamedTuple):
    """An agent, and how it is trained."""

    name: str
    task: str
    theirs: Estimator
    swaps: dict[str, Estimator]  # what stands in its place
    installed: Callable[[Estimator], contextlib.AbstractContextManager[None]]
    train: Callable[[int, int, Report], Training]  # from a seed, for a number of environment steps
    targets_first: bool = False  # in what the estimator returns
    lines_to_place: int = 1  # that put a replacement in its place


def schedule(steps: int) -> tuple[int, int]:
    """Evaluations, and iterations before each, for at least so many steps."""
    iterations = math.ceil(steps / ITERATION)
    chunk = math.ceil(iterations / EVALUATIONS)
    return math.ceil(iterations / chunk), chunk


def recorder(steps: int, report: Report) -> tuple[Training, Callable[[Sequence[float]], None]]:
    """Returns an empty training, and a function that fills it.

    A loop that is the library's calls the function after each iteration with the returns of the latest episodes.
    """
    training, times = Training([], [], []), []
    _, chunk = schedule(steps)

    def after_iteration(latest: Sequence[float]) -> None:
        times.append(time.perf_counter())
        if len(times) > 3:  # the first iterations compile
            training.seconds.append(times[-1] - times[-2])
        if len(times) % chunk == 0:
            training.steps.append(len(times) * ITERATION)
            training.returns.append(float(np.mean(latest)))
            report(training.steps[-1], training.returns[-1])

    return training, after_iteration


@contextlib.contextmanager
def replaced(owner: Any, name: str, estimator: Estimator) -> Iterator[None]:
    """Puts an estimator in the place of an attribute, and then puts the attribute back."""
    original = getattr(owner, name)
    setattr(owner, name, estimator)
    try:
        yield
    finally:
        setattr(owner, name, original)


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
        at, returns, seconds = map(list, zip(*rows, strict=True))
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


# rejax


def rejax_gae(self: Any, trajectories: Any, last_val: Array) -> tuple[Array, Array]:
    """For rejax, whose rewards have an axis of length 1 in some environments."""
    rewards, values = trajectories.reward.reshape(trajectories.value.shape), trajectories.value
    return gae(rewards, values, trajectories.done, gamma=self.gamma, lambda_=self.gae_lambda, bootstrap_value=last_val)


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
        installed=lambda estimator: replaced(rejax.PPO, "calculate_gae", estimator),
        train=train,
    )


# tunix


def tunix_gae(
    rewards: Array, values: Array, completion_mask: Array, gamma: float, gae_lambda: float
) -> tuple[Array, Array]:
    """For tunix, which standardizes advantages over all live tokens, with Bessel's correction."""
    no_ends, no_value = jnp.zeros(values.shape, bool), jnp.zeros(len(values))  # nothing of value follows a completion
    advantages, targets = gae(
        rewards, values, no_ends, gamma=gamma, lambda_=gae_lambda, bootstrap_value=no_value, mask=completion_mask,
        time_axis=1,
    )  # fmt: skip
    return normalize(advantages, completion_mask, ddof=1), targets


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
        installed=installed,
        train=train,
    )


# sbx, with the rollout buffer of stable-baselines3


def sbx_gae(
    rewards: Array, values: Array, episode_starts: Array, last_values: Array, dones: Array,
    gamma: float, gae_lambda: float,
) -> tuple[Array, Array]:  # fmt: skip
    """For the rollout buffer of stable-baselines3, whose `episode_starts` are the flags of the step before."""
    ends = jnp.concatenate([episode_starts[1:] != 0, dones[None]])
    return gae(rewards, values, ends, gamma=gamma, lambda_=gae_lambda, bootstrap_value=last_values)


def buffer_with(estimator: Estimator) -> type:
    """Returns a rollout buffer for sbx and stable-baselines3 that calls this estimator."""
    buffers: Any = importlib.import_module("stable_baselines3.common.buffers")

    class GAEBuffer(buffers.RolloutBuffer):
        def compute_returns_and_advantage(self, last_values: Any, dones: Any) -> None:
            arrays = self.rewards, self.values, self.episode_starts, last_values.numpy(), dones
            answers = estimator(*arrays, self.gamma, self.gae_lambda)
            self.advantages, self.returns = map(np.array, answers)

    return GAEBuffer


def sbx_agent() -> Agent:
    """The PPO of sbx on CartPole; environments, loop and buffer are stable-baselines3's."""
    modules = "torch", "sbx", *(f"stable_baselines3.common.{name}" for name in ("buffers", "callbacks", "env_util"))
    torch, sbx, buffers, callbacks, env_util = map(importlib.import_module, modules)
    chosen = SimpleNamespace(buffer=buffers.RolloutBuffer)

    def theirs(
        rewards: Any, values: Any, episode_starts: Any, last_values: Any, dones: Any, gamma: float, gae_lambda: float
    ) -> tuple[Any, Any]:
        arrays = {"rewards": rewards, "values": values, "episode_starts": episode_starts}
        sizes = {"buffer_size": len(rewards), "advantages": np.zeros_like(rewards)}
        buffer = SimpleNamespace(**arrays, **sizes, gamma=gamma, gae_lambda=gae_lambda)
        buffers.RolloutBuffer.compute_returns_and_advantage(buffer, torch.as_tensor(last_values), dones)
        return buffer.advantages, buffer.returns

    def train(seed: int, steps: int, report: Report) -> Training:
        training, after_iteration = recorder(steps, report)

        class Recorder(callbacks.BaseCallback):
            def _on_rollout_end(self) -> None:
                after_iteration([episode["r"] for episode in self.model.ep_info_buffer])

            def _on_step(self) -> bool:
                return True

        agent = sbx.PPO(
            "MlpPolicy",
            env_util.make_vec_env("CartPole-v1", 16, seed=seed),
            n_steps=128,
            batch_size=256,
            n_epochs=4,
            learning_rate=1e-3,
            rollout_buffer_class=chosen.buffer,
            seed=seed,
        )
        agent.learn(math.prod(schedule(steps)) * ITERATION, callback=Recorder())
        return training

    return Agent(
        name="sbx",
        task="CartPole-v1",
        theirs=theirs,
        swaps={"GAE": sbx_gae},
        installed=lambda estimator: replaced(
            chosen, "buffer", chosen.buffer if estimator is theirs else buffer_with(estimator)
        ),
        train=train,
        lines_to_place=6,  # the buffer, and the argument that names it
    )


# skrl, its JAX branch


def skrl_gae(
    rewards: Array, terminated: Array, truncated: Array, values: Array, last_values: Array,
    discount_factor: float = 0.99, lambda_coefficient: float = 0.95, time_limit_bootstrap: bool = False,
) -> tuple[Array, Array]:  # fmt: skip
    """For skrl, which has added γ V to truncated rewards, and standardizes the advantages over the whole rollout."""
    ends = terminated | truncated if time_limit_bootstrap else terminated
    advantages, targets = gae(
        rewards, values, ends, gamma=discount_factor, lambda_=lambda_coefficient, bootstrap_value=last_values
    )
    return targets, normalize(advantages)


def skrl_agent() -> Agent:
    """The PPO of skrl's JAX branch on CartPole, in the loop of skrl's trainer."""
    modules = "agents.jax.ppo.ppo", "envs.wrappers.jax", "memories.jax", "trainers.jax", "utils"
    ppo, wrappers, memories, trainers, utils = (importlib.import_module(f"skrl.{name}") for name in modules)
    instantiators, gymnasium = map(importlib.import_module, ("skrl.utils.model_instantiators.jax", "gymnasium"))
    workers, rollout = 64, 32

    def train(seed: int, steps: int, report: Report) -> Training:
        training, after_iteration = recorder(steps, report)
        utils.set_seed(seed)
        environments = gymnasium.wrappers.vector.RecordEpisodeStatistics(gymnasium.make_vec("CartPole-v1", workers))
        env = wrappers.wrap_env(environments)
        spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
        network = [{"name": "net", "input": "OBSERVATIONS", "layers": [64, 64], "activations": "tanh"}]
        models = {
            "policy": instantiators.categorical_model(**spaces, network=network, output="ACTIONS"),
            "value": instantiators.deterministic_model(**spaces, network=network, output="ONE"),
        }
        for role, model in models.items():
            model.init_state_dict(role=role)

        class PPO(ppo.PPO):
            def update(self, **times: int) -> None:
                super().update(**times)
                after_iteration(environments.return_queue)

        options = {
            "rollouts": rollout,
            "mini_batches": 8,
            "learning_epochs": 4,
            "learning_rate": 1e-3,
            "time_limit_bootstrap": True,
            "experiment": {"write_interval": 0, "checkpoint_interval": 0},
        }
        memory = memories.RandomMemory(memory_size=rollout, num_envs=workers)
        agent = PPO(models=models, memory=memory, cfg=options, **spaces)
        loop = {"timesteps": math.prod(schedule(steps)) * rollout, "headless": True, "disable_progressbar": True}
        trainers.SequentialTrainer(env=env, agents=agent, cfg=loop).train()
        return training

    return Agent(
        name="skrl",
        task="CartPole-v1",
        theirs=ppo._compute_gae,
        swaps={"GAE": skrl_gae},
        targets_first=True,
        installed=lambda estimator: replaced(ppo, "_compute_gae", estimator),
        train=train,
    )


# PureJaxRL


def purejaxrl_gae(traj_batch: Any, last_val: Array, config: dict[str, Any]) -> tuple[Array, Array]:
    """For PureJaxRL's ppo.py: the body stands in place of its `_calculate_gae` and the call of it."""
    return gae(
        traj_batch.reward, traj_batch.value, traj_batch.done,
        gamma=config["GAMMA"], lambda_=config["GAE_LAMBDA"], bootstrap_value=last_val,
    )  # fmt: skip
