"""`check_gae` names each planted mistake, and finds none in a right function."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import peers
from support.mutants import MUTANTS, load

import gae_jax
from gae_jax.testing import MISTAKES, cases, check_gae

NAN, UNKNOWN = "NaN leaks from unused data", "wrong, by no known mistake"
TRUNCATION_WINS = "truncation wins where both flags are set"
PLANTED = {  # by the mutants' names
    "time_runs_forward": "time runs the wrong way",
    "collected_in_reverse": "the result is in reverse",
    "flag_of_the_step_before": "the flag of the step before",
    "flag_of_the_step_after": "the flag of the step after",
    "termination_ignored": "termination is ignored",
    "truncation_as_termination": "truncation as termination",
    "truncation_not_cut": "truncation does not cut",
    "truncation_wins": TRUNCATION_WINS,
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


@pytest.mark.versions
def test_gae_is_right():
    report = check_gae(right)
    assert report.right
    assert len(report.verdicts) == len(cases())
    assert str(report).count("right") == len(cases())


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_names_the_planted_mistake(name, tmp_path):
    [mutant] = [mutant for mutant in MUTANTS if mutant.name == name]
    lib = load(mutant, tmp_path)
    report = check_gae(lambda **case: lib.gae(**case, implementation="scan").advantages)
    assert not report.right
    assert PLANTED[name] in mistakes(report)
    print(f"\n{name}\n{report}")


def plain(rewards, values, terminated, bootstrap_value, gamma, lambda_, own_values=False):
    """The textbook form; it multiplies NaN by 0."""
    next_values = values if own_values else jnp.concatenate([values[1:], bootstrap_value[None]])
    deltas = rewards + gamma * jnp.where(terminated, 0, next_values) - values
    discounts = gamma * lambda_ * (1 - jnp.float32(terminated))
    return jax.lax.scan(
        lambda a, row: (row[0] + row[1] * a,) * 2, 0 * bootstrap_value, (deltas, discounts), reverse=True
    )[1]


def test_names_the_value_of_the_same_state():
    def wrong(rewards, values, terminated, bootstrap_value, gamma, lambda_):
        return plain(rewards, values, terminated, bootstrap_value, gamma, lambda_, own_values=True)

    assert "V(s_t) for V(s_{t+1})" in mistakes(check_gae(wrong))


class Transition(NamedTuple):
    done: jax.Array
    value: jax.Array
    reward: jax.Array


def classic_scan(traj_batch, last_val, last_done, gamma, gae_lambda, *, recurrent):
    """As PureJaxRL's `ppo.py` has it; in `ppo_rnn.py`, `done` is the flag of the step before."""

    def step(carry, transition):
        gae, next_value, next_done = carry
        done, value, reward = transition
        not_done = 1 - (next_done if recurrent else done)
        delta = reward + gamma * next_value * not_done - value
        gae = delta + gamma * gae_lambda * not_done * gae
        return (gae, value, done), gae

    init = jnp.zeros_like(last_val), last_val, last_done
    _, advantages = jax.lax.scan(step, init, traj_batch, reverse=True)
    return advantages, advantages + traj_batch.value


def classic(rewards, values, terminated, truncated, bootstrap_value, gamma, lambda_, *, recurrent, stored):
    """The adapter that its user writes."""
    done = jnp.float32(terminated | truncated)
    flags = done if stored == "own" else jnp.concatenate([jnp.zeros_like(done[:1]), done[:-1]])
    batch = Transition(flags, values, rewards)
    return classic_scan(batch, bootstrap_value, done[-1], gamma, lambda_, recurrent=recurrent)[0]


@pytest.mark.parametrize(
    ("recurrent", "stored", "where_episodes_end", "at_time_limits"),
    [
        (False, "own", None, "truncation as termination"),
        (True, "of the step before", None, "truncation as termination"),
        (False, "of the step before", "the flag of the step before", UNKNOWN),
        (True, "own", "the flag of the step after", UNKNOWN),
    ],
)
def test_names_the_mistakes_of_the_classic_scan(recurrent, stored, where_episodes_end, at_time_limits):
    report = check_gae(functools.partial(classic, recurrent=recurrent, stored=stored))
    assert {verdict.case: verdict.mistake for verdict in report.verdicts} == {
        "one piece of an episode": None,
        "episodes that end": where_episodes_end,
        "lambda_ = 0": where_episodes_end,
        "NaN after the last episode": NAN,
        "time limits, rows dropped": at_time_limits,
        "both flags in one row": at_time_limits if where_episodes_end else None,
    }


def test_gives_required_arguments_where_they_change_nothing():
    def strict(rewards, values, terminated, truncated, final_values, mask, bootstrap_value, gamma, lambda_):
        return right(**locals())

    report = check_gae(strict)
    assert report.right
    assert [verdict.case for verdict in report.verdicts] == [
        name for name, case in cases().items() if "final_values" in case
    ]


def test_leaves_out_cases_with_arguments_that_the_function_does_not_take():
    report = check_gae(plain)
    assert [verdict.case for verdict in report.verdicts] == list(cases())[:4]
    assert mistakes(report) <= {NAN}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda **x: right(**x | {"values": x["values"][::-1]}), UNKNOWN),
        (lambda **x: right(**x) + x["values"], "the target, not the advantage"),
        (lambda **x: gae_jax.normalize(right(**x)), "normalized"),
        (lambda **x: right(**x | {"bootstrap_value": x["values"][-1]}), UNKNOWN),
        (lambda **x: right(**x | {"mask": None}), "the mask is ignored"),
        (lambda **x: right(**x) + np.float32(~x.get("mask", np.array(True))), "masked rows are not 0"),
    ],
)
def test_names_other_mistakes(wrong, named):
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


@pytest.mark.slow
def test_verdicts_on_rlax_and_brax():
    """All of them multiply NaN by 0. Brax's trainer never sets both flags in one row."""
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
        "Brax, vs - values": {NAN, TRUNCATION_WINS},
        "Brax, advantages": {NAN, UNKNOWN, "λ is missing on the first hop"},
    }


def in_place(rewards, values, terminated, bootstrap_value, gamma, lambda_):
    """Right, and writes into each of its arguments."""
    for t in reversed(range(len(rewards))):
        rewards[t] += gamma * np.where(terminated[t], 0, bootstrap_value) - values[t]  # now the advantage
        bootstrap_value[:] = values[t] + lambda_ * rewards[t]
        values[t], terminated[t] = 0, False
    return rewards


def test_names_the_arguments_that_the_function_does_not_take():
    def without_ends(rewards, values, bootstrap_value, gamma, lambda_, done=None):
        ends = np.zeros(rewards.shape, bool)
        return right(
            rewards=rewards,
            values=values,
            terminated=ends,
            gamma=gamma,
            lambda_=lambda_,
            bootstrap_value=bootstrap_value,
        )

    report = check_gae(without_ends)
    assert [verdict.case for verdict in report.verdicts] == ["one piece of an episode"]
    assert str(report).splitlines()[-1].endswith(" them: terminated, truncated, final_values, mask")
    assert check_gae(right).not_taken == ()


def test_the_function_may_write_into_its_arguments():
    assert check_gae(in_place).right


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=["float16", "bfloat16"])
def test_tolerance_depends_on_the_dtype_of_the_result(dtype):
    def narrow(fn):
        return lambda **case: jnp.asarray(fn(**case), dtype)

    def all_narrow(**case):
        return right(**{k: jnp.asarray(x, dtype) if x.dtype == np.float32 else x for k, x in case.items()})

    assert check_gae(narrow(right)).right
    assert check_gae(lambda **case: all_narrow(**{k: np.asarray(x) for k, x in case.items()})).right
    assert not check_gae(narrow(right), tolerance=1e-4).right
    assert not check_gae(lambda **case: right(**case) + 0.01).right
    for mistake, make in MISTAKES.items():
        report = check_gae(narrow(lambda make=make, **case: make(case)))
        assert mistake in mistakes(report), f"{mistake}\n{report}"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_names_every_mistake(mistake):
    report = check_gae(lambda **case: MISTAKES[mistake](case))
    assert mistakes(report) - {NAN, "masked rows are not 0"} == {mistake}


def token_level(token_rewards, values, response_mask, gamma, lam, skip):
    """NumPy, batch-major, V(s_T) = 0. Skips masked tokens, or takes them for steps with reward and value 0."""
    advantages, later, next_value = np.zeros_like(values), 0.0, 0.0
    rewards = token_rewards * response_mask
    for t in reversed(range(values.shape[1])):
        live = response_mask[:, t] | (not skip)
        value = values[:, t] * response_mask[:, t]
        a = rewards[:, t] + gamma * next_value - value + gamma * lam * later
        later, next_value = np.where(live, a, later), np.where(live, value, next_value)
        advantages[:, t] = a
    return advantages


@pytest.mark.parametrize(("skip", "mistake"), [(True, None), (False, "masked rows are steps with reward and value 0")])
def test_token_level_estimators(skip, mistake):
    def adapter(rewards, values, mask, gamma, lambda_):
        return token_level(rewards.T, values.T, mask.T, gamma, lambda_, skip).T * mask

    [verdict] = check_gae(adapter).verdicts
    assert verdict.case == "responses, V(s_T) = 0"
    assert verdict.mistake == mistake

    def without_zeros(rewards, values, mask, gamma, lambda_):
        return token_level(rewards.T, values.T, mask.T, gamma, lambda_, skip).T

    [verdict] = check_gae(without_zeros).verdicts
    assert verdict.mistake == (mistake or "masked rows are not 0")


@pytest.mark.parametrize("x", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_no_leak_where_the_function_makes_them_itself(x):
    for fn in (lambda **case: right(**case).at[0, 0].set(x), lambda **case: x + right(**case)):
        report = check_gae(fn)
        assert mistakes(report) == {"NaN or inf in the result"}
        assert not report.right


def test_nan_in_masked_rows_alone_is_no_leak():
    report = check_gae(lambda **case: jnp.where(case["mask"], right(**case), np.nan))
    assert mistakes(report) == {"masked rows are not 0"}


def by_position(rewards, values, /, terminated, bootstrap_value, gamma, lambda_): ...
def unknown_names(rewards, values, done, next_values, bootstrap_value, gamma, lambda_): ...
def without_gamma(rewards, values, mask, lambda_): ...
def without_lambda(rewards, values, terminated, bootstrap_value, gamma): ...
def without_bootstrap(rewards, values, terminated, truncated, gamma, lambda_): ...


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (by_position, "positional.only"),  # Python's words, which depend on its version
        (unknown_names, "missing a required argument: 'done'"),
        (without_gamma, "got an unexpected keyword argument 'gamma'"),
        (without_lambda, "got an unexpected keyword argument 'lambda_'"),
        (without_bootstrap, "got an unexpected keyword argument 'bootstrap_value'"),
    ],
)
def test_says_what_the_function_must_take(fn, words):
    want = "It passes, by name, rewards, values, gamma, lambda_, bootstrap_value and, .* Pass an adapter"
    with pytest.raises(TypeError, match=rf"^check_gae cannot call the function: .*{words}.*\. {want}"):
        check_gae(fn)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda x: (x, x),
            r"one array, the advantages; got tuple of 2 items: pass an adapter that returns one of them",
        ),
        (lambda x: gae_jax.GAEOutput(x, x), r"one array, the advantages; got GAEOutput of 2 items"),
        (lambda x: None, "floating-point numbers of 16 bits or more; got NoneType$"),
        (lambda x: {"advantages": x}, "floating-point numbers of 16 bits or more; got dict$"),
        (lambda x: x.astype(jnp.complex64), "floating-point numbers of 16 bits or more; got dtype complex64$"),
        (lambda x: x.astype(jnp.float8_e4m3fn), "floating-point numbers of 16 bits or more; got dtype float8_e4m3fn$"),
        (lambda x: x.astype(jnp.int32), "floating-point numbers of 16 bits or more; got dtype int32$"),
    ],
)
def test_refuses_results_that_are_no_array_of_floats(change, words):
    with pytest.raises(TypeError, match=f"the function must return {words}"):
        check_gae(lambda **case: change(right(**case)))


def test_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"must return advantages of shape \(8, 3\), \[T, N\]; got \(3,\)$"):
        check_gae(lambda **case: case["bootstrap_value"])
    with pytest.raises(ValueError, match=r"got \(3, 8\)\. Time and batch look swapped: transpose it"):
        check_gae(lambda **case: right(**case).T)


@pytest.mark.parametrize("tolerance", [float("nan"), -1, np.inf])
def test_refuses_tolerances_that_are_none(tolerance):
    with pytest.raises(ValueError, match=f"`tolerance` must be (at least 0|finite); got {tolerance}"):
        check_gae(right, tolerance=tolerance)
    with pytest.raises(TypeError, match="`tolerance` must be a number"):
        check_gae(right, tolerance=str(tolerance))  # type: ignore[arg-type]
