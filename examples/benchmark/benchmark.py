"""Which GAE is the fastest on this machine, and at which shape?

    python examples/benchmark/benchmark.py
    python examples/benchmark/benchmark.py --shapes 128x4096 1024x64 --seconds 5 --json times.json --picture times.png
    python examples/benchmark/benchmark.py --gradient                              # the gradients of gae and of a plain lax.scan
    python examples/benchmark/benchmark.py --implementations rlax --against ../gae_jax-of-last-week
    python examples/benchmark/benchmark.py --cells h100 --part 1/4 --json 1.json   # a quarter of the published shapes
    python examples/benchmark/benchmark.py --cells h100 --read 1.json 2.json 3.json 4.json    # measures nothing: one table of all

Two times are measured for each contender. "call" is the time from Python to the finished result, with dispatch and the
allocation of the result. "device" is the time of one call inside a program of many calls. In that program each call
waits for the one before, and the time of the same program without the calls is subtracted. Where the arrays fit into
caches, the next call finds them there. Contenders outside JAX have no device time.

The contenders are `gae` in each implementation, other estimators for JAX, and on CPUs NumPy and numba. "one pass" is
the floor: it reads the inputs of `gae` and writes one output. Where one pass takes less than twice the time that it
takes at 2 × 2, dispatch decides and the floor is none: the table has "dispatch" there instead of a ratio.

The inputs are float32 and bool. Each contender has its own arrays, in the layout that its users have. Each returns the
advantages alone, except "gae, both outputs", which returns the targets too. With --gradient, each returns the gradient
of Σ A² with respect to rewards, values, V(s_T) and λ. The result of every contender is compared with a float64 loop
before the timing. Times are medians over interleaved runs, so that a change of the machine's speed affects all
contenders: the ratios are more reliable than the times.
"""

import argparse
import contextlib
import functools
import importlib.metadata
import os
import pathlib
import platform
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import tables
import command_line
import contenders
import jax
import jax.numpy as jnp
import numpy as np
from tables import Numbers, Shape
from command_line import file_to_write, refuse
from contenders import ARRAYS, BEFORE, CONTENDERS, FLOOR, GRADIENTS, OURS, PLAIN, Contender
from jax import Array, lax

SHAPES = ((16, 32), (16, 32768), (64, 64), (128, 4096), (2048, 64), (2048, 2048), (16384, 16), (131072, 4))
BYTES = 300  # of memory for each entry of a shape, with all contenders
ROUNDS = 1000  # more runs change no median
MANY, LONG, SLOW = 200, 0.05, 0.5  # calls inside one program, at most; their seconds; seconds of a call run three times
PACKAGES = ("jax", "jaxlib", "rlax", "brax", "numpy", "numba")


def repeated(function: Callable[..., Any], repeats: int, calls: bool = True) -> Callable[..., Any]:
    """Returns a program of `repeats` calls in a row, of which none can be left out, merged or moved out of the loop.

    After each call the first entry of every array is set to 0 if the output is huge. The output is never huge, but the
    compiler has to wait for it, and cannot take any array for a constant of the loop. (Optimization barriers alone do
    not suffice: the compilers for CPUs and TPUs remove the barriers and then move the calls out of the loop.)

    The program takes the arrays of the function, and returns the output of the last call and the first entry of each
    array. Without `calls`, it does only what it does beside the calls.
    """

    def program(*arrays: Array) -> tuple[Any, list[Array]]:
        first = [lax.slice(x, (0,) * x.ndim, (1,) * x.ndim) for x in arrays]

        def body(i: Array, carry: tuple[tuple[Array, ...], Any]) -> tuple[tuple[Array, ...], Any]:
            arrays, output = carry
            output = function(*arrays) if calls else output
            output = lax.optimization_barrier(output)  # on GPUs, else each call would write a copy of an array
            huge = (jax.tree.leaves(output)[0].ravel()[0] if calls else i) > 1e9
            entries = [jnp.where(huge, jnp.zeros_like(x), x) for x in first]
            arrays = (lax.dynamic_update_slice(x, y, (0,) * x.ndim) for x, y in zip(arrays, entries, strict=True))
            return tuple(arrays), output

        empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, *arrays))
        arrays, output = lax.fori_loop(0, repeats, body, (arrays, empty))
        return output, [x.ravel()[0] for x in arrays]  # the entries keep the compiler from dropping unused arrays

    return program


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the seconds and the output of a call."""
    start = time.perf_counter()
    output = jax.block_until_ready(call())
    return time.perf_counter() - start, output


def make_runs(
    name: str, contender: Contender, rollout: dict[str, np.ndarray], want: tuple[np.ndarray, ...]
) -> tuple[dict[str, Callable[[], Any]], dict[str, Any]]:
    """Compiles and checks a contender.

    Returns:
      What to time: "call"; in JAX also "loop", many calls in one program, and "waiting", the same without the calls.
      The number of calls in that program, and what the compilation of a call took.
    """
    function, arrays = contenders.prepare(contender, rollout)
    call, in_jax = functools.partial(function, *arrays), contender.library is jnp
    costs: dict[str, Any] = dict.fromkeys(("compile_s", "trace_s", "scratch_bytes"))
    if in_jax:
        jax.clear_caches()  # a trace of an earlier contender would shorten the compilation
        costs["trace_s"], lowered = timed(lambda: jax.jit(function).lower(*arrays))
        seconds, program = timed(lowered.compile)
        costs["compile_s"] = costs["trace_s"] + seconds
        costs["scratch_bytes"] = program.memory_analysis().temp_size_in_bytes
        call = functools.partial(program, *arrays)
    contenders.check(name, call(), want)
    costs["calls_in_one_program"] = repeats = min(MANY, max(4, int(LONG / timed(call)[0]))) if in_jax else 1
    runs = {"call": call}
    for part, calls in (("loop", True), ("waiting", False)) if in_jax else ():
        program = jax.jit(repeated(function, repeats, calls)).lower(*arrays).compile()
        runs[part] = functools.partial(program, *arrays)
    if in_jax:
        contenders.check(name, runs["loop"]()[0], want)
    return runs, costs


def measure(shape: Shape, chosen: dict[str, Contender], seconds: float, report: Callable[[str], None]) -> Numbers:
    """Compiles, checks and times contenders at one shape: the quick ones for `seconds`, all of them three times.

    `report` takes what is going on, once for each contender and once for the timing.
    """
    rollout = contenders.random_rollout(*shape)
    arrays = [rollout[name] for name in ARRAYS.split()]
    reference = contenders.numpy_gradient if PLAIN in chosen else contenders.numpy_loop
    want = reference(*(x if x.dtype == bool else x.astype(np.float64) for x in arrays))
    runs, costs = {}, {}
    for name, contender in chosen.items():
        report(f"{shape[0]} × {shape[1]}: compiling and checking {name}")
        runs[name], costs[name] = make_runs(name, contender, rollout, want if isinstance(want, tuple) else (want,))
    report(f"{shape[0]} × {shape[1]}: timing")
    times: dict[tuple[str, str], list[float]] = {(name, part): [] for name in runs for part in runs[name]}
    running, end = list(times), 0.0
    for done in range(ROUNDS):
        if done == 3:
            running = [(name, part) for name, part in times if times[name, "call"][0] < SLOW]
            end = time.perf_counter() + seconds
        if done >= 3 and time.perf_counter() > end:
            break
        for name, part in random.sample(running, len(running)):  # each leaves the next one cold caches, busy threads
            times[name, part].append(timed(runs[name][part])[0])
    medians = {key: float(np.median(x)) for key, x in times.items()}
    numbers: Numbers = {}
    for name, x in costs.items():
        call, device = medians[name, "call"], None
        if (name, "loop") in medians:
            device = max(0.0, medians[name, "loop"] - medians[name, "waiting"]) / x["calls_in_one_program"]
        over = {"over_floor": call / medians[FLOOR, "call"], "over_gae": call / medians[OURS, "call"]}
        numbers[name] = {"call_s": call, "device_s": device, **x, **over}
    return numbers


def machine() -> dict[str, Any]:
    """Returns what the numbers depend on."""
    device = jax.devices()[0].device_kind
    cpu_info = pathlib.Path("/proc/cpuinfo")
    if device == "cpu" and cpu_info.exists():  # JAX does not know the model
        device = "".join(re.findall(r"model name\s*: (.*)", cpu_info.read_text())[:1]) or device
    versions = {"Python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"device": device, "platform": jax.default_backend(), "cores": os.cpu_count(), "versions": versions}


def two_numbers(separator: str, wanted: str) -> Callable[[str], tuple[int, int]]:
    """Returns the `type` of an option that takes two whole numbers with a separator between them."""

    def read(text: str) -> tuple[int, int]:
        if not (found := re.fullmatch(rf"([1-9]\d*){separator}([1-9]\d*)", text)):
            raise argparse.ArgumentTypeError(f"must be {wanted}; got {text}")
        return int(found[1]), int(found[2])

    return read


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Returns the options, checked before anything takes time."""
    parser, names = command_line.Parser(__doc__ or ""), "; ".join(CONTENDERS)
    shape, part = two_numbers("x", "steps x workers, such as 128x4096"), two_numbers("/", "part/parts, such as 1/4")
    shapes = parser.add_mutually_exclusive_group()
    shapes.add_argument("--shapes", nargs="+", type=shape, metavar="TxN", help="steps x workers")
    shapes.add_argument("--cells", choices=["h100"], help="the shapes with published figures, and the figures")
    parser.add_argument("--part", type=part, default=(1, 1), metavar="K/M", help="every M-th shape, from the K-th on")
    parser.add_argument("--seconds", type=command_line.positive, default=10.0, help="time for the timing of each shape")
    text = f"only contenders with one of these in the name, beside {OURS!r} and {FLOOR!r}, of: {names}"
    parser.add_argument("--implementations", nargs="+", default=[""], metavar="PART", help=text)
    parser.add_argument("--gradient", action="store_true", help="time the gradients of gae and of a plain lax.scan")
    text = "a checkout of another version of this package, which is timed too"
    parser.add_argument("--against", type=pathlib.Path, metavar="PATH", help=text)
    parser.add_argument("--json", type=file_to_write(), metavar="FILE", help="where to write all numbers")
    text = "where to draw the numbers"
    parser.add_argument("--picture", type=file_to_write(".png", ".pdf", ".svg"), metavar="FILE.png", help=text)
    text = "measure nothing; print, draw and merge what --json wrote on one machine"
    parser.add_argument("--read", nargs="+", type=pathlib.Path, metavar="FILE", help=text)
    options = parser.parse_args(arguments)
    if not all(any(part in name for name in CONTENDERS) for part in options.implementations):
        refuse(f"--implementations: each must be part of one of these: {names}")
    if options.against and not (options.against / "gae_jax" / "__init__.py").is_file():
        refuse(f"--against: there is no package gae_jax in {options.against}")
    options.shapes = list(tables.published()) if options.cells else options.shapes or list(SHAPES)
    first, parts = options.part
    if first > min(parts, len(options.shapes)):
        refuse(f"--part: there is no part {first}/{parts} of {len(options.shapes)} shapes")
    options.shapes = options.shapes[first - 1 :: parts]
    for steps, workers in () if options.read else options.shapes:
        command_line.require_memory(steps * workers * BYTES, f"--shapes: {steps}x{workers}")
    return options


def choose(options: argparse.Namespace) -> dict[str, Contender]:
    """Returns the contenders to time, and prints in one line which others are not installed or not for this machine."""
    every, parts = GRADIENTS if options.gradient else CONTENDERS, options.implementations
    chosen = {k: x for k, x in every.items() if k in (OURS, PLAIN, FLOOR) or any(part in k for part in parts)}
    if options.against:
        gae = functools.partial(contenders.advantages_of, contenders.load_checkout(options.against))
        before = chosen[OURS]._replace(function=contenders.gradient_of(gae) if options.gradient else gae)
        chosen = {OURS: chosen.pop(OURS), BEFORE: before, **chosen}
    left_out = {name: reason for name, x in chosen.items() if (reason := contenders.why_not(x, name))}
    if left_out:
        print("left out:", "; ".join(f"{name} ({' '.join(reason.split())})" for name, reason in left_out.items()))
    return {name: x for name, x in chosen.items() if name not in left_out}


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Yields a function that shows the next piece of work. The display is redrawn between runs, never during one."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, auto_refresh=False, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda what: bar.update(task, description=what, advance=1, refresh=True)


def measure_all(options: argparse.Namespace) -> tuple[dict[str, Any], dict[Shape, Numbers]]:
    """Times all contenders; prints and writes the numbers of each shape at once, so that a stopped run leaves them."""
    jax.config.update("jax_enable_compilation_cache", False)  # time what a first run compiles
    about, results = machine(), {}
    print(f"{tables.title(about)}; {', '.join(f'{name} {version}' for name, version in about['versions'].items())}")
    chosen = choose(options)
    with progress((len(options.shapes) + 1) * (len(chosen) + 1)) as report:
        tiny = measure((2, 2), chosen, min(0.5, options.seconds), report)  # pays the costs of a first run, too
        about["dispatch_s"] = tiny[FLOOR]["call_s"]
        for shape in options.shapes:
            results[shape] = measure(shape, chosen, options.seconds, report)
            print(tables.all_contenders(shape, results[shape]), flush=True)
            if options.json:
                tables.write(options.json, about, results)
    return about, results


def main() -> None:
    """Measures, or reads what was measured; prints tables, and writes and draws the numbers."""
    options = read_options()
    command_line.require("benchmark", "rich", *(["matplotlib"] if options.picture else []))
    about, results = tables.read(options.read) if options.read else measure_all(options)
    print(tables.gradients(results) if PLAIN in next(iter(results.values())) else tables.summary(results, about))
    if options.cells:
        print(tables.beside_published(results))
    if options.json:
        tables.write(options.json, about, results)
    if options.picture:
        tables.draw(results, f"{tables.title(about)}; jax {about['versions']['jax']}", options.picture)


if __name__ == "__main__":
    main()
