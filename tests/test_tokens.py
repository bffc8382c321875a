"""Each recipe of examples/tokens.md, run as printed inside jit, against its definition in float64 NumPy."""

import os
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import pytest
import token_level
from support import pages
from support.recipes import PAGE, largest_difference, outputs_of
from support.references import RECIPES

SEEDS = range(3)
TOLERANCE = 1e-5  # of the root mean square of the reference

# A mistake in each recipe, which its test must find: what is printed, and what stands there instead.
MISTAKES = {
    "Prompt, tool and padding tokens": ("last & finished[:, None]", "last"),
    "KL in the reward": ("-beta * kl", "beta * kl"),
    "Packed sequences, by `cu_seqlens`": ("cu_seqlens[1:] - 1", "cu_seqlens[:-1]"),
    "Packed sequences, by segment ids": ("jnp.where(mask, segment_ids, behind)", "segment_ids"),
    "One decay a turn": ("mask=first", "mask=mask"),
    "λ by length": ("alpha * lengths", "lengths"),
    "Another λ for the critic": ("lambda_=1.0", "lambda_=lambda_"),
    "Reward to go": ("normalize(returns, mask)", "normalize(returns)"),
    "Agents that die": ("mask=alive, ", ""),
    "Team rewards": ("jnp.broadcast_to(done[..., None], shape)", "jnp.zeros(shape)"),
    "Reward channels": ("gamma=gammas", "gamma=gammas[0]"),
    "Normalization of each agent": ("jax.vmap(normalize, in_axes=-1, out_axes=-1)", "normalize"),
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
    "One decay a turn",
    "λ by length",
    "Another λ for the critic",
)


@pytest.mark.parametrize("heading", RECIPES)
def test_recipe_matches_its_definition(heading):
    for seed in SEEDS:
        assert largest_difference(heading, seed) < TOLERANCE
    assert all(x.dtype == jnp.float32 for x in outputs_of(heading, 0).values())


@pytest.mark.gate
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


@pytest.mark.parametrize("heading", IN_TOKEN_LEVEL)
@pytest.mark.examples
def test_token_level_has_the_lines_of_the_recipe(heading):
    script = iter(line.strip() for line in pages.read("examples/token_level.py").splitlines())
    for line in pages.recipes(PAGE)[heading].splitlines():
        assert line.strip() in script  # which advances the iterator: the lines stand there in this order


# The example.


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--out", "no/such/directory/x.png"], "error: --out: no/such/directory is not a directory"),
        (["--out", "."], "error: --out: . is a directory; name a file, such as token_level.png"),
        (["--out", "x.bogus"], "error: --out: cannot write .bogus files; the name must end in .pdf, .png or .svg"),
        (["--alpha", "0"], "error: --alpha must be greater than 0"),
        (["--lambda", "2"], "error: --lambda must be in [0, 1]"),
        (["--beta", "nan"], "error: --beta must be a finite number"),
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
