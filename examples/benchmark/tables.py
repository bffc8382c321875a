"""The files, the tables in Markdown, and the picture of what benchmark.py measured."""

import csv
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from command_line import refuse
from contenders import BEFORE, FLOOR, OURS, PLAIN

FIGURES = pathlib.Path(__file__).with_name("h100_figures.csv")
PICTURED = ((64, 64), (128, 4096), (2048, 2048))
KNOWN = ("PureJaxRL's loop", "NumPy loop", "Brax", "rlax", "numba loop", "associative_scan", PLAIN)
Shape = tuple[int, int]  # T and N
Numbers = dict[str, dict[str, Any]]  # of each contender, as --json writes them


def write(path: pathlib.Path, about: dict[str, Any], results: dict[Shape, Numbers]) -> None:
    """Writes what `read` reads."""
    by_shape = {"{}x{}".format(*shape): numbers for shape, numbers in results.items()}
    path.write_text(json.dumps(about | {"shapes": by_shape}, indent=2) + "\n")


def read(paths: Sequence[pathlib.Path]) -> tuple[dict[str, Any], dict[Shape, Numbers]]:
    """Reads files of one machine as one; refuses other files, and a shape that is in two of them."""
    about, results, dispatch_s, of_first = {}, {}, 0.0, None
    for path in paths:
        try:
            about, found = json.loads(path.read_text()), {}
            for steps, workers in (name.split("x") for name in about["shapes"]):
                found[int(steps), int(workers)] = about["shapes"][f"{steps}x{workers}"]
            dispatch_s, contenders = max(dispatch_s, about.pop("dispatch_s")), [*next(iter(found.values()))]
            _ = title(about) + summary(found, {"dispatch_s": dispatch_s})
            del about["shapes"]
        except (OSError, ValueError, TypeError, LookupError, AttributeError, StopIteration) as error:
            refuse(f"--read: {path} was not written by --json ({type(error).__name__}: {error})")
        of_first = of_first or (about, contenders)
        if of_first != (about, contenders):
            refuse(f"--read: {path} is from another machine than {paths[0]}, or has other packages or contenders")
        if twice := ["{}x{}".format(*shape) for shape in found if shape in results]:
            refuse(f"--read: {path} has shapes that an earlier file has: {' '.join(twice)}")
        results |= found
    return about | {"dispatch_s": dispatch_s}, dict(sorted(results.items()))


def title(about: dict[str, Any]) -> str:
    """The machine."""
    return f"{about['device']}, {about['cores']} cores, float32"


def markdown(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table: the first column to the left, all others to the right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join([f"\n{title}\n", *(f"| {' | '.join(line)} |" for line in lines)])


def micro(seconds: float | None) -> str:
    """Microseconds, to three digits or whole."""
    return "-" if seconds is None else f"{seconds * 1e6:,.0f}" if seconds >= 1e-4 else f"{seconds * 1e6:.3g}"


def over_floor(numbers: Numbers, dispatch_s: float) -> str:
    """The time of `gae` divided by the time of one pass, or "dispatch" where dispatch decides the time of the pass."""
    dispatch_decides = numbers[FLOOR]["call_s"] < 2 * dispatch_s or numbers[OURS]["over_floor"] < 1
    return "dispatch" if dispatch_decides else f"{numbers[OURS]['over_floor']:.2f}"


def all_contenders(shape: Shape, numbers: Numbers) -> str:
    """All contenders at one shape, the fastest call first."""
    rows = []
    for name, x in sorted(numbers.items(), key=lambda item: item[1]["call_s"]):
        compile_ms = "-" if x["compile_s"] is None else f"{x['compile_s'] * 1e3:.0f}"
        device = numbers[OURS]["device_s"]
        device_ratio = f"{x['device_s'] / device:.2f}" if x["device_s"] is not None and device else "-"
        rows.append([name, micro(x["call_s"]), micro(x["device_s"]), f"{x['over_gae']:.2f}", device_ratio, compile_ms])
    columns = ["contender", "call, µs", "device, µs", "call / gae's", "device / gae's", "compilation, ms"]
    return markdown("T × N = {} × {}".format(*shape), columns, rows)


def summary(results: dict[Shape, Numbers], about: dict[str, Any]) -> str:
    """The times of `gae` at every shape, and each other contender's call time divided by the call time of `gae`."""
    names = [name for name in next(iter(results.values())) if name not in (OURS, FLOOR)]
    rows = []
    for shape, numbers in results.items():
        own, ratio = numbers[OURS], over_floor(numbers, about["dispatch_s"])
        ratios = [ratio, *(f"{numbers[name]['over_gae']:.2f}" for name in names)]
        rows.append(["{} × {}".format(*shape), micro(own["call_s"]), micro(own["device_s"]), *ratios])
    title = "Call time divided by gae's call time: above 1, gae is faster. The first three columns describe gae itself."
    return markdown(title, ["T × N", "call, µs", "device, µs", "gae / one pass", *names], rows)


def gradients(results: dict[Shape, Numbers]) -> str:
    """The gradient of `gae` beside the gradient of a plain `lax.scan`, and of the other checkout if it was timed."""
    rows = []
    for shape, numbers in results.items():
        for name in [PLAIN, BEFORE][: 1 + (BEFORE in numbers)]:
            own, other = numbers[OURS], numbers[name]
            row = ["{} × {}".format(*shape), name, *(f"{own[x] / other[x]:.2f}" for x in ("call_s", "device_s"))]
            row += [f"{x[key]:.3f}" for key in ("trace_s", "compile_s") for x in (own, other)]
            rows.append([*row, *(f"{x['scratch_bytes']:,}" for x in (own, other))])
    columns = ["T × N", "other", "call / other's", "device / other's", "tracing, s", "other's", "with compilation, s"]
    columns += ["other's", "scratch, bytes", "other's"]
    return markdown("The gradient of gae, and another gradient. Above 1, gae is slower.", columns, rows)


def published() -> dict[Shape, dict[str, float]]:
    """Reads the published figures for an H100, by T and N."""
    lines = [line for line in FIGURES.read_text().splitlines() if not line.startswith("#")]
    rows = ({name: float(x) for name, x in row.items()} for row in csv.DictReader(lines))
    return {(int(row["steps"]), int(row["workers"])): row for row in rows}


def beside_published(results: dict[Shape, Numbers]) -> str:
    """What was measured on this machine beside the published figures for an H100, and what was not measured."""
    figures, rows = published(), []
    for shape in filter(results.get, figures):
        x, own = figures[shape], results[shape][OURS]
        there = x["triton_ms"] / 1e3, x["triton_dev_us"] / 1e6, x["jax_ms"] / 1e3, x["jax_amort_ms"] / 1e3
        rows.append(["{} × {}".format(*shape), micro(own["call_s"]), micro(own["device_s"]), *map(micro, there)])
    columns = ["T × N", "gae, call", "gae, device", "rl-triton, call", "rl-triton, device"]
    columns += ["associative_scan, call", "associative_scan, 100 calls in a row"]
    title = "µs. The first two columns were measured here; the others are figures for an H100 from h100_figures.csv."
    missing = ["{}x{}".format(*shape) for shape in figures if shape not in results]
    return markdown(title, columns, rows) + (f"\n\nNot measured: {' '.join(missing)}" if missing else "")


def draw(results: dict[Shape, Numbers], title: str, path: pathlib.Path) -> None:
    """Draws a dot for each contender that people know: its call time divided by the call time of `gae`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    shapes = [shape for shape in PICTURED if shape in results] or list(results)[:3]
    names = [name for name in reversed(KNOWN) if name in results[shapes[0]]][-5:]
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    all_axes = figure.subplots(1, len(shapes), sharex=True, sharey=True, squeeze=False)[0]
    for axes, shape in zip(all_axes, shapes, strict=True):
        ratios = [results[shape][name]["over_gae"] for name in names]
        axes.plot(ratios, names, "o", color="black", markersize=7, zorder=3)
        for name, ratio in zip(names, ratios, strict=True):
            axes.annotate(f"{ratio:.2f}", (ratio, name), (0, 7), textcoords="offset points", ha="center", bbox=white)
        axes.axvline(1, color="black", linestyle="--", linewidth=1)
        axes.grid(axis="y", linestyle=":")
        axes.set(xscale="log", title="{} × {}\ngae: ".format(*shape) + micro(results[shape][OURS]["call_s"]) + " µs")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter("{x:g}")
        axes.margins(x=0.2, y=0.2)
    figure.supxlabel("call time divided by the call time of gae (right of the dashed line, gae is faster)")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
