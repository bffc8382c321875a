"""Each known mistake, written by hand into a NumPy loop, alone and in pairs, gets its name."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from support.laws import assert_close
from support.oracle import oracle

from gae_jax.testing import check_gae
from gae_jax.testing._mistakes import ADVICE, MISTAKES, Change, answers, cases, known_answers, stacked

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
    "the flag of the step before": [first("terminated = np.concatenate([0 * terminated[:1], terminated[:-1]]) > 0")],
    "the flag of the step after": [first("terminated = np.concatenate([terminated[1:], 0 * terminated[:1]]) > 0")],
    "the flags of the last row are ignored": [first("terminated[-1] = truncated[-1] = False")],
    "V(s_t) for V(s_{t+1})": [("final_values[t], next_value)", "final_values[t], values[t])")],
    "V(s_{T-1}) for V(s_T)": [("0.0, bootstrap_value", "0.0, values[-1]")],
    "the bootstrap value is missing": [("0.0, bootstrap_value", "0.0, 0.0")],
    "the bootstrap value counts twice": [("0.0, bootstrap_value", "bootstrap_value, bootstrap_value")],
    "the values of the step before": [first("values = np.concatenate([values[:1], values[:-1]])")],
    "the values of the step after": [first("values = np.concatenate([values[1:], bootstrap_value[None]])")],
    "the reward of the step before": [first("rewards = np.roll(rewards, 1, axis=0)")],
    "the reward of the step after": [first("rewards = np.concatenate([rewards[1:], 0 * rewards[:1]])")],
    "the mask of the step before": [first("mask = np.concatenate([mask[:1], mask[:-1]])")],
    "the mask of the step after": [first("mask = np.roll(mask, -1, axis=0)")],
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


def with_bugs(*names):
    """Returns the loop with the bugs; they must change different fragments."""
    source = RIGHT
    for fragment, instead in [change for name in names for change in BUGS[name]]:
        assert source.count(fragment) == 1, fragment
        source = source.replace(fragment, instead)
    scope: dict[str, Any] = {"np": np}
    exec(source, scope)
    return scope["estimator"]


def mistakes(report):
    return {name for verdict in report.verdicts if verdict.mistake for name in verdict.mistake.split("; ")} - {LEAK}


def test_loop_without_bugs_is_right():
    assert check_gae(with_bugs()).right


def test_every_mistake_has_a_bug_and_advice():
    assert set(BUGS) == set(MISTAKES) == set(ADVICE)


@pytest.mark.parametrize("name", BUGS)
def test_names_a_bug_and_what_to_do(name):
    report = check_gae(with_bugs(name))
    assert mistakes(report) == {name}
    assert f"\n{name}: {ADVICE[name]}\n" in f"{report}\n"


FIRST = [
    "truncation as termination",
    "truncation does not cut",
    "the carry is not cut at a truncation",
    "V(reset observation) for V(final observation)",
    "the carry is not cut at a termination",
    "the flag of the step before",
    "the values of the step after",
    "the reward of the step before",
    "λ is missing on the first hop",
    "γ is missing in the TD error",
]
SECOND = [
    "the bootstrap value is missing",
    "masked rows decay by γλ",
    "masked rows are steps with reward and value 0",
    "normalized",
]


@pytest.mark.slow
@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("second", SECOND)
def test_names_both_of_two_bugs(first, second):
    report = check_gae(with_bugs(first, second))
    assert mistakes(report) >= {first, second}
    assert any(set((verdict.mistake or "").split("; ")) == {first, second} for verdict in report.verdicts)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=["float16", "bfloat16"])
def test_names_bugs_in_narrow_dtypes(dtype):
    for name in BUGS:
        fn = functools.wraps(with_bugs(name))(lambda name=name, **case: jnp.asarray(with_bugs(name)(**case), dtype))
        report = check_gae(fn)
        assert name in mistakes(report), f"{name}\n{report}"


FLAGS = ("terminated", "truncated", "mask")
# The answers to three rows of one worker, worked out on paper: with γ = 1/2, λ = 1/4 and nothing else,
# δ = 3, 7, 8 and A = 3 + 8/8, 7 + 8/8, 8.
ROLLOUT = {
    "rewards": [3, 7, 8],
    "values": [2, 4, 8],
    "bootstrap_value": 16,
    "final_values": [0, 14, 0],
    "terminated": [0, 0, 0],
    "truncated": [0, 0, 0],
    "mask": [1, 1, 1],
}
ON_PAPER = {  # the flags that differ in row 1: the right answer, and the answers of the mistakes
    (): {
        "": (4, 8, 8),
        "the result is in reverse": (8, 8, 4),
        "time runs the wrong way": [(9, 5.125, 2.640625), (3, 7.375, 8.921875)],
        "λ is missing": (8.5, 11, 8),
        "λ counts as 0": (3, 7, 8),
        "λ is squared": (3.2265625, 7.25, 8),
        "λ is missing on the first hop": (7, 11, 8),
        "γ for λ": (5.25, 9, 8),
        "γ is missing": (8.75, 15, 16),
        "γ is missing in the TD error": (6.625, 13, 16),
        "γ is missing in the carry": (5.25, 9, 8),
        "γ is squared": (2.328125, 5.25, 4),
        "V(s_t) for V(s_{t+1})": (2.6875, 5.5, 4),
        "V(s_{T-1}) for V(s_T)": (3.9375, 7.5, 4),
        "the bootstrap value is missing": (3.875, 7, 0),
        "the bootstrap value counts twice": [(4.125, 9, 16), (4.03125, 8.25, 10)],
        "the values of the step before": (-2.9375, 8.5, 12),
        "the values of the step after": (3.875, 7, 0),
        "the reward of the step before": (8.484375, 3.875, 7),
        "the reward of the step after": (8, 8, 0),
        "the target, not the advantage": (6, 12, 16),
        "normalized": (-(2**0.5), 0.5**0.5, 0.5**0.5),
    },
    ("terminated",): {
        "": (3.375, 3, 8),
        "termination is ignored": (4, 8, 8),
        "the carry is not cut at a termination": (3.5, 4, 8),
        "V(s_{t+1}) counts after a termination": (3.875, 7, 8),
        "the reward of a terminated row is missing": (2.5, -4, 8),
        "the flag of the step before": (3.875, 7, 0),
        "the flag of the step after": (1, 8, 8),
    },
    ("truncated",): {
        "": (4.25, 10, 8),
        "truncation as termination": (3.375, 3, 8),
        "truncation does not cut": (4, 8, 8),
        "the carry is not cut at a truncation": (4.375, 11, 8),
        "V(s_t) for V(s_{t+1})": [(3.25, 10, 4), (2.625, 5, 4)],
        "V(s_t) for V(final observation)": (3.625, 5, 8),
        "V(reset observation) for V(final observation)": (3.875, 7, 8),
    },
    ("terminated", "truncated"): {
        "": (3.375, 3, 8),
        "truncation wins where both flags are set": (4.25, 10, 8),
        "the carry is not cut at a termination": [(3.5, 4, 8), (3.375, 3, 8)],
    },
    ("mask",): {
        "": (6, 0, 8),
        "the mask is ignored": [(4, 8, 8), (4, 0, 8)],
        "masked rows are steps with reward and value 0": [(1.625, 5, 8), (1.625, 0, 8)],
        "a masked row ends the episode": [(1, 0, 8), (5, 0, 8), (3, 0, 8)],
        "masked rows decay by γλ": [(1.125, 0, 8), (5.125, 0, 8), (3.125, 0, 8)],
        "the mask of the step before": (4.375, 11, 0),
        "the mask of the step after": (0, 8, 8),
    },
}


@pytest.mark.parametrize("flags", ON_PAPER, ids=" and ".join)
def test_answers_are_those_worked_out_on_paper(flags):
    rollout: dict[str, Any] = {
        name: np.array(x)[:, None] if np.ndim(x) else np.array([x]) for name, x in ROLLOUT.items()
    }
    rollout |= {name: (rollout[name] > 0) ^ np.array([[False], [name in flags], [False]]) for name in FLAGS}
    stack = stacked([rollout | {"gamma": 0.5, "lambda_": 0.25}])
    for name, want in ON_PAPER[flags].items():
        ways = answers(stack, [[change] for change in MISTAKES.get(name, [Change()])])[:, :, 0, 0]
        for answer in np.atleast_2d(want):
            assert np.isclose(ways, answer, rtol=1e-12).all(axis=1).any(), (name, answer, ways)


def test_reference_matches_the_oracle():
    for i, case in enumerate(cases().values()):
        assert_close([known_answers(0)[1][0, :, i]], [oracle(**case)[0]], rtol=1e-12)
