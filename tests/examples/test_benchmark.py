"""examples/benchmark: the program behind the device times, the checks, the tables and the page. No time is tested."""

import collections
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import pages

import gae_jax

pytest.importorskip("tyro")
import benchmark
import contenders
import tables

pytestmark = [pytest.mark.examples, pytest.mark.usefixtures("implicit_promotion")]
FOLDER = pathlib.Path(benchmark.__file__).parent
PAGE = "examples/guides/benchmark.md"


def loops_around_arithmetic(function, arrays):
    """Counts arithmetic operations of a compiled program, by the number of loops around them."""
    text = str(jax.jit(function).lower(*arrays).compile().as_text())
    found = re.findall(r"^(ENTRY )?%?([\w.\-]+) \(.*?\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    computations = {"ENTRY" if entry else name: body for entry, name, body in found}

    def depths(name, depth):
        for line in computations[name].splitlines():
            if re.search(r" (add|multiply|subtract|select)\(", line):
                yield depth
            for callee in re.findall(r"(?:body|calls|to_apply)=%?([\w.\-]+)", line):
                yield from depths(callee, depth + (" while(" in line))

    return collections.Counter(depths("ENTRY", 0))


@pytest.mark.parametrize("name", ["gae, scan", "gae, blocked", "rlax"])
def test_no_call_leaves_the_loop_over_calls(name):
    contender, rollout = contenders.CONTENDERS[name], contenders.random_rollout(48, 16)
    pytest.importorskip(contender.needs)
    arrays = [jnp.array(rollout[x]) for x in contender.arrays.split()]
    many = benchmark.repeated(contender.function, 37)
    alone, repeated = (loops_around_arithmetic(x, arrays) for x in (contender.function, many))
    assert not repeated[0]
    assert sum(alone.values()) > 5
    assert all(repeated[depth + 1] >= count for depth, count in alone.items())
    np.testing.assert_array_equal(jax.jit(many)(*arrays)[0], jax.jit(contender.function)(*arrays))


@pytest.mark.parametrize(("every", "reference"), [("CONTENDERS", "gae"), ("GRADIENTS", "plain lax.scan")])
def test_wrong_contender_is_refused(every, reference):
    """Compared are advantages with a float64 loop, and gradients with the gradient of a plain scan."""
    right = getattr(contenders, every)["gae"]
    chosen = {name: getattr(contenders, every)[name] for name in ("gae", reference, "one pass")}
    assert set(benchmark.measure((5, 3), chosen, 0.01)) == set(chosen)
    for i in range(4 if every == "GRADIENTS" else 1):

        def wrong(*arrays, i=i):
            outputs, tree = jax.tree.flatten(right.function(*arrays))
            return jax.tree.unflatten(tree, [1.01 * x if i == j else x for j, x in enumerate(outputs)])

        with pytest.raises(AssertionError, match="gae is wrong"):
            benchmark.measure((5, 3), chosen | {"gae": right._replace(function=wrong)}, 0.01)


def test_unrolled_loop_has_its_compilation_and_is_left_out_of_long_rollouts(tmp_path):
    names = ("one pass", "gae", contenders.UNROLLED, "NumPy loop")
    chosen = {name: contenders.CONTENDERS[name] for name in names}
    chosen[contenders.UNROLLED] = chosen[contenders.UNROLLED]._replace(longest=3)
    results = {(t, 2): benchmark.measure((t, 2), chosen, 0.01) for t in (4, 3)}
    tables.write(tmp_path / "x.json", benchmark.machine() | {"dispatch_s": 1.0}, results)
    about, results = tables.read(tmp_path / "x.json")
    assert list(results) == [(4, 2), (3, 2)]
    head, _, long, short = [line.split(" | ") for line in tables.summary(results, about).splitlines()[3:]]
    assert head[3:] == ["gae / one pass", "unrolled loop", "NumPy loop |"]
    assert (long[3], long[4], short[3]) == ("dispatch", "-", "dispatch")
    assert float(short[4]) > 0
    head, _, *rows = [line.split(" | ") for line in tables.compilation(results).splitlines()[3:]]
    assert head == ["| T × N", "gae", "unrolled loop |"]
    assert [(row[0], float(row[1]) > 0) for row in rows] == [("| 3 × 2", True)]


def test_other_checkout_is_another_package():
    other = contenders.load_checkout(pages.ROOT)
    assert other.gae is not gae_jax.gae
    assert contenders.gae_jax is gae_jax
    arrays = [jnp.ones((3, 2)), jnp.zeros((3, 2)), jnp.zeros((3, 2), bool), jnp.zeros(2)]
    np.testing.assert_array_equal(contenders.advantages(other, *arrays), contenders.ours(*arrays))


def test_published_figures_stand_beside_what_was_measured():
    shapes = list(tables.published())
    assert len(shapes) == len(set(shapes)) == 39
    measured = {"gae": {"call_s": 40e-6, "device_s": 20e-6}}
    table = tables.beside_published({(2048, 128): measured, (7, 7): measured})  # T and N
    assert table.splitlines()[5:] == ["| 2048 × 128 | 40 | 20 | 42 | 2.84 | 128 | 61.6 |"]


def test_page_has_the_numbers_of_its_files():
    about, results = tables.read(FOLDER / "benchmark_cpu.json")
    _, compiled = tables.read(FOLDER / "compile_times_cpu.json")
    for table in (tables.summary(results, about), tables.compilation(compiled)):
        assert "\n".join(line for line in table.splitlines() if line.startswith("|")) + "\n\n" in pages.read(PAGE)
    ratios = [tables.ratio(results[shape], "PureJaxRL's loop", "gae") for shape in ((128, 4096), (2048, 2048))]
    first, second = (f"{float(ratio):.1f}" for ratio in ratios)
    assert f"takes {first} times as long as `gae` at 128 × 4096 (T × N), and {second} times at 2048" in pages.read(PAGE)


def test_draws_what_was_measured(tmp_path):
    pytest.importorskip("matplotlib")
    tables.draw(tables.read(FOLDER / "benchmark_cpu.json")[1], "a machine", tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
