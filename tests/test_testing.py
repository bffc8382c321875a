"""`check_gae` names the mistake that was made, and none where there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import peers
from support.laws import assert_close
from support.mutants import MUTANTS, load
from support.oracle import oracle

import gae_jax
from gae_jax.testing import MISTAKES, advantages, cases, check_gae

NAN = "NaN from where nothing is to be read"
PLANTED = {  # by the mutants' names
    "time_runs_forward": "time runs the wrong way",
    "collected_in_reverse": "the result is in reverse",
    "flag_of_the_step_before": "the flag is that of the step before",
    "flag_of_the_step_after": "the flag is that of the step after",
    "termination_ignored": "termination is ignored",
    "truncation_as_termination": "truncation as termination",
    "truncation_not_cut": "truncation does not cut",
    "truncation_bootstraps_from_its_own_state": "V(s_t) for V(final observation)",
    "lambda_missing_on_the_first_hop": "λ is missing on the first hop",
    "lambda_missing": "λ is missing",
    "gamma_for_lambda": "γ for λ",
    "gamma_missing": "γ is missing",
    "bootstrap_missing": "the bootstrap value is missing",
    "bootstrap_doubled": "the bootstrap value counts twice",
    "zero_times_nan_at_the_end": NAN,
}


def right(**case):
    return gae_jax.gae(**case).advantages


def mistakes(report):
    return {verdict.mistake for verdict in report.verdicts} - {None}


def test_its_answers_are_those_of_the_oracle():
    for case in cases().values():
        want, _ = oracle(**case)
        live = case.get("mask", True) & np.isfinite(want)
        assert_close([np.where(live, advantages(**case), 0)], [np.where(live, want, 0)], rtol=1e-12)


def test_gae_is_right():
    report = check_gae(right)
    assert report.right
    assert len(report.verdicts) == len(cases())
    assert str(report).count("right") == len(cases())


@pytest.mark.parametrize("name", PLANTED)
def test_it_names_what_was_planted(name, tmp_path):
    [mutant] = [mutant for mutant in MUTANTS if mutant.name == name]
    lib = load(mutant, tmp_path)
    report = check_gae(lambda **case: lib.gae(**case).advantages)
    assert not report.right
    assert PLANTED[name] in mistakes(report)
    print(f"\n{name}\n{report}")


def plain(rewards, values, terminated, bootstrap_value, gamma, lambda_, own_values=False):
    """A textbook's two lines, wrong where NaN is multiplied by 0."""
    next_values = values if own_values else jnp.concatenate([values[1:], bootstrap_value[None]])
    deltas = rewards + gamma * jnp.where(terminated, 0, next_values) - values
    discounts = gamma * lambda_ * (1 - jnp.float32(terminated))
    return jax.lax.scan(
        lambda a, row: (row[0] + row[1] * a,) * 2, 0 * bootstrap_value, (deltas, discounts), reverse=True
    )[1]


def test_the_value_of_its_own_state():
    def wrong(rewards, values, terminated, bootstrap_value, gamma, lambda_):
        return plain(rewards, values, terminated, bootstrap_value, gamma, lambda_, own_values=True)

    assert "V(s_t) for V(s_{t+1})" in mistakes(check_gae(wrong))


def test_what_a_function_does_not_take_is_not_asked():
    report = check_gae(plain)
    assert [verdict.case for verdict in report.verdicts] == list(cases())[:4]
    assert mistakes(report) <= {NAN}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda **x: right(**x | {"values": x["values"][::-1]}), "wrong, in a way that is not known here"),
        (lambda **x: right(**x) + x["values"], "the target, not the advantage"),
        (lambda **x: gae_jax.normalize(right(**x)), "normalized"),
        (lambda **x: right(**x | {"bootstrap_value": x["values"][-1]}), "wrong, in a way that is not known here"),
        (lambda **x: right(**x | {"mask": None}), "the mask is ignored"),
    ],
)
def test_other_mistakes(wrong, named):
    report = check_gae(wrong)
    assert named in mistakes(report)


def of_rlax(rewards, values, terminated, bootstrap_value, gamma, lambda_):
    values = np.concatenate([values, bootstrap_value[None]])
    return peers.rlax_advantages(rewards, np.float32(gamma) * ~terminated, lambda_, values)


def of_brax(which):
    def fn(rewards, values, terminated, bootstrap_value, gamma, lambda_, truncated=None):
        truncation = jnp.zeros_like(rewards) if truncated is None else jnp.float32(truncated)
        vs, own = peers.brax_outputs(
            truncation=truncation,
            termination=jnp.float32(terminated),
            rewards=rewards,
            values=values,
            bootstrap_value=bootstrap_value,
            lambda_=lambda_,
            discount=gamma,
        )
        return vs - values if which == "vs - values" else own

    return fn


def test_verdicts_on_rlax_and_brax():
    """The NaN apart, which all of them multiply by 0."""
    with peers.as_peers_want():
        reports = {
            "rlax": check_gae(of_rlax),
            "Brax, vs - values": check_gae(of_brax("vs - values")),
            "Brax, advantages": check_gae(of_brax("advantages")),
        }
    for name, report in reports.items():
        print(f"\n{name}\n{report}")
    named = {name: mistakes(report) for name, report in reports.items()}
    assert named == {
        "rlax": {NAN},
        "Brax, vs - values": {NAN},
        "Brax, advantages": {NAN, "λ is missing on the first hop"},
    }


def test_every_mistake_is_one():
    """On some case its answer is another than the right one."""
    for make in MISTAKES.values():
        finite = [case for name, case in cases().items() if "NaN" not in name]
        assert any(np.abs(make(case) - advantages(**case)).max() > 0.1 for case in finite)


def test_bad_functions():
    with pytest.raises(TypeError, match=r"must take rewards, .*; it lacks gamma, lambda_"):
        check_gae(lambda rewards, values, terminated, bootstrap_value: rewards)
    with pytest.raises(ValueError, match=r"must return advantages of shape \(8, 3\); got \(3,\)"):
        check_gae(lambda **case: case["bootstrap_value"])
