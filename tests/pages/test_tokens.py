"""Each recipe of examples/guides/tokens.md, run as printed inside jit, against its definition in float64 NumPy."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import pages
from support.meshes import make_mesh
from support.oracle import oracle
from support.recipes import PAGE, known_names, largest_difference, outputs_of, random_names
from support.references import GAMMA, RECIPES, returns_so_far, spans

from gae_jax.testing import check_rollout

TOLERANCE = 1e-5  # of the root mean square of the reference
MOVED, AXES = "Rewards and ends of masked rows", "Data and context axes"
TURNS, PLAYERS = "One decay per turn", "Two players of a zero-sum game"

# A mistake in each recipe, which its test must find: what is printed, and what stands there instead.
MISTAKES = {
    "Prompt, tool and padding tokens": ("last & finished[:, None]", "last"),
    "Values after the token": ("lengths[:, None] - 1", "lengths[:, None] - 2"),
    "KL in the reward": ("-beta * kl", "beta * kl"),
    "Packed sequences, by `cu_seqlens`": ("cu_seqlens[1:] - 1", "cu_seqlens[:-1]"),
    "Packed sequences, by segment ids": ("jnp.where(mask, segment_ids, behind)", "segment_ids"),
    "Padded segments, some of them cut": ("values[lengths,", "values[lengths - 1,"),
    TURNS: ("jnp.where(mask | jnp.isfinite(rewards), rewards, 0)", "jnp.where(mask, rewards, 0)"),
    "Two levels: turns and their tokens": ("values, last, mask=mask", "values, terminated, mask=mask"),
    "λ by length, and another λ for the critic": ("alpha * lengths", "lengths"),
    "Reward to go": (", ddof=1", ""),
    AXES: ('("dp", "cp")', '"dp"'),
    MOVED: (", -1, axis=time_axis)", ", 0, axis=time_axis)"),
    "Turn-based games of several players": ("gae(own_rewards", "gae(rewards"),
    PLAYERS: ("jnp.where(same, gamma, -gamma)", "gamma"),
    "Agents that die": ("mask=alive, ", ""),
    "Team rewards": ("jnp.broadcast_to(done[..., None], shape)", "False"),
    "Reward channels": (" & episodic[None, None]", " & jnp.ones_like(episodic)[None, None]"),
    "Decisions of several steps": ("jnp.pad(ends[:, :-1], ((0, 0), (1, 0), (0, 0)))", "ends"),
    "A state without a value": ("lambda_=lambdas", "lambda_=lambda_"),
    "Normalized values": ("mean + deviation * values", "values"),
    "Reward scaling": ("jnp.pad(ends[:-1], ((1, 0), (0, 0)))", "ends"),
    "Ends that are probabilities, and Dreamer's λ-returns": ("gamma * (1 - p)", "gamma"),
    "Peng's Q(λ)": ("q_values.max(axis=-1)", "q_values.mean(axis=-1)"),
    "Retrace": ("terminated | truncated", "terminated, truncated"),
    "UPGO": (", -1, axis=0)", ", 0, axis=0)"),
    "Average reward": ("rewards - rho", "rewards"),
    "Renormalized weights of a finite horizon": ("terminated | truncated", "terminated"),
}


@pytest.mark.parametrize("heading", RECIPES)
def test_recipe_matches_its_definition(heading, fast_compilation):
    assert max(largest_difference(heading, seed) for seed in range(3)) < TOLERANCE
    assert all(x.dtype == (bool if name == "keep" else jnp.float32) for name, x in outputs_of(heading, 0).items())


@pytest.mark.slow
@pytest.mark.parametrize("heading", MISTAKES)
def test_mistake_in_recipe_is_found(heading, fast_compilation):
    assert largest_difference(heading, 0, code=changed(heading, *MISTAKES[heading])) > 1000 * TOLERANCE


def test_every_recipe_is_short_and_has_a_reference_and_a_mistake():
    recipes = pages.recipes(PAGE)
    assert set(recipes) == set(RECIPES) == set(MISTAKES)
    assert max(len(code.splitlines()) for code in recipes.values()) <= 12
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
    names, sharded = random_names(AXES, 0), known_names() | {"mesh": make_mesh(kind, dp=2, cp=4)}
    want = RECIPES[AXES][1](**names)["advantages"]
    halves = np.split(np.arange(48), 8)
    positions = np.concatenate([x for i in range(4) for x in (halves[i], halves[7 - i])])
    arrays = {name: x for name, x in names.items() if isinstance(x, np.ndarray)}
    layout = {name: x[:, positions] if x.ndim == 2 else x for name, x in arrays.items()}
    undo, redo = in_text("x[:, jnp"), in_text("advantages[:, pos")

    def advantages(arrays):
        specs = {name: P("dp", "cp") if x.ndim == 2 else P("dp") for name, x in arrays.items()}
        arrays = {name: jax.device_put(x, NamedSharding(sharded["mesh"], specs[name])) for name, x in arrays.items()}
        return np.asarray(pages.run(pages.recipes(PAGE)[AXES], sharded | names | arrays | sharded)["advantages"])

    known = {"jnp": jnp, "positions": positions}
    undone = {name: eval(undo, known | {"x": x}) if x.ndim == 2 else x for name, x in layout.items()}
    result = eval(redo, known | {"advantages": advantages(undone)})
    np.testing.assert_allclose(result, want[:, positions], atol=TOLERANCE)
    assert np.abs(advantages(layout) - want[:, positions]).max() > 0.1


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


def test_rewards_and_ends_are_moved_along_axis_1():
    names = random_names(MOVED, 0)
    arrays = {name: x.T for name, x in names.items() if isinstance(x, np.ndarray)}
    result = pages.run(pages.recipes(PAGE)[MOVED], known_names() | arrays | {"time_axis": 1})
    for name, want in RECIPES[MOVED][1](**names).items():
        np.testing.assert_allclose(result[name].T, want, rtol=0, atol=TOLERANCE)


def test_moved_rewards_and_ends_give_the_advantages_of_my_own_steps():
    """Also with the value of the final observation, which stands in the row where the episode was cut off."""
    names, moved_values = random_names(MOVED, 0), in_text("jnp.where(truncated, final")
    move = f"final_values = to_my_steps({moved_values}, mask, terminated | truncated, time_axis)\nrewards = jnp"
    call = "gae(rewards, values, terminated, truncated, final_values=final_values, mask=mask, gamma=gamma, lambda_=lambda_)"
    result = pages.run(f"{changed(MOVED, 'rewards = jnp', move)}\nadvantages, _ = {call}", known_names() | names)
    for n in range(names["mask"].shape[1]):
        mask, terminated, truncated = (names[name][:, n] for name in ("mask", "terminated", "truncated"))
        steps = list(spans(mask, terminated | truncated))
        rows, last = [i for i, _ in steps], [j - 1 for _, j in steps]
        want, _ = oracle(
            [np.nansum(names["rewards"][i:j, n], dtype=np.float64) for i, j in steps],
            names["values"][rows, n],
            terminated[last],
            truncated[last],
            final_values=names["final_values"][last, n],
            gamma=names["gamma"],
            lambda_=names["lambda_"],
            bootstrap_value=names["values"][-1, n],
        )
        np.testing.assert_allclose(result["advantages"][rows, n], want, rtol=0, atol=TOLERANCE)


def test_check_rollout_warns_of_what_the_recipe_moves():
    """The heading that the warning names is on the page, and nothing is left in masked rows after its recipe."""
    arguments, names = ("rewards", "values", "terminated", "truncated"), random_names(MOVED, 0)
    parameters = {name: names[name] for name in ("mask", "gamma", "lambda_")}
    with pytest.warns(UserWarning, match="'What arrives between my own steps' in examples/guides/tokens.md"):
        check_rollout(*(names[name] for name in arguments), **parameters)
    assert "\n## What arrives between my own steps\n" in pages.read(PAGE)
    moved = pages.run(pages.recipes(PAGE)[MOVED], known_names() | names)
    check_rollout(*(moved[name] for name in arguments), **parameters)  # a warning would be an error


def test_players_who_alternate_need_one_negative_number():
    names = random_names(PLAYERS, 0) | {"player": np.broadcast_to(np.arange(41)[:, None] % 2, (41, 4))}
    number = in_text("gamma=-").removeprefix("gamma=")
    result = pages.run(changed(PLAYERS, "jnp.where(same, gamma, -gamma)", number), known_names() | names)
    np.testing.assert_allclose(result["targets"], RECIPES[PLAYERS][1](**names)["targets"], rtol=0, atol=TOLERANCE)


def test_deviation_of_returns_is_carried_over_rollouts():
    """From the initial carry of the text, over three rollouts: the deviation of all returns so far."""
    rng = np.random.default_rng(0)
    rewards, ends = rng.normal(3, 5, (90, 4)).astype(np.float32), rng.random((90, 4)) < 0.1
    carry = eval(in_text("(jnp.zeros(N)"), {"jnp": jnp, "N": 4})
    for rows in np.split(np.arange(90), [20, 50]):
        names = {"rewards": rewards[rows], "ends": ends[rows], "carry": carry, "gamma": GAMMA}
        result = pages.run(pages.recipes(PAGE)["Reward scaling"], known_names() | names)
        carry = result["carry"]
        deviation = np.std(returns_so_far(rewards[: rows[-1] + 1], ends[: rows[-1] + 1]))
        np.testing.assert_allclose(result["scaled"], rewards[rows] / deviation, rtol=TOLERANCE)


# The example.


@pytest.mark.examples
def test_token_level_has_the_lines_of_the_recipes():
    script = [line.strip() for line in pages.read("examples/token_level.py").splitlines()]
    recipes = pages.recipes(PAGE)
    function = recipes[MOVED].partition("\n\n")[0]
    for heading in (
        "Prompt, tool and padding tokens",
        "KL in the reward",
        TURNS,
        "λ by length, and another λ for the critic",
    ):
        assert [x for x in map(str.strip, recipes[heading].splitlines()) if x not in script] == []
    assert [x for x in map(str.strip, function.splitlines()) if x not in script] == []


@pytest.mark.examples
@pytest.mark.parametrize("options", [["--out", "no/x.png"], ["--alpha", "0"], ["--lambda", "2"], ["--bogus"]])
def test_token_level_refuses_bad_options(options, monkeypatch, tmp_path, capsys):
    token_level = pytest.importorskip("token_level")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["token_level.py", *options])
    with pytest.raises(SystemExit) as exit_:
        token_level.main()
    assert exit_.value.code not in (0, None)
    assert options[0] in f"{exit_.value.code}{capsys.readouterr().err}"
    assert not list(tmp_path.iterdir())


@pytest.mark.examples
def test_token_level_prints_the_table_and_writes_the_picture(monkeypatch, tmp_path, capsys):
    token_level = pytest.importorskip("token_level")
    monkeypatch.setattr(sys, "argv", ["token_level.py", "--out", str(tmp_path / "picture.png")])
    token_level.main()
    assert "with a tool" in capsys.readouterr().out
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
