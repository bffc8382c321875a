"""The bugs that examples/notebook/bug_study.py plants, the file that it wrote, and the figure."""

import struct
import sys
from typing import Any

import bug_study
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gae_jax import gae
from gae_jax.testing import check_gae
from gae_jax.testing._mistakes import cases

measured = pytest.importorskip("gae_measured", reason="needs the extra `notebook`")
pytest.importorskip("tyro", reason="needs the extra `notebook`")

pytestmark = pytest.mark.examples
RECORD = bug_study.read_results()
CASE: dict[str, Any] = cases()["time limits, values known"]
ADVANTAGES = jnp.arange(20.0).reshape(4, 5)  # four steps of five workers; all numbers differ


def test_right_one_is_gae():
    np.testing.assert_array_equal(bug_study.right(**CASE), gae(**CASE).advantages)


@pytest.mark.parametrize("name", [name for name in bug_study.BUGS if name != "right"])
def test_bug_is_the_mistake_that_it_is_named_after(name):
    report, mistake = check_gae(bug_study.BUGS[name]), measured.CHECKED[name]
    assert not report.right
    assert [other for other in measured.CHECKED.values() if other in str(report) and other not in mistake] == []
    assert mistake in str(report)


def test_sweep_has_its_own_lambda():
    for lambda_ in bug_study.SWEEP:
        estimate, *orders = bug_study.TRAINED[f"λ = {lambda_:g}"]
        assert orders == [bug_study.in_order, bug_study.in_order]
        wanted = bug_study.right(**CASE | {"lambda_": lambda_})
        np.testing.assert_array_equal(estimate(**CASE | {"lambda_": bug_study.LAMBDA}), wanted)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", bug_study.ORDERS)
def test_order_moves_what_its_name_says(name, seed):
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


def test_reverse_goes_to_the_policy_or_to_the_critic_only():
    _, policy_order, critic_order = bug_study.TRAINED["reverse for the policy only"]
    np.testing.assert_array_equal(policy_order(jax.random.key(0), ADVANTAGES), ADVANTAGES[::-1])
    np.testing.assert_array_equal(critic_order(jax.random.key(0), ADVANTAGES), ADVANTAGES)
    assert bug_study.TRAINED["reverse for the critic only"] == (bug_study.right, critic_order, policy_order)


@pytest.mark.parametrize("name", [name for name in bug_study.ORDERS if name != "mean of the worker"])
def test_order_is_drawn_anew_from_each_key(name):
    orders = {np.asarray(bug_study.ORDERS[name](jax.random.key(seed), ADVANTAGES)).tobytes() for seed in range(8)}
    assert len(orders) > 1


def test_file_holds_what_the_settings_of_the_script_make():
    settings, results = RECORD["settings"], RECORD["results"]
    between = bug_study.ITERATIONS_BETWEEN * bug_study.STEPS * bug_study.ENVS
    limits = {"time_limit": bug_study.TIME_LIMIT, "evaluation_steps": bug_study.EVALUATION_STEPS}
    assert settings == {"seeds": 32, "steps_between_evaluations": between, **limits}
    assert tuple(results) == tuple(bug_study.TRAINED)
    for result in results.values():
        assert np.shape(result["evaluations"]) == (settings["seeds"], bug_study.EVALUATIONS + 1)
        assert np.shape(result["training_lengths"]) == (settings["seeds"], bug_study.EVALUATIONS)


def test_agents_of_the_file_start_as_the_agents_of_the_script(monkeypatch, implicit_promotion):
    monkeypatch.setattr(bug_study, "EVALUATIONS", 0)
    untrained, _ = bug_study.train_seeds("right", 8)
    for result in RECORD["results"].values():
        written = np.array(result["evaluations"])[:8, :1]
        assert np.mean(np.abs(written - untrained) < 0.06) >= 7 / 8  # a tie may fall otherwise elsewhere


def test_episode_ends_beyond_the_track_and_where_the_pole_tips():
    """`test_agents_of_the_file_start_as_the_agents_of_the_script` covers the rest of the physics."""
    states = jnp.array([[0.0, 0, 0, 0], [2.5, 0, 0, 0], [-2.5, 0, 0, 0], [0, 0, 0.3, 0], [0, 0, -0.3, 0]])
    assert [bool(bug_study.push(state, jnp.array(1))[1]) for state in states] == [False, True, True, True, True]


def call(monkeypatch, *options):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr(sys, "argv", ["bug_study.py", *map(str, options)])
    bug_study.main()


def test_results_are_written_and_read(monkeypatch, tmp_path):
    monkeypatch.setattr(bug_study, "train_seeds", lambda name, seeds: np.full((2, seeds, 3), len(name)))
    call(monkeypatch, "--seeds", 4, "--out", tmp_path / "bug_study.json")
    monkeypatch.setattr(bug_study, "__file__", str(tmp_path / "bug_study.py"))
    record = bug_study.read_results()
    assert record["settings"]["seeds"] == 4
    assert record["results"]["right"]["evaluations"] == [[5.0] * 3] * 4


def test_figure_of_the_readme_is_drawn_from_the_file(monkeypatch, tmp_path):
    call(monkeypatch, "--draw", tmp_path / "drawn.png")
    committed = bug_study.pathlib.Path(bug_study.__file__).with_suffix(".png")
    sizes = [struct.unpack(">II", png.read_bytes()[16:24]) for png in (tmp_path / "drawn.png", committed)]
    assert sizes[0] == sizes[1]
    assert sizes[0][0] <= 900
    assert committed.stat().st_size < 150_000
