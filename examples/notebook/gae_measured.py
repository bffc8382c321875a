"""What `gae_explained.ipynb` computes and asserts, where that is longer than its result.

A `check_` function asserts the claims that the text makes beside the cell that calls it.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import bug_study
import gae_figures as figures
import jax
import jax.numpy as jnp
import numpy as np

from gae_jax import gae, n_step_advantages
from gae_jax.testing import check_gae

close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)  # float32 against float64

# The derivation.


def check_baseline(pi: np.ndarray, score: np.ndarray, Q: np.ndarray) -> None:
    """A function of the state changes no mean, and here the advantage has less than half of the variance."""
    close(pi @ score, 0)
    by_q, by_a = score * Q[:, None], score * (Q - pi @ Q)[:, None]
    close(pi @ by_q, pi @ by_a)
    assert pi @ ((by_a - pi @ by_a) ** 2).sum(1) < 0.4 * (pi @ ((by_q - pi @ by_q) ** 2).sum(1))


def weights_of(n: int, lambda_: float) -> np.ndarray:
    """Returns the weights of A^(1) ... A^(n), where n rows are left; the tail's weight goes to the longest."""
    weights = (1 - lambda_) * lambda_ ** np.arange(n)
    weights[-1] = lambda_ ** (n - 1)
    return weights


def k_step_advantages(r: np.ndarray, V: np.ndarray, gamma: float) -> list[np.ndarray]:
    """Returns for each t the A_t^(k) by definition: k rewards, and then the critic."""

    def of_length(t: int, k: int) -> float:
        return gamma ** np.arange(k) @ r[t : t + k] + gamma**k * V[t + k] - V[t]

    return [np.array([of_length(t, k) for k in range(1, len(r) - t + 1)]) for t in range(len(r))]


def print_by_length(rows: Sequence[Any], title: str, sums: Any = ()) -> None:
    """Prints a row for each t, and a column for each k."""
    print(f"t  {title:<16}" + "".join(f"k = {k:<5}" for k in range(1, len(rows) + 1)) + "A" * len(sums[:1]))
    for t, row in enumerate(rows):
        cells = "".join(f"{x:<9.3f}" for x in row).ljust(9 * len(rows))
        print(f"{t}{'':18}{cells}{f'{sums[t]:.3f}' if len(sums) else ''}".rstrip())


def check_derivation(r: np.ndarray, V: np.ndarray, gamma: float, lambda_: float, A_k: Any, A: Any) -> None:
    """Each step of the derivation holds for the numbers, and the library gives the same ones."""
    T, by_definition = len(r), k_step_advantages(r, V, gamma)
    delta = r + gamma * V[1:] - V[:-1]
    advantages, targets = gae(r, V, False, gamma=gamma, lambda_=lambda_)
    close(advantages, A)
    for t in range(T):
        weights = weights_of(T - t, lambda_)
        close(weights.sum(), 1)
        close(A_k[t], by_definition[t])  # the values telescope
        close(A[t], (gamma * lambda_) ** np.arange(T - t) @ delta[t:])  # the sum of TD errors
        close(targets[t], weights @ (by_definition[t] + V[t]))  # the lambda-return
        for k in range(1, T - t + 1):
            close(n_step_advantages(r, V, False, n=k, gamma=gamma)[t], A_k[t][k - 1])
    close(A, delta + gamma * lambda_ * np.append(A[1:], 0))  # the recursion
    wrong_end = V + np.append(np.zeros(T), 10.0)  # an error of 10 in V(s_T), at lambda = 1
    wrong, right = (gae(r, x, False, gamma=gamma, lambda_=1.0).advantages for x in (wrong_end, V))
    close(wrong - right, 10 * gamma ** (T - np.arange(T)))


def check_slips(r: np.ndarray, V: np.ndarray, gamma: float, lambda_: float) -> None:
    """The weights without 1 - lambda give 1 / (1 - lambda) times too much; the last exponent is T - t - 1."""
    right = functools.partial(gae, terminated=False, gamma=gamma, lambda_=lambda_)
    by_length = np.append(k_step_advantages(r, V, gamma)[0], np.full(200, k_step_advantages(r, V, gamma)[0][-1]))
    close(lambda_ ** np.arange(len(by_length)) @ by_length, right(r, V).advantages[0] / (1 - lambda_))
    last_weight = jax.grad(lambda r: right(r, V).advantages[0])(r)[-1]
    close(last_weight, (gamma * lambda_) ** (len(r) - 0 - 1))


def stretches() -> tuple[np.ndarray, np.ndarray]:
    """Returns rewards `[60]`, three of them large, and values `[61]`."""
    row, rng = np.arange(60), np.random.default_rng(5)
    rewards = np.where(np.isin(row, (14, 40)), 3.0, 0.0) - 3.0 * (row == 27) + 0.1 * rng.normal(size=60)
    return rewards, 1.5 * np.sin(np.arange(61) / 9) + 0.3 * rng.normal(size=61)


def check_stretches(rewards: np.ndarray, values: np.ndarray, gamma: float, advantages: np.ndarray) -> None:
    """The ends are the TD error and Monte Carlo; neighbours get alike up to 0.95, and much changes beyond it."""
    close(advantages[0], rewards + gamma * values[1:] - values[:-1])
    close(advantages[-1], [row[-1] for row in k_step_advantages(rewards, values, gamma)])
    neighbours = [np.corrcoef(a[:-1], a[1:])[0, 1] for a in advantages]
    assert neighbours[:5] == sorted(neighbours[:5])
    assert neighbours[0] < 0.2 < 0.9 < min(neighbours[4:])
    change = np.sqrt(np.mean((advantages - advantages[4]) ** 2, axis=1))  # from 0.95, the fifth
    assert change[-1] > 0.5 * change[0]


def check_own(loop: Callable[..., Any], mine: Callable[..., Any]) -> None:
    """The loop to copy is right, and the mistake of the other function is named."""
    assert check_gae(loop).right
    assert "truncation as termination" in str(check_gae(mine))


def check_weights(lambda_: float) -> None:
    """The shares of the longest estimate."""
    close([weights_of(n, lambda_)[-1] for n in (5, 2)], [0.6561, 0.9])


# The walk: five states in a row, left or right with probability one half, 12 steps.

STATES, STEPS, GAMMA = 5, 12, 0.9
ENTERED = np.array([0.5, 0.0, 0.0, 0.0, 1.0])  # the reward for entering each state
TO_LEFT, TO_RIGHT = np.maximum(np.arange(STATES) - 1, 0), np.minimum(np.arange(STATES) + 1, STATES - 1)
P = 0.5 * np.eye(STATES)[TO_LEFT] + 0.5 * np.eye(STATES)[TO_RIGHT]  # P[s, s']: the probability of going from s to s'
V_EXACT = np.linalg.solve(np.eye(STATES) - GAMMA * P, P @ ENTERED)


def walk(start: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Returns the states `[..., T+1]` that the actions `[..., T]` (0 left, 1 right) lead through."""
    states = [np.broadcast_to(start, actions.shape[:-1])]
    for t in range(actions.shape[-1]):
        states.append(np.where(actions[..., t] == 1, TO_RIGHT[states[-1]], TO_LEFT[states[-1]]))
    return np.stack(states, axis=-1)


ALL_ACTIONS = (np.arange(2**STEPS)[:, None] >> np.arange(STEPS)) & 1  # bit k of the row's index is action k
ALL_STATES = walk(np.arange(STATES)[:, None], np.broadcast_to(ALL_ACTIONS, (STATES, *ALL_ACTIONS.shape)))


def by_first_action(x: np.ndarray) -> np.ndarray:
    """Rearranges `[STATES, 2**STEPS, ...]` to `[STATES, 2**(STEPS-1), 2, ...]`: state, later actions, first action."""
    return x.reshape(STATES, -1, 2, *x.shape[2:])


def td_errors(states: np.ndarray, critic: np.ndarray) -> np.ndarray:
    """Computes the TD errors `[..., T]` of walks `[..., T+1]`."""
    return ENTERED[states[..., 1:]] + GAMMA * critic[states[..., 1:]] - critic[states[..., :-1]]


def exact_target(states: np.ndarray, critic: np.ndarray) -> np.ndarray:
    """Returns Q(s, a) of the first action, which an estimate without error would find, minus the critic's V(s)."""
    return ENTERED[states[..., 1]] + GAMMA * V_EXACT[states[..., 1]] - critic[states[..., 0]]


def bias_and_variance(critic: np.ndarray, lambdas: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns bias and variance of the first step's advantage, `[STATES, 2, lambdas]`: first state, first action."""
    estimate = by_first_action(
        td_errors(ALL_STATES, critic) @ (GAMMA * np.asarray(lambdas)) ** np.arange(STEPS)[:, None]
    )
    truth = by_first_action(exact_target(ALL_STATES, critic))
    return estimate.mean(1) - truth.mean(1)[..., None], estimate.var(1)


def variance_of_a_walk(critic: np.ndarray, lambda_: float) -> float:
    """Returns the variance of a walk's policy gradient, relative to its value if the 12 rows were independent.

    The gradient is the sum of the advantages times a - 1/2: the policy's parameter is the log-odds of going right.
    """
    deltas, advantages = td_errors(ALL_STATES, critic), np.zeros(ALL_STATES[..., 1:].shape)
    for t in range(STEPS):
        advantages[..., t] = deltas[..., t:] @ (GAMMA * lambda_) ** np.arange(STEPS - t)
    rows = advantages * (ALL_ACTIONS - 0.5)
    return rows.sum(-1).var() / rows.var((0, 1)).sum()


LAMBDAS, COUNTS, MARKED = np.linspace(0, 1, 101), 2 ** np.arange(13), (1, 16, 64, 256)
PATTERN = np.array([1, -1, -1, 1, -1])  # the signs of the critic's errors

Curve = tuple[np.ndarray, np.ndarray]  # squared bias and variance for each of LAMBDAS


def critic(error: float, pattern: np.ndarray = PATTERN) -> np.ndarray:
    """Returns a critic that is wrong by `error` in each state."""
    return V_EXACT + error * pattern


def explained_variance(error: float) -> float:
    """Returns the share of the values' variance that the critic explains."""
    return float(1 - np.var(critic(error) - V_EXACT) / np.var(V_EXACT))


def squared_bias_and_variance(error: float, pattern: np.ndarray = PATTERN) -> Curve:
    """Returns squared bias and variance for each of LAMBDAS, averaged over the first state and first action."""
    bias, variance = bias_and_variance(critic(error, pattern), LAMBDAS)
    return (bias**2).mean((0, 1)), variance.mean((0, 1))


def best_lambdas(curve: Curve, counts: np.ndarray = COUNTS) -> np.ndarray:
    """Returns the best lambda for each number of estimates that are averaged."""
    return LAMBDAS[np.argmin(curve[0] + curve[1] / counts[:, None], axis=1)]


def simulated_errors(error: float, number: int = 40_000) -> dict[float, np.ndarray]:
    """Returns the squared errors `[number]` of `gae` on the first step of simulated walks, for four lambdas."""
    rng, values, errors = np.random.default_rng(0), critic(error), {}
    states = walk(rng.integers(STATES, size=number), rng.integers(2, size=(number, STEPS)))
    for x in (0, 0.5, 0.9, 1):
        estimate, _ = gae(ENTERED[states[:, 1:]], values[states], False, gamma=GAMMA, lambda_=x, time_axis=1)
        errors[x] = (np.asarray(estimate, float)[:, 0] - exact_target(states, values)) ** 2
    return errors


def check_trade(curves: Mapping[float, Curve], simulated: Mapping[float, Mapping[float, np.ndarray]]) -> None:
    """Lambda trades bias for variance, the library agrees with the enumeration, a better critic wants a smaller one."""
    close([explained_variance(error) for error in curves], [-2.30, 0.17, 0.88], atol=0.005)
    for error, (bias, variance) in curves.items():
        assert (np.diff(bias) < 0).all()
        assert variance[0] < 1e-12
        assert (np.diff(variance) > 0).all()
        for x, errors in simulated[error].items():
            exact = np.interp(x, LAMBDAS, bias + variance)
            assert abs(errors.mean() - exact) < 5 * errors.std() / np.sqrt(len(errors)) + 1e-6
    close([best_lambdas(curve)[0] for curve in curves.values()], [0.52, 0.28, 0.07])
    assert max(squared_bias_and_variance(0.0)[0]) < 1e-20  # a perfect critic: no bias at any lambda


def check_counts(curves: Mapping[float, Curve]) -> None:
    """More data wants a larger lambda; what the numbers depend on; what is left of a late reward."""
    for x in (0.9, 0.99, 0.999):
        close([x ** (1 / (1 - x)), x ** (3 / (1 - x))], [0.36, 0.05], atol=0.015)
    marked = np.searchsorted(COUNTS, MARKED)
    best = {error: best_lambdas(curve) for error, curve in curves.items()}
    close([best[0.8][marked], best[0.4][marked]], [[0.52, 0.87, 0.96, 1.0], [0.28, 0.73, 0.87, 0.96]])
    close(best[0.15][marked], [0.07, 0.43, 0.65, 0.81])
    assert all((np.diff(lambdas) >= 0).all() for lambdas in best.values())
    patterns = [np.array(signs) for signs in itertools.product((1, -1), repeat=STATES)]
    for error, curve in curves.items():
        others = [best_lambdas(squared_bias_and_variance(error, x))[marked] for x in patterns]
        assert 0.15 < abs(np.array(others) - best[error][marked]).max() < 0.275
        shared = (bias_and_variance(critic(error), LAMBDAS)[0].mean(1) ** 2).mean(0)  # the mean over both actions
        close((shared / curve[0])[[0, 95, 100]], [0.2, 0.84, 0.99], atol=0.005)
        smaller = best[error] - best_lambdas((curve[0] - shared, curve[1]))
        assert 0 <= smaller.min() < smaller.max() < 0.055
    relative = {x: [variance_of_a_walk(critic(error), x) for error in curves] for x in (0, 0.95)}
    close([min(relative[0.95]), max(relative[0.95]), max(relative[0])], [1.9, 2.45, 4.6], atol=0.05)


# Derivatives: ten steps, of which step END terminates an episode and step LIMIT is truncated.

T, END, LIMIT = 10, 3, 6


def jacobians(estimate: Callable[..., Any], gamma: float, lambda_: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns dA/dr `[T, T]`, dA/dV `[T, T+1]`, whose last column is for V(s_T), and dA/dV(final) `[T, T]`."""
    rng = np.random.default_rng(1)
    rewards, values, final_values = (rng.normal(size=T).astype(np.float32) for _ in range(3))
    numbers = {"rewards": rewards, "values": values, "final_values": final_values, "bootstrap_value": np.float32(0.5)}
    options = {
        "terminated": np.arange(T) == END,
        "truncated": np.arange(T) == LIMIT,
        "gamma": gamma,
        "lambda_": lambda_,
    }
    by_name = jax.jacrev(lambda x: estimate(**x, **options))(numbers)
    by_value = np.concatenate([by_name["values"], by_name["bootstrap_value"][:, None]], axis=1)
    return np.asarray(by_name["rewards"]), by_value, np.asarray(by_name["final_values"])


def expected_jacobians(gamma: float, lambda_: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns what `jacobians` does for the right estimator, by the formulas of the text."""
    by_reward, by_value, by_final = np.zeros((T, T)), np.zeros((T, T + 1)), np.zeros((T, T))
    for start, stop in ((0, END + 1), (END + 1, LIMIT + 1), (LIMIT + 1, T)):  # the rows of each episode
        for t in range(start, stop):
            for j in range(t, stop):
                by_reward[t, j] = (gamma * lambda_) ** (j - t)
                by_value[t, j] = -1 if j == t else gamma * (1 - lambda_) * (gamma * lambda_) ** (j - t - 1)
            last = gamma * (gamma * lambda_) ** (stop - t - 1)
            if stop == T:
                by_value[t, T] = last
            if stop == LIMIT + 1:
                by_final[t, LIMIT] = last
    return by_reward, by_value, by_final


def check_jacobians(got: Sequence[np.ndarray], gamma: float, lambda_: float) -> None:
    """The derivatives are as the text says, and what should be zero is exactly zero."""
    for x, expected in zip(got, expected_jacobians(gamma, lambda_), strict=True):
        close(x, expected)
        assert (x[expected == 0] == 0).all()


CHECKED = {  # the names that `check_gae` gives the bugs of the study
    "result in reverse": "the result is in reverse",
    "flag of the step before": "the flag of the step before",
    "termination ignored": "termination is ignored",
    "truncation as termination": "truncation as termination",
    "truncation not cut": "truncation does not cut",
    "V(s_t) for V(final)": "V(s_t) for V(final observation)",
    "λ missing on the first hop": "λ is missing on the first hop",
}


def check_gallery(marks: Mapping[str, Sequence[np.ndarray]], gamma: float, lambda_: float) -> None:
    """`check_gae` names each bug, and each bug changes the derivatives as the titles of the figure say."""
    for name, mistake in CHECKED.items():
        assert mistake in str(check_gae(bug_study.BUGS[name])), mistake
        assert any(np.abs(x - y).max() > 0.01 for x, y in zip(marks[name], marks["right"], strict=True))
    r_of, v_of, f_of = ({name: x[i] for name, x in marks.items()} for i in range(3))
    close(r_of["result in reverse"], r_of["right"][::-1])
    assert r_of["flag of the step before"][END, END + 1] > 0  # the next episode's rewards count,
    assert (r_of["flag of the step before"][END + 1, END + 2 :] == 0).all()  # and its first step is cut off
    assert r_of["termination ignored"][END, END + 1] > 0
    close(r_of["truncation as termination"], r_of["right"])  # rewards are cut in the right place,
    assert (f_of["truncation as termination"] == 0).all()  # but no value follows
    assert r_of["truncation not cut"][LIMIT, LIMIT + 1] > 0
    close(v_of["V(s_t) for V(final)"][LIMIT, LIMIT], gamma - 1)
    close(r_of["λ missing on the first hop"][0, 1:4] * lambda_, r_of["right"][0, 1:4])


# The agents of bug_study.json. `lengths` are the mean training episodes `[seeds, time]`.


def last_evaluations(record: Any) -> tuple[dict[str, np.ndarray], dict[str, float], dict[str, float]]:
    """Returns by name the last evaluation of each seed, and both ends of the interval of their mean."""
    final = {name: figures.evaluations_of(record, name)[:, -1] for name in record["results"]}
    low, high = ({name: figures.interval(steps)[i] for name, steps in final.items()} for i in range(2))
    return final, low, high


def check_sweep(record: Any) -> None:
    """On the pole a larger lambda is better, up to the limit of the evaluation."""
    final, low, high = last_evaluations(record)
    names = ["λ = 0", "λ = 0.5", "λ = 0.8", "λ = 0.9", "right", "λ = 0.98", "λ = 1"]
    assert [round(final[name].mean()) for name in names] == [224, 378, 388, 480, 497, 500, 500]
    for smaller, larger in itertools.pairwise(names):
        assert high[smaller] < low[larger] or (smaller, larger) in (("λ = 0.5", "λ = 0.8"), ("λ = 0.98", "λ = 1"))
    assert min(final["λ = 0.98"].min(), final["λ = 1"].min()) > 495  # each of the 64 agents
    assert bug_study.LAMBDA == 0.95  # of "right"


GROUPS = {
    "RIGHT": ["right"],
    "LOUD": ["termination ignored"],
    "SILENT": ["truncation as termination", "truncation not cut", "result in reverse"],
    "INVISIBLE": ["flag of the step before", "λ missing on the first hop"],
}


def check_bugs(record: Any) -> None:
    """Which bugs are seen in training, and which in the last evaluation only."""
    lengths = {name: figures.lengths_of(record, name) for name in record["results"]}
    (final, low, high), right = last_evaluations(record), lengths["right"].mean(0)
    untrained = figures.evaluations_of(record, "right")[:, 0].mean()
    assert round(untrained) == 34
    assert lengths["termination ignored"][:, -1].max() < 50  # loud: seen in training
    assert high["termination ignored"] < untrained
    for name in GROUPS["SILENT"]:  # the training curve ends as the right one does, the agent does not
        assert lengths[name][:, -1].mean() > 98
        assert high[name] < low["right"], name
    for name in ("truncation as termination", "truncation not cut", *GROUPS["INVISIBLE"]):  # at no time
        assert np.abs(lengths[name].mean(0) - right).max() < 3, name
    for name in GROUPS["INVISIBLE"]:
        assert max(low["right"], low[name]) <= min(high["right"], high[name]), name  # the intervals overlap
        assert (lengths[name][:, 6:] == 100).all()  # from 49,000 steps on, next to no episode terminates
    assert 6 * record["settings"]["steps_between_evaluations"] == 49_152
    names = ("right", "truncation as termination", "truncation not cut", "result in reverse")
    assert [round(np.median(final[name])) for name in names] == [500, 500, 326, 200]
    assert [sum(final[name] >= 495) for name in names] == [26, 22, 1, 2]
    assert [round(final[name].min()) for name in names] == [470, 183, 160, 124]
    assert lengths["result in reverse"][:, 4].mean() < 80 < 99 < right[4]  # more slowly


def check_orders(record: Any) -> None:
    """What agents learn from advantages in another order."""
    final, low, high = last_evaluations(record)
    untrained = figures.evaluations_of(record, "right")[:, 0].mean()
    for name in ("mean of the worker", "random order of time"):
        assert low[name] > 300, name  # which worker did well is enough to learn,
        assert abs(final[name].mean() - 400) < 20, name
        assert high[name] < low["right"], name  # though not as well as from the right ones,
        assert high["result in reverse"] < low[name], name  # and better than from the reverse;
    assert [round(final[f"reverse for the {x} only"].mean()) for x in ("policy", "critic")] == [453, 226]
    assert round(final["result in reverse"].mean()) == 236
    assert high["reverse for the critic only"] < low["reverse for the policy only"]
    others = "reverse of another worker", "all shuffled"
    for name in others:
        assert high[name] < low["result in reverse"], name  # with another worker's, agents do not learn
    assert [np.sum(final[name] < untrained) for name in others] == [27, 22]
    assert [np.sum(final[name] > 200) for name in others] == [1, 1]


# What is done with advantages, and the exercises.


def check_dropped_row(advantages: Any, counted: Any, kept: Any, dropped: int) -> None:
    """A dropped row has advantage 0; standardized with the others it is the lowest of all."""
    assert advantages[dropped] == kept[dropped] == 0
    close(counted[dropped], -np.mean(advantages) / np.std(advantages))
    assert counted[dropped] == counted.min() < -2


def check_exercises(gamma: float = 0.95, lambda_: float = 0.8) -> None:
    """The answers."""
    by_hand = gae(np.ones(3), np.full(3, 0.5), np.arange(3) == 1, gamma=0.5, lambda_=0.5, bootstrap_value=0.5)
    close(by_hand.advantages, [0.875, 0.5, 0.75])  # 1
    moved = jacobians(bug_study.right, gamma, lambda_)[0][:, 5]
    close(moved, [0, 0, 0, 0, gamma * lambda_, 1, 0, 0, 0, 0])  # 2

    def planted(rewards: Any, values: Any, terminated: Any, bootstrap_value: Any, gamma: float, lambda_: float) -> Any:
        later, advantages = 0.0, []
        for t in reversed(range(len(rewards))):
            next_value = jnp.where(terminated[t], 0, bootstrap_value if t == len(rewards) - 1 else values[t + 1])
            later = rewards[t] + gamma * next_value - values[t] + gamma * lambda_ * later
            advantages.append(later)
        return jnp.stack(advantages[::-1])

    assert "the carry is not cut at a termination" in str(check_gae(planted))
    estimate = functools.partial(planted, values=np.ones(T), terminated=np.arange(T) == END, bootstrap_value=1.0)
    moved = jax.jacrev(lambda r: estimate(r, gamma=gamma, lambda_=lambda_))(np.ones(T))[:, 5]
    close(moved[END], (gamma * lambda_) ** 2)  # 3
    assert 0.95**999 < 1e-22  # 5
    length = 1_000
    for alpha, share in ((1.0, 0.37), (0.05, 2e-9)):
        by_length: Any = {"gamma": 1.0, "lambda_": 1 - 1 / (alpha * length), "bootstrap_value": 0.0}
        close(gae(np.eye(length)[-1], np.zeros(length), False, **by_length).advantages[0], share, rtol=0.15, atol=0)
