"""What a training run needs besides its algorithm: options checked, progress shown, state saved and taken up again."""

import json
import math
import pathlib
import signal
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

COLUMNS = ("environment_steps", "episode_return", "episodes_finished", "steps_per_second")
COLUMNS += ("policy_loss", "value_loss", "wall_seconds")  # of metrics.csv
METRICS = ("episodes", "returns", "policy_loss", "value_loss")  # of an iteration


def fault(config: Any, choices: Mapping[str, Sequence[str]]) -> str | None:
    """Says in one line what is wrong with the options, if anything is.

    Args:
      config: the options; numbers must be positive, but for a seed, and gamma and lambda, which lie in [0, 1].
      choices: what there is to choose from, by the names of options.

    Returns:
      What to tell the user, or None.
    """
    flags = {name: "--" + name.removeprefix("gae_").replace("_", "-") for name in config.recipe}
    for name, x in config.recipe.items():
        match name:
            case _ if name in choices:
                valid, wanted = x in choices[name], f"one of {', '.join(choices[name])}"
            case "gamma" | "gae_lambda":
                valid, wanted = 0 <= x <= 1, "a number from 0 to 1"
            case "seed":
                valid, wanted = 0 <= x < 2**32, "at least 0 and less than 2^32"
            case _:
                valid, wanted = 0 < x < math.inf, "positive"
        if not valid:
            return f"{flags[name]} must be {wanted}; got {x}"
    if config.num_envs % config.devices:
        return f"--devices must divide --num-envs; got {config.devices} for {config.num_envs} environments"
    if rest := config.num_envs * config.num_steps // config.devices % config.minibatches:
        return f"--minibatches must divide the steps that a device takes in an iteration; {rest} are left over"
    if config.processes < 1 or config.devices % config.processes:
        return f"--processes must divide --devices; got {config.processes} for {config.devices} devices"
    if not 0 <= config.process < config.processes:
        return f"--process must be less than --processes, {config.processes}; got {config.process}"
    checkpoint = config.directory / "checkpoint.npz"
    if config.resume:
        try:
            with np.load(checkpoint) as stored:
                begun = json.loads(str(stored["config"]))
        except FileNotFoundError:
            return f"--resume: there is no {checkpoint}; start without --resume"
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return f"--resume: {checkpoint} is not a checkpoint of this program; start without --resume"
        for name, x in config.recipe.items():
            if begun.get(name) != x:
                return f"--resume: the run in {config.directory} has {flags[name]} {begun.get(name)}; got {x}"
    try:
        config.directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=config.directory).close()
    except OSError as error:
        return f"--out: cannot write to {config.directory}: {error.strerror}"
    return None


def connect(config: Any) -> Mesh:
    """Waits for the other processes, if there are any; returns the devices of all together, as one axis of a mesh."""
    jax.config.update(
        "jax_num_cpu_devices", config.devices // config.processes
    )  # of other kinds, it takes what there is
    if config.processes > 1:
        jax.distributed.initialize(config.coordinator, config.processes, config.process)
    if jax.device_count() < config.devices:
        sys.exit(f"error: --devices: there are {jax.device_count()}; got {config.devices}")
    return Mesh(np.array(jax.devices()[: config.devices]), ("devices",))


def say(*words: str, sep: str = " ") -> None:
    """Prints, once for all processes."""
    if jax.process_index() == 0:
        print(*words, sep=sep, flush=True)


def named_leaves(tree: Any) -> dict[str, Array]:
    """Flattens a tree to arrays with readable names."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def save(path: pathlib.Path, config: Any, tree: Any) -> None:
    """Writes arrays and options, without pickle, and so that a crash leaves either the old file or the new one.

    To be called by all processes, as each has a part of the arrays only; the first one writes.
    """
    leaves: dict[str, Any] = named_leaves(tree)
    leaves |= {name: process_allgather(x, tiled=True) for name, x in leaves.items() if isinstance(x, Array)}
    if jax.process_index() != 0:
        return
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez(file, config=np.array(json.dumps(config.recipe)), **leaves)
    temporary.replace(path)


def load(path: pathlib.Path, like: Any) -> Any:
    """Reads a tree that `save` wrote, of the structure of `like`."""
    with np.load(path) as stored:
        return jax.tree.unflatten(jax.tree.structure(like), [stored[name] for name in named_leaves(like)])


def run(config: Any, train: Callable[[Any], Any], state: Any, rows: np.ndarray) -> tuple[Any, np.ndarray]:
    """Trains, reports and saves, chunk by chunk, until the end or the first Ctrl-C; the second quits at once.

    Args:
      config: the options.
      train: runs a chunk of iterations: from a state to the next one and the metrics of each iteration.
      state: where to start from.
      rows: the reports so far, one row each, as in metrics.csv.

    Returns:
      The state and the reports at the end.
    """
    console, interrupted = Console(quiet=jax.process_index() != 0), threading.Event()

    def interrupt(*_: object) -> None:
        interrupted.set()
        console.show_cursor()
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    signal.signal(signal.SIGINT, interrupt)
    done, total, per_iteration = int(state.iteration), config.iterations, config.num_envs * config.num_steps
    columns = TextColumn("training"), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, completed=done)
        while done < total and not interrupted.is_set():
            start = time.perf_counter()
            state, metrics = jax.block_until_ready(train(state))
            seconds = time.perf_counter() - start
            done, tenth = done + config.chunk, done * 10 // total
            latest, elapsed = (rows[-1, 1], rows[-1, -1]) if len(rows) else (math.nan, 0.0)
            episodes, returns, *losses = (float(np.sum(metrics[name])) for name in METRICS)
            latest = returns / episodes if episodes else latest  # time limits come all at once: often none ends
            speed, losses = config.chunk * per_iteration / seconds, [loss / config.chunk for loss in losses]
            row = [done * per_iteration, latest, episodes, speed, *losses, elapsed + seconds]
            rows = np.append(rows, [row], axis=0)
            save(config.directory / "checkpoint.npz", config, {"state": state, "rows": rows})
            report = f"return {'-' if math.isnan(latest) else f'{latest:,.1f}'}, {speed:,.0f} steps/s"
            bar.update(task, completed=done, description=report)
            if not console.is_terminal and done * 10 // total > tenth:
                left = (total - done) * per_iteration / speed
                say(f"{done / total:4.0%}: {done * per_iteration:,} steps, {report}, {left:.0f} s left")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return state, rows
