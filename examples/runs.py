"""A training run around its algorithm: processes, devices, compilation, progress, checkpoints, reports."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import math
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import brax_env
import checkpoints
import evaluation
import jax
import numpy as np
import run_options
from command_line import refuse, require
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from run_options import RESULTS, Run

COLUMNS = ("environment_steps", "episode_return", "episodes_finished", "steps_per_second")
COLUMNS += ("policy_loss", "value_loss", "wall_seconds")  # of metrics.csv
METRICS = ("episodes", "returns", "policy_loss", "value_loss")  # of an iteration


def main(description: str, config_type: type[Any], agent_type: type[Any]) -> None:
    """Trains, or plays a trained policy, as the command line says.

    Args:
      description: what `--help` prints above the options.
      config_type: a dataclass whose fields are `run_options.option`s: all that decides the result.
      agent_type: from a config and a batch of environments to the functions of an algorithm, as `brax_ppo.PPO`.
    """
    given, options = run_options.read(description, config_type)
    require("examples", "brax", "flax", "matplotlib", "optax", "PIL", "rich")
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to save, Ctrl-C quits at once
    config, run = run_options.recall(config_type, given, options)
    # Of several processes the first one writes.
    with checkpoints.lock(run.directory) if run.process == 0 else contextlib.nullcontext():
        if options.play:
            evaluation.play(config, run, options.play, agent_type)
        else:
            if run.process == 0 and not options.resume:
                run_options.clear(run.directory, options.overwrite)
            train(config, run, agent_type)


def train(config: Any, run: Run, agent_type: type[Any]) -> None:
    """Evaluates, trains, evaluates again, and writes the results."""
    mesh = connect(config, run)
    say(f"{evaluation.title(config)}: compiling, which may take half a minute")
    start = time.perf_counter()
    agent = agent_type(config, brax_env.make(config))
    key, eval_key = evaluation.keys(config)
    # The environments are split over the devices; all else is replicated. The compiler derives the rest from these
    # shardings, such as the all-reduce of the gradients.
    replicated, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("devices"))
    like = jax.eval_shape(agent.init, key)
    shardings = jax.tree.map(lambda _: replicated, like)._replace(env=jax.tree.map(lambda _: split, like.env))
    begun = None if run.stored is None else from_checkpoint(run, like)
    state, rows = jax.jit(agent.init, out_shardings=shardings)(key), np.zeros((0, len(COLUMNS)))

    def train_chunk(state: Any) -> tuple[Any, dict[str, Array]]:
        return lax.scan(agent.iterate, state, length=chunk(config))

    stages = (
        jax.jit(train_chunk, donate_argnums=0, out_shardings=(shardings, replicated)).lower(state),
        jax.jit(functools.partial(evaluation.episodes, config, agent), out_shardings=replicated).lower(
            (state.params, state.statistics), eval_key
        ),
    )
    with concurrent.futures.ThreadPoolExecutor() as pool:
        advance, episodes = pool.map(lambda stage: stage.compile(), stages)
    say(f"compiled in {time.perf_counter() - start:.0f} s; evaluating the untrained policy")
    before = np.asarray(episodes((state.params, state.statistics), eval_key)[0])
    say(f"before training: {evaluation.describe(before)}")

    if begun is not None:
        state, rows = jax.jit(lambda state: state, out_shardings=shardings)(begun["state"]), begun["rows"]
    say(f"training from iteration {int(state.iteration)} to {iterations(config)}; Ctrl-C ends the training early")
    state, rows = train_chunks(config, run, advance, state, rows)
    complete = int(state.iteration) == iterations(config)
    say(f"{'trained' if complete else 'interrupted'}; evaluating the policy")
    after, film = jax.device_get(episodes((state.params, state.statistics), eval_key))
    say(f"after training: {evaluation.describe(after)}")
    policy = {"params": state.params, "statistics": state.statistics}
    checkpoints.save(run.directory / "policy.npz", dataclasses.asdict(config), policy)
    if run.process == 0:
        write_results(config, run, rows, before.mean(), after.mean())
        evaluation.write_replay(config, run, agent.env, film)
    if not complete:
        arguments = [x for x in sys.argv if x not in ("--resume", "--overwrite")]
        say(f"to go on: {shlex.join([sys.executable, *arguments, '--resume'])}")


def connect(config: Any, run: Run) -> Mesh:
    """Waits for the other processes, if there are any; returns all devices as one axis of a mesh."""
    jax.config.update("jax_num_cpu_devices", config.devices // run.processes)  # other platforms have what they have
    if run.processes > 1:
        jax.distributed.initialize(run.coordinator, run.processes, run.process)
    if jax.device_count() < config.devices:
        refuse(f"--devices: there are {jax.device_count()}; got {config.devices}")
    return Mesh(np.array(jax.devices()[: config.devices]), ("devices",))


def say(*words: str, sep: str = " ") -> None:
    """Prints, in the first process only."""
    if jax.process_index() == 0:
        print(*words, sep=sep, flush=True)


def chunk(config: Any) -> int:
    """Iterations between two reports: about 1% of all."""
    return max(1, config.steps // (100 * config.num_envs * config.num_steps))


def iterations(config: Any) -> int:
    """Iterations of the run: whole chunks, since a shorter chunk would be another program to compile."""
    return chunk(config) * math.ceil(config.steps / (chunk(config) * config.num_envs * config.num_steps))


def from_checkpoint(run: Run, like: Any) -> dict[str, Any]:
    """Returns the state, which is `like` the first state, and the reports so far."""
    arrays = run.stored or {}
    rows = jax.ShapeDtypeStruct((len(np.atleast_1d(arrays.get("rows", 0))), len(COLUMNS)), np.dtype(float))
    return checkpoints.fill(run.directory / "checkpoint.npz", arrays, {"state": like, "rows": rows})


def train_chunks(
    config: Any, run: Run, advance: Callable[[Any], Any], state: Any, rows: np.ndarray
) -> tuple[Any, np.ndarray]:
    """Trains, reports and saves, chunk by chunk, until the end or the first Ctrl-C; the second quits at once.

    Args:
      config: the options that decide the result.
      run: the other options.
      advance: from a state to the state after a chunk of iterations, and the metrics of each iteration.
      state: where to start from.
      rows: the reports so far, in the columns of metrics.csv.

    Returns:
      The state and the reports at the end.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console, interrupted = Console(quiet=run.process != 0), threading.Event()

    def interrupt(*_: object) -> None:
        interrupted.set()
        console.show_cursor()
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    signal.signal(signal.SIGINT, interrupt)
    done, total = int(state.iteration), iterations(config)
    columns = TextColumn("training"), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, completed=done)
        while done < total and not interrupted.is_set():
            start = time.perf_counter()
            state, metrics = jax.block_until_ready(advance(state))
            tenth, done = done * 10 // total, done + chunk(config)
            rows = np.append(rows, [report(config, done, rows, metrics, time.perf_counter() - start)], axis=0)
            tree = {"state": state, "rows": rows}
            checkpoints.save(run.directory / "checkpoint.npz", dataclasses.asdict(config), tree)
            steps, latest, _, speed = rows[-1, :4]
            text = f"return {'-' if math.isnan(latest) else f'{latest:,.1f}'}, {speed:,.0f} steps/s"
            bar.update(task, completed=done, description=text)
            if not console.is_terminal and done * 10 // total > tenth:
                left = (total / done - 1) * steps / speed
                say(f"{done / total:4.0%}: {steps:,.0f} steps, {text}, {left:.0f} s left")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return state, rows


def report(config: Any, done: int, rows: np.ndarray, metrics: dict[str, Array], seconds: float) -> tuple[float, ...]:
    """Returns the row of metrics.csv for a chunk of iterations that took some seconds."""
    latest, elapsed = (rows[-1, 1], rows[-1, -1]) if len(rows) else (math.nan, 0.0)
    episodes, returns, *losses = (float(np.sum(metrics[name])) for name in METRICS)
    # Time limits end all episodes at the same time, so in most chunks no episode ends.
    latest = returns / episodes if episodes else latest
    steps = config.num_envs * config.num_steps
    losses = [loss / chunk(config) for loss in losses]
    return (done * steps, latest, episodes, chunk(config) * steps / seconds, *losses, elapsed + seconds)


def write_results(config: Any, run: Run, rows: np.ndarray, before: float, after: float) -> None:
    """Writes the learning curve, the reports and the options; `before` and `after` are returns of the evaluations."""
    import replay

    with checkpoints.replacing(run.directory / "learning_curve.png") as path:
        replay.draw_curve(path, f"PPO on {evaluation.title(config)}", rows, before, after)
    with checkpoints.replacing(run.directory / "metrics.csv") as path:
        np.savetxt(path, rows, fmt="%.9g", delimiter=",", header=",".join(COLUMNS), comments="")
    with checkpoints.replacing(run.directory / "config.json") as path:
        path.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    say("written:", *(f"  {run.directory / name}" for name in RESULTS), sep="\n")
