"""Which GAE is the fastest on this machine, and at which shape?

    python examples/benchmark.py
    python examples/benchmark.py --shapes 128x4096 1024x64 --seconds 5 --json times.json --picture times.png
    python examples/benchmark.py --cells h100                    # the shapes of published figures for an H100
    python examples/benchmark.py --implementations rlax --against ../gae_jax-of-last-week

Two times are measured for each contender. "call" is the time from Python to the finished result, with dispatch and the
allocation of the result. "device" is the time of one call inside a program of many calls. In that program each call
waits for the one before, and the time of the same program without the calls is subtracted. Where the arrays fit into
caches, the next call finds them there. Contenders outside JAX have no device time.

The contenders are `gae` in each implementation, other estimators for JAX, and on CPUs NumPy, numba and torch. "one
pass" is the floor: it reads the inputs of `gae` and writes one output. Where one pass takes less than twice the time
that it takes at 2 × 2, dispatch decides and the floor is none: the table has "dispatch" there instead of a ratio.

The inputs are float32 and bool. Each contender has its own arrays, in the layout that its users have. Each returns the
advantages alone, except "gae, both outputs" and torchrl, which return the targets too. The result of every contender is
compared with a float64 loop before the timing. Times are medians over interleaved runs, so that a change of the
machine's speed affects all contenders: the ratios are more reliable than the times.
"""

import argparse
import contextlib
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import benchmark_tables as tables
import contenders
import jax
import jax.numpy as jnp
import numpy as np
from benchmark_tables import Numbers, Shape
from command_line import Parser, positive, refuse, require
from contenders import ARRAYS, BEFORE, CONTENDERS, FLOOR, OURS, Contender
from jax import Array, lax

SHAPES = ((16, 32), (64, 64), (16, 32768), (128, 4096), (2048, 64), (2048, 2048), (16384, 16), (131072, 4))
ROUNDS = 1000  # more runs change no median
MANY, LONG = 200, 0.05  # calls inside one program, at most; and seconds that they may take together
LARGE, AGREEMENT = 2**20, 1.5  # entries of a large shape; and the factor within which the two times agree there
PACKAGES = ("jax", "jaxlib", "rlax", "brax", "stoix", "numpy", "numba", "tianshou", "torch", "torchrl")


class Runnable(NamedTuple):
    """A contender that is ready to be timed at one shape."""

    call: Callable[[], Any]
    loop: Callable[[], Any] | None  # `repeats` calls in one program; None outside JAX
    waiting: Callable[[], Any] | None  # the same program without the calls
    repeats: int
    compile_s: float | None
    quick: bool


def repeated(function: Callable[..., Any], repeats: int, calls: bool = True) -> Callable[..., Any]:
    """Returns a program of `repeats` calls in a row, of which none can be left out, merged or moved out of the loop.

    After each call the first entry of every array is set to 0 if the output is huge. The output is never huge, but the
    compiler has to wait for it, and cannot take any array for a constant of the loop. (Optimization barriers alone do
    not suffice: the compilers for CPUs and TPUs remove the barriers and then move the calls out of the loop.)

    Args:
      function: of arrays, returns a tree of arrays.
      repeats: the number of calls.
      calls: without the calls, the program does only what it does beside them.

    Returns:
      A function of the same arrays that returns the output of the last call, and the first entry of each array.
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


def loop_and_waiting(function: Callable[..., Any], repeats: int, arrays: list[Any]) -> list[Callable[[], Any]]:
    """Compiles the program of many calls, and the same program without the calls."""
    programs = (jax.jit(repeated(function, repeats, calls)).lower(*arrays).compile() for calls in (True, False))
    return [functools.partial(program, *arrays) for program in programs]


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the seconds and the output of a call."""
    start = time.perf_counter()
    output = jax.block_until_ready(call())
    return time.perf_counter() - start, output


def make_runnable(name: str, contender: Contender, rollout: dict[str, np.ndarray], want: np.ndarray) -> Runnable:
    """Compiles and checks a contender."""
    function, arrays = contenders.prepare(contender, rollout)
    if contender.layout != "JAX":
        seconds, output = timed(functools.partial(function, *arrays))
        contenders.check(contender, name, output, want)
        return Runnable(functools.partial(function, *arrays), None, None, 1, None, seconds < 0.5)
    jax.clear_caches()  # a trace of an earlier contender would shorten the compilation
    start = time.perf_counter()
    call = functools.partial(jax.jit(function).lower(*arrays).compile(), *arrays)
    compile_s = time.perf_counter() - start
    contenders.check(contender, name, call(), want)
    seconds, _ = timed(call)
    repeats = min(MANY, max(4, int(LONG / seconds)))
    loop, waiting = loop_and_waiting(function, repeats, arrays)
    contenders.check(contender, name, loop()[0], want)
    return Runnable(call, loop, waiting, repeats, compile_s, seconds < 0.5)


def measure(
    shape: Shape, chosen: dict[str, Contender], seconds: float, report: Callable[[str, float], None]
) -> Numbers:
    """Compiles, checks and times contenders at one shape.

    Args:
      shape: T and N.
      chosen: the contenders by name.
      seconds: time for the quick ones; every contender has three rounds, however slow.
      report: takes what is going on, and the share of the work that is done.

    Returns:
      The numbers of each contender, as --json writes them.
    """
    title, rollout = f"{shape[0]} × {shape[1]}", contenders.random_rollout(*shape)
    arrays = [rollout[name] for name in ARRAYS.split()]
    want = contenders.numpy_loop(*(x if x.dtype == bool else x.astype(np.float64) for x in arrays))
    runnable = {}
    for i, (name, contender) in enumerate(chosen.items()):
        report(f"{title}: compiling and checking {name}", i / len(chosen) / 2)
        runnable[name] = make_runnable(name, contender, rollout, want)
    parts = [(name, part) for name, x in runnable.items() for part in ("call", "loop", "waiting") if getattr(x, part)]
    quick = [(name, part) for name, part in parts if runnable[name].quick]
    times: dict[tuple[str, str], list[float]] = {part: [] for part in parts}
    start, rounds = time.perf_counter(), 0
    while rounds < 3 or (quick and rounds < ROUNDS and time.perf_counter() < start + seconds):
        running = parts if rounds < 3 else quick
        for name, part in random.sample(running, len(running)):  # each leaves the next one cold caches, busy threads
            times[name, part].append(timed(getattr(runnable[name], part))[0])
        rounds += 1
        start = time.perf_counter() if rounds == 3 else start
        share = max(rounds / ROUNDS, (time.perf_counter() - start) / (seconds + 1e-9))
        report(f"{title}: timing", 0.5 + min(share, 1) / 2)
    medians = {part: float(np.median(x)) for part, x in times.items()}
    floor, gae = medians[FLOOR, "call"], medians[OURS, "call"]
    numbers: Numbers = {}
    for name, x in runnable.items():
        call, device = medians[name, "call"], None
        if x.loop:
            device = max(0.0, medians[name, "loop"] - medians[name, "waiting"]) / x.repeats
        numbers[name] = {"call_s": call, "device_s": device, "calls_in_one_program": x.repeats}
        numbers[name] |= {"compile_s": x.compile_s, "over_floor": call / floor, "over_gae": call / gae}
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


def read_shape(text: str) -> Shape:
    """Reads "128x4096"."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"must be steps x workers, such as 128x4096; got {text}")
    return int(found[1]), int(found[2])


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Returns the options, checked before anything takes time."""
    parser = Parser(__doc__ or "")
    names = "; ".join(CONTENDERS)
    text = f"only contenders with one of these in the name, beside {OURS!r} and {FLOOR!r}, of: {names}"
    shapes = parser.add_mutually_exclusive_group()
    shapes.add_argument("--shapes", nargs="+", type=read_shape, metavar="TxN", help="steps x workers")
    shapes.add_argument("--cells", choices=["h100"], help="the shapes with published figures, and the figures")
    parser.add_argument("--seconds", type=positive, default=10.0, help="time for the timing of each shape")
    parser.add_argument("--implementations", nargs="+", default=[""], metavar="PART", help=text)
    text = "a checkout of another version of this package, which is timed too"
    parser.add_argument("--against", type=pathlib.Path, metavar="PATH", help=text)
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="where to write all numbers")
    parser.add_argument("--picture", type=pathlib.Path, metavar="FILE.png", help="where to draw the numbers")
    text = f"fail unless both times of gae agree within a factor of {AGREEMENT} at shapes of {LARGE:,} entries or more"
    parser.add_argument("--check", action="store_true", help=text)
    options = parser.parse_args(arguments)
    if not all(any(part in name for name in CONTENDERS) for part in options.implementations):
        refuse(f"--implementations: each must be part of one of these: {names}")
    for option, path in (("--json", options.json), ("--picture", options.picture)):
        if path and not path.parent.is_dir():
            refuse(f"{option}: there is no directory {path.parent}")
    if options.picture and options.picture.suffix not in (".png", ".pdf", ".svg"):
        refuse(f"--picture: the name must end in .png, .pdf or .svg; got {options.picture}")
    if options.against and not (options.against / "gae_jax" / "__init__.py").is_file():
        refuse(f"--against: there is no package gae_jax in {options.against}")
    options.shapes = list(tables.published()) if options.cells else options.shapes or list(SHAPES)
    if options.check and not any(is_large(shape) for shape in options.shapes):
        refuse(f"--check: none of the shapes has {LARGE:,} entries")
    return options


def is_large(shape: Shape) -> bool:
    """Tells whether dispatch is a small part of the time of a call."""
    return shape[0] * shape[1] >= LARGE


def choose(options: argparse.Namespace) -> tuple[dict[str, Contender], dict[str, str]]:
    """Returns the contenders to time, and why others are left out."""
    parts = options.implementations
    chosen = {name: x for name, x in CONTENDERS.items() if name in (OURS, FLOOR) or any(part in name for part in parts)}
    if options.against:
        other = Contender(functools.partial(contenders.before, contenders.load_checkout(options.against)))
        chosen = {OURS: chosen.pop(OURS), BEFORE: other} | chosen
    left_out = {name: reason for name, x in chosen.items() if (reason := contenders.why_not(x, name))}
    return {name: x for name, x in chosen.items() if name not in left_out}, left_out


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[str, float], None]]:
    """Yields a function that shows what is going on. The display is redrawn between runs, never during one."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns, console = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()), Console(stderr=True)
    how: dict[str, Any] = {"transient": True, "auto_refresh": False, "disable": not console.is_terminal}
    with Progress(*columns, console=console, **how) as bar:
        task, shown = bar.add_task("", total=total), 0.0

        def report(what: str, done: float) -> None:
            nonlocal shown
            if what != bar.tasks[task].description or time.perf_counter() > shown + 0.2:
                bar.update(task, description=what, completed=done, refresh=True)
                shown = time.perf_counter()

        yield report


def report_from(report: Callable[[str, float], None], done: int, what: str, share: float) -> None:
    """Reports the share of the work at one shape after the shapes that are done."""
    report(what, done + share)


def main() -> None:
    """Times all contenders at every shape, prints tables, and writes and draws the numbers."""
    options = read_options()
    require("benchmark", "rich", *(["matplotlib"] if options.picture else []))
    jax.config.update("jax_enable_compilation_cache", False)  # time what a first run compiles
    about, (chosen, left_out) = machine(), choose(options)
    title = f"{about['device']}, {about['cores']} cores, float32"
    print(f"{title}; {', '.join(f'{name} {version}' for name, version in about['versions'].items())}")
    for name, reason in left_out.items():
        print(f"left out: {name} ({' '.join(reason.split())})")
    results: dict[Shape, Numbers] = {}
    with progress(len(options.shapes)) as report:
        tiny = measure((2, 2), chosen, 0.5, lambda *_: report("warming up", 0.0))  # and costs of a first run
        about["dispatch_s"] = tiny[FLOOR]["call_s"]
        for done, shape in enumerate(options.shapes):
            report_shape = functools.partial(report_from, report, done)
            results[shape] = measure(shape, chosen, options.seconds, report_shape)
            print(tables.all_contenders(shape, results[shape]), flush=True)
    print(tables.summary(results, about["dispatch_s"]))
    if options.cells:
        print(tables.beside_published(results))
    if options.json:
        by_shape = {"{}x{}".format(*shape): numbers for shape, numbers in results.items()}
        options.json.write_text(json.dumps(about | {"shapes": by_shape}, indent=2) + "\n")
    if options.picture:
        tables.draw(results, f"{title}; jax {jax.__version__}", options.picture)
    if options.check:
        check_agreement(options.shapes)


def check_agreement(shapes: Sequence[Shape]) -> None:
    """Refuses the device time of `gae` on a CPU unless it agrees with the time of a call at large shapes.

    Both are processor times here, since other processes on the machine lengthen those less. The calls write into the
    memory of an earlier output, as calls inside a program do. (Other calls take new memory from the operating system,
    which at large shapes costs more on a CPU than `gae` itself.)
    """
    for shape in filter(is_large, shapes):
        function, arrays = contenders.prepare(CONTENDERS[OURS], contenders.random_rollout(*shape))
        into = jax.jit(lambda _, *x, function=function: function(*x), donate_argnums=0, keep_unused=True)
        output, repeats = function(*arrays), 10
        loop, waiting = loop_and_waiting(function, repeats, arrays)
        calls, loops, waits = [], [], []
        for _ in range(20):
            start = time.process_time()
            for _ in range(repeats):
                output = jax.block_until_ready(into(output, *arrays))
            calls.append(time.process_time() - start)
            for program, times in ((loop, loops), (waiting, waits)):
                start = time.process_time()
                jax.block_until_ready(program())
                times.append(time.process_time() - start)
        ratio = np.median(calls) / (np.median(loops) - np.median(waits))
        print(f"{shape[0]} × {shape[1]}: call / device = {ratio:.2f}", flush=True)
        if not 1 / AGREEMENT < ratio < AGREEMENT:
            refuse(f"--check: at {shape[0]} × {shape[1]} the two times differ by more than a factor of {AGREEMENT}")


if __name__ == "__main__":
    main()
