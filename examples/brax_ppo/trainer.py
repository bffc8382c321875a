"""A training run around its algorithm: options, devices, compilation, progress, evaluation, results."""

import concurrent.futures
import contextlib
import dataclasses
import json
import logging
import math
import pathlib
import shlex
import shutil
import signal
import sys
import threading
import time
import types
from typing import Any

import absl.logging
import drawing
import environment
import jax
import numpy as np
import options
import orbax.checkpoint as ocp
import processes
from environment import refuse
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

COLUMNS = ("environment_steps", "episode_return", "episodes_finished", "steps_per_second")
COLUMNS += ("policy_loss", "value_loss", "wall_seconds")  # of metrics.csv
RESULTS = ("learning_curve.png", "metrics.csv", "config.json", "replay.gif", "replay.html")
SECONDS_BETWEEN_CHECKPOINTS = 5

console = Console(highlight=False, soft_wrap=True)
absl.logging.set_verbosity(absl.logging.ERROR)  # of Orbax
logging.getLogger("asyncio").setLevel(logging.ERROR)


def main(description: str, config_type: type[Any], agent_type: type[Any]) -> None:
    """Trains, or plays a trained policy, as the command line says.

    Args:
      description: what `--help` prints above the options.
      config_type: a dataclass of all options that decide the result.
      agent_type: from a config and a batch of environments to the functions of an algorithm, as `ppo.PPO`.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to save, Ctrl-C quits at once
    given = options.read(description, config_type)
    with processes.ending_together() if given.cluster.processes != 1 else contextlib.nullcontext():
        processes.connect(given.cluster)
        config, run = processes.with_devices(given.training, given.cluster), given.run
        mode = {"resume": run.resume, "overwrite": run.overwrite, "play": run.play is not None}
        processes.refuse_other_options(dataclasses.asdict(config) | mode)
        if jax.process_count() > 1:
            console.print(f"process {jax.process_index()} of {jax.process_count()} is connected; process 0 reports")
        console.quiet = jax.process_index() > 0
        directory = pathlib.Path(run.out or options.source_of(given))
        try:
            if jax.process_index() == 0:
                prepare(directory, config, run)
            columns = TimeElapsedColumn(), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
            with Display(*columns, console=console, disable=console.quiet or not console.is_terminal) as display:
                display.add_task("", total=None)
                programs = compile_programs(config, agent_type, display, training=not run.play)
                train_or_play(config, run, directory, options.source_of(given), programs, display)
        except OSError as error:
            refuse(f"cannot write to {directory}: {error.strerror or error}")


def prepare(directory: pathlib.Path, config: Any, run: options.Run) -> None:
    """Makes the directory of a new run. Deletes an earlier run in it if `--overwrite`, or else refuses to go on."""
    directory.mkdir(parents=True, exist_ok=True)
    if run.resume or run.play:
        return
    if (directory / "checkpoints").exists():
        if not run.overwrite:
            refuse(f"{directory} has a run in it; --resume goes on with it, --overwrite deletes it")
        shutil.rmtree(directory / "checkpoints")
    for name in RESULTS:
        (directory / name).unlink(missing_ok=True)
    (directory / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")


class Display(Progress):
    """One line: the time since its start, and what happens. Where there is no terminal, the notes as lines."""

    line = TaskID(0)  # the only one

    def note(self, text: str) -> None:
        """Shows what happens now."""
        self.update(self.line, description=text, refresh=True)
        if self.disable:
            console.print(text)


def compile_programs(config: Any, agent_type: type[Any], display: Display, training: bool) -> Any:
    """Compiles methods of the algorithm, all at the same time; returns them, the algorithm and its state's shapes."""
    display.note(f"{config.env} ({config.backend}), seed {config.seed}, {config.devices} devices: importing Brax")
    agent = agent_type(config, environment.make(config))
    mesh = Mesh(processes.devices(config.devices), ("devices",))
    everywhere, split, split_rollout = PartitionSpec(), PartitionSpec("devices"), PartitionSpec(None, "devices")
    compiling = {}

    def start(name: str, arguments: tuple[Any, ...], specs: tuple[Any, ...], out_specs: Any) -> Any:
        """Traces a method and begins to compile it; returns the shapes of its results."""
        fn = jax.shard_map(getattr(agent, name), mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False)
        traced = jax.jit(fn).trace(*arguments)
        if training or name in ("reset", "act"):
            compiling[name] = pool.submit(traced.lower().compile)
            display.note(f"compiling {', '.join(compiling)}")
        return jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)),
            traced.out_info,
            jax.tree.broadcast(out_specs, traced.out_info, is_leaf=lambda x: isinstance(x, PartitionSpec)),
        )

    with concurrent.futures.ThreadPoolExecutor() as pool:
        key = jax.ShapeDtypeStruct((2,), np.uint32, sharding=NamedSharding(mesh, everywhere))
        env = start("reset", (key,), (everywhere,), split)
        of_state = agent.state_type(*[everywhere] * len(agent.state_type._fields))._replace(env=split)
        state = start("init", (key, env), (everywhere, split), of_state)
        _, rollout = start("act", (state, np.float32(1)), (of_state, everywhere), (split, split_rollout))
        if training:
            start("learn", (state, env, rollout), (of_state, split, split_rollout), (of_state, everywhere))
    compiled = {name: program.result() for name, program in compiling.items()}
    if training and config.devices > 1:
        console.print(processes.communication(compiled["learn"]))
    return types.SimpleNamespace(agent=agent, state=state, **compiled)


def open_checkpoints(directory: pathlib.Path) -> Any:
    """Opens the checkpoints of a run. Orbax writes one beside its predecessor and renames it at the end."""
    how = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    return ocp.CheckpointManager((directory / "checkpoints").absolute(), options=how)


def save(checkpoints: Any, step: int, rows: list[list[float]], state: Any) -> None:
    """Saves a state, of which each process has a part; where that fails, the checkpoint before it stays."""
    try:
        what = {"state": ocp.args.StandardSave(state), "about": ocp.args.JsonSave({"rows": rows})}
        checkpoints.save(step, args=ocp.args.Composite(**what))
    except Exception as error:  # of the file system, in many wrappings
        refuse(f"cannot save a checkpoint: {error}")


def restore(directory: pathlib.Path, like: Any) -> tuple[Any, list[list[float]]]:
    """Returns the latest state of a run, with the shapes and shardings of `like`, and the reports so far."""
    try:
        with open_checkpoints(directory) as checkpoints:
            what = {"state": ocp.args.StandardRestore(like), "about": ocp.args.JsonRestore()}
            stored = checkpoints.restore(checkpoints.latest_step(), args=ocp.args.Composite(**what))
    except Exception as error:
        refuse(f"the checkpoint in {directory} is missing, damaged, or not one of this program: {str(error)[:200]}")
    return stored["state"], stored["about"]["rows"]


def train_or_play(
    config: Any, run: options.Run, directory: pathlib.Path, source: pathlib.Path, programs: Any, display: Any
) -> None:
    """Evaluates, trains, evaluates again, and writes the results; or only evaluates and draws."""
    key = jax.random.PRNGKey(config.seed)  # Brax takes no key of the new kind
    key, env_key, eval_key = np.asarray(jax.random.split(key, 3))
    state: Any = None
    rows, before = [], np.zeros(0)
    if run.resume or run.play:
        state, rows = restore(source, programs.state)
    if not run.play:
        display.note("evaluating the untrained policy")
        untrained = programs.init(key, programs.reset(env_key))
        before, _ = evaluate(config, programs, untrained, eval_key)
        console.print(f"before training: {describe(before)}")
        state, rows = train(config, directory, programs, state or untrained, rows, display)
    display.note("evaluating the trained policy")
    after, film = evaluate(config, programs, state, eval_key)
    console.print(f"after training: {describe(after)}")
    if jax.process_index() > 0:
        return
    display.note("drawing")
    title = f"{config.env} ({config.backend}), seed {config.seed}"
    if config.env != "fast":  # it has no body
        drawing.draw_episode(directory, title, programs.agent.env.unwrapped, film)
    if run.play:
        return
    curve = directory / "learning_curve.png"
    drawing.draw_curve(curve, f"PPO on {title}", np.array(rows), before.mean(), after.mean())
    np.savetxt(directory / "metrics.csv", rows, "%.9g", delimiter=",", header=",".join(COLUMNS), comments="")
    console.print(f"written to {directory}: {', '.join(sorted(path.name for path in directory.iterdir()))}")
    if int(state.iteration) < config.iterations:
        arguments = [x for x in sys.argv if x not in ("--resume", "--overwrite")]
        console.print(f"to go on: {shlex.join([sys.executable, *arguments, '--resume'])}")


def evaluate(config: Any, programs: Any, state: Any, key: np.ndarray) -> tuple[np.ndarray, drawing.Film]:
    """Plays one episode in every environment, without noise; returns the returns, and a film of the first episode."""
    env, pieces = programs.reset(key), []
    for _ in range(math.ceil(config.episode_length / config.num_steps)):
        env, rollout = programs.act(state._replace(env=env), np.float32(0))
        outcome = process_allgather((rollout.done, rollout.episode_return), tiled=True)
        # Process 0 draws the first environment, which is on a device of its own.
        pose = [np.asarray(x.addressable_data(0)[:, 0]) for x in (rollout.pose.pos, rollout.pose.rot)]
        pieces.append((*outcome, *pose))
    done, returns, position, rotation = (np.concatenate(x) for x in zip(*pieces, strict=True))
    last = done.argmax(axis=0)
    first = slice(last[0] + 1)
    film = drawing.Film(position[first], rotation[first], returns[first, 0])
    return returns[last, np.arange(len(last))], film


def describe(returns: np.ndarray) -> str:
    """Mean and standard deviation of returns, in words."""
    return f"return {returns.mean():,.1f} ± {returns.std():,.1f} over {len(returns)} episodes"


def train(
    config: Any, directory: pathlib.Path, programs: Any, state: Any, rows: list[list[float]], display: Display
) -> tuple[Any, list[list[float]]]:
    """Trains, reports and saves, until the end or the first Ctrl-C; the second quits at once."""
    interrupted = threading.Event()

    def interrupt(*_: object) -> None:
        interrupted.set()
        console.show_cursor()
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    signal.signal(signal.SIGINT, interrupt)
    done, total, saved = int(state.iteration), config.iterations, -math.inf
    stop = done == total
    display.note(f"training from iteration {done} to {total}; Ctrl-C ends the training early")
    with open_checkpoints(directory) as checkpoints:
        while not stop:
            start, tenth, metrics = time.perf_counter(), done * 10 // total, []
            for _ in range(min(total - done, max(1, total // 100))):
                env, rollout = programs.act(state, np.float32(1))
                state, one = programs.learn(state, env, rollout)
                metrics.append(one)
            metrics, done = jax.device_get(metrics), done + len(metrics)
            rows = [*rows, report(config, done, rows, metrics, time.perf_counter() - start)]
            due = time.perf_counter() - saved > SECONDS_BETWEEN_CHECKPOINTS
            stops, dues = process_allgather(np.array([interrupted.is_set(), due])).T
            stop = done == total or stops.any()
            if stop or dues[0]:  # the clock of process 0 decides for all
                save(checkpoints, done, rows, state)
                saved = time.perf_counter()
            text = f"{rows[-1][0]:,} steps, return {rows[-1][1]:,.1f}, {rows[-1][3]:,.0f} steps/s"
            display.update(display.line, completed=done, total=total, description=text)
            if display.disable and done * 10 // total > tenth:
                console.print(f"{done / total:4.0%}: {text}")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return state, rows


def report(config: Any, done: int, rows: list[list[float]], metrics: list[Any], seconds: float) -> list[float]:
    """Returns the row of metrics.csv for some iterations, the last of which is number `done`."""
    latest, elapsed = (rows[-1][1], rows[-1][-1]) if rows else (math.nan, 0.0)
    total = {name: sum(float(one[name]) for one in metrics) for name in metrics[0]}
    # Time limits end all episodes at the same time, so in most reports no episode ends.
    latest = total["returns"] / total["episodes"] if total["episodes"] else latest
    steps, losses = config.num_envs * config.num_steps, (total["policy_loss"], total["value_loss"])
    losses = [loss / len(metrics) for loss in losses]
    return [done * steps, latest, total["episodes"], len(metrics) * steps / seconds, *losses, elapsed + seconds]
