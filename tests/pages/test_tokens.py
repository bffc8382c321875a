"""Each recipe of examples/guides/tokens.md, run as printed inside jit, against its definition in float64 NumPy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import pages
from support.meshes import make_mesh
from support.oracle import oracle
from support.recipes import PAGE, known_names, largest_difference, random_names, wanted
from support.references import NUMBERS, RECIPES, running_returns

from gae_jax.testing import check_rollout

TOLERANCE = 1e-5  # of the root mean square of the reference
MOVED, AXES = "Rewards and ends of masked rows", "Data and context axes"
TURNS, LENGTHS = "One decay per turn", "λ by length, and another λ for the critic"


@pytest.mark.parametrize("heading", RECIPES)
def test_recipe_matches_its_definition(heading, fast_compilation):
    assert max(largest_difference(heading, seed) for seed in range(3)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("heading", RECIPES)
def test_mistake_in_recipe_is_found(heading, fast_compilation):
    code = changed(heading, RECIPES[heading].printed, RECIPES[heading].instead)
    assert largest_difference(heading, 0, code=code) > 1000 * TOLERANCE


def test_every_recipe_is_short_and_has_a_reference():
    recipes = pages.recipes(PAGE)
    assert set(recipes) == set(RECIPES)
    assert max(len(code.splitlines()) for code in recipes.values()) <= 13
    rows = pages.table("tests/README.md", "| recipe | lines | largest difference |")
    assert {name: int(lines) for name, lines, _ in rows} == {k: len(code.splitlines()) for k, code in recipes.items()}
    assert all(float(difference) < TOLERANCE for _, _, difference in rows)


def changed(heading, printed, instead):
    """The recipe with a change to its first place that reads `printed`."""
    code = pages.recipes(PAGE)[heading]
    assert printed in code
    return code.replace(printed, instead, 1)


def in_text(start):
    """The code between backticks that begins so, on the page but in no recipe."""
    (code,) = re.findall(rf"`({re.escape(start)}[^`]*)`", pages.read(PAGE))
    return code.replace("\n", " ")


# The variants that the text names.


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_zigzag_layout_is_undone(kind):
    """Arrays in the layout, with the changes of the text around the recipe; without them the result is wrong."""
    names, mesh = random_names(AXES, 0), make_mesh(kind, dp=2, cp=4)
    halves = np.split(np.arange(48), 8)
    positions = np.concatenate([x for i in range(4) for x in (halves[i], halves[7 - i])])
    undo, redo, known = in_text("x[:, jnp"), in_text("advantages[:, pos"), {"jnp": jnp, "positions": positions}

    def advantages(change):
        arrays = {name: x for name, x in names.items() if isinstance(x, np.ndarray)}
        for name, x in arrays.items():
            x, axes = (change(x[:, positions]), P("dp", "cp")) if x.ndim == 2 else (x, P("dp"))
            arrays[name] = jax.device_put(x, NamedSharding(mesh, axes))
        return np.asarray(
            pages.run(pages.recipes(PAGE)[AXES], known_names() | names | arrays | {"mesh": mesh})["advantages"]
        )

    want, undone = wanted(AXES, names)["advantages"][:, positions], advantages(lambda x: eval(undo, known | {"x": x}))
    np.testing.assert_allclose(eval(redo, known | {"advantages": undone}), want, atol=TOLERANCE)
    assert np.abs(advantages(lambda x: x) - want).max() > 0.1


def test_turns_by_ids_may_adjoin_and_have_holes():
    """Two adjoining turns are one run; their ids tell them apart, and a masked token inside a turn does not."""
    names = random_names(TURNS, 0)
    mask = np.array([[0, 1, 1, 1, 0, 1, 0, 1]], bool)
    turn_ids = np.array([[0, 0, 0, 1, 1, 1, 2, 2]], np.int32)
    names |= {"mask": mask, "turn_ids": turn_ids, "rewards": np.where(mask, 1, 0).astype(np.float32)}
    names |= {"values": np.zeros((1, 8), np.float32), "terminated": np.arange(8)[None] == 7, "last_values": np.zeros(1)}
    (by_runs,) = (line for line in pages.recipes(PAGE)[TURNS].splitlines() if line.startswith("first ="))
    code = changed(TURNS, by_runs, in_text("first = mask & (jnp.pad"))
    result = pages.run(code, known_names() | names | {"gamma": 0.5, "lambda_": 1.0})["turn_advantages"]
    np.testing.assert_allclose(result, [[0, 3.25, 3.25, 2.5, 0, 2.5, 0, 1]])  # rewards of 2, 2 and 1


def test_check_rollout_warns_of_what_the_recipe_moves():
    """The heading that the warning names is on the page, and nothing is left in masked rows after its recipe."""
    arguments, names = ("rewards", "values", "terminated", "truncated"), random_names(MOVED, 0)
    names["mask"][-1] = True  # a masked last row is warned of by itself
    parameters = {name: names[name] for name in ("mask", "gamma", "lambda_")}
    with pytest.warns(UserWarning, match="'What arrives between my own steps' in examples/guides/tokens.md"):
        check_rollout(*(names[name] for name in arguments), **parameters)
    assert "\n## What arrives between my own steps\n" in pages.read(PAGE)
    moved = pages.run(pages.recipes(PAGE)[MOVED], known_names() | names)
    check_rollout(*(moved[name] for name in arguments), **parameters)  # a warning would be an error


def test_deviation_of_returns_is_carried_over_rollouts():
    """From the initial carry of the text, over three rollouts: the deviation of all returns so far."""
    rng = np.random.default_rng(0)
    rewards, ends = rng.normal(3, 5, (90, 4)).astype(np.float32), rng.random((90, 4)) < 0.1
    carry = eval(in_text("(jnp.zeros(N)"), {"jnp": jnp, "N": 4})
    for rows in np.split(np.arange(90), [20, 50]):
        names = {"rewards": rewards[rows], "ends": ends[rows], "carry": carry, "gamma": NUMBERS["gamma"]}
        result = pages.run(pages.recipes(PAGE)["Reward scaling"], known_names() | names)
        carry = result["carry"]
        deviation = np.std(running_returns(rewards[: rows[-1] + 1], ends[: rows[-1] + 1]))
        np.testing.assert_allclose(result["scaled"], rewards[rows] / deviation, rtol=TOLERANCE)


def test_check_gae_on_a_token_level_estimator(capsys):
    """The page's adapter, for an estimator that takes a tool's tokens for steps with reward and value 0."""
    (code,) = (x for x in pages.blocks(PAGE) if "check_gae" in x)
    text = pages.read(PAGE).replace("\n", " ")
    (mistake,) = re.findall("for example that a tool's tokens are (steps with reward and value 0)", text)

    def compute_gae(rewards, values, mask, gamma, lam):
        rewards, values = (np.where(mask, x, 0).T for x in (rewards, values))
        none, parameters = np.zeros(rewards.shape), {"gamma": gamma, "lambda_": lam}
        advantages, _ = oracle(rewards, values, none, bootstrap_value=none[0], **parameters)
        return np.where(mask, advantages.T, 0)

    pages.run(code, {"compute_gae": compute_gae})
    assert re.search(rf"padding at the end +right.*\n.*a tool's tokens .*{mistake}", capsys.readouterr().out)


# The example.


@pytest.mark.examples
def test_token_level_has_the_lines_of_the_recipes():
    script = [line.strip() for line in pages.read("examples/token_level.py").splitlines()]
    recipes = pages.recipes(PAGE)
    codes = [recipes[heading] for heading in [*list(recipes)[:3:2], TURNS, LENGTHS]]
    for code in [*codes, recipes[MOVED].partition("\n\n")[0]]:
        assert [x for x in map(str.strip, code.splitlines()) if x not in script] == []


@pytest.mark.examples
def test_token_level_prints_the_table_and_writes_the_picture(tmp_path, capsys):
    token_level = pytest.importorskip("token_level")
    token_level.main(out=tmp_path / "picture.png")
    assert "with a tool" in capsys.readouterr().out
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    for options in {"gamma": 2.0}, {"lambda_": -1.0}, {"alpha": 0.0}:
        with pytest.raises(SystemExit, match=f"error: .*--{next(iter(options)).strip('_')}"):
            token_level.main(**options)
