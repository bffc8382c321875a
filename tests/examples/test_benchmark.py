"""examples/benchmark/benchmark.py: its options, the program behind its device times, its tables, its page. No time is tested."""

import json
import os
import pathlib
import re
import subprocess
import sys

import benchmark
import tables
import contenders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import pages

import gae_jax

pytestmark = pytest.mark.examples
ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--shapes 128", "--shapes: must be steps x workers, such as 128x4096; got 128"),
        ("--shapes 0x4", "--shapes: must be steps x workers, such as 128x4096; got 0x4"),
        ("--seconds 0", "--seconds: must be a positive number; got 0"),
        ("--picture x.bogus", "--picture: the name must end in .png or .pdf or .svg; got 'x.bogus'"),
        ("--picture nowhere/x.png", "--picture: cannot write 'nowhere/x.png': No such file or directory"),
        ("--json nowhere/x.json", "--json: cannot write 'nowhere/x.json': No such file or directory"),
        ("--json .", "--json: cannot write '.': Is a directory"),
        ("--json=", "--json: cannot write '': Is a directory"),
        ("--json " + 300 * "x", f"--json: cannot write '{300 * 'x'}': File name too long"),
        (
            "--shapes 99999999x99999999",
            "--shapes: 99999999x99999999 needs 2,793,967,667 GiB of memory; this machine has 1 GiB",
        ),
        ("--part 0/4", "--part: must be part/parts, such as 1/4; got 0/4"),
        ("--part 5/4", "--part: there is no part 5/4 of 8 shapes"),
        ("--part 9/9", "--part: there is no part 9/9 of 8 shapes"),
        ("--against nowhere", "--against: there is no package gae_jax in nowhere"),
    ],
)
def test_bad_options_are_one_line(arguments, complaint, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "sysconf", lambda _: 2**15)
    with pytest.raises(SystemExit) as stop:
        benchmark.read_options(arguments.split())
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {complaint}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", [["--cells", "h100", "--shapes", "8x8"], ["--implementations", "none such"]])
def test_other_bad_options_are_one_line(option, capsys):
    with pytest.raises(SystemExit):
        benchmark.read_options(option)
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("script", ["benchmark.py", "scaling_out.py", "token_level.py"])
def test_a_checkout_that_is_not_installed_is_refused(script):
    code = f"""
import importlib.util, runpy, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name in ("gae_jax", "jax") else find_spec(name, *more)
sys.path.insert(0, {str(ROOT / "examples")!r})
runpy.run_path({str(ROOT / "examples" / script)!r}, run_name="__main__")
"""
    command = [sys.executable, "-c", code, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: gae_jax, jax not installed; run: pip install -e .\n"


def test_cells_are_the_published_shapes():
    shapes = benchmark.read_options(["--cells", "h100"]).shapes
    assert len(shapes) == len(set(shapes)) == 39
    assert (2048, 128) in shapes  # T and N
    assert tables.published()[2048, 128]["triton_dev_us"] == 2.84


def computations(text):
    """The computations of a compiled program by name; the one that is run is "ENTRY"."""
    found = re.findall(r"^(ENTRY )?%?([\w.\-]+) \(.*?\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    return {"ENTRY" if entry else name: body for entry, name, body in found}


def loops_in(name, every):
    """The trip counts of the loops in a computation and in those that it calls, from the outermost inwards."""
    counts = []
    for line in every[name].splitlines():
        if " while(" in line:
            counts += map(int, re.findall(r'known_trip_count":\{"n":"(\d+)"', line) or ["-1"])
        for callee in re.findall(r"(?:body|calls|to_apply)=%?([\w.\-]+)", line):
            counts += loops_in(callee, every)
    return counts


def arithmetic_in(name, every):
    """The arithmetic in a computation and in those that it calls, loops left out."""
    lines = [line for line in every[name].splitlines() if " while(" not in line]
    found = re.findall(r" (add|multiply|subtract|select)\(", "\n".join(lines))
    for callee in re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", "\n".join(lines)):
        found += arithmetic_in(callee, every)
    return found


@pytest.mark.parametrize("name", ["gae, scan", "gae, blocked", "rlax"])
def test_no_call_of_the_program_is_left_out(name):
    contender = contenders.CONTENDERS[name]
    if reason := contenders.why_not(contender, name):
        pytest.skip(reason)
    steps, workers, repeats = 48, 16, 37
    rollout = contenders.random_rollout(steps, workers)
    function, arrays = contenders.prepare(contender, rollout)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        program = jax.jit(benchmark.repeated(function, repeats)).lower(*arrays).compile()
        alone = jax.jit(function).lower(*arrays).compile()
    every = computations(program.as_text())
    assert loops_in("ENTRY", every) == ([repeats] if name == "gae, blocked" else [repeats, steps])
    assert not arithmetic_in("ENTRY", every)  # all of it is inside the loop
    assert arithmetic_in("ENTRY", computations(alone.as_text())) or name != "gae, blocked"  # it can be seen
    np.testing.assert_array_equal(program(*arrays)[0], alone(*arrays))


def test_every_call_of_the_program_runs():
    calls = []

    def counted(x):
        jax.debug.callback(lambda: calls.append(1))
        return 2 * x

    jax.block_until_ready(jax.jit(benchmark.repeated(counted, 7))(jnp.ones((3, 2))))
    jax.effects_barrier()
    assert len(calls) == 7


def test_the_other_checkout_is_another_package():
    other = contenders.load_checkout(ROOT)
    assert other is not gae_jax
    assert other.gae is not gae_jax.gae
    assert contenders.gae_jax is gae_jax
    arrays = [jnp.array(x) for x in (np.ones((3, 2), np.float32), np.zeros((3, 2), np.float32), np.zeros((3, 2), bool))]
    arrays.append(jnp.zeros(2))
    np.testing.assert_array_equal(contenders.advantages_of(other, *arrays), contenders.ours(*arrays))


def numbers(gae, floor):
    common = {"compile_s": 0.1, "calls_in_one_program": 9}
    rival = {"call_s": 2 * gae, "device_s": None, "over_floor": 2 * gae / floor, "over_gae": 2.0}
    return {
        "gae": common | {"call_s": gae, "device_s": gae / 2, "over_floor": gae / floor, "over_gae": 1.0},
        "NumPy loop": common | rival,
        "one pass": common | {"call_s": floor, "device_s": floor / 2, "over_floor": 1.0, "over_gae": floor / gae},
    }


def test_the_table_has_no_ratio_to_a_floor_that_is_none():
    table = tables.summary(
        {
            (16, 32): numbers(40e-6, 100e-6),  # faster than its own floor
            (64, 64): numbers(40e-6, 30e-6),  # the floor takes less than twice the time of a dispatch
            (2048, 2048): numbers(6e-3, 3e-3),
        },
        {"dispatch_s": 20e-6},
    )
    lines = table.splitlines()[3:]
    assert lines[0] == "| T × N | call, µs | device, µs | gae / one pass | NumPy loop |"
    assert lines[2:] == [
        "| 16 × 32 | 40 | 20 | dispatch | 2.00 |",
        "| 64 × 64 | 40 | 20 | dispatch | 2.00 |",
        "| 2048 × 2048 | 6,000 | 3,000 | 2.00 | 2.00 |",
    ]


def test_published_figures_stand_beside_what_was_measured():
    table = tables.beside_published({(2048, 128): numbers(40e-6, 30e-6)})
    assert table.splitlines()[5] == "| 2048 × 128 | 40 | 20 | 42 | 2.84 | 128 | 61.6 |"


def test_the_parts_cover_the_cells_once_and_merge(monkeypatch, tmp_path, capsys):
    def measure(shape, chosen, seconds, report):
        return numbers(1e-9 * shape[0] * shape[1], 1e-9)

    monkeypatch.setattr(benchmark, "measure", measure)
    cells = ["benchmark.py", "--cells", "h100", "--implementations", "NumPy"]
    files = [str(tmp_path / f"{k}.json") for k in range(1, 5)]
    for k, file in enumerate(files, 1):
        monkeypatch.setattr(sys, "argv", [*cells, "--part", f"{k}/4", "--json", file])
        benchmark.main()
    shapes = [shape for file in files for shape in json.loads(pathlib.Path(file).read_text())["shapes"]]
    assert sorted(shapes) == sorted("{}x{}".format(*shape) for shape in tables.published())

    capsys.readouterr()
    merged = tmp_path / "all.json"
    monkeypatch.setattr(sys, "argv", [*cells, "--read", *files, "--json", str(merged)])
    benchmark.main()
    printed = capsys.readouterr().out
    assert printed.count("\n| 2048 × 128 | 262 | 131 |") == 2  # among all contenders, and beside the published figures
    assert len(json.loads(merged.read_text())["shapes"]) == 39
    assert "Not measured" not in printed
    assert tables.read([merged]) == tables.read([pathlib.Path(file) for file in files])

    monkeypatch.setattr(sys, "argv", [*cells, "--read", *files[:3]])
    benchmark.main()
    assert len(capsys.readouterr().out.splitlines()[-1].split()) == 2 + 39 // 4  # "Not measured:", and the last part


def test_files_that_do_not_belong_together_are_refused(tmp_path, capsys):
    page = ROOT / "examples" / "benchmark_cpu.json"
    other = json.loads(page.read_text()) | {"cores": 3}
    (tmp_path / "other.json").write_text(json.dumps(other))
    (tmp_path / "cut.json").write_text(page.read_text()[:999])
    (tmp_path / "none.json").write_text("[]")
    for name, complaint in (
        ("other.json", "is from another machine than"),
        ("cut.json", "was not written by --json (JSONDecodeError"),
        ("none.json", "was not written by --json (TypeError"),
        ("nowhere.json", "was not written by --json (FileNotFoundError"),
        (page, "has shapes that an earlier file has: 16x32"),
    ):
        with pytest.raises(SystemExit) as stop:
            tables.read([page, tmp_path / name])
        assert stop.value.code == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: --read: {tmp_path / name} {complaint}")
        assert err.count("\n") == 1


def test_gradients_are_checked_before_they_are_timed():
    """Against a gradient by hand; a gradient that is wrong in any argument is refused."""
    chosen = {name: x for name, x in contenders.GRADIENTS.items() if name != "gae, blocked"}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        measured = benchmark.measure((5, 3), chosen, 0.01, lambda _: None)
    table = tables.gradients({(5, 3): measured}).splitlines()
    assert [line.split(" | ")[:2] for line in table[5:]] == [["| 5 × 3", "plain lax.scan"]]
    rollout = contenders.random_rollout(5, 3)
    right = contenders.numpy_gradient(*(rollout[name] for name in contenders.ARRAYS.split()))
    contenders.check("gae", right, right)
    for i in range(4):
        wrong = tuple(1.01 * x if i == j else x for j, x in enumerate(right))
        with pytest.raises(AssertionError, match="gae is wrong"):
            contenders.check("gae", wrong, right)


def test_the_page_has_the_numbers_of_its_file():
    about, results = tables.read([ROOT / "examples" / "benchmark_cpu.json"])
    page = pages.read("examples/guides/benchmark.md")
    head, *table = [line for line in tables.summary(results, about).splitlines() if line.startswith("|")]
    assert "\n".join([head, *table, "", "!["]) in page
    found = re.search(
        r"takes ([\d.]+) times as long as `gae` at 128 × 4096 \(T × N\), and ([\d.]+) times at 2048", page
    )
    ratios = [results[shape]["PureJaxRL's loop"]["over_gae"] for shape in ((128, 4096), (2048, 2048))]
    assert found
    assert list(found.groups()) == [f"{ratio:.1f}" for ratio in ratios]


def test_draws_what_was_measured(tmp_path):
    pytest.importorskip("matplotlib")
    _, results = tables.read([ROOT / "examples" / "benchmark_cpu.json"])
    tables.draw(results, "a machine", tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    tables.draw({(7, 9): numbers(40e-6, 30e-6)}, "a machine", tmp_path / "y.svg")  # one shape, one contender
    assert "<svg" in (tmp_path / "y.svg").read_text()
