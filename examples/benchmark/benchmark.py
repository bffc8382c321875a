"""Which GAE is the fastest on this machine, and at which shape?

    python examples/benchmark/benchmark.py
    python examples/benchmark/benchmark.py --shapes 128x4096 1024x64 --seconds 5 --json times.json --picture times.png
    python examples/benchmark/benchmark.py --gradient                      # of gae and of a plain lax.scan
    python examples/benchmark/benchmark.py --implementations rlax --against ../gae_jax-of-last-week
    python examples/benchmark/benchmark.py --cells h100 --seconds 1        # beside published times of an H100
    python examples/benchmark/benchmark.py --read times.json               # measures nothing

The columns: "call" is the time from Python to the finished result; "device" is the time of one call inside a program of
many calls; tracing and compilation are in CPU time. "one pass" is a floor: it reads the inputs of `gae` and writes one
output. Every result is checked before the timing. Times are medians over interleaved runs, so that a change of the
machine's speed affects all contenders: the ratios are more reliable than the times.
examples/guides/benchmark.md says more, and has the times of one machine.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import os
import pathlib
import platform
import random
import re
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

import contenders
import jax
import jax.numpy as jnp
import numpy as np
import tables
import tyro
from contenders import BEFORE, CONTENDERS, FLOOR, GRADIENTS, OURS, PLAIN, UNROLLED, Contender
from jax import Array, lax
from tables import Numbers, Shape

SHAPES = ((16, 32), (16, 32768), (64, 64), (128, 4096), (2048, 64), (2048, 2048), (16384, 16), (131072, 4))
ROUNDS = 1000  # more runs change no median
MANY, LONG, SLOW = 200, 0.05, 0.5  # calls inside one program, at most; their seconds; seconds of a call run three times
PACKAGES = ("jax", "jaxlib", "rlax", "brax", "numpy", "numba")


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line."""

    shapes: tuple[str, ...] = ()  # steps x workers, such as 128x4096; none: eight shapes, or all shapes of --cells
    cells: Literal["h100"] | None = None  # print published figures for an H100 beside the times
    seconds: float = 10.0  # time for the timing of each shape
    implementations: tuple[str, ...] = ("",)  # only contenders with one of these in the name, `gae` and "one pass"
    gradient: bool = False  # time the gradients of `gae` and of a plain lax.scan
    against: pathlib.Path | None = None  # a checkout of another version of this package, which is timed too
    json: pathlib.Path | None = None  # where to write all numbers
    picture: pathlib.Path | None = None  # where to draw the numbers
    read: pathlib.Path | None = None  # measure nothing: print and draw what --json wrote


def repeated(function: Callable[..., Any], repeats: int, calls: bool = True) -> Callable[..., Any]:
    """Returns a program of `repeats` calls in a row, of which none can be left out, merged or moved out of the loop.

    After each call the first entry of every array is set to 0 if the output is huge. The output is never huge, but the
    compiler has to wait for it, and cannot take any array for a constant of the loop. (Compilers for CPUs and TPUs
    remove optimization barriers.) Without `calls`, the program does only what it does beside the calls.
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


def timed(call: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> tuple[float, Any]:
    """Returns the seconds and the output of a call."""
    start = clock()
    output = jax.block_until_ready(call())
    return clock() - start, output


def make_runs(
    name: str, contender: Contender, rollout: dict[str, np.ndarray], want: list[np.ndarray]
) -> tuple[dict[str, Callable[[], Any]], dict[str, Any]]:
    """Compiles and checks a contender; returns what to time, and the costs of its compilation.

    Timed are "call" and, in JAX, "loop", many calls in one program, and "waiting", the same without the calls.
    """
    arrays = [contender.library.array(rollout[name]) for name in contender.arrays.split()]
    if contender.library is np:
        call = functools.partial(contender.function, *arrays)
        contenders.check(name, call(), want)
        return {"call": call}, {"trace_s": None, "compile_s": None, "scratch_bytes": None, "calls_in_one_program": 1}
    jax.clear_caches()  # a trace of an earlier contender would shorten the compilation
    trace_s, lowered = timed(lambda: jax.jit(contender.function).lower(*arrays), time.process_time)
    compile_s, program = timed(lowered.compile, time.process_time)
    runs = {"call": functools.partial(program, *arrays)}
    contenders.check(name, runs["call"](), want)
    repeats = min(MANY, max(4, int(LONG / timed(runs["call"])[0])))
    for part, calls in (("loop", True), ("waiting", False)):
        many = jax.jit(repeated(contender.function, repeats, calls)).lower(*arrays).compile()
        runs[part] = functools.partial(many, *arrays)
    contenders.check(name, runs["loop"]()[0], want)
    scratch_bytes = program.memory_analysis().temp_size_in_bytes
    costs = {"trace_s": trace_s, "compile_s": trace_s + compile_s, "scratch_bytes": scratch_bytes}
    return runs, costs | {"calls_in_one_program": repeats}


def measure(shape: Shape, chosen: dict[str, Contender], seconds: float) -> Numbers:
    """Compiles, checks and times contenders at one shape: the quick ones for `seconds`, all of them three times."""
    rollout = contenders.random_rollout(*shape)
    want = contenders.right_results(rollout, gradient=PLAIN in chosen)
    runs, costs = {}, {}
    for name, contender in chosen.items():
        if shape[0] <= contender.longest:
            runs[name], costs[name] = make_runs(name, contender, rollout, want)
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
    for name, x in costs.items():
        x |= {"call_s": medians[name, "call"], "device_s": None}
        if (name, "loop") in medians:
            x["device_s"] = max(0.0, medians[name, "loop"] - medians[name, "waiting"]) / x["calls_in_one_program"]
    return costs


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


def read_options() -> tuple[Options, list[Shape]]:
    """Returns the options, checked before anything takes time, and the shapes to measure."""
    options = tyro.cli(Options, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    try:
        shapes = [tables.shape_of(text) for text in options.shapes]
    except ValueError:
        sys.exit(f"error: --shapes must be steps x workers, such as 128x4096; got {' '.join(options.shapes)}")
    shapes = shapes or list(tables.published() if options.cells else SHAPES)
    if not options.seconds > 0:
        sys.exit(f"error: --seconds must be positive; got {options.seconds}")
    if not all(any(part in name for name in CONTENDERS) for part in options.implementations):
        sys.exit(f"error: --implementations: each must be part of one of these: {'; '.join(CONTENDERS)}")
    if options.against and not (options.against / "gae_jax" / "__init__.py").is_file():
        sys.exit(f"error: --against: there is no package gae_jax in {options.against}")
    if options.picture and options.picture.suffix not in (".png", ".pdf", ".svg"):
        sys.exit(f"error: --picture: the name must end in .png, .pdf or .svg; got {options.picture}")
    for path in filter(None, (options.json, options.picture)):
        if not path.parent.is_dir():
            sys.exit(f"error: there is no directory {path.parent}")
    return options, shapes


def choose(options: Options) -> dict[str, Contender]:
    """Returns the contenders to time, and prints in one line which others are not installed or not for this machine."""
    every, parts = GRADIENTS if options.gradient else CONTENDERS, options.implementations
    chosen = {k: x for k, x in every.items() if k in (OURS, PLAIN, FLOOR) or any(part in k for part in parts)}
    if options.against:
        gae = functools.partial(contenders.advantages, contenders.load_checkout(options.against))
        before = chosen[OURS]._replace(function=contenders.gradient_of(gae) if options.gradient else gae)
        chosen = {OURS: chosen.pop(OURS), BEFORE: before, **chosen}
    left_out = {name: reason for name, x in chosen.items() if (reason := contenders.why_not(x))}
    if left_out:
        print("left out:", "; ".join(f"{name} ({' '.join(reason.split())})" for name, reason in left_out.items()))
    return {name: x for name, x in chosen.items() if name not in left_out}


def measure_all(options: Options, shapes: list[Shape]) -> tuple[dict[str, Any], dict[Shape, Numbers]]:
    """Times all contenders; prints and writes the numbers of each shape at once, so that a stopped run leaves them."""
    jax.config.update("jax_enable_compilation_cache", False)  # time what a first run compiles
    about, results = machine(), {}
    print(f"{tables.title(about)}; {', '.join(f'{name} {version}' for name, version in about['versions'].items())}")
    chosen = choose(options)
    tiny = measure((2, 2), chosen, min(0.5, options.seconds))  # pays the costs of a first run, too
    about["dispatch_s"] = tiny[FLOOR]["call_s"]
    for shape in shapes:
        results[shape] = measure(shape, chosen, options.seconds)
        print(tables.all_contenders(shape, results[shape]), flush=True)
        if options.json:
            tables.write(options.json, about, results)
    return about, results


def main() -> None:
    """Measures, or reads what was measured; prints tables, and writes and draws the numbers."""
    options, shapes = read_options()
    about, results = tables.read(options.read) if options.read else measure_all(options, shapes)
    print(tables.summary(results, about))
    if any(UNROLLED in numbers for numbers in results.values()):
        print(tables.compilation(results))
    if options.cells:
        print(tables.beside_published(results))
    if options.picture:
        tables.draw(results, f"{tables.title(about)}; jax {about['versions']['jax']}", options.picture)


if __name__ == "__main__":
    main()
