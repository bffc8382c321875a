"""Tables in Markdown and a picture of what benchmark.py measured."""

import csv
import pathlib
from collections.abc import Sequence
from typing import Any

from contenders import BEFORE, CONTENDERS, FLOOR, OURS

FIGURES = pathlib.Path(__file__).with_name("h100_figures.csv")
# In the order of CONTENDERS, so that a contender looks the same in every picture.
COLORS = ("C0", "C0", "C0", "C0", "C0", "C1", "C2", "C3", "C4", "C5", "C6", "C8", "C9", "k", "gold", "0.4")
MARKERS = "osD^vosD^vosD^v "
Shape = tuple[int, int]  # T and N
Numbers = dict[str, dict[str, Any]]  # of each contender, as --json writes them


def markdown(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table: the first column to the left, all others to the right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join([f"\n{title}\n", *(f"| {' | '.join(line)} |" for line in lines)])


def micro(seconds: float | None) -> str:
    """Microseconds, to three digits."""
    return "-" if seconds is None else digits(seconds * 1e6)


def digits(x: float) -> str:
    """A number to three digits, or whole."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


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


def summary(results: dict[Shape, Numbers], dispatch_s: float) -> str:
    """The times of `gae` at every shape, and each other contender's call time divided by the call time of `gae`."""
    names = [name for name in next(iter(results.values())) if name not in (OURS, FLOOR)]
    rows = []
    for shape, numbers in results.items():
        own = [micro(numbers[OURS]["call_s"]), micro(numbers[OURS]["device_s"]), over_floor(numbers, dispatch_s)]
        rows.append(["{} × {}".format(*shape), *own, *(f"{numbers[name]['over_gae']:.2f}" for name in names)])
    title = "Call time divided by gae's call time: above 1, gae is faster. The first three columns describe gae itself."
    return markdown(title, ["T × N", "call, µs", "device, µs", "gae / one pass", *names], rows)


def published() -> dict[Shape, dict[str, float]]:
    """Reads the published figures for an H100, by T and N."""
    lines = [line for line in FIGURES.read_text().splitlines() if not line.startswith("#")]
    rows = ({name: float(x) for name, x in row.items()} for row in csv.DictReader(lines))
    return {(int(row["steps"]), int(row["workers"])): row for row in rows}


def beside_published(results: dict[Shape, Numbers]) -> str:
    """What was measured on this machine beside the published figures for an H100."""
    figures, rows = published(), []
    for shape, numbers in results.items():
        x, own = figures[shape], numbers[OURS]
        there = x["triton_ms"] / 1e3, x["triton_dev_us"] / 1e6, x["jax_ms"] / 1e3, x["jax_amort_ms"] / 1e3
        rows.append(["{} × {}".format(*shape), micro(own["call_s"]), micro(own["device_s"]), *map(micro, there)])
    columns = ["T × N", "gae, call", "gae, device", "rl-triton, call", "rl-triton, device"]
    columns += ["associative_scan, call", "associative_scan, 100 calls in a row"]
    title = "µs. The first two columns were measured here; the others are figures for an H100 from h100_figures.csv."
    return markdown(title, columns, rows)


def draw(results: dict[Shape, Numbers], title: str, path: pathlib.Path) -> None:
    """Draws a line for each contender: its time divided by the time of `gae`, over the shapes by number of steps."""
    from matplotlib.figure import Figure

    shapes = sorted(results)
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    axes = figure.subplots()
    styles: dict[str, tuple[str, str]] = dict(zip(CONTENDERS, zip(COLORS, MARKERS, strict=True), strict=True))
    styles[BEFORE] = "magenta", "x"
    lines = []
    for name in results[shapes[0]]:
        ratios, (color, marker) = [results[shape][name]["over_gae"] for shape in shapes], styles[name]
        style: dict[str, Any] = {"color": color, "marker": marker, "linestyle": "--" if name == FLOOR else "-"}
        line = axes.plot(ratios, label=name, linewidth=4 if name == OURS else 1, **style)
        lines.append((ratios[-1], line[0]))
    names = ["{} × {}\n".format(*shape) + micro(results[shape][OURS]["call_s"]) + " µs" for shape in shapes]
    axes.set_xticks(range(len(shapes)), names)
    axes.set(yscale="log", xlabel="T × N, time of a call of gae", ylabel="time / time of gae", title=title)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    handles = [line for _, line in sorted(lines, key=lambda x: -x[0])]  # in the order of the right ends
    figure.legend(handles=handles, loc="outside right center")
    figure.savefig(path, dpi=120)
