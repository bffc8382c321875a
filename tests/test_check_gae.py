"""`check_gae` says what a function of the user's makes wrong, and where; it finds nothing in a right function."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import gae_jax
from gae_jax.testing import check_gae
from gae_jax.testing._mistakes import cases

LEAK, UNKNOWN, MASKED = "NaN leaks from unused data", "wrong, by no known mistake", "masked rows are not 0"
LIMITS, ENDS = "time limits, values known", "ends in the first and the last row"
TARGETS, BOTH, SWAPPED = "the targets are not A + V", "advantages and targets", "targets and advantages"


def right(**case):
    return np.asarray(gae_jax.gae(**case).advantages)


def by_case(report):
    return {verdict.case: verdict.mistake for verdict in report.verdicts}


def mistakes(report):
    return set(by_case(report).values()) - {None}


@pytest.mark.versions
def test_gae_is_right():
    report = check_gae(right)
    assert report.right
    assert list(by_case(report)) == list(cases())
    assert str(report).count("right") == len(cases())
    assert report.not_taken == ()


# What a report says.


def test_locates_what_no_name_fits():
    def half_a_value(**case):
        return right(**case) - 0.5 * (case["truncated"] & ~case["terminated"] & case["mask"])

    report = check_gae(half_a_value)
    assert by_case(report)[LIMITS] == UNKNOWN
    assert by_case(report)["episodes that end"] is None
    [verdict] = [verdict for verdict in report.verdicts if verdict.case == LIMITS]
    np.testing.assert_array_equal(verdict.wrong, verdict.arguments["truncated"])
    assert verdict.difference == pytest.approx(0.5, rel=1e-5)
    got, want = verdict.got[7, 2], verdict.want[7, 2]
    assert want == pytest.approx(right(**verdict.arguments)[7, 2], rel=1e-5)
    assert got == pytest.approx(want - 0.5, rel=1e-5)
    place = f"t = 7, worker 2, truncated: got {got:.4g}, want {want:.4g}"
    assert f"time limits, values known: 6 of 24 rows are wrong, all truncated. {place}" in str(report).splitlines()
    assert "needs time_axis=1" in str(report)


@pytest.mark.parametrize(
    ("name", "rewarded", "raised", "kind"),
    [
        (LIMITS, lambda c: 0, lambda c: c["terminated"], ", all terminated. t = 6"),
        (LIMITS, lambda c: 0, lambda c: np.arange(8)[:, None] == 7, ", all in row T-1. t = 7"),
        (LIMITS, lambda c: c["terminated"], lambda c: 0, ", all in or before a terminated row. t"),
        (ENDS, lambda c: c["terminated"], lambda c: 0, ", all in or before a terminated row. t"),
        (LIMITS, lambda c: c["terminated"] | c["truncated"], lambda c: 0, " rows are wrong. t"),
        (LIMITS, lambda c: 0, lambda c: 1, "24 of 24 rows are wrong. t = 7"),
    ],
)
def test_says_which_kind_of_rows_is_wrong(name, rewarded, raised, kind):
    def wrong(**case):
        return right(**case | {"rewards": case["rewards"] + rewarded(case)}) + 0.5 * raised(case) * case["mask"]

    report = check_gae(wrong)
    [where] = [verdict.where() for verdict in report.verdicts if verdict.case == name]
    assert kind in where
    assert where in str(report).splitlines()


def test_prefers_the_mistakes_that_explain_all_cases():
    def forwards_without_gamma(rewards, values, terminated, bootstrap_value, gamma, lambda_):
        goes_on = 1 - terminated
        a = rewards + goes_on * np.concatenate([values[1:], bootstrap_value[None]]) - values
        for t in range(1, len(a)):
            a[t] += gamma * lambda_ * goes_on[t] * a[t - 1]
        return a

    verdicts = by_case(check_gae(forwards_without_gamma))
    assert verdicts["episodes that end"] == "time runs the wrong way; γ is missing in the TD error"
    assert verdicts["lambda_ = 0"] == "γ is missing in the TD error"  # as it would be if γ were missing everywhere


def test_tries_two_mistakes_in_both_orders():
    for wrong in (lambda a, v: gae_jax.normalize(a + v), lambda a, v: gae_jax.normalize(a) + v):
        report = check_gae(lambda wrong=wrong, **case: wrong(right(**case), case["values"]))
        assert mistakes(report) == {"the target, not the advantage; normalized"}


def multiplied(rewards, values, terminated, bootstrap_value, gamma, lambda_, *, last=True):
    """The textbook form, which multiplies NaN by 0. Without `last` it does not read the flags of the last row."""
    goes_on = 1.0 - terminated
    goes_on[-1] = goes_on[-1] if last else 1
    values = np.concatenate([values, bootstrap_value[None]])
    deltas, later = rewards + gamma * goes_on * values[1:] - values[:-1], 0
    for t in reversed(range(len(rewards))):
        deltas[t] = later = deltas[t] + gamma * lambda_ * goes_on[t] * later
    return deltas


def test_a_leak_of_nan_is_told_last_and_hides_nothing():
    report = check_gae(multiplied)
    assert mistakes(report) == {LEAK}
    assert "ends in the first and the last row  right with finite numbers  rounding" in str(report).splitlines()
    leak, not_checked = str(report).splitlines()[-2:]
    assert leak.startswith(f"{LEAK} (bootstrap_value): right with finite numbers")
    assert not_checked.startswith("not checked")

    report = check_gae(functools.partial(multiplied, last=False))
    assert mistakes(report) == {"the flags of the last row are ignored"}
    assert f"{LEAK} (bootstrap_value): wrong with finite numbers, too" in str(report).splitlines()


@pytest.mark.parametrize("name", ["rewards", "values", "final_values", "bootstrap_value"])
def test_names_the_arguments_that_leak(name):
    def leaking(**case):
        extra = np.sum(0 * case[name], axis=0) if name in case else 0
        return right(**case) + extra

    report = check_gae(leaking)
    assert mistakes(report) == {LEAK}
    assert {leaks for verdict in report.verdicts for leaks in verdict.leaks} == {name}
    assert not report.right
    report = check_gae(lambda **case: leaking(**case) + 0.5 * np.any(case["truncated"]) * case["mask"])
    assert str(report).count(f"{LEAK} (") == 1  # it is not told again of the cases that are wrong with finite numbers


def test_final_values_of_terminated_rows_are_unused():
    def leaking(*, final_values=0.0, **case):
        unused = np.where(case["terminated"] & case["truncated"] & case["mask"], 0 * final_values, 0)
        return right(final_values=final_values, **case) + unused

    assert by_case(check_gae(leaking))["both flags, values known"] == LEAK


@pytest.mark.parametrize("x", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_no_leak_where_the_function_makes_them_itself(x):
    for fn in (
        lambda **case: np.where(case["rewards"] == case["rewards"][6, 1], x, right(**case)),
        lambda **case: x + right(**case),
    ):
        report = check_gae(fn)
        assert mistakes(report) == {"NaN or inf in the result"}
        pair = check_gae(lambda fn=fn, **case: (fn(**case),) * 2)
        assert all("NaN or inf in the result" in mistake for mistake in mistakes(pair))
        assert all(verdict.difference == np.inf and not verdict.leaks for verdict in report.verdicts)
        assert f": got {x}, want" in str(report)


def test_masked_rows_must_be_0():
    for wrong in (0.5, np.nan, "values"):
        report = check_gae(lambda wrong=wrong, **case: np.where(case["mask"], right(**case), case.get(wrong, wrong)))
        assert mistakes(report) == {MASKED}
        assert not any(verdict.leaks for verdict in report.verdicts)
    report = check_gae(lambda **case: right(**case) + 0 * ~case["mask"] * case["rewards"])
    assert mistakes(report) == {LEAK}
    report = check_gae(lambda **case: right(**case | {"lambda_": 1.0}) + 0.5 * ~case["mask"])
    assert mistakes(report) == {"λ is missing", f"λ is missing; {MASKED}"}


# Advantages and targets.


@pytest.mark.parametrize(
    ("change", "named", "returns"),
    [
        (lambda a, v: (a, a + v), None, BOTH),
        (lambda a, v: [a + v, a], None, SWAPPED),
        (lambda a, v: gae_jax.GAEOutput(a, a + v), None, BOTH),
        (lambda a, v: (a, a - v), TARGETS, BOTH),
        (lambda a, v: (a, a), TARGETS, BOTH),
        (lambda a, v: (np.clip(a, -1, 1), np.clip(a, -1, 1) + v), UNKNOWN, BOTH),
        (lambda a, v: (a + v, gae_jax.normalize(a)), "normalized", SWAPPED),
        (lambda a, v: (gae_jax.normalize(a), gae_jax.normalize(a) + 2 * v), f"normalized; {TARGETS}", BOTH),
    ],
)
def test_takes_advantages_and_targets_in_either_order(change, named, returns):
    report = check_gae(lambda **case: change(right(**case), case["values"]))
    assert mistakes(report) == {named} - {None}
    assert f"the function returns {returns}, in this order" in str(report).splitlines()
    if named == TARGETS:
        verdict = report.verdicts[0]
        advantages, values = right(**verdict.arguments), verdict.arguments["values"]
        np.testing.assert_allclose(verdict.got, change(advantages, values)[1], rtol=1e-5)
        np.testing.assert_allclose(verdict.want, advantages + values, rtol=1e-5)
        assert f"{verdict.case}: {verdict.wrong.sum()} of 24 rows are wrong" in str(report)
        assert not any(np.any(verdict.wrong & ~verdict.arguments["mask"]) for verdict in report.verdicts)


def test_targets_of_another_lambda_are_wrong():
    report = check_gae(lambda **case: (right(**case), right(**case | {"lambda_": 1.0}) + case["values"]))
    assert mistakes(report) == {TARGETS}


def test_targets_may_have_one_of_two_mistakes():
    def standardized_after(**case):
        a = right(**case | {"lambda_": 1.0})
        return a + case["values"], gae_jax.normalize(a)

    assert mistakes(check_gae(standardized_after)) == {"λ is missing; normalized"}


# What is passed to the function.


def test_passes_arrays_with_time_as_the_second_axis():
    assert check_gae(lambda **case: gae_jax.gae(**case, time_axis=1), time_axis=1).right
    report = check_gae(lambda **case: right(**case | {"lambda_": 1.0}, time_axis=1), time_axis=1)
    assert mistakes(report) == {"λ is missing"}
    with pytest.raises(ValueError, match="`time_axis` must be 0 or 1; got 2"):
        check_gae(right, time_axis=2)


def test_gives_required_arguments_where_they_change_nothing():
    def strict(rewards, values, terminated, truncated, final_values, mask, bootstrap_value, gamma, lambda_):
        return right(**locals())

    report = check_gae(strict)
    assert report.right
    assert list(by_case(report)) == [name for name, case in cases().items() if "final_values" in case]


def test_leaves_out_cases_with_arguments_that_the_function_does_not_take():
    report = check_gae(multiplied)
    assert list(by_case(report)) == list(cases())[:4]
    assert report.not_taken == ("truncated", "final_values", "mask")

    def without_ends(rewards, values, bootstrap_value, gamma, lambda_, done=None):
        return multiplied(rewards, values, np.zeros(rewards.shape, bool), bootstrap_value, gamma, lambda_)

    def of_tokens(rewards, values, mask, gamma, lambda_):
        return right(**locals(), terminated=False, bootstrap_value=0)

    assert by_case(check_gae(of_tokens)) == dict.fromkeys(list(cases())[-2:])

    def without_final_values(rewards, values, terminated, truncated, bootstrap_value, gamma, lambda_):
        return multiplied(rewards, values, terminated, bootstrap_value, gamma, lambda_)

    report = check_gae(without_final_values)
    assert by_case(report)["time limits, rows dropped"] == "truncation does not cut"
    assert report.not_taken == ("final_values", "mask")
    report = check_gae(without_ends)
    assert list(by_case(report)) == ["one piece of an episode"]
    assert str(report).splitlines()[-1].endswith(" them: terminated, truncated, final_values, mask")


def test_passes_all_arguments_to_a_function_with_some_names_and_rest():
    report = check_gae(lambda rewards, gamma, **rest: right(rewards=rewards, gamma=gamma, **rest))
    assert report.right
    assert list(by_case(report)) == list(cases())


def test_the_function_may_write_into_its_arguments():
    """The arrays of the cases are read-only."""

    def in_place(**case):
        advantages = right(**case)
        for x in filter(np.ndim, case.values()):
            x[:] = 0
        return advantages

    report = check_gae(in_place)
    assert report.right
    assert not any(np.asarray(x).flags.writeable for x in report.verdicts[0].arguments.values() if np.ndim(x))


def test_tolerance_depends_on_the_dtype_of_the_result():
    def off(by, dtype):
        return lambda **case: (np.asarray(right(**case), np.float64) + by).astype(dtype) * case["mask"]

    for dtype, tolerance in ((np.float32, 1e-4), (np.float64, 1e-4), (jnp.float16, 2**-7), (jnp.bfloat16, 2**-4)):
        assert check_gae(off(0.5 * tolerance, dtype)).right
        assert not check_gae(off(1.5 * tolerance, dtype)).right
    assert not check_gae(off(5e-5, np.float32), tolerance=1e-5).right
    report = check_gae(off(5e-4, np.float32), tolerance=1e-3)
    assert report.right
    assert not any(verdict.wrong.any() for verdict in report.verdicts)


@pytest.mark.parametrize("tolerance", [float("nan"), -1, np.inf])
def test_refuses_tolerances_that_are_none(tolerance):
    with pytest.raises(ValueError, match=f"`tolerance` must be (at least 0|finite); got {tolerance}"):
        check_gae(right, tolerance=tolerance)
    with pytest.raises(TypeError, match="`tolerance` must be a number"):
        check_gae(right, tolerance=str(tolerance))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        # Python's words, which depend on its version.
        (lambda rewards, values, /, terminated, bootstrap_value, gamma, lambda_: 0, "positional.only"),
        (lambda rewards, values, done, bootstrap_value, gamma, lambda_: 0, "missing a required argument: 'done'"),
        (lambda rewards, values, mask, lambda_: 0, "got an unexpected keyword argument 'gamma'"),
        (lambda rewards, values, terminated, bootstrap_value, gamma: 0, "got an unexpected keyword argument 'lambda_'"),
        (lambda rewards, values, terminated, gamma, lambda_: 0, "got an unexpected keyword argument 'bootstrap_value'"),
    ],
)
def test_says_what_the_function_must_take(fn, words):
    want = "It passes, by name, rewards, values, gamma, lambda_, bootstrap_value and, .* Pass an adapter"
    with pytest.raises(TypeError, match=rf"^check_gae cannot call the function: .*{words}.*\. {want}"):
        check_gae(fn)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: (x, x, x), "advantages, or advantages and targets; got 3 items"),
        (lambda x: None, "floating-point numbers of 16 bits or more; got NoneType$"),
        (lambda x: {"advantages": x}, "floating-point numbers of 16 bits or more; got dict$"),
        (lambda x: x.astype(jnp.complex64), "floating-point numbers of 16 bits or more; got dtype complex64$"),
        (lambda x: x.astype(jnp.float8_e4m3fn), "floating-point numbers of 16 bits or more; got dtype float8_e4m3fn$"),
        (lambda x: (x, x.astype(jnp.int32)), "floating-point numbers of 16 bits or more; got dtype int32$"),
    ],
)
def test_refuses_results_that_are_no_arrays_of_floats(change, words):
    with pytest.raises(TypeError, match=f"the function must return {words}"):
        check_gae(lambda **case: change(right(**case)))


def test_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"must return arrays of shape \(8, 3\), \[T, N\]; got \(3,\)$"):
        check_gae(lambda **case: case["bootstrap_value"])
    with pytest.raises(ValueError, match=r"got \(3, 8\)\. Time and batch look swapped: transpose it"):
        check_gae(lambda **case: right(**case).T)
    with pytest.raises(ValueError, match=r"must return arrays of shape \(3, 8\), \[N, T\]; got \(8, 3\)"):
        check_gae(lambda **case: right(**case | {"time_axis": 1}).T, time_axis=1)
