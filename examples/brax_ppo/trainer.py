"""A training run around its algorithm: options, devices, compilation, progress, evaluation, results."""

import concurrent.futures
import csv
import dataclasses
import json
import math
import os
import pathlib
import shlex
import shutil
import signal
import sys
import threading
import time
import types
import typing
from typing import Annotated, Any, Literal

import environment
import checkpoints
import jax
import numpy as np
import drawing
import tyro
from command_line import refuse
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Count = Annotated[int, (1, 1_000_000)]  # types of options, each with its least and its largest value
Steps = Annotated[int, (1, 1_000_000_000)]
Seed = Annotated[int, (0, 2**32 - 1)]
Devices = Annotated[int, (0, 4096)]
Fraction = Annotated[float, (0.0, 1.0)]
Positive = Annotated[float, (1e-12, 1e12)]

COLUMNS = ("environment_steps", "episode_return", "episodes_finished", "steps_per_second")
COLUMNS += ("policy_loss", "value_loss", "wall_seconds")  # of metrics.csv
RESULTS = ("learning_curve.png", "metrics.csv", "config.json", "replay.gif", "replay.html")
SECONDS_BETWEEN_CHECKPOINTS = 5

console = Console(highlight=False, soft_wrap=True)
mode, directory = tyro.conf.create_mutex_group(required=False), tyro.conf.arg(metavar="DIR")


@dataclasses.dataclass(frozen=True)
class Run:
    """What to do, and where. None of it changes the result."""

    out: Annotated[str | None, directory] = None  # for the results; by default runs/ENV-seedSEED
    resume: Annotated[bool, mode] = False  # go on from the checkpoint in --out, with its options
    overwrite: Annotated[bool, mode] = False  # delete the run in --out and start anew
    play: Annotated[str | None, directory, mode] = None  # no training: evaluate the policy of a run, draw an episode

    def __post_init__(self) -> None:
        """Raises ValueError for an empty name, which would be the current directory."""
        if "" in (self.out, self.play):
            raise ValueError("the name of a directory is empty")


def main(description: str, config_type: type[Any], agent_type: type[Any]) -> None:
    """Trains, or plays a trained policy, as the command line says.

    Args:
      description: what `--help` prints above the options.
      config_type: a dataclass of all options that decide the result.
      agent_type: from a config and a batch of environments to the functions of an algorithm, as `brax_ppo.PPO`.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to save, Ctrl-C quits at once
    config, run, checkpoint = read_options(description, config_type)
    directory = pathlib.Path(run.out or run.play or default_directory(config))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if checkpoint is None:
            clear(directory, run.overwrite)
        columns = TimeElapsedColumn(), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
        with Display(*columns, console=console, disable=not console.is_terminal) as display:
            programs = compile_programs(config, agent_type, display, training=not run.play)
            train_or_play(config, run, directory, checkpoint, programs, display)
    except OSError as error:
        refuse(f"cannot write to {directory}: {error.strerror}")


def read_options(
    description: str, config_type: type[Any], arguments: list[str] | None = None
) -> tuple[Any, Run, checkpoints.Checkpoint | None]:
    """Returns the options, and the checkpoint of the run that is resumed or played, whose options are the defaults."""

    def read(config: Any) -> tuple[Any, Run]:
        how = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
        fields: Any = [("training", config_type), ("run", Run)]
        both: Any = dataclasses.make_dataclass("Options", fields)
        options = tyro.cli(both, description=description, args=arguments, default=both(config, Run()), config=how)
        return options.training, options.run

    config, run = read(config_type())
    config = with_devices(config)
    if not (run.resume or run.play):
        return config, run, None
    source = pathlib.Path(run.play or run.out or default_directory(config))
    checkpoint = checkpoints.load(source)
    try:
        stored = config_type(**checkpoint.config)
        iteration = int(checkpoint.arrays["iteration"])
        if not 0 <= iteration <= stored.iterations:
            raise ValueError(f"iteration must be from 0 to {stored.iterations}; got {iteration}")
        if not all(np.isfinite(x).all() for name, x in checkpoint.arrays.items() if name.startswith("params.")):
            raise ValueError("the parameters are not finite: the training diverged")
    except (KeyError, TypeError, ValueError) as error:
        refuse(f"the checkpoint in {source} cannot be used: {error}")
    config, run = read(stored)
    for name, old in checkpoint.config.items():
        if getattr(config, name) != old and not (run.play and name == "seed"):
            refuse(f"--{name.replace('_', '-')}: the run in {source} has {old}; got {getattr(config, name)}")
    return config, run, checkpoint


def check(config: Any) -> None:
    """Raises ValueError, which tyro prints, where a field is out of its range, or has another type than its hint."""
    for name, hint in typing.get_type_hints(type(config), include_extras=True).items():
        value, wanted = getattr(config, name), typing.get_args(hint)
        if typing.get_origin(hint) is Literal:
            valid, wanted = value in wanted, f"one of {', '.join(wanted)}"
        else:
            kind, (least, most) = wanted
            valid = type(value) is kind and least <= value <= most
            wanted = f"{'a whole' if kind is int else 'a'} number from {least} to {most}"
        if not valid:
            raise ValueError(f"--{name.replace('_', '-')} must be {wanted}; got {value}")
    rows, devices, product = config.num_envs * config.num_steps, config.devices or 1, "--num-envs × --num-steps"
    if rows > 2**22:
        raise ValueError(f"{product} must be at most {2**22}; got {rows}")
    if config.num_envs % devices:
        raise ValueError(f"--devices must divide --num-envs; got {devices} for {config.num_envs}")
    if (rows := rows // devices) % config.minibatches:
        raise ValueError(f"--minibatches must divide {product} / --devices; got {config.minibatches} for {rows}")


def with_devices(config: Any) -> Any:
    """Returns the config with a number of devices: by default one per CPU core, at most 8, that divides the work."""
    cores = min(os.cpu_count() or 1, 8)
    jax.config.update("jax_num_cpu_devices", config.devices or cores)  # other platforms have what they have
    if config.devices:
        return config
    most, rows = cores if jax.default_backend() == "cpu" else 1, config.num_envs * config.num_steps
    fitting = (n for n in range(1, most + 1) if config.num_envs % n == 0 and rows // n % config.minibatches == 0)
    return dataclasses.replace(config, devices=max(fitting))


def default_directory(config: Any) -> str:
    """Where a run writes without `--out`."""
    return f"runs/{config.env}-seed{config.seed}"


def clear(directory: pathlib.Path, overwrite: bool) -> None:
    """Deletes the results of an earlier run if `overwrite`, or else refuses to go on where there are any."""
    if (directory / "checkpoints").exists():
        if not overwrite:
            refuse(f"{directory} has a run in it; --resume goes on with it, --overwrite deletes it")
        shutil.rmtree(directory / "checkpoints")
    for name in RESULTS:
        (directory / name).unlink(missing_ok=True)


class Display(Progress):
    """One line: the time since its start, and what happens. Where there is no terminal, the notes as lines."""

    def __init__(self, *columns: ProgressColumn, **how: Any) -> None:
        """Takes what `Progress` takes."""
        super().__init__(*columns, **how)
        self.line = self.add_task("", total=None)

    def note(self, text: str) -> None:
        """Shows what happens now."""
        self.update(self.line, description=text, refresh=True)
        if self.disable:
            console.print(text)


def compile_programs(config: Any, agent_type: type[Any], display: Display, training: bool) -> Any:
    """Compiles methods of the algorithm, all at the same time; returns them, the algorithm and its state's shapes."""
    if jax.device_count() < config.devices:
        refuse(f"--devices: there are {jax.device_count()}; got {config.devices}")
    display.note(f"{config.env} ({config.backend}), seed {config.seed}, {config.devices} devices: importing Brax")
    agent = agent_type(config, environment.make(config))
    mesh = Mesh(np.array(jax.devices()[: config.devices]), ("devices",))
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
    return types.SimpleNamespace(agent=agent, state=state, **{k: x.result() for k, x in compiling.items()})


def train_or_play(config: Any, run: Run, directory: pathlib.Path, checkpoint: Any, programs: Any, display: Any) -> None:
    """Evaluates, trains, evaluates again, and writes the results; or only evaluates and draws."""
    key = jax.random.PRNGKey(config.seed)  # Brax takes no key of the new kind
    key, env_key, eval_key = np.asarray(jax.random.split(key, 3))
    state: Any = None
    rows, before = [], np.zeros(0)
    if checkpoint:
        state, rows = checkpoints.fill(programs.state, checkpoint.arrays), checkpoint.rows
        state = jax.device_put(state, jax.tree.map(lambda x: x.sharding, programs.state))
    if not run.play:
        display.note("evaluating the untrained policy")
        untrained = programs.init(key, programs.reset(env_key))
        before, _ = evaluate(config, programs, untrained, eval_key)
        console.print(f"before training: {describe(before)}")
        state, rows = train(config, directory, programs, state or untrained, rows, display)
    display.note("evaluating the trained policy")
    after, film = evaluate(config, programs, state, eval_key)
    console.print(f"after training: {describe(after)}")
    display.note("drawing")
    title = f"{config.env} ({config.backend}), seed {config.seed}"
    if config.env != "fast":  # it has no body
        drawing.draw_episode(directory, title, programs.agent.env.unwrapped, film)
    if run.play:
        return
    curve = directory / "learning_curve.png"
    drawing.draw_curve(curve, f"PPO on {title}", np.array(rows), before.mean(), after.mean())
    with (directory / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    (directory / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    console.print(f"written to {directory}: {', '.join(sorted(path.name for path in directory.iterdir()))}")
    if state.iteration < config.iterations:
        arguments = [x for x in sys.argv if x not in ("--resume", "--overwrite")]
        console.print(f"to go on: {shlex.join([sys.executable, *arguments, '--resume'])}")


def evaluate(config: Any, programs: Any, state: Any, key: np.ndarray) -> tuple[np.ndarray, drawing.Film]:
    """Plays one episode in every environment, without noise; returns the returns, and a film of the first episode."""
    env, pieces = programs.reset(key), []
    for _ in range(math.ceil(config.episode_length / config.num_steps)):
        env, rollout = programs.act(state._replace(env=env), np.float32(0))
        pieces.append(jax.device_get((rollout.done, rollout.episode_return, rollout.pose.pos, rollout.pose.rot)))
    done, returns, position, rotation = (np.concatenate(x) for x in zip(*pieces, strict=True))
    last = done.argmax(axis=0)
    first = np.s_[: last[0] + 1, 0]
    return returns[last, np.arange(len(last))], drawing.Film(position[first], rotation[first], returns[first])


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
    display.note(f"training from iteration {done} to {total}; Ctrl-C ends the training early")
    with checkpoints.manager(directory) as manager:
        while done < total and not interrupted.is_set():
            start, tenth, metrics = time.perf_counter(), done * 10 // total, []
            for _ in range(min(total - done, max(1, total // 100))):
                env, rollout = programs.act(state, np.float32(1))
                state, one = programs.learn(state, env, rollout)
                metrics.append(one)
            metrics, done = jax.device_get(metrics), done + len(metrics)
            rows = [*rows, report(config, done, rows, metrics, time.perf_counter() - start)]
            now, stop = time.perf_counter(), done == total or interrupted.is_set()
            if stop or now - saved > SECONDS_BETWEEN_CHECKPOINTS:
                checkpoints.save(manager, done, dataclasses.asdict(config), rows, state)
                saved = now
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
