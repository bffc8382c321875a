"""Each known mistake, written by hand into a NumPy loop, alone and in pairs, gets its name."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from support.laws import assert_close
from support.oracle import oracle

from gae_jax.testing import check_gae
from gae_jax.testing._mistakes import ADVICE, MISTAKES, cases, known_answers

LEAK = "NaN leaks from unused data"

RIGHT = """
def estimator(rewards, values, terminated, truncated, final_values, mask, bootstrap_value, gamma, lambda_):
    result, later, next_value = np.zeros_like(rewards), 0.0, bootstrap_value
    for t in reversed(range(len(rewards))):
        after = np.where(truncated[t], final_values[t], next_value)
        after = np.where(terminated[t], 0, after)
        delta = rewards[t] + gamma * after - values[t]
        cut = terminated[t] | truncated[t]
        carried = gamma * lambda_ * np.where(cut, 0, later)
        result[t] = np.where(mask[t], delta + carried, 0)
        later = np.where(mask[t], delta + carried, later)
        next_value = np.where(mask[t], values[t], next_value)
    return result
"""
HEAD = "    result, later"


def first(line):
    """Adds a line before the loop."""
    return (HEAD, f"    {line}\n{HEAD}")


BUGS = {  # name: (fragment of RIGHT, the fragment in its place), ...
    "the result is in reverse": [("return result", "return result[::-1]")],
    "time runs the wrong way": [("reversed(range(len(rewards)))", "range(len(rewards))")],
    "truncation as termination": [("terminated[t], 0", "terminated[t] | truncated[t], 0")],
    "truncation does not cut": [first("truncated = np.zeros_like(truncated)")],
    "the carry is not cut at a truncation": [("cut = terminated[t] | truncated[t]", "cut = terminated[t]")],
    "V(s_t) for V(final observation)": [("final_values[t]", "values[t]")],
    "V(reset observation) for V(final observation)": [("final_values[t]", "next_value")],
    "truncation wins where both flags are set": [("terminated[t], 0", "terminated[t] & ~truncated[t], 0")],
    "termination is ignored": [first("terminated = np.zeros_like(terminated)")],
    "the carry is not cut at a termination": [("cut = terminated[t] |", "cut = ~terminated[t] &")],
    "V(s_{t+1}) counts after a termination": [("terminated[t], 0", "terminated[t], next_value")],
    "the reward of a terminated row is missing": [("delta = rewards[t]", "delta = rewards[t] * ~terminated[t]")],
    "the flags of the last row are ignored": [first("terminated[-1] = truncated[-1] = False")],
    "V(s_t) for V(s_{t+1})": [("final_values[t], next_value)", "final_values[t], values[t])")],
    "V(s_{T-1}) for V(s_T)": [("0.0, bootstrap_value", "0.0, values[-1]")],
    "the bootstrap value is missing": [("0.0, bootstrap_value", "0.0, 0.0")],
    "the bootstrap value counts twice": [("0.0, bootstrap_value", "bootstrap_value, bootstrap_value")],
    "the values of the step after": [first("values = np.concatenate([values[1:], bootstrap_value[None]])")],
    "λ is missing on the first hop": [("delta + carried, 0", "delta + gamma * np.where(cut, 0, later), 0")],
    "λ is missing": [("carried = gamma * lambda_", "carried = gamma")],
    "λ counts as 0": [("carried = gamma", "carried = 0 * gamma")],
    "λ is squared": [("carried = gamma * lambda_", "carried = gamma * lambda_ * lambda_")],
    "γ for λ": [("carried = gamma * lambda_", "carried = gamma * gamma")],
    "γ is missing": [("gamma * after", "after"), ("carried = gamma * lambda_", "carried = lambda_")],
    "γ is missing in the TD error": [("gamma * after", "after")],
    "γ is missing in the carry": [("carried = gamma * lambda_", "carried = lambda_")],
    "γ is squared": [first("gamma = gamma * gamma")],
    "the mask is ignored": [first("mask = np.ones_like(mask)")],
    "masked rows are steps with reward and value 0": [
        first("rewards, values = rewards * mask, values * mask"),
        ("mask[t], delta + carried, later", "True, delta + carried, later"),
        ("mask[t], values", "True, values"),
    ],
    "a masked row ends the episode": [
        ("carried, later", "carried, 0"),
        ("mask[t], values[t], next_value", "mask[t], values[t], 0"),
    ],
    "masked rows decay by γλ": [("mask[t], delta + carried, later", "True, delta * mask[t] + carried, later")],
    "the target, not the advantage": [("return result", "return result + values")],
    "normalized": [("return result", "return (result - result.mean()) / (result.std() + 1e-8)")],
}


IGNORED, ZEROS = "the mask is ignored", "masked rows are steps with reward and value 0"
ENDING, DECAYING = "a masked row ends the episode", "masked rows decay by γλ"
WAYS = [  # to make each mistake, some in several ways
    *BUGS.items(),
    ("the carry is not cut at a termination", [("cut = terminated[t] |", "cut =")]),
    ("the flags of the last row are ignored", [first("terminated[-1] = False")]),
    ("the flags of the last row are ignored", [first("truncated[-1] = False")]),
    ("V(s_t) for V(s_{t+1})", [("terminated[t], 0, after", "terminated[t], 0, values[t]")]),
    ("the bootstrap value counts twice", [first("bootstrap_value = 2 * bootstrap_value")]),
    (IGNORED, [first("given, mask = mask, np.ones_like(mask)"), ("return result", "return result * given")]),
    (ZEROS, [first("rewards, values, mask = rewards * mask, values * mask, np.ones_like(mask)")]),
    (ENDING, [("carried, later", "carried, 0")]),
    (ENDING, [("carried, later", "carried, 0"), ("np.where(mask[t], values[t], next_value)", "values[t]")]),
    (DECAYING, [*BUGS[DECAYING], ("mask[t], values[t], next_value", "mask[t], values[t], 0")]),
    (DECAYING, [*BUGS[DECAYING], ("mask[t], values[t],", "True, values[t],")]),
    *(
        ("normalized", [("return result", f"return (result - result.mean({over})) / (result.std({over}{n}) + 1e-5)")])
        for over in ("", "where=mask, ")
        for n in ("", "ddof=1")
    ),
]
SHIFTED = {
    "the values": ["values"],
    "the final value": ["final_values"],
    "the reward": ["rewards"],
    "the mask": ["mask"],
    "the flag": ["terminated", "truncated", "terminated, truncated"],
}
for what, names in SHIFTED.items():
    for arguments in names:
        for edge in ("0 * x[:1]", "x[:1]", "x[-1:]"):  # what the row without a neighbour holds
            for step, rows in (("before", f"{edge}, x[:-1]"), ("after", f"x[1:], {edge}")):
                line = f"{arguments}, = (np.concatenate([{rows}]) for x in ({arguments},))"
                WAYS.append((f"{what} of the step {step}", [first(line)]))


def with_bugs(*names):
    """Returns the loop with the bugs, each made in its first way; they must change different fragments."""
    first_ways = dict(reversed(WAYS))
    return changed(change for name in names for change in first_ways[name])


def changed(changes):
    source = RIGHT
    for fragment, instead in changes:
        assert source.count(fragment) == 1, fragment
        source = source.replace(fragment, instead)
    scope: dict[str, Any] = {"np": np}
    exec(source, scope)
    return scope["estimator"]


def mistakes(report):
    return {name for verdict in report.verdicts if verdict.mistake for name in verdict.mistake.split("; ")} - {LEAK}


def test_loop_without_bugs_is_right():
    assert check_gae(with_bugs()).right


def test_every_mistake_has_a_bug():
    assert {name for name, _ in WAYS} == set(MISTAKES)


@pytest.mark.parametrize(("name", "changes"), WAYS)
def test_names_a_bug_and_what_to_do(name, changes):
    report = check_gae(changed(changes))
    assert mistakes(report) == {name}
    assert f"\n{name}: {ADVICE[name]}\n" in f"{report}\n"


FLAG_BUGS = ["the flag of the step before", "truncation as termination", "truncation does not cut"]
CUT_BUGS = ["the carry is not cut at a truncation", "the carry is not cut at a termination"]
VALUE_BUGS = ["V(reset observation) for V(final observation)", "the values of the step after"]
OTHER_BUGS = ["the reward of the step before", "λ is missing on the first hop", "γ is missing in the TD error"]


@pytest.mark.slow
@pytest.mark.parametrize("first", FLAG_BUGS + CUT_BUGS + VALUE_BUGS + OTHER_BUGS)
@pytest.mark.parametrize("second", [DECAYING, ZEROS, "the bootstrap value is missing", "normalized"])
def test_names_both_of_two_bugs(first, second):
    report = check_gae(with_bugs(first, second))
    assert mistakes(report) >= {first, second}
    assert any(set((verdict.mistake or "").split("; ")) == {first, second} for verdict in report.verdicts)


def test_names_masked_steps_that_are_standardized_as_zeros():
    [verdict] = [x for x in check_gae(with_bugs(ZEROS, "normalized")).verdicts if x.case == "masked rows"]
    assert verdict.mistake == f"{ZEROS}; normalized"


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=["float16", "bfloat16"])
def test_names_bugs_in_narrow_dtypes(dtype):
    for name in MISTAKES:
        fn = functools.wraps(with_bugs(name))(lambda name=name, **case: jnp.asarray(with_bugs(name)(**case), dtype))
        report = check_gae(fn)
        assert name in mistakes(report), f"{name}\n{report}"


def test_reference_matches_the_oracle():
    for name, case in cases().items():
        assert_close(known_answers(0)[1][name], [oracle(**case)[0]], rtol=1e-12)
