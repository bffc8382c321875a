"""Agents from the package index, trained with their own advantage estimator and with `gae` in its place.

    python examples/swap_in.py                                 # examples/guides/agents.md shows what it prints
    python examples/swap_in.py --agent rejax --seeds 1 --steps 4096
    python examples/swap_in.py --compile-times 16 64           # of skrl's estimator and of `gae`, nothing else

An agent is trained once per seed with its own estimator, and once per seed with each replacement. The agent's files are
not changed: `agents.py` has the replacements, and the line that puts each in its place.

One more training records the calls of the agent's own estimator; the replacements are compared on those.
"""

import argparse
import ast
import contextlib
import functools
import importlib.metadata
import importlib.util
import inspect
import io
import json
import logging
import math
import os
import pathlib
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from command_line import Parser, file_to_write, number, refuse, require

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before JAX: XLA logs each program that it reads from the cache

import agents
import jax
import jax.numpy as jnp
import numpy as np
from agents import ITERATION, Agent, Estimator, Report, Training, schedule
from jax import Array


class Source(NamedTuple):
    """Where an agent comes from, and what trains it."""

    package: str
    extra: str  # of this library; the extras exclude each other
    make: Callable[[], Agent]


SOURCES = {  # by the name of the module
    "brax": Source("brax", "agents", agents.brax_agent),
    "rejax": Source("rejax", "agents", agents.rejax_agent),
    "tunix": Source("google-tunix", "agents", agents.tunix_agent),
    "sbx": Source("sbx-rl", "agents-gymnasium", agents.sbx_agent),
    "skrl": Source("skrl", "agents-gymnasium", agents.skrl_agent),
}
COMPARED_CALLS = 200  # of the recorded calls, at most

Result = dict[str, Any]  # of an agent: its task, its rows of the table, and its curves; as in a JSON file
Work = Callable[[Report], Any]


# The comparison.


class Call(NamedTuple):
    """A call of the agent's own estimator."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    answer: tuple[Any, Any]


def recorded_calls(agent: Agent, steps: int, report: Report) -> list[Call]:
    """Trains the agent once more, with its own estimator, and returns the estimator's calls."""
    calls: list[Call] = []

    def recording(*args: Any, **kwargs: Any) -> tuple[Array, Array]:
        answer = agent.theirs(*args, **kwargs)
        jax.debug.callback(lambda call: calls.append(jax.tree.map(np.array, call)), Call(args, kwargs, answer))
        return answer

    with agent.installed(recording):
        agent.train(0, steps, report)
    jax.effects_barrier()
    return calls[:: math.ceil(len(calls) / COMPARED_CALLS)]


class Differences(NamedTuple):
    """Of two estimators, over recorded calls: the largest difference, and the largest magnitude."""

    advantages: tuple[float, float]
    targets: tuple[float, float]


def differences(agent: Agent, swap: Estimator, calls: list[Call]) -> Differences:
    """Calls a replacement with the recorded arguments. Where the agent has a mask, live entries alone count."""
    worst = np.zeros((2, 2))
    for args, kwargs, answer in calls:
        live = np.asarray(kwargs.get("completion_mask", True), bool)
        pairs = zip(answer, swap(*args, **kwargs), strict=True)
        now = [(np.abs(x - y)[live | np.zeros(x.shape, bool)].max(), np.abs(x).max()) for x, y in pairs]
        worst = np.maximum(worst, now)
    first, second = ((float(difference), float(size)) for difference, size in worst)
    return Differences(second, first) if agent.targets_first else Differences(first, second)


def lines_changed(agent: Agent, swap: Estimator) -> int:
    """The lines of a replacement without its docstring, and the lines that put it in place."""
    source = inspect.getsource(swap)
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    docstring = function.body[0]
    return len(source.splitlines()) - (docstring.end_lineno or 0) + docstring.lineno - 1 + agent.lines_to_place


def compare(agent: Agent, seeds: int, steps: int, run: Callable[[str, Work], Any]) -> Iterator[Result]:
    """Compares the estimators, and trains with every estimator from every seed; yields the result so far, by seed."""
    calls = run(f"{agent.name}, recording", functools.partial(recorded_calls, agent, steps))
    found = {label: differences(agent, swap, calls) for label, swap in agent.swaps.items()}
    estimators = {"theirs": agent.theirs, **agent.swaps}
    trainings: dict[str, list[Training]] = {label: [] for label in estimators}
    for seed in range(seeds):
        for label, estimator in estimators.items():
            with agent.installed(estimator):
                training = run(f"{agent.name}, {label}, seed {seed}", functools.partial(agent.train, seed, steps))
            trainings[label].append(training)
        yield {
            "task": agent.task,
            "rows": [row(agent, label, trainings["theirs"], trainings[label], found[label]) for label in found],
            "curves": {
                label: {"steps": one[0].steps, "returns": [training.returns for training in one]}
                for label, one in trainings.items()
            },
        }


HEADER = (
    *("agent", "version", "jax", "seeds", "in place of its estimator", "advantages differ by", "targets differ by"),
    *("return, theirs", "return, with gae", "iteration, theirs", "with gae / theirs", "lines"),
)


def row(agent: Agent, label: str, theirs: list[Training], ours: list[Training], found: Differences) -> list[str]:
    """A line of the table."""
    seconds = typical_seconds(theirs)
    return [
        agent.name,
        importlib.metadata.version(SOURCES[agent.name].package),
        jax.__version__,
        str(len(theirs)),
        label,
        *(f"{difference:.1e} of {size:.3g}" for difference, size in found),
        spread(theirs),
        spread(ours),
        f"{1e3 * seconds:.0f} ms" if seconds else "-",
        f"{typical_seconds(ours) / seconds:.2f}" if seconds else "-",
        str(lines_changed(agent, agent.swaps[label])),
    ]


def spread(trainings: list[Training]) -> str:
    """Mean and standard deviation over seeds of the last return."""
    last = [training.returns[-1] for training in trainings]
    return f"{np.mean(last):.4g} ± {np.std(last):.2g}"


def typical_seconds(trainings: list[Training]) -> float:
    """The median over the iterations of all seeds; 0 if all iterations compiled."""
    seconds = np.concatenate([training.seconds for training in trainings])
    return float(np.median(seconds)) if len(seconds) else 0.0


def compile_times(lengths: Sequence[int]) -> list[list[str]]:
    """CPU time of the first call, compilation included, for rollouts of 16 workers and these lengths.

    CPU time, since it does not depend on what else the machine does; on an idle machine one waits about as long.
    """
    rows = [["T", "skrl", "gae"]]
    for steps in lengths:
        names: dict[str, Any] = {name: jnp.ones((steps, 16, 1)) for name in ("rewards", "values")}
        names |= {name: jnp.zeros((steps, 16, 1), jnp.int8) for name in ("terminated", "truncated")}
        seconds = []
        for estimator in (agents.skrl_agent().theirs, agents.skrl_gae):
            start = time.process_time()
            jax.block_until_ready(estimator(**names, last_values=jnp.ones((16, 1))))
            seconds.append(time.process_time() - start)
        rows.append([str(steps), *(f"{x:.1f} s" for x in seconds)])
    return rows


# What is shown.


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in Markdown; the first is the head."""
    head, *body = rows
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body))


def draw(path: pathlib.Path, results: dict[str, Result]) -> None:
    """Returns over steps, a panel for each agent: mean over seeds, and twice its standard error."""
    from matplotlib.figure import Figure

    columns = min(3, len(results))
    figure = Figure(figsize=(4 * columns, 3.2 * math.ceil(len(results) / columns)), layout="constrained")
    # Curves that are equal cover each other: theirs is wide and light, and those above it are narrow and dark.
    styles = [
        {"color": "#f2b65a", "linewidth": 6, "elinewidth": 3},
        {"color": "#1b3a6b", "linewidth": 1.6, "marker": "o", "markersize": 4, "capsize": 3},
        {"color": "#7a1f4d", "linewidth": 1.6, "linestyle": ":", "marker": "x", "markersize": 7, "capsize": 5},
    ]
    for place, (name, result) in enumerate(results.items(), 1):
        axes = figure.add_subplot(math.ceil(len(results) / columns), columns, place)
        for (label, curve), style in zip(result["curves"].items(), styles, strict=False):
            returns = np.array(curve["returns"])
            error = 2 * returns.std(axis=0) / np.sqrt(len(returns))
            axes.errorbar(curve["steps"], returns.mean(axis=0), error, label=label, **style)
        seeds = len(result["curves"]["theirs"]["returns"])
        axes.set_title(f"{name}, {result['task']}, {seeds} seeds", fontsize=10)
        axes.set_xlabel("tokens" if name == "tunix" else "environment steps")
        axes.set_ylabel("return")
        axes.locator_params(axis="x", nbins=4)
        axes.legend(title="estimator", fontsize=8, title_fontsize=8)
    figure.savefig(path, dpi=120)


# The program.


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps back what the agents print and warn of: their own upkeep, and packages that they could do without."""
    for name in ("absl", "skrl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def make_agents(names: Sequence[str]) -> list[Agent]:
    """Builds the agents that are here; names those that are not in one line."""
    made, missing = [], []
    for name in names:
        if importlib.util.find_spec(name) is None:
            missing.append(f"{name} (not installed; run: pip install -e '.[{SOURCES[name].extra}]')")
            continue
        try:
            with quiet():
                made.append(SOURCES[name].make())
        except ImportError as error:
            missing.append(f"{name} ({error})")
    advice = f"left out: {', '.join(missing)}"
    if missing and not made:
        refuse(advice)
    if missing:
        print(advice)
    return made


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


def whole_number(largest: int) -> Callable[[str], Any]:
    """Returns the `type` of an option."""
    return number(int, f"a whole number from 1 to {largest:,}", lambda x: 1 <= x <= largest)


def earlier_results(path: pathlib.Path | None) -> dict[str, Result]:
    """What earlier runs have written to this file."""
    if path is None or not path.exists():
        return {}
    try:
        results = json.loads(path.read_text())
        return {name: {key: results[name][key] for key in ("task", "rows", "curves")} for name in results}
    except (ValueError, KeyError, TypeError):
        refuse(f"--results: {path} was not written by this script")


def parse() -> argparse.Namespace:
    """Reads the options, and refuses bad ones before anything takes time."""
    parser = Parser(__doc__ or "")
    parser.add_argument(
        "--agent",
        nargs="*",
        choices=SOURCES,
        default=list(SOURCES),
        help="which agents to train; none: show what --results has",
    )
    parser.add_argument(
        "--seeds", type=whole_number(1000), default=3, help="trainings of each agent with each estimator"
    )
    parser.add_argument(
        "--steps",
        type=whole_number(10**9),
        default=204_800,
        help=f"environment steps of a training; rounded up to {ITERATION} or more",
    )
    parser.add_argument(
        "--picture", type=file_to_write(".png", ".pdf", ".svg"), default="swap_in.png", help="where to draw"
    )
    parser.add_argument(
        "--results",
        type=file_to_write(".json"),
        help="a file that gets the results; table and picture then show also what earlier runs have written to it",
    )
    parser.add_argument(
        "--compile-times", nargs="+", type=whole_number(1024), metavar="T", help="time the first calls, and stop"
    )
    options = parser.parse_args()
    require("agents", "matplotlib", "rich")
    return options


def main() -> None:
    """Prints the table and draws the picture."""
    options, start = parse(), time.perf_counter()
    results = earlier_results(options.results)
    if options.compile_times:
        make_agents(["skrl"])
        print(table(compile_times(options.compile_times)))
        return
    if not options.agent and not results:
        refuse("nothing to show: no --agent, and no earlier --results")
    chosen = make_agents(list(dict.fromkeys(options.agent)))
    evaluations, chunk = schedule(options.steps)
    pieces = sum(options.seeds * (1 + len(agent.swaps)) + 1 for agent in chosen)
    with compiled_once(), display(pieces * evaluations * chunk * ITERATION) as run:
        for agent in chosen:
            for result in compare(agent, options.seeds, options.steps, run):
                results[agent.name] = result
                if options.results:  # so a run that is cut short keeps its seeds
                    options.results.write_text(json.dumps(results))
    results = {name: results[name] for name in SOURCES if name in results}
    print(f"\n{options.steps:,} steps, {jax.devices()[0].device_kind}, {os.cpu_count()} cores\n")
    print(table([HEADER, *(row for result in results.values() for row in result["rows"])]))
    draw(options.picture, results)
    print(f"\nwrote {options.picture}; {time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
