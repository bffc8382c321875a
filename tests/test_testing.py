"""`check_gae` names each planted mistake, and finds none in a right function; `check_rollout` finds each bad entry."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import PartitionSpec as P
from support import peers
from support.laws import assert_close
from support.mutants import MUTANTS, load
from support.oracle import oracle
from support.rollouts import Rollout, random_rollout

import gae_jax
from gae_jax.testing import MISTAKES, advantages, cases, check_gae, check_rollout

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


def test_reference_matches_the_oracle():
    for case in cases().values():
        want, _ = oracle(**case)
        live = case.get("mask", True) & np.isfinite(want)
        assert_close([np.where(live, advantages(**case), 0)], [np.where(live, want, 0)], rtol=1e-12)


def test_gae_is_right():
    report = check_gae(right)
    assert report.right
    assert len(report.verdicts) == len(cases())
    assert str(report).count("right") == len(cases())


@pytest.mark.gate
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


def test_every_mistake_is_one():
    """Its answer differs from the reference in some case."""
    for make in MISTAKES.values():
        finite = [case for name, case in cases().items() if "NaN" not in name]
        assert any(np.abs(make(case) - advantages(**case)).max() > 0.1 for case in finite)


def in_place(rewards, values, terminated, bootstrap_value, gamma, lambda_):
    """Right, and writes into each of its arguments."""
    for t in reversed(range(len(rewards))):
        rewards[t] += gamma * np.where(terminated[t], 0, bootstrap_value) - values[t]  # now the advantage
        bootstrap_value[:] = values[t] + lambda_ * rewards[t]
        values[t], terminated[t] = 0, False
    return rewards


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


def test_bad_functions():
    with pytest.raises(TypeError, match=r"must take rewards, .*; it lacks gamma, lambda_"):
        check_gae(lambda rewards, values, terminated, bootstrap_value: rewards)
    with pytest.raises(TypeError, match=r"no case has the arguments that the function requires; .*discount"):
        check_gae(lambda rewards, values, gamma, lambda_, discount: rewards)
    with pytest.raises(ValueError, match=r"must return advantages of shape \(8, 3\); got \(3,\)"):
        check_gae(lambda **case: case["bootstrap_value"])


T, N = 6, 2
# Worker 0 is cut in row 1 and ends in the last row; worker 1 has two dead rows at its end, and goes on.
ROLLOUT = Rollout(
    rewards=np.ones((T, N), np.float32),
    values=np.ones((T + 1, N), np.float32),
    terminated=np.array([[0, 0], [0, 0], [0, 0], [0, 0], [0, 0], [1, 0]], np.float32),
    truncated=np.array([[0, 0], [1, 0], [0, 0], [0, 0], [0, 0], [0, 0]], np.float32),
    final_values=np.ones((T, N), np.float32),
    mask=np.array([[1, 1], [1, 1], [1, 1], [1, 1], [1, 0], [1, 0]], np.float32),
    gamma=np.full((T, N), 0.9, np.float32),
    lambda_=np.full((T, N), 0.8, np.float32),
)
nan, inf = float("nan"), float("inf")

FINITE, FLAG, UNIT = "must hold finite numbers", "must hold 0 and 1", r"must lie in \[0, 1\]"
READ = [
    ("rewards", (0, 0), nan, FINITE),
    ("rewards", (1, 0), inf, FINITE),
    ("values", (2, 1), nan, FINITE),
    ("values", (T, 1), -inf, FINITE),
    ("final_values", (1, 0), nan, FINITE),
    ("terminated", (0, 0), 0.5, FLAG),
    ("truncated", (0, 0), 2.0, FLAG),
    ("truncated", (0, 0), nan, FLAG),
    ("mask", (0, 0), -1.0, FLAG),
    ("gamma", (0, 0), 1.5, UNIT),
    ("gamma", (0, 0), nan, UNIT),
    ("lambda_", (3, 1), -0.1, UNIT),
]
UNREAD = [
    ("rewards", (4, 1), nan),
    ("values", (5, 1), nan),
    ("values", (T, 0), nan),
    ("final_values", (0, 0), nan),
    ("terminated", (4, 1), 0.5),
    ("truncated", (5, 1), nan),
    ("gamma", (4, 1), 7.0),
    ("lambda_", (5, 1), nan),
]


def with_entry(name: str, index: tuple[int, int], x: float) -> dict[str, Any]:
    array = getattr(ROLLOUT, name).copy()
    array[index] = x
    return ROLLOUT.replace(**{name: array}).arguments()


@jax.jit
def checked(arguments):
    """The same checks, in a compiled program."""
    return checkify.checkify(lambda: check_rollout(**arguments))()[0]


@pytest.mark.parametrize(("name", "index", "x", "words"), READ)
def test_finds_a_bad_entry_that_is_read(name, index, x, words):
    arguments = with_entry(name, index, x)
    message = rf"`{name}` {words} where it is read; wrong entries: 1, the first at \[{index[0]}, {index[1]}\]"
    with pytest.raises(ValueError, match=message):
        check_rollout(**arguments)
    with pytest.raises(checkify.JaxRuntimeError, match=message):
        checked(arguments).throw()


@pytest.mark.parametrize(("name", "index", "x"), UNREAD)
def test_does_not_look_at_entries_that_are_not_read(name, index, x):
    arguments = with_entry(name, index, x)
    check_rollout(**arguments)
    checked(arguments).throw()


def test_counts_and_finds_the_first_entry_in_the_layout_of_the_caller():
    rewards = ROLLOUT.rewards.copy()
    rewards[2:4] = nan
    batch_major = ROLLOUT.replace(rewards=rewards).map_arrays(np.transpose).arguments()
    with pytest.raises(ValueError, match=r"`rewards` .* wrong entries: 4, the first at \[0, 2\]"):
        check_rollout(**batch_major, time_axis=1)
    arguments = ROLLOUT.replace(values=ROLLOUT.values[:-1]).arguments()
    with pytest.raises(ValueError, match=r"`bootstrap_value` must hold finite numbers .* 1, the first at \[1\]"):
        check_rollout(**arguments, bootstrap_value=np.array([0, nan], np.float32))
    check_rollout(**arguments, bootstrap_value=np.array([nan, 0], np.float32))


@pytest.mark.parametrize("name", ["gamma", "lambda_"])
def test_counts_the_entries_of_a_parameter_as_it_was_given(name):
    for shape, where in (((), ""), ((N,), r", the first at \[0\]"), ((T, 1), r", the first at \[0, 0\]")):
        bad = jnp.full(shape, 1.5)
        with pytest.raises(ValueError, match=rf"`{name}` must lie in .* wrong entries: {max(1, bad.size)}{where}$"):
            check_rollout(**ROLLOUT.replace(mask=None, **{name: bad}).arguments())


def test_does_not_look_at_the_reward_of_a_dropped_row():
    dropped = ROLLOUT.replace(final_values=None, mask=None)
    rewards = dropped.rewards.copy()
    rewards[1, 0] = nan
    check_rollout(**dropped.replace(rewards=rewards).arguments())
    rewards[0, 0] = nan
    with pytest.raises(ValueError, match=r"`rewards` .* wrong entries: 1, the first at \[0, 0\]"):
        check_rollout(**dropped.replace(rewards=rewards).arguments())


def test_accepts_random_rollouts_in_which_unread_entries_are_nan():
    for seed in range(20):
        rollout = random_rollout(seed, batch=(3,), dead=0.3, gamma="both", lambda_="step")
        arguments = rollout.arguments()
        is_read = {"rewards": rollout.live, "gamma": rollout.live}
        is_read |= {"final_values": rollout.live & arguments["truncated"] & ~arguments["terminated"]}
        for name, read in is_read.items():
            arguments[name] = np.where(read, arguments[name], nan)
        check_rollout(**arguments)


def test_refuses_shapes_as_gae_does():
    with pytest.raises(ValueError, match=r"`terminated` must have shape \(6, 2\)"):
        check_rollout(**ROLLOUT.replace(terminated=ROLLOUT.terminated.T).arguments())
    with pytest.raises(TypeError, match="`rewards` must be an array of numbers; got list"):
        check_rollout(**ROLLOUT.replace(rewards=ROLLOUT.rewards.tolist()).arguments())


def checks_then_gae(arguments):
    check_rollout(**arguments)
    return gae_jax.gae(**arguments)


def test_chexify(monkeypatch):
    # Chex remembers each chexified function, and at exit warns of it.
    monkeypatch.setattr("chex._src.asserts_internal.CHEXIFY_STORAGE.wait_fns", [])
    fn = chex.chexify(jax.jit(checks_then_gae), async_check=False)
    assert_close(fn(ROLLOUT.arguments()), gae_jax.gae(**ROLLOUT.arguments()), rtol=1e-6)
    with pytest.raises(checkify.JaxRuntimeError, match=r"`gamma` must lie in \[0, 1\].* 1, the first at \[0, 0\]"):
        fn(with_entry("gamma", (0, 0), 1.5))


@pytest.mark.parametrize("wrap", [jax.vmap, jax.checkpoint, jax.grad], ids=lambda wrap: wrap.__name__)
def test_inside_other_transformations(wrap):
    def loss(rewards, terminated):
        arguments = {"rewards": rewards, "values": jnp.zeros(T + 1), "terminated": terminated}
        return jnp.sum(checks_then_gae(arguments | {"gamma": 0.9, "lambda_": 0.8}).advantages)

    rewards, terminated = jnp.ones((T, T)), jnp.full((T, T), 3)
    arguments = (rewards, terminated) if wrap is jax.vmap else (rewards[0], terminated[0])
    error, _ = checkify.checkify(wrap(loss))(*arguments)
    with pytest.raises(checkify.JaxRuntimeError, match="`terminated` must hold 0 and 1"):
        error.throw()


def test_jax_refuses_a_check_in_a_compiled_function_without_checkify():
    with pytest.raises(ValueError, match="not functionalized"):
        jax.jit(checks_then_gae)(ROLLOUT.arguments())


def test_with_time_split_over_devices():
    """Each device checks its shard. V(s_T) is read on the last device, and not on the others."""
    rewards, values = jnp.asarray(ROLLOUT.rewards), jnp.asarray(ROLLOUT.values[:-1])

    @jax.jit
    def error(rewards, last_value, where):
        def on_each(rollout, last_value, where):
            here = jax.lax.axis_index("time")
            last_value = jnp.where(here == where, last_value, 1.0)
            check_rollout(**rollout, gamma=0.9, lambda_=0.8, bootstrap_value=last_value, axis_name="time")
            return rollout["rewards"]

        rollout = {"rewards": rewards, "values": values, "terminated": jnp.zeros((T, N), bool)}
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:3]), ("time",))
        fn = jax.shard_map(on_each, mesh=mesh, in_specs=(P("time"), P(), P()), out_specs=P("time"))
        return checkify.checkify(fn)(rollout, last_value, where)[0]

    error(rewards, jnp.ones(N), 2).throw()
    error(rewards, jnp.full(N, nan), 1).throw()
    with pytest.raises(checkify.JaxRuntimeError, match=r"`bootstrap_value` must hold"):
        error(rewards, jnp.full(N, nan), 2).throw()
    with pytest.raises(checkify.JaxRuntimeError, match=r"`rewards` must hold finite numbers"):
        error(rewards.at[0].set(inf), jnp.ones(N), 2).throw()
