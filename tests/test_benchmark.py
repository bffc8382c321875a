"""examples/benchmark.py: its options, the program behind its device times, and its tables. It times nothing."""

import pathlib
import re

import benchmark
import benchmark_tables
import contenders
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gae_jax

pytestmark = pytest.mark.examples
ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--shapes 128", "--shapes: must be steps x workers, such as 128x4096; got 128"),
        ("--shapes 0x4", "--shapes: must be steps x workers, such as 128x4096; got 0x4"),
        ("--seconds 0", "--seconds: must be a positive number; got 0"),
        ("--picture x.bogus", "--picture: the name must end in .png, .pdf or .svg; got x.bogus"),
        ("--picture nowhere/x.png", "--picture: there is no directory nowhere"),
        ("--json nowhere/x.json", "--json: there is no directory nowhere"),
        ("--against nowhere", "--against: there is no package gae_jax in nowhere"),
        ("--check --shapes 8x8", "--check: none of the shapes has 1,048,576 entries"),
    ],
)
def test_bad_options_are_one_line(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark.read_options(arguments.split())
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {complaint}\n"


@pytest.mark.parametrize("option", [["--cells", "h100", "--shapes", "8x8"], ["--implementations", "none such"]])
def test_other_bad_options_are_one_line(option, capsys):
    with pytest.raises(SystemExit):
        benchmark.read_options(option)
    assert capsys.readouterr().err.count("\n") == 1


def test_cells_are_the_published_shapes():
    shapes = benchmark.read_options(["--cells", "h100"]).shapes
    assert len(shapes) == len(set(shapes)) == 39
    assert (2048, 128) in shapes  # T and N
    assert benchmark_tables.published()[2048, 128]["triton_dev_us"] == 2.84


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
    np.testing.assert_array_equal(contenders.before(other, *arrays), contenders.ours(*arrays))


def numbers(gae, floor):
    common = {"compile_s": 0.1, "calls_in_one_program": 9}
    rival = {"call_s": 2 * gae, "device_s": None, "over_floor": 2 * gae / floor, "over_gae": 2.0}
    return {
        "gae": common | {"call_s": gae, "device_s": gae / 2, "over_floor": gae / floor, "over_gae": 1.0},
        "NumPy loop": common | rival,
        "one pass": common | {"call_s": floor, "device_s": floor / 2, "over_floor": 1.0, "over_gae": floor / gae},
    }


def test_the_table_has_no_ratio_to_a_floor_that_is_none():
    table = benchmark_tables.summary(
        {
            (16, 32): numbers(40e-6, 100e-6),  # faster than its own floor
            (64, 64): numbers(40e-6, 30e-6),  # the floor takes less than twice the time of a dispatch
            (2048, 2048): numbers(6e-3, 3e-3),
        },
        dispatch_s=20e-6,
    )
    lines = table.splitlines()[3:]
    assert lines[0] == "| T × N | call, µs | device, µs | gae / one pass | NumPy loop |"
    assert lines[2:] == [
        "| 16 × 32 | 40 | 20 | dispatch | 2.00 |",
        "| 64 × 64 | 40 | 20 | dispatch | 2.00 |",
        "| 2048 × 2048 | 6,000 | 3,000 | 2.00 | 2.00 |",
    ]


def test_published_figures_stand_beside_what_was_measured():
    table = benchmark_tables.beside_published({(2048, 128): numbers(40e-6, 30e-6)})
    assert table.splitlines()[-1] == "| 2048 × 128 | 40 | 20 | 42 | 2.84 | 128 | 61.6 |"
