"""Each recipe of examples/guides/tokens.md, run as printed inside jit, against its definition in float64 NumPy."""

import os
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest
import token_level
from support import pages
from support.oracle import oracle
from support.recipes import PAGE, known_names, largest_difference, outputs_of, random_names, reference_of
from support.references import GAMMA, RECIPES, returns_so_far, spans

from gae_jax.testing import check_rollout

SEEDS = range(3)
TOLERANCE = 1e-5  # of the root mean square of the reference

MOVED = "Rewards and ends of masked rows"
MOVED_FINAL_VALUES = "jnp.where(truncated, final_values, 0)"
CALL = """
advantages, _ = gae(
    rewards, values, terminated, truncated, final_values=final_values, mask=mask, gamma=gamma, lambda_=lambda_
)
"""

# A mistake in each recipe, which its test must find: what is printed, and what stands there instead.
MISTAKES = {
    "Prompt, tool and padding tokens": ("last & finished[:, None]", "last"),
    "KL in the reward": ("-beta * kl", "beta * kl"),
    "Packed sequences, by `cu_seqlens`": ("cu_seqlens[1:] - 1", "cu_seqlens[:-1]"),
    "Packed sequences, by segment ids": ("jnp.where(mask, segment_ids, behind)", "segment_ids"),
    "One decay per turn": ("jnp.where(mask | jnp.isfinite(rewards), rewards, 0)", "jnp.where(mask, rewards, 0)"),
    "λ by length": ("alpha * lengths", "lengths"),
    "Another λ for the critic": ("lambda_=1.0", "lambda_=lambda_"),
    "Reward to go": (", ddof=1", ""),
    MOVED: (", -1, axis=time_axis)", ", 0, axis=time_axis)"),
    "Turn-based games of several players": ("gae(own_rewards", "gae(rewards"),
    "Two players of a zero-sum game": ("jnp.where(same, gamma, -gamma)", "gamma"),
    "Agents that die": ("mask=alive, ", ""),
    "Team rewards": ("jnp.broadcast_to(done[..., None], shape)", "jnp.zeros(shape)"),
    "Reward channels": ("episodic[None, None]", "jnp.ones_like(episodic)[None, None]"),
    "Normalization of each agent": ("jax.vmap(normalize, in_axes=-1, out_axes=-1)", "normalize"),
    "A state without a value": ("lambda_=lambdas", "lambda_=lambda_"),
    "Reward scaling": ("jnp.pad(ends[:-1], ((1, 0), (0, 0)))", "ends"),
    "Renormalized weights of a finite horizon": ("lam ** (n - 1)", "lam**n"),
    "Retrace": ("jnp.roll(c, -1, axis=0)", "c"),
    "UPGO": (", -1, axis=0)", ", 0, axis=0)"),
    "Peng's Q(λ)": ("q_values.max(axis=-1)", "q_values.mean(axis=-1)"),
    "Dreamer's λ-returns": ("gamma * continues", "gamma"),
    "Average reward": ("rewards - rho", "rewards"),
    "Semi-Markov decisions": ("gamma**durations", "gamma"),
}
AXES = "Normalization over data and context axes at once"
IN_TOKEN_LEVEL = (
    "Prompt, tool and padding tokens",
    "KL in the reward",
    "One decay per turn",
    "λ by length",
    "Another λ for the critic",
)


@pytest.mark.parametrize("heading", RECIPES)
def test_recipe_matches_its_definition(heading):
    for seed in SEEDS:
        assert largest_difference(heading, seed) < TOLERANCE
    assert all(x.dtype == (bool if name == "keep" else jnp.float32) for name, x in outputs_of(heading, 0).items())


@pytest.mark.slow
@pytest.mark.parametrize("heading", MISTAKES)
def test_mistake_in_recipe_is_found(heading):
    printed, instead = MISTAKES[heading]
    code = pages.recipes(PAGE)[heading]
    assert printed in code
    assert largest_difference(heading, 0, code=code.replace(printed, instead)) > 1000 * TOLERANCE


@pytest.mark.parametrize("axis_name", ["dp", "cp"])
def test_normalization_over_one_axis_of_two_is_wrong_without_an_error(axis_name):
    """What `normalize(..., axis_name="dp")` returns differs between the shards of the other axis, by far."""
    code = pages.recipes(PAGE)[AXES].replace('("dp", "cp")', f'"{axis_name}"', 1)
    assert largest_difference(AXES, 0, code=code) > 0.1


def test_segments_need_the_last_chosen_token():
    """The flag on the last token of a segment is not read where that token is masked: the next segment leaks."""
    heading = "Packed sequences, by segment ids"
    flags_on_last_tokens = (
        "terminated = segment_ids != jnp.pad(segment_ids[:, 1:], ((0, 0), (0, 1)), constant_values=9)\nadvantages, "
    )
    code = pages.recipes(PAGE)[heading].replace("advantages, ", flags_on_last_tokens, 1)
    assert largest_difference(heading, 0, code=code) > 0.1


def test_rewards_and_ends_are_moved_along_axis_1():
    arrays = {name: x.T for name, x in random_names(MOVED, 0).items() if isinstance(x, np.ndarray)}
    result = pages.run(pages.recipes(PAGE)[MOVED], known_names() | arrays | {"time_axis": 1})
    for name, want in reference_of(MOVED, 0).items():
        np.testing.assert_allclose(result[name].T, want, rtol=0, atol=TOLERANCE)


def test_moved_rewards_and_ends_give_the_advantages_of_my_own_steps():
    """Also with a value of the final observation, which stands in the row where the episode was cut off."""
    names = random_names(MOVED, 0)
    final_values = np.random.default_rng(1).normal(size=names["mask"].shape).astype(np.float32)
    code = f"final_values = to_my_steps({MOVED_FINAL_VALUES}, mask, terminated | truncated, time_axis)\n"
    code = pages.recipes(PAGE)[MOVED].replace("rewards = jnp", f"{code}rewards = jnp", 1) + CALL
    result = pages.run(code, known_names() | names | {"final_values": final_values})
    for n in range(names["mask"].shape[1]):
        mask, terminated, truncated = (names[name][:, n] for name in ("mask", "terminated", "truncated"))
        steps = list(spans(mask, terminated | truncated))
        rows = [i for i, _ in steps]
        want, _ = oracle(
            [np.nansum(names["rewards"][i:j, n], dtype=np.float64) for i, j in steps],
            names["values"][rows, n],
            [terminated[j - 1] for _, j in steps],
            [truncated[j - 1] for _, j in steps],
            final_values=[final_values[j - 1, n] for _, j in steps],
            gamma=names["gamma"],
            lambda_=names["lambda_"],
            bootstrap_value=names["values"][-1, n],
        )
        np.testing.assert_allclose(result["advantages"][rows, n], want, rtol=0, atol=TOLERANCE)


def test_check_rollout_warns_of_what_the_recipe_moves():
    """The heading that the warning names is on the page, and nothing is left in masked rows after its recipe."""
    arguments = ("rewards", "values", "terminated", "truncated")
    names = random_names(MOVED, 0)
    parameters = {name: names[name] for name in ("mask", "gamma", "lambda_")}
    with pytest.warns(UserWarning, match="'What arrives between my own steps' in examples/guides/tokens.md"):
        check_rollout(*(names[name] for name in arguments), **parameters)
    assert "\n## What arrives between my own steps\n" in pages.read(PAGE)
    moved = pages.run(pages.recipes(PAGE)[MOVED], known_names() | names)
    check_rollout(*(moved[name] for name in arguments), **parameters)  # a warning would be an error


def test_page_tells_how_final_values_are_moved():
    assert f"`{MOVED_FINAL_VALUES}`" in pages.read(PAGE)


def test_players_who_alternate_need_one_negative_number():
    """The page's shorter call, `gamma=-gamma`."""
    heading = "Two players of a zero-sum game"
    names = random_names(heading, 0) | {"player": np.broadcast_to(np.arange(41)[:, None] % 2, (41, 4))}
    code = pages.recipes(PAGE)[heading].replace("jnp.where(same, gamma, -gamma)", "-gamma")
    _, reference = RECIPES[heading]
    for name, want in reference(**names).items():
        np.testing.assert_allclose(pages.run(code, known_names() | names)[name], want, rtol=0, atol=TOLERANCE)
    assert "`gamma=-gamma`" in pages.read(PAGE)


def test_team_rewards_after_death_reach_the_steps_before_it():
    """An agent that dies for good, and whose team is rewarded later: its return is the team's, to the end."""
    heading, steps = "A state without a value", 6
    alive = np.arange(steps + 1)[:, None] < np.array([3, steps + 1])  # the first agent dies in its third step
    names = {
        "has_value": alive,
        "rewards": np.ones((steps, 2), np.float32),
        "values": np.where(alive, 0.5, np.nan).astype(np.float32),
        "terminated": np.arange(steps)[:, None] == [steps - 1, steps - 1],
        "gamma": 0.5,
        "lambda_": 0.9,
    }
    result = pages.run(pages.recipes(PAGE)[heading], known_names() | names)
    rewards_to_the_end = 1 + 0.5 + 0.25 + 0.125  # from its third step on
    np.testing.assert_allclose(result["targets"][2, 0], rewards_to_the_end)
    np.testing.assert_array_equal(result["keep"], alive[:-1])


def test_deviation_of_returns_is_carried_over_rollouts():
    """From the initial carry, over three rollouts: the deviation of all returns so far."""
    rng = np.random.default_rng(0)
    rewards, ends = rng.normal(3, 5, (90, 4)).astype(np.float32), rng.random((90, 4)) < 0.1
    code, carry = pages.recipes(PAGE)["Reward scaling"], (jnp.zeros(4), 0.0, 0.0, 0.0)
    for rows in np.split(np.arange(90), [20, 50]):
        names = {"rewards": rewards[rows], "ends": ends[rows], "carry": carry, "gamma": GAMMA}
        result = pages.run(code, known_names() | names)
        carry = result["carry"]
        deviation = np.std(returns_so_far(rewards[: rows[-1] + 1], ends[: rows[-1] + 1]))
        np.testing.assert_allclose(result["scaled"], rewards[rows] / deviation, rtol=TOLERANCE)


def test_target_of_a_dropped_row_is_the_largest_q():
    """It is no target for the Q of the action that was taken, and `keep` is False there."""
    heading = "Peng's Q(λ)"
    names, outputs = random_names(heading, 0), outputs_of(heading, 0)
    dropped = names["truncated"] & ~names["terminated"]
    best = names["q_values"][:-1].max(axis=-1)
    assert dropped.sum() > 3
    np.testing.assert_array_equal(outputs["targets"][dropped], best[dropped])
    np.testing.assert_array_equal(outputs["keep"], ~dropped)


def test_every_recipe_has_a_reference_and_a_mistake():
    assert set(pages.recipes(PAGE)) == set(RECIPES) == {*MISTAKES, AXES}


def test_recipes_are_a_few_lines():
    for code in pages.recipes(PAGE).values():
        assert len(code.splitlines()) <= 11
        assert max(map(len, code.splitlines())) <= 120


def test_table_of_recipes_has_their_lines_and_differences():
    rows = pages.table("tests/README.md", "| recipe | lines | largest difference |")
    assert {name: int(lines) for name, lines, _ in rows} == {
        name: len(code.splitlines()) for name, code in pages.recipes(PAGE).items()
    }
    assert all(float(difference) < TOLERANCE for _, _, difference in rows)


@pytest.mark.parametrize("heading", [*IN_TOKEN_LEVEL, MOVED])
@pytest.mark.examples
def test_token_level_has_the_lines_of_the_recipe(heading):
    code = pages.recipes(PAGE)[heading]
    code = code.partition("\n\n")[0] if heading == MOVED else code  # the function; `arrived` is not needed there
    script = iter(line.strip() for line in pages.read("examples/token_level.py").splitlines())
    for line in code.splitlines():
        assert line.strip() in script  # which advances the iterator: the lines stand there in this order


# The example.


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--out", "no/x.png"], "error: --out: cannot write 'no/x.png': No such file or directory"),
        (["--out", ""], "error: --out: the name must end in .png or .pdf or .svg; got ''"),
        (["--out", "x.bogus"], "error: --out: the name must end in .png or .pdf or .svg; got 'x.bogus'"),
        (["--alpha", "0"], "error: --alpha: must be a positive number; got 0"),
        (["--lambda", "2"], "error: --lambda: must be a number from 0 to 1; got 2"),
        (["--beta", "nan"], "error: --beta: must be a number from -1000 to 1000; got nan"),
        (["--beta", "1e38"], "error: --beta: must be a number from -1000 to 1000; got 1e38"),
        (["--bogus"], "error: unrecognized arguments: --bogus"),
    ],
)
@pytest.mark.examples
def test_token_level_refuses_in_one_line(options, complaint, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["token_level.py", *options])
    with pytest.raises(SystemExit) as exit_:
        token_level.main()
    assert exit_.value.code == 2
    assert capsys.readouterr() == ("", complaint + "\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.examples
def test_token_level_helps_without_its_extra():
    """Where matplotlib and rich are not installed, `--help` works, and a run names the command that installs them."""
    for options, status in (["--help"], 0), ([], 2):
        finished = run_without(("matplotlib", "rich"), *options)
        assert finished.returncode == status
        if options:
            assert "--out" in finished.stdout
        else:
            assert finished.stderr == "error: matplotlib, rich not installed; run: pip install -e '.[examples]'\n"


def run_without(modules, *options):
    """Runs the script where these modules cannot be found."""
    examples = pages.ROOT / "examples"
    code = textwrap.dedent(f"""
        import importlib.util, runpy, sys
        find_spec = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *more: None if name in {modules!r} else find_spec(name, *more)
        sys.modules |= dict.fromkeys({modules!r})  # an import of any of them raises ImportError
        sys.path.insert(0, {str(examples)!r})
        sys.argv = {["token_level.py", *options]!r}
        runpy.run_path({str(examples / "token_level.py")!r}, run_name="__main__")
    """)
    environment = os.environ | {"PYTHONPATH": str(pages.ROOT)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False)


@pytest.mark.examples
def test_token_level_writes_the_file_that_it_names(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("rich")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["token_level.py", "--out", "picture.png"])
    token_level.main()
    assert capsys.readouterr().out.splitlines()[-1] == "wrote picture.png"
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
