"""The bugs that examples/five_hours.py plants, the file that it wrote, and its command line."""

import json
import pathlib
import sys

import five_hours
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
    assert check_gae(five_hours.right).right
    np.testing.assert_array_equal(five_hours.right(**CASE), gae(**CASE).advantages)


def test_every_bug_has_a_name():
    assert set(five_hours.BUGS) == {"right", *NAMED}


@pytest.mark.parametrize("name", NAMED)
def test_a_bug_is_the_mistake_that_it_is_named_after(name):
    wanted = MISTAKES[NAMED[name]](CASE)
    np.testing.assert_allclose(five_hours.BUGS[name](**CASE), wanted, rtol=1e-5, atol=1e-5)
    assert NAMED[name] in {verdict.mistake for verdict in check_gae(five_hours.BUGS[name]).verdicts}


def test_the_file_holds_what_the_settings_of_the_script_make():
    path = pathlib.Path(five_hours.__file__).with_suffix(".json")
    record = json.loads(path.read_text(encoding="utf-8"))
    settings, results = record["settings"], record["results"]
    assert settings["time_limit"] == five_hours.TIME_LIMIT
    assert settings["evaluation_steps"] == five_hours.EVALUATION_STEPS
    assert tuple(results) == five_hours.TRAINED
    for result in results.values():
        assert np.shape(result["evaluations"]) == (settings["seeds"], five_hours.EVALUATIONS + 1)
        assert np.shape(result["training_lengths"]) == (settings["seeds"], five_hours.EVALUATIONS)


def test_the_pole_falls_without_a_policy_and_the_cart_is_pushed_where_it_is_told():
    upright = jnp.zeros(4)
    pushed_right, out = five_hours.push(upright, jnp.array(1))
    pushed_left, _ = five_hours.push(upright, jnp.array(0))
    assert not out
    np.testing.assert_allclose(pushed_right, -pushed_left, atol=1e-7)
    after, _ = five_hours.push(pushed_right, jnp.array(1))
    assert after[0] > 0  # the cart moves to the right,
    assert after[2] < 0  # and the pole tips to the left
    assert five_hours.push(jnp.array([2.5, 0.0, 0.0, 0.0]), jnp.array(1))[1]
    assert five_hours.push(jnp.array([0.0, 0.0, 0.3, 0.0]), jnp.array(1))[1]


@pytest.mark.parametrize("options", [["--seeds", "0"], ["--seeds", "many"], ["--out", "no/such/file"], ["--unknown"]])
def test_a_bad_option_is_one_line(options, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["five_hours.py", *options])
    with pytest.raises(SystemExit) as exit_:
        five_hours.main()
    assert exit_.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
