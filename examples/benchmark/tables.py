"""The files, the tables in Markdown, and the picture of what benchmark.py measured."""

import csv
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from contenders import FLOOR, OURS, UNROLLED

FIGURES = pathlib.Path(__file__).with_name("h100_figures.csv")
PICTURED = ((64, 64), (128, 4096), (2048, 2048))
KNOWN = ("numba loop", "rlax", "Brax", "NumPy loop", "PureJaxRL's loop")
TICKS = (0.5, 1, 2, 5, 10, 20, 50)
Shape = tuple[int, int]  # T and N
Numbers = dict[str, dict[str, Any]]  # of each contender, as --json writes them


def write(path: pathlib.Path, about: dict[str, Any], results: dict[Shape, Numbers]) -> None:
    """Writes what `read` reads."""
    by_shape = {"{}x{}".format(*shape): numbers for shape, numbers in results.items()}
    path.write_text(json.dumps(about | {"shapes": by_shape}, indent=2) + "\n")


def read(path: pathlib.Path) -> tuple[dict[str, Any], dict[Shape, Numbers]]:
    """Returns the machine, and the numbers by shape."""
    about = json.loads(path.read_text())
    return about, {shape_of(text): numbers for text, numbers in about.pop("shapes").items()}


def shape_of(text: str) -> Shape:
    """Reads "TxN"; raises a ValueError where the text is something else."""
    steps, workers = map(int, text.split("x"))
    if steps < 1 or workers < 1:
        raise ValueError(text)
    return steps, workers


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


def ratio(numbers: Numbers, name: str, other: str, time: str = "call_s") -> str:
    """The time of a contender divided by the time of another one."""
    times = [numbers[x][time] if x in numbers else None for x in (name, other)]
    return f"{times[0] / times[1]:.2f}" if times[0] is not None and times[1] else "-"


def over_floor(numbers: Numbers, dispatch_s: float) -> str:
    """The time of `gae` divided by the time of one pass, or "dispatch" where dispatch decides the time of the pass."""
    floor = numbers[FLOOR]["call_s"]
    return "dispatch" if floor < 2 * dispatch_s or numbers[OURS]["call_s"] < floor else ratio(numbers, OURS, FLOOR)


def all_contenders(shape: Shape, numbers: Numbers) -> str:
    """All contenders at one shape, the fastest call first."""
    rows = []
    for name, x in sorted(numbers.items(), key=lambda item: item[1]["call_s"]):
        ratios = ratio(numbers, name, OURS), ratio(numbers, name, OURS, "device_s")
        costs = [f"{x[key] * 1e3:.0f}" if x[key] else "-" for key in ("trace_s", "compile_s")]
        rows.append([name, micro(x["call_s"]), micro(x["device_s"]), *ratios, *costs, f"{x['scratch_bytes'] or 0:,}"])
    columns = ["contender", "call, µs", "device, µs", "call / gae's", "device / gae's"]
    columns += ["tracing, ms", "with compilation, ms", "scratch, bytes"]
    return markdown("T × N = {} × {}".format(*shape), columns, rows)


def summary(results: dict[Shape, Numbers], about: dict[str, Any]) -> str:
    """The times of `gae` at every shape, and each other contender's call time divided by the call time of `gae`."""
    names, rows = [name for name in max(results.values(), key=len) if name not in (OURS, FLOOR)], []
    for shape, numbers in results.items():
        times = [micro(numbers[OURS][time]) for time in ("call_s", "device_s")]
        ratios = [over_floor(numbers, about["dispatch_s"]), *(ratio(numbers, name, OURS) for name in names)]
        rows.append(["{} × {}".format(*shape), *times, *ratios])
    title = "Call time divided by gae's call time: above 1, gae is faster. The first three columns describe gae itself."
    return markdown(title, ["T × N", "call, µs", "device, µs", "gae / one pass", *names], rows)


def compilation(results: dict[Shape, Numbers]) -> str:
    """What tracing and compilation take where the unrolled loop was timed."""
    shapes = [shape for shape in results if UNROLLED in results[shape]]
    names = [name for name, x in results[shapes[0]].items() if x["compile_s"] and name != FLOOR]
    rows = [["{} × {}".format(*x), *(f"{results[x][name]['compile_s']:.2f}" for name in names)] for x in shapes]
    return markdown("Tracing and compilation, seconds of CPU time.", ["T × N", *names], rows)


def published() -> dict[Shape, dict[str, float]]:
    """Reads the published figures for an H100, by T and N."""
    lines = [line for line in FIGURES.read_text().splitlines() if not line.startswith("#")]
    rows = ({name: float(x) for name, x in row.items()} for row in csv.DictReader(lines))
    return {(int(row["steps"]), int(row["workers"])): row for row in rows}


def beside_published(results: dict[Shape, Numbers]) -> str:
    """What was measured on this machine beside the published figures for an H100."""
    figures, rows = published(), []
    for shape in filter(figures.get, results):
        x, own = figures[shape], results[shape][OURS]
        there = x["triton_ms"] / 1e3, x["triton_dev_us"] / 1e6, x["jax_ms"] / 1e3, x["jax_amort_ms"] / 1e3
        rows.append(["{} × {}".format(*shape), micro(own["call_s"]), micro(own["device_s"]), *map(micro, there)])
    columns = ["T × N", "gae, call", "gae, device", "rl-triton, call", "rl-triton, device"]
    columns += ["associative_scan, call", "associative_scan, 100 calls in a row"]
    title = "µs. The first two columns were measured here; the others are figures for an H100 from h100_figures.csv."
    return markdown(title, columns, rows)


def draw(results: dict[Shape, Numbers], title: str, path: pathlib.Path) -> None:
    """Draws a dot for each of five contenders: its call time divided by the call time of `gae`."""
    from matplotlib.figure import Figure

    shapes = [shape for shape in PICTURED if shape in results] or list(results)[:3]
    names = [name for name in KNOWN if name in results[shapes[0]]]
    figure, white = Figure(figsize=(10, 3.4), layout="constrained"), {"fc": "white", "ec": "none", "pad": 0.5}
    for axes, shape in zip(figure.subplots(1, len(shapes), sharey=True, squeeze=False)[0], shapes, strict=True):
        own = results[shape][OURS]["call_s"]
        for name in names:
            x = results[shape][name]["call_s"] / own
            axes.semilogx(x, name, "ko")
            axes.annotate(f"{x:.2f}", (x, name), (0, 7), textcoords="offset points", ha="center", bbox=white)
        axes.axvline(1, color="black", linestyle="--", linewidth=1)
        axes.grid(axis="y", linestyle=":")
        axes.margins(x=0.2, y=0.2)
        axes.set(title="{} × {}\ngae: ".format(*shape) + f"{micro(own)} µs", xlim=(0.5, 50))
        axes.set_xticks(TICKS, labels=map(str, TICKS))
    figure.supxlabel("call time divided by the call time of gae (right of the dashed line, gae is faster)")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
