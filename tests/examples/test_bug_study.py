"""The bugs that examples/notebook/bug_study.py plants, the file that it wrote, and its command line."""

import json
import pathlib
import struct
import sys

import bug_study
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gae_jax import gae
from gae_jax.testing import MISTAKES, cases, check_gae

pytestmark = pytest.mark.examples
NAMED = {
    "result in reverse": "the result is in reverse",
    "flag of the step before": "the flag of the step before",
    "termination ignored": "termination is ignored",
    "truncation as termination": "truncation as termination",
    "truncation not cut": "truncation does not cut",
    "V(s_t) for V(final)": "V(s_t) for V(final observation)",
    "λ missing on the first hop": "λ is missing on the first hop",
}
CASE = cases()["time limits, values known"]


def test_the_right_one_is_gae():
    assert check_gae(bug_study.right).right
    np.testing.assert_array_equal(bug_study.right(**CASE), gae(**CASE).advantages)


def test_every_bug_has_a_name():
    assert set(bug_study.BUGS) == {"right", *NAMED}


@pytest.mark.parametrize("name", NAMED)
def test_a_bug_is_the_mistake_that_it_is_named_after(name):
    wanted = MISTAKES[NAMED[name]](CASE)
    np.testing.assert_allclose(bug_study.BUGS[name](**CASE), wanted, rtol=1e-5, atol=1e-5)
    assert NAMED[name] in {verdict.mistake for verdict in check_gae(bug_study.BUGS[name]).verdicts}


RECORD = json.loads(pathlib.Path(bug_study.__file__).with_suffix(".json").read_text(encoding="utf-8"))
ADVANTAGES = jnp.arange(20.0).reshape(4, 5)  # four steps of five workers; all numbers differ


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", bug_study.ORDERS)
def test_an_order_moves_what_its_name_says(name, seed):
    moved = np.asarray(bug_study.ORDERS[name](jax.random.key(seed), ADVANTAGES))
    before = np.asarray(ADVANTAGES)
    if name == "random order of time":
        np.testing.assert_array_equal(np.sort(moved, axis=0), before)  # within each worker,
        assert len({tuple(np.argsort(column)) for column in moved.T}) > 1  # and not alike in all workers
    elif name == "mean of the worker":
        np.testing.assert_array_equal(moved, np.broadcast_to(before.mean(axis=0), before.shape))
    elif name == "reverse of another worker":
        owner = moved[0] % 5
        assert (owner != np.arange(5)).all()
        np.testing.assert_array_equal(moved, before[::-1, owner.astype(int)])
    else:
        np.testing.assert_array_equal(np.sort(moved, axis=None), before.ravel())
        assert (moved % 5 != np.arange(5)).any()


def test_the_reverse_goes_to_the_policy_or_to_the_critic_only():
    _, policy_order, critic_order = bug_study.TRAINED["reverse for the policy only"]
    np.testing.assert_array_equal(policy_order(jax.random.key(0), ADVANTAGES), ADVANTAGES[::-1])
    np.testing.assert_array_equal(critic_order(jax.random.key(0), ADVANTAGES), ADVANTAGES)
    assert bug_study.TRAINED["reverse for the critic only"] == (bug_study.right, critic_order, policy_order)


@pytest.mark.parametrize("name", [name for name in bug_study.ORDERS if name != "mean of the worker"])
def test_an_order_is_drawn_anew_from_each_key(name):
    orders = {np.asarray(bug_study.ORDERS[name](jax.random.key(seed), ADVANTAGES)).tobytes() for seed in range(8)}
    assert len(orders) > 1


def test_the_file_holds_what_the_settings_of_the_script_make():
    settings, results = RECORD["settings"], RECORD["results"]
    assert settings["seeds"] == 32
    assert settings["time_limit"] == bug_study.TIME_LIMIT
    assert settings["evaluation_steps"] == bug_study.EVALUATION_STEPS
    assert settings["steps_between_evaluations"] == bug_study.ITERATIONS_BETWEEN * bug_study.STEPS * bug_study.ENVS
    assert tuple(results) == tuple(bug_study.TRAINED)
    for result in results.values():
        assert np.shape(result["evaluations"]) == (settings["seeds"], bug_study.EVALUATIONS + 1)
        assert np.shape(result["training_lengths"]) == (settings["seeds"], bug_study.EVALUATIONS)


def test_the_agents_of_the_file_start_as_the_agents_of_the_script(monkeypatch):
    monkeypatch.setattr(bug_study, "EVALUATIONS", 0)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        untrained, _ = bug_study.train_seeds("right", 8)
    for result in RECORD["results"].values():
        written = np.array(result["evaluations"])[:8, :1]
        assert np.mean(np.abs(written - untrained) < 0.06) >= 7 / 8  # a tie may fall otherwise elsewhere


def test_the_pole_falls_without_a_policy_and_the_cart_is_pushed_where_it_is_told():
    upright = jnp.zeros(4)
    pushed_right, out = bug_study.push(upright, jnp.array(1))
    pushed_left, _ = bug_study.push(upright, jnp.array(0))
    assert not out
    np.testing.assert_allclose(pushed_right, -pushed_left, atol=1e-7)
    after, _ = bug_study.push(pushed_right, jnp.array(1))
    assert after[0] > 0  # the cart moves to the right,
    assert after[2] < 0  # and the pole tips to the left
    assert bug_study.push(jnp.array([2.5, 0.0, 0.0, 0.0]), jnp.array(1))[1]
    assert bug_study.push(jnp.array([0.0, 0.0, 0.3, 0.0]), jnp.array(1))[1]


@pytest.mark.parametrize(
    "options",
    [
        ["--seeds", "0"],
        ["--seeds", "many"],
        ["--seeds", "99999999999999999999999"],
        ["--out", "no/such/file"],
        ["--out", ""],
        ["--out", "."],
        ["--out", "x" * 300],
        ["--draw", "."],
        ["--unknown"],
    ],
)
def test_a_bad_option_is_one_line(options, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bug_study.py", *options])
    monkeypatch.setattr(bug_study, "train_seeds", lambda *_: pytest.fail("it trains"))
    with pytest.raises(SystemExit) as exit_:
        bug_study.main()
    assert exit_.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_refused_run_leaves_files_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(bug_study, "train_seeds", lambda *_: sys.exit(0))
    for text in (None, "results"):
        path = tmp_path / "bug_study.json"
        if text is not None:
            path.write_text(text)
        monkeypatch.setattr(sys, "argv", ["bug_study.py", "--out", str(path)])
        with pytest.raises(SystemExit):
            bug_study.main()
        assert (path.read_text() if path.exists() else None) == text


def size_of(png):
    """Width and height, from the header."""
    return struct.unpack(">II", png.read_bytes()[16:24])


def test_the_figure_of_the_readme_is_drawn_from_the_file(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra `notebook`")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    committed = pathlib.Path(bug_study.__file__).with_suffix(".png")
    drawn = tmp_path / "drawn.png"
    monkeypatch.setattr(sys, "argv", ["bug_study.py", "--draw", str(drawn)])
    bug_study.main()
    assert size_of(drawn) == size_of(committed)
    assert size_of(committed)[0] <= 900
    assert committed.stat().st_size < 150_000
