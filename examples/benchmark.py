"""Which implementation of GAE is the fastest on this machine, and at which shape?

    python examples/benchmark.py
    python examples/benchmark.py --shapes 128x4096 1024x64 --seconds 5 --json times.json --picture times.png

It times `gae` in each of its implementations, what else there is for JAX, and on CPUs NumPy, numba and torch; it says
which of them are left out and why. The floor is one pass over the same memory.

Each contender has arrays of its own, made beforehand, in the form in which its users hold them: none is charged for a
conversion. Each returns the advantages alone, but for "gae, both" and torchrl, which return the targets too. Of Brax
that is its targets minus the values, as what it calls advantages is not GAE. The inputs are float32 and bool.

Times are medians over interleaved runs, so that a machine whose speed drifts is no friend of either side: read the
ratios first. Every contender is compared with a loop in float64 before it is timed.
"""

import argparse
import contextlib
import functools
import importlib
import importlib.metadata
import io
import json
import math
import os
import pathlib
import platform
import random
import re
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rlax
from jax import Array, lax
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from gae_jax import gae

GAMMA, LAMBDA = 0.99, 0.95
OURS, FLOOR = "gae", "one pass"
SHAPES = ((16, 32), (64, 64), (16, 32768), (128, 4096), (2048, 64), (2048, 2048), (16384, 16), (131072, 4))
ROUNDS = 1000  # no more are needed for a median
ARRAYS = "rewards values terminated last_value"
PACKAGES = ("jax", "jaxlib", "rlax", "brax", "stoix", "numpy", "numba", "tianshou", "torch", "torchrl")
# In the order of CONTENDERS: one looks the same in every picture.
COLORS = ("C0", "C0", "C0", "C0", "C0", "C1", "C2", "C3", "C4", "C5", "C6", "C8", "C9", "k", "gold", "0.4")
MARKERS = "osD^vosD^vosD^v "
Shape = tuple[int, int]  # T and N
Numbers = dict[str, dict[str, Any]]  # of each contender, as --json writes them


def ours(rewards: Array, values: Array, terminated: Array, last_value: Array, both: bool = False, **how: Any) -> Any:
    """`gae`; where nobody uses the targets, the compiler leaves them out."""
    output = gae(rewards, values, terminated, gamma=GAMMA, lambda_=LAMBDA, bootstrap_value=last_value, **how)
    return output if both else output.advantages


def one_pass(rewards: Array, values: Array, terminated: Array, last_value: Array) -> Array:
    """What it takes to read the inputs and to write one output, with next to no arithmetic."""
    return jnp.where(terminated, rewards, rewards + values + last_value)


def rlax_advantages(rewards: Array, discounts: Array, values: Array) -> Any:
    """Its estimator, of one worker, vmapped."""
    estimate = jax.vmap(rlax.truncated_generalized_advantage_estimation, (1, 1, None, 1), 1)
    return estimate(rewards, discounts, LAMBDA, values)


def two_carries(rewards: Array, values: Array, terminated: Array, last_value: Array, unroll: int) -> Array:
    """The scan that most agents in JAX have in their own code."""

    def step(carry: tuple[Array, Array], row: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        (advantage, next_value), (reward, value, done) = carry, row
        delta = reward + GAMMA * next_value * (1 - done) - value
        advantage = delta + GAMMA * LAMBDA * (1 - done) * advantage
        return (advantage, value), advantage

    carry, rows = (jnp.zeros_like(last_value), last_value), (rewards, values, terminated)
    return lax.scan(step, carry, rows, reverse=True, unroll=unroll)[1]


def composed(rewards: Array, discounts: Array, values: Array) -> Array:
    """A_t = δ_t + γ λ A_{t+1} as a map of A_{t+1}, and these maps composed in parallel."""

    def compose(later: tuple[Array, Array], earlier: tuple[Array, Array]) -> tuple[Array, Array]:
        return earlier[0] * later[0], earlier[1] + earlier[0] * later[1]

    deltas = rewards + discounts * values[1:] - values[:-1]
    return lax.associative_scan(compose, (LAMBDA * discounts, deltas), reverse=True)[1]


def numpy_loop(rewards: np.ndarray, values: np.ndarray, terminated: np.ndarray, last_value: np.ndarray) -> np.ndarray:
    """The recursion as the paper has it, in the precision of the arrays."""
    advantages = np.empty_like(rewards)
    advantage, next_value = np.zeros_like(last_value), last_value
    for t in reversed(range(len(rewards))):
        goes_on = ~terminated[t]
        delta = rewards[t] + GAMMA * (goes_on * next_value) - values[t]
        advantages[t] = advantage = delta + GAMMA * LAMBDA * (goes_on * advantage)
        next_value = values[t]
    return advantages


def one_by_one(rewards: np.ndarray, values: np.ndarray, terminated: np.ndarray) -> np.ndarray:
    """Over time and workers, on one core, for numba to compile."""
    gamma, lambda_ = np.float32(GAMMA), np.float32(LAMBDA)
    advantages = np.zeros_like(values)
    for t in range(len(rewards) - 1, -1, -1):
        for n in range(rewards.shape[1]):
            discount = np.float32(0) if terminated[t, n] else gamma
            delta = rewards[t, n] + discount * values[t + 1, n] - values[t, n]
            advantages[t, n] = delta + discount * lambda_ * advantages[t + 1, n]
    return advantages[:-1]


@functools.cache
def numba_loop(njit: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """Compiles at the first call, once for all shapes."""
    return njit(one_by_one)


class Contender(NamedTuple):
    """A function, and how it wants its arguments."""

    function: Callable[..., Any]  # of what it needs, if anything, and the arrays
    arrays: str = ARRAYS  # as in `random_rollout`
    layout: str = "JAX"
    needs: str | None = None  # to be imported: "module.name"


CONTENDERS = {
    OURS: Contender(ours),
    "gae, both": Contender(functools.partial(ours, both=True)),
    "gae, scan": Contender(functools.partial(ours, implementation="scan")),
    "gae, blocked": Contender(functools.partial(ours, implementation="blocked")),
    "gae, pallas": Contender(functools.partial(ours, implementation="pallas")),
    "rlax": Contender(rlax_advantages, "rewards discounts all_values"),
    "Brax": Contender(
        lambda compute_gae, *x: compute_gae(*x, LAMBDA, GAMMA)[0] - x[3],
        "truncated_float terminated_float rewards values last_value",
        needs="brax.training.agents.ppo.losses.compute_gae",
    ),
    "Stoix": Contender(
        lambda estimate, *x: estimate(*x[:2], LAMBDA, v_tm1=x[2], v_t=x[3], time_major=True)[0],
        "rewards discounts values next_values",
        needs="stoix.utils.multistep.batch_truncated_generalized_advantage_estimation",
    ),
    "two-carry": Contender(functools.partial(two_carries, unroll=1)),
    "two-carry, unroll 16": Contender(functools.partial(two_carries, unroll=16)),
    "associative_scan": Contender(composed, "rewards discounts all_values"),
    "NumPy loop": Contender(numpy_loop, layout="NumPy"),
    "numba loop": Contender(
        lambda njit, *x: numba_loop(njit)(*x), "rewards all_values terminated", "NumPy", "numba.njit"
    ),
    "tianshou (numba)": Contender(
        lambda estimate, *x: estimate(*x, GAMMA, LAMBDA),
        "values next_values rewards ends",
        "flat",
        "tianshou.algorithm.algorithm_base._gae",
    ),
    "torchrl, vec": Contender(
        lambda estimate, *x: estimate(GAMMA, LAMBDA, *x),
        "values next_values rewards terminated terminated",
        "torch",
        "torchrl.objectives.value.functional.vec_generalized_advantage_estimate",
    ),
    FLOOR: Contender(one_pass),
}


LAYOUTS: dict[str, Callable[[np.ndarray], Any]] = {
    "JAX": jnp.array,
    "NumPy": np.array,
    "flat": lambda x: x.T.flatten(),  # one worker behind the other
    "torch": lambda x: load("torch.tensor")(x.T[..., None].copy()),  # [N, T, 1]
}


@functools.cache
def load(name: str) -> Any:
    """Imports, quietly; whatever goes wrong is an ImportError."""
    module, _, attribute = name.rpartition(".")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            return getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise ImportError(str(error)) from error


def why_not(name: str) -> str | None:
    """What keeps a contender from running here, if anything."""
    backend, contender = jax.default_backend(), CONTENDERS[name]
    if name == "gae, pallas" and backend != "tpu":
        return "for TPUs"
    if contender.layout != "JAX" and backend != "cpu":
        return "for CPUs"
    try:
        _ = contender.needs and load(contender.needs)
    except ImportError as error:
        return str(error)


def random_rollout(steps: int, workers: int) -> dict[str, np.ndarray]:
    """What anybody may want, `[T, N]`; one transition in a hundred ends an episode."""
    rng = np.random.default_rng(0)
    rewards, values = (rng.standard_normal((n, workers), np.float32) for n in (steps, steps + 1))
    terminated = rng.random((steps, workers)) < 0.01
    return {
        "rewards": rewards,
        "values": values[:-1],
        "terminated": terminated,
        "last_value": values[-1],  # [N]
        "all_values": values,  # [T+1, N]
        "next_values": np.where(terminated, 0, values[1:]),
        "discounts": np.where(terminated, 0, np.float32(GAMMA)),
        "terminated_float": terminated.astype(np.float32),
        "truncated_float": np.zeros_like(rewards),
        "ends": terminated | (np.arange(steps) == steps - 1)[:, None],
    }


def prepare(contender: Contender, rollout: dict[str, np.ndarray]) -> tuple[Callable[[], Any], float | None]:
    """The call to be timed, and the seconds that JAX took to compile it."""
    arrays = [LAYOUTS[contender.layout](rollout[name]) for name in contender.arrays.split()]
    function = functools.partial(contender.function, *([load(contender.needs)] if contender.needs else []))
    if contender.layout != "JAX":
        return functools.partial(function, *arrays), None
    jax.clear_caches()  # or else what an earlier contender has traced would be a head start
    start = time.perf_counter()
    executable = jax.jit(function).lower(*arrays).compile()
    return functools.partial(executable, *arrays), time.perf_counter() - start


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what the call returns."""
    start = time.perf_counter()
    output = jax.block_until_ready(call())
    return time.perf_counter() - start, output


def check(name: str, output: Any, want: np.ndarray) -> None:
    """Refuses to time what does not compute the advantages."""
    got = np.asarray(jax.tree.leaves(output)[0])
    if CONTENDERS[name].layout in ("flat", "torch"):
        got = got.reshape(want.shape[::-1]).T
    error = np.abs(got - want).max() / np.abs(want).max()
    if name != FLOOR and not error < 1e-3:
        raise AssertionError(f"{name} is wrong at {want.shape}, by {error:.1e} of the largest advantage")


def measure(shape: Shape, names: Sequence[str], seconds: float, report: Callable[[str, float], None]) -> Numbers:
    """Compiles, checks and times the contenders, and reports between runs what it does and how much is behind it.

    The seconds are for timing the quick ones. A slow one has three runs, and those come on top.
    """
    title, rollout = f"{shape[0]} x {shape[1]}", random_rollout(*shape)
    arrays = [rollout[name] for name in ARRAYS.split()]
    want = numpy_loop(*(x if x.dtype == bool else x.astype(np.float64) for x in arrays))
    calls, compile_times, quick = {}, {}, []
    for i, name in enumerate(names):
        report(f"{title}: compiling and checking {name}", i / len(names) / 2)
        calls[name], compile_times[name] = prepare(CONTENDERS[name], rollout)
        first, output = timed(calls[name])
        check(name, output, want)
        quick += [name] if first < seconds / 20 else []
    times: dict[str, list[float]] = {name: [] for name in names}
    start, elapsed, rounds = time.perf_counter(), 0.0, 0
    while rounds < 3 or (quick and rounds < ROUNDS and elapsed < seconds):
        running = names if rounds < 3 else quick
        for name in random.sample(running, len(running)):  # a neighbour leaves cold caches and busy threads to the next
            times[name].append(timed(calls[name])[0])
        rounds += 1
        start = time.perf_counter() if rounds == 3 else start
        elapsed = time.perf_counter() - start
        report(f"{title}: timing", 0.5 + min(max(rounds / ROUNDS, elapsed / (seconds + 1e-9)), 1) / 2)
    medians = {name: float(np.median(x)) for name, x in times.items()}
    gae_time, floor = medians[OURS], medians[FLOOR]
    return {
        name: {"median_s": x, "compile_s": compile_times[name], "over_floor": x / floor, "over_gae": x / gae_time}
        for name, x in medians.items()
    }


def table_of(shape: Shape, numbers: Numbers) -> Table:
    """All contenders at one shape, the fastest first."""
    table = Table("contender", title="T x N = {} x {}".format(*shape))
    for column in ("median, µs", "compile, ms", "it / one pass", "it / gae"):
        table.add_column(column, justify="right")
    for name, x in sorted(numbers.items(), key=lambda item: item[1]["median_s"]):
        compile_time = "-" if x["compile_s"] is None else f"{x['compile_s'] * 1e3:.0f}"
        cells = f"{x['median_s'] * 1e6:,.0f}", compile_time, f"{x['over_floor']:.2f}", f"{x['over_gae']:.2f}"
        table.add_row(name, *cells, style="bold" if name == OURS else None)
    return table


def summary(results: dict[Shape, Numbers]) -> Table:
    """`gae` at every shape, beside the best of the others."""
    table = Table(title="gae, and the best of its rivals")
    for column in ("T x N", "gae, µs", "gae / one pass", "rival / gae", "rival"):
        table.add_column(column, justify="left" if column == "rival" else "right")
    for (steps, workers), numbers in results.items():
        x = numbers[OURS]
        rivals = [(y["over_gae"], name) for name, y in numbers.items() if name != FLOOR and not name.startswith(OURS)]
        ratio, best = min(rivals, default=(math.nan, "-"))
        cells = f"{x['median_s'] * 1e6:,.0f}", f"{x['over_floor']:.2f}", f"{ratio:.2f}", best
        table.add_row(f"{steps} x {workers}", *cells)
    return table


def draw(results: dict[Shape, Numbers], title: str, path: pathlib.Path) -> None:
    """Times relative to those of `gae`, over the shapes by number of steps: one line a contender."""
    shapes = sorted(results)
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    axes = figure.subplots()
    lines = []
    for name, color, marker in zip(CONTENDERS, COLORS, MARKERS, strict=True):
        if name in results[shapes[0]]:
            ratios = [results[shape][name]["over_gae"] for shape in shapes]
            style: dict[str, Any] = {"color": color, "marker": marker, "linestyle": "--" if name == FLOOR else "-"}
            line = axes.plot(ratios, label=name, linewidth=4 if name == OURS else 1, **style)
            lines.append((ratios[-1], line[0]))
    names = [f"{shape[0]} x {shape[1]}\n{results[shape][OURS]['median_s'] * 1e6:,.0f} µs" for shape in shapes]
    axes.set_xticks(range(len(shapes)), names)
    axes.set(yscale="log", xlabel="T x N, time of gae", ylabel="time / time of gae", title=title)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    handles = [line for _, line in sorted(lines, key=lambda x: -x[0])]  # as they end on the right
    figure.legend(handles=handles, loc="outside right center")
    figure.savefig(path, dpi=120)


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    device = jax.devices()[0].device_kind
    cpu_info = pathlib.Path("/proc/cpuinfo")
    if device == "cpu" and cpu_info.exists():  # JAX does not say which
        device = "".join(re.findall(r"model name\s*: (.*)", cpu_info.read_text())[:1]) or device
    versions = {"Python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"device": device, "platform": jax.default_backend(), "cores": os.cpu_count(), "versions": versions}


def read_shape(text: str) -> Shape:
    """Reads "128x4096"."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not steps x workers, such as 128x4096")
    return int(found[1]), int(found[2])


def read_options() -> argparse.Namespace:
    """From the command line, checked before anything takes time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = "; ".join(CONTENDERS)
    some = f"only those with one of these in the name, beside {OURS!r} and {FLOOR!r}, of: {names}"
    parser.add_argument("--shapes", nargs="+", type=read_shape, default=SHAPES, metavar="TxN", help="steps x workers")
    parser.add_argument("--seconds", type=float, default=10.0, help="time to spend on timing each shape")
    parser.add_argument("--implementations", nargs="+", default=[""], metavar="PART", help=some)
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="where to write all numbers")
    parser.add_argument("--picture", type=pathlib.Path, metavar="FILE.png", help="where to draw them")
    options = parser.parse_args()
    if not all(any(part in name for name in CONTENDERS) for part in options.implementations):
        parser.error(f"--implementations: each must be part of one of these: {names}")
    for path in (options.json, options.picture):
        if path and not path.parent.is_dir():
            parser.error(f"there is no directory {path.parent}")
    return options


def main() -> None:
    """Times everybody at every shape, prints tables, and writes and draws what it was asked to."""
    options, console = read_options(), Console(highlight=False)
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are to be those of a first run
    about = machine()
    title = f"{about['device']}, {about['cores']} cores, float32"
    console.print(f"{title}; {', '.join(f'{name} {version}' for name, version in about['versions'].items())}")
    chosen = [x for x in CONTENDERS if x in (OURS, FLOOR) or any(part in x for part in options.implementations)]
    left_out = {name: reason for name in chosen if (reason := why_not(name))}
    for name, reason in left_out.items():
        console.print(f"left out: {name} ({reason})", style="dim", markup=False)
    names = [name for name in chosen if name not in left_out]

    results: dict[Shape, Numbers] = {}
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    # It draws between runs, and not by a thread beside them.
    how: dict[str, Any] = {"transient": True, "auto_refresh": False, "disable": not console.is_terminal}
    with Progress(*columns, console=console, **how) as bar:
        task, shown = bar.add_task("", total=len(options.shapes)), 0.0

        def report(what: str, part: float) -> None:
            nonlocal shown
            if what != bar.tasks[task].description or time.perf_counter() > shown + 0.2:
                bar.update(task, description=what, completed=len(results) + part, refresh=True)
                shown = time.perf_counter()

        measure((2, 2), names, 0.0, lambda *_: report("warming up", 0.0))  # no first shape pays for what is done once
        for shape in options.shapes:
            results[shape] = measure(shape, names, options.seconds, report)
            console.print(table_of(shape, results[shape]))
    console.print(summary(results))
    if options.json:
        by_shape = {"{}x{}".format(*shape): numbers for shape, numbers in results.items()}
        options.json.write_text(json.dumps(about | {"shapes": by_shape}, indent=2))
    if options.picture:
        draw(results, f"{title}; jax {jax.__version__}", options.picture)


if __name__ == "__main__":
    main()
