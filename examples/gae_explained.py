# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
r"""# What does Generalized Advantage Estimation compute, and what does it trade?

Policy-gradient methods need to know how much better an action was than the policy's average action. Generalized
Advantage Estimation (GAE, [Schulman et al., 2015](https://arxiv.org/abs/1506.02438)) is the standard estimate:

$$\hat A_t = \sum_{i \ge 0} (\gamma\lambda)^i\, \delta_{t+i}, \qquad \delta_t = r_t + \gamma V(s_{t+1}) - V(s_t).$$

This page derives the formula, checks it on six numbers, measures what $\gamma$ and $\lambda$ trade, draws what each
reward and value reaches, and shows what happens to an agent when the formula is wrong in one place. Every figure is
computed by the library `gae_jax`, and the cell that draws a figure asserts the claim that the figure supports. The
drawing itself is in `gae_figures.py`.

0. Why an advantage
1. Six steps by hand
2. The weights
3. Bias and variance, measured; how to choose $\gamma$ and $\lambda$
4. What reaches what
5. A gallery of bugs
6. Five hours
7. A dropped row is no sample
8. One number is all that earlier time needs
9. Tokens
10. One rollout, seven lambdas

This notebook is made from `gae_explained.py`. With the extra `notebook` installed, one line makes and runs it:

```sh
jupytext --to ipynb examples/gae_explained.py && jupyter execute --inplace examples/gae_explained.ipynb
```
"""

# %%
import functools
import inspect
import itertools
import json
import pathlib
from typing import Any

import five_hours
import gae_figures as figures
import jax
import jax.numpy as jnp
import numpy as np
from five_hours import BUGS
from jax.sharding import Mesh, PartitionSpec

from gae_jax import _recursion, gae, n_step_advantages, normalize
from gae_jax.testing import check_gae

jax.config.update("jax_num_cpu_devices", 4)  # section 8 splits time over four devices; a CPU can pose as four
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)  # float32 against float64

# %% [markdown]
r"""
## 0. Why an advantage

1. A policy $\pi(a \mid s)$ has parameters $\theta$. The goal is a large $J(\theta)$, the expected sum of the rewards
   of an episode.
2. Its gradient is $\nabla J = \mathbb E \left[ \sum_t \nabla \log \pi(a_t \mid s_t)\, Q(s_t, a_t) \right]$, with
   $Q(s_t, a_t)$ the expected sum of the rewards from step $t$ on. Actions with a large $Q$ become more likely.
3. Subtracting any function of the state is free, because the probabilities of all actions sum to 1:
   $\sum_a \pi(a \mid s)\, \nabla \log \pi(a \mid s)\, V(s) = V(s)\, \nabla \sum_a \pi(a \mid s) = V(s)\, \nabla 1 = 0$.
4. With $V(s)$ the expected sum of rewards from $s$ on, the difference $A(s, a) = Q(s, a) - V(s)$ is the *advantage*:
   how much better $a$ is than the policy's average action. So
   $\nabla J = \mathbb E \left[ \sum_t \nabla \log \pi(a_t \mid s_t)\, A(s_t, a_t) \right]$: the same mean, and
   as a rule much less variance.
5. Nobody knows $A$. An agent has a rollout, and a critic that guesses $V$. GAE makes an estimate $\hat A_t$ of
   $A(s_t, a_t)$ from these two.

Lines 3 and 4 in numbers, for a state with four actions:
"""

# %%
pi = np.array([0.1, 0.2, 0.3, 0.4])
score = np.eye(4) - pi  # row a: the gradient of log pi(a) with respect to the four logits
Q = np.array([3.0, 1.0, 2.0, 6.0])
close(pi @ score, 0)
close(pi @ (score * Q[:, None]), pi @ (score * (Q - pi @ Q)[:, None]))  # the same mean,
variance_q, variance_a = (pi @ ((score * x[:, None] - pi @ (score * x[:, None])) ** 2).sum(1) for x in (Q, Q - pi @ Q))
assert variance_a < 0.4 * variance_q  # and less variance

# %% [markdown]
r"""
## 1. Six steps by hand

A rollout is a piece of experience: states $s_0, \dots, s_T$, the rewards $r_0, \dots, r_{T-1}$ between them, and a
critic's guess $V(s_t)$ of the discounted reward that follows each state. The last state has a value and no reward.

The shortest estimate of the advantage trusts the critic after one step. It is the TD error:

$$A_t^{(1)} = r_t + \gamma V(s_{t+1}) - V(s_t) = \delta_t.$$

A longer estimate takes $k$ rewards as they came, and trusts the critic afterwards:

$$A_t^{(k)} = r_t + \gamma r_{t+1} + \gamma^2 r_{t+2} + \dots + \gamma^{k-1} r_{t+k-1} + \gamma^k V(s_{t+k}) - V(s_t).$$

GAE is the average of all $A_t^{(k)}$ with weights that fall by a factor $\lambda$ a step. The factor $1 - \lambda$
makes an average of the sum, since $1 + \lambda + \lambda^2 + \dots = 1 / (1 - \lambda)$:

$$\hat A_t = (1 - \lambda) \left( A_t^{(1)} + \lambda A_t^{(2)} + \lambda^2 A_t^{(3)} + \dots \right).$$

### From the average to the sum of TD errors

*The values telescope.* In $\sum_{i<k} \gamma^i \delta_{t+i}$ each $\gamma^i \cdot \gamma V(s_{t+i+1})$ meets the
$-\gamma^{i+1} V(s_{t+i+1})$ of the next term. What is left are $k$ rewards, the last value and the first:

$$A_t^{(k)} = \sum_{i=0}^{k-1} \gamma^i\, \delta_{t+i}.$$

*Swap the sums.* $\delta_{t+i}$ occurs in every $A_t^{(k)}$ with $k > i$:

$$\hat A_t = (1-\lambda) \sum_{k \ge 1} \lambda^{k-1} \sum_{i<k} \gamma^i \delta_{t+i}
= \sum_{i \ge 0} \gamma^i \delta_{t+i}\, (1-\lambda) \sum_{k > i} \lambda^{k-1}
= \sum_{i \ge 0} (\gamma\lambda)^i\, \delta_{t+i}.$$

*Take the first term out.* The rest is the same sum, one step later and multiplied by $\gamma\lambda$:

$$\hat A_t = \delta_t + \gamma\lambda\, \hat A_{t+1}.$$

A rollout of $T$ steps has no $A_t^{(k)}$ beyond $k = n$, with $n = T - t$ the rows that are left. The longest one
takes the weight of all that would have followed: $(1-\lambda)(\lambda^{n-1} + \lambda^n + \dots) = \lambda^{n-1}$. In
the sum of TD errors, this sets all $\delta$ beyond the rollout to 0. The recursion starts from $\hat A_T = 0$.
"""

# %%
gamma, lambda_ = 0.9, 0.8
r = np.array([1.0, 0.0, 2.0, -1.0, 0.0, 3.0])  # r_0 ... r_5
V = np.array([2.0, 1.5, 2.5, 0.5, 1.0, 2.0, 1.0])  # V(s_0) ... V(s_6)
T = len(r)


def k_step_advantage(t: int, k: int) -> float:
    """Computes A_t^(k): k rewards, or as many as the rollout has, and then the critic."""
    k = min(k, T - t)
    return float(gamma ** np.arange(k) @ r[t : t + k] + gamma**k * V[t + k] - V[t])


def weights_of(n: int, lambda_: float) -> np.ndarray:
    """Returns the weights of A^(1) ... A^(n), where n rows are left."""
    weights = (1 - lambda_) * lambda_ ** np.arange(n)
    weights[-1] = lambda_ ** (n - 1)  # the tail's weight goes to the longest
    return weights


delta = r + gamma * V[1:] - V[:-1]
A_k = [[k_step_advantage(t, k) for k in range(1, T - t + 1)] for t in range(T)]
weights = [weights_of(T - t, lambda_) for t in range(T)]
A = np.array([w @ a for w, a in zip(weights, A_k, strict=True)])

for title, rows in {"A^(k)": A_k, "weight of A^(k)": weights}.items():
    last_column = "sum of weights x A^(k)" if rows is weights else ""
    print(f"{title:>17}{'':9}" + "".join(f"k = {k:<5}" for k in range(1, T + 1)) + last_column)
    print("t     r     V  delta")
    for t in range(T):
        cells = "".join(f"{x:9.3f}" for x in rows[t]) + " " * 9 * t
        print(f"{t} {r[t]:5.1f} {V[t]:5.1f} {delta[t]:6.2f}{cells}" + f"   A = {A[t]:6.3f}" * bool(last_column))
    print()

# %% [markdown]
r"""
The claims of the derivation hold for these numbers, and the library gives the same ones:
"""

# %%
never = np.zeros(T, bool)  # no episode ends here
for t in range(T):
    close(weights[t].sum(), 1)
    close(A[t], (gamma * lambda_) ** np.arange(T - t) @ delta[t:])  # the sum of TD errors
    for k in range(1, T - t + 1):
        close(gamma ** np.arange(k) @ delta[t : t + k], A_k[t][k - 1])  # the values telescope
        close(n_step_advantages(r, V, never, n=k, gamma=gamma)[t], A_k[t][k - 1])
close(A, delta + gamma * lambda_ * np.append(A[1:], 0))  # the recursion
by_library, targets = gae(r, V, never, gamma=gamma, lambda_=lambda_)
close(by_library, A)

# %% [markdown]
r"""
### What the target means

`gae` also returns targets for the critic, $\hat A_t + V(s_t)$. Adding $V(s_t)$ removes the last term of each
$A_t^{(k)}$, so the target is the same average of $k$-step *returns*: the **lambda-return**. It says what the critic
should have guessed, looking forward from step $t$.

TD($\lambda$) does the same from the other side. It goes forward in time, and gives each new $\delta_s$ to all earlier
states, with a trace that fades by $\gamma\lambda$ a step. With the values held fixed, both move the critic equally.

### What is biased

$A_t^{(\infty)}$ has all rewards and no later value of the critic, and the page named below calls it unbiased. A rollout
that is cut has no $A_t^{(\infty)}$. With $\lambda = 1$ the longest estimate is left, $n = T - t$ rewards and then the
critic: it keeps $\gamma^n$ times the error of $V(s_T)$. In the last rows that is nearly the whole error.
"""

# %%
returns = [[a + V[t] for a in A_k[t]] for t in range(T)]
close(targets, [w @ g for w, g in zip(weights, returns, strict=True)])  # the lambda-return

features = np.random.default_rng(0).normal(size=(T, 3))  # a linear critic has V(s) = features(s) @ parameters
trace, backward = np.zeros(3), np.zeros(3)
for s in range(T):
    trace = gamma * lambda_ * trace + features[s]
    backward += delta[s] * trace
close(backward, A @ features)  # TD(lambda) and GAE move the parameters equally

wrong_end = V + np.append(np.zeros(T), 10.0)  # an error of 10 in V(s_T)
change = gae(r, wrong_end, never, gamma=gamma, lambda_=1.0)[0] - gae(r, V, never, gamma=gamma, lambda_=1.0)[0]
close(change, 10 * gamma ** (T - np.arange(T)))

# %% [markdown]
r"""
### Four slips in a well-known page

This library grew from [labml's annotated GAE](https://nn.labml.ai/rl/ppo/gae.html). Its code is right. Its formulas
have four slips, and the first three give other numbers:

1. *A reward index.* $\hat A_t^{(\infty)} = r_t + \gamma r_{t+1} + \gamma^2 r_{t+1} + \dots - V(s)$: the third term is
   $\gamma^2 r_{t+2}$. Each reward has an index of its own.
2. *The factor $1 - \lambda$.* The page takes a 'weighted average' with $w_k = \lambda^{k-1}$. These weights sum to
   $1 / (1 - \lambda)$, and the result is so many times too large.
3. *The last exponent.* The sum of TD errors ends with $(\gamma\lambda)^{T-t+1} \delta_{T-1}$. From $t$ to $T-1$ there
   are $T-t-1$ steps, so the last term is $(\gamma\lambda)^{T-t-1} \delta_{T-1}$.
4. *A missing index.* Each $\hat A_t^{(k)}$ ends with $- V(s)$; it is $- V(s_t)$.

The third one is older than the page. Equations (10) and (11) of the [PPO paper](https://arxiv.org/abs/1707.06347) have
the same exponent, $T-t+1$ for $r_{T-1}$ and for $\delta_{T-1}$.
"""

# %%
third_term_slips = r[0] + gamma * r[1] + gamma**2 * r[1] + gamma**3 * V[3] - V[0]
assert abs(third_term_slips - n_step_advantages(r, V, never, n=3, gamma=gamma)[0]) > 1
factor_missing = sum(lambda_ ** (k - 1) * k_step_advantage(0, k) for k in range(1, 200))
close(factor_missing, by_library[0] / (1 - lambda_))
last_weight = jax.grad(lambda r: gae(r, V, never, gamma=gamma, lambda_=lambda_).advantages[0])(r)[T - 1]
close(last_weight, (gamma * lambda_) ** (T - 0 - 1))  # t = 0
assert last_weight > 1.9 * (gamma * lambda_) ** (T - 0 + 1)

# %% [markdown]
r"""
### The library's code

The library runs the recursion in one number. Write $h_{t+1}$ for the value that step $t$ bootstraps from:

$$\hat A_t = r_t + \gamma h_{t+1} - V(s_t), \qquad h_t = V(s_t) + \lambda \hat A_t, \qquad h_T = V(s_T).$$

So $h_t$ is the critic's value blended with the lambda-return, $(1 - \lambda) V(s_t) + \lambda\, (\hat A_t + V(s_t))$.
Put the second equation into the first and it is the recursion above. Every rule about the end of an episode is a rule
about $h_{t+1}$: after a *termination* nothing follows, so the step bootstraps from 0; after a *truncation*, by a time
limit for example, the episode would have gone on, so the step bootstraps from the value of the final observation.

This is the step as the library runs it, printed from the installed package. `lambda_before` is $\lambda$; where
$\lambda$ varies over time, it is $\lambda_{t-1}$, the weight that step $t-1$ gives to what follows.
"""

# %%
print(inspect.getsource(_recursion.step))
print(inspect.getsource(_recursion.next_value))

# %% [markdown]
r"""
## 2. The weights

Far from the end of a rollout the weights are geometric. Near its end the longest estimate collects the weight of the
missing tail. With $\lambda = 0.9$ and two rows left, 90% of the weight is on $A^{(2)}$: the last rows of a rollout
rest almost wholly on their longest estimate, however long the rollout is.

A finite-horizon variant ([arXiv:2602.03386](https://arxiv.org/abs/2602.03386)) divides by the sum of the weights that
exist instead, so that they keep their ratio $\lambda$:

$$w_k = \frac{(1 - \lambda)\lambda^{k-1}}{1 - \lambda^n}, \qquad k = 1, \dots, n.$$

The variant is GAE with a $\lambda$ that varies over time. Write $\hat A_t = \delta_t + \gamma (1 - w_1) \hat A_{t+1}$
and read off

$$\lambda_t = 1 - w_1 = \lambda\, \frac{1 - \lambda^{n-1}}{1 - \lambda^n}.$$
"""

# %%
rng = np.random.default_rng(0)
lambda_, length = 0.9, 12
rewards, values = rng.normal(size=length), rng.normal(size=length + 1)
never = np.zeros(length, bool)
rows_left = length - np.arange(length)
lambda_t = lambda_ * (1 - lambda_ ** (rows_left - 1)) / (1 - lambda_**rows_left)
usual = gae(rewards, values, never, gamma=gamma, lambda_=lambda_).advantages
renormalized = gae(rewards, values, never, gamma=gamma, lambda_=lambda_t).advantages
by_length = [n_step_advantages(rewards, values, never, n=k, gamma=gamma) for k in range(1, length + 1)]


def renormalized_weights_of(n: int, lambda_: float) -> np.ndarray:
    """Returns the weights of the finite-horizon variant."""
    return (1 - lambda_) * lambda_ ** np.arange(n) / (1 - lambda_**n)


for weigh, advantages in ((weights_of, usual), (renormalized_weights_of, renormalized)):
    for n in range(1, length + 1):
        w = weigh(n, lambda_)
        close(w.sum(), 1)
        close(advantages[length - n], sum(w[k] * by_length[k][length - n] for k in range(n)))
close(weights_of(2, lambda_), [0.1, 0.9])  # two rows left: nearly all on the longest
close(renormalized_weights_of(2, lambda_), np.array([1, 0.9]) / 1.9)

variants = {"GAE": weights_of, "renormalized": renormalized_weights_of}
figures.weights({name: [weigh(n, lambda_) for n in (12, 5, 2)] for name, weigh in variants.items()}, lambda_)

# %% [markdown]
r"""
## 3. Bias and variance, measured

Why average at all? A short estimate has the critic's error in it: **bias**. A long one has the randomness of many
actions in it: **variance**. $\lambda$ sets the mixture.

The trade can be measured without any sampling error. The task is a walk on five states in a row. The policy goes left
or right with probability one half, and a wall at either end stops it. Each step earns the reward of the state that it
enters. $V^\pi$ solves $(I - \gamma P) V = P\,r$, and $Q^\pi(s, a) = r(s') + \gamma V^\pi(s')$.

A rollout of 12 steps is one of $2^{12}$ sequences of actions from one of five states. All of them can be enumerated.
So the mean and the variance of $\hat A_0$ are exact, for each first state and first action. The critic is
$V = V^\pi + \varepsilon u$, with $u$ a fixed pattern of size 1 and $\varepsilon$ the critic's error.

The estimate is compared with $Q^\pi(s_0, a_0) - V(s_0)$. The critic's error at $s_0$ itself is left out of the bias:
it shifts both actions alike, and section 0 says that such a shift is free.
"""

# %%
STATES, STEPS, gamma = 5, 12, 0.9
ENTERED = np.array([0.5, 0.0, 0.0, 0.0, 1.0])  # the reward for entering each state
TO_LEFT, TO_RIGHT = np.maximum(np.arange(STATES) - 1, 0), np.minimum(np.arange(STATES) + 1, STATES - 1)
P = 0.5 * np.eye(STATES)[TO_LEFT] + 0.5 * np.eye(STATES)[TO_RIGHT]
V_exact = np.linalg.solve(np.eye(STATES) - gamma * P, P @ ENTERED)
PATTERN = np.array([1.0, -1.0, -1.0, 1.0, -1.0])


def walk(start: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Returns the states `[..., T+1]` that the actions `[..., T]` (0 left, 1 right) lead through."""
    states = [np.broadcast_to(start, actions.shape[:-1])]
    for t in range(actions.shape[-1]):
        states.append(np.where(actions[..., t] == 1, TO_RIGHT[states[-1]], TO_LEFT[states[-1]]))
    return np.stack(states, axis=-1)


ALL_ACTIONS = (np.arange(2**STEPS)[:, None] >> np.arange(STEPS)) & 1  # bit k of the row's index is action k
ALL_STATES = walk(np.arange(STATES)[:, None], np.broadcast_to(ALL_ACTIONS, (STATES, *ALL_ACTIONS.shape)))


def by_definition(states: np.ndarray, critic: np.ndarray, lambda_: float) -> np.ndarray:
    """Computes the advantage of the first step as the sum of discounted TD errors, in float64."""
    deltas = ENTERED[states[..., 1:]] + gamma * critic[states[..., 1:]] - critic[states[..., :-1]]
    return deltas @ (gamma * lambda_) ** np.arange(STEPS)


def exact_target(states: np.ndarray, critic: np.ndarray) -> np.ndarray:
    """Returns Q(s, a) of the first action, which an estimate without error would find, minus the critic's V(s)."""
    return ENTERED[states[..., 1]] + gamma * V_exact[states[..., 1]] - critic[states[..., 0]]


def bias_and_variance(critic: np.ndarray, lambda_: float) -> tuple[float, float]:
    """Returns squared bias and variance, averaged over the first state and first action, by enumeration."""
    estimate = by_definition(ALL_STATES, critic, lambda_).reshape(STATES, -1, 2)  # the first action is the last axis
    truth = exact_target(ALL_STATES, critic).reshape(STATES, -1, 2)
    return ((estimate.mean(1) - truth.mean(1)) ** 2).mean(), estimate.var(1).mean()


ERRORS = (0.8, 0.4, 0.15)
LAMBDAS = np.linspace(0, 1, 101)
curves = {e: np.array([bias_and_variance(V_exact + e * PATTERN, x) for x in LAMBDAS]).T for e in ERRORS}

# %% [markdown]
r"""
The library runs on 40,000 simulated rollouts, and its errors agree with the enumeration:
"""


# %%
def simulate(key: jax.Array, number: int) -> np.ndarray:
    """Returns the states `[number, T+1]` of random walks."""
    start_key, action_key = jax.random.split(key)
    start = jax.random.randint(start_key, (number,), 0, STATES)
    return walk(np.asarray(start), np.asarray(jax.random.bernoulli(action_key, 0.5, (number, STEPS)), int))


walks, some = simulate(jax.random.key(0), 40_000), (0, 50, 90, 100)
rewards, no_end = ENTERED[walks[:, 1:]], np.zeros((len(walks), STEPS), bool)
simulated = {}
for e in ERRORS:
    critic, errors = V_exact + e * PATTERN, []
    for i in some:
        estimate = gae(rewards, critic[walks], no_end, gamma=gamma, lambda_=LAMBDAS[i], time_axis=1).advantages
        squared = (np.asarray(estimate, float)[:, 0] - exact_target(walks, critic)) ** 2
        errors.append(squared.mean())
        assert abs(errors[-1] - curves[e][:, i].sum()) < 5 * squared.std() / np.sqrt(len(squared)) + 1e-6
    simulated[e] = LAMBDAS[list(some)], errors
    bias, variance = curves[e]
    assert (np.diff(bias) < 0).all()
    assert variance[0] < 1e-12
    assert (np.diff(variance) > 0).all()
best = [LAMBDAS[curves[e].sum(0).argmin()] for e in ERRORS]
assert best[0] > best[1] > best[2]  # a better critic wants a smaller lambda
figures.bias_and_variance(LAMBDAS, curves, simulated)

# %% [markdown]
r"""
The mean squared error is a valley, and its lowest point moves left as the critic gets better. This suggests a
$\lambda$ that falls as the critic learns, at a fixed batch size.

### $\lambda$ by batch size

The usual choice is 0.95. The figure above seems to contradict it, with 0.52, 0.28 and 0.07. There is no contradiction:
the figure is about *one* estimate, and a gradient is an average over many. Averaging $N$ independent estimates divides
the variance by $N$. The bias stays:

$$\text{mean squared error} = \text{bias}^2 + \frac{\text{variance}}{N}.$$

The same enumeration, minimized for each $N$:
"""

# %%
COUNTS, MARKED = 2 ** np.arange(13), (1, 16, 64, 256)
best_by_count = {
    e: np.array([LAMBDAS[(bias + variance / n).argmin()] for n in COUNTS]) for e, (bias, variance) in curves.items()
}
figures.best_lambda(COUNTS, best_by_count, MARKED)
at_marked = np.searchsorted(COUNTS, MARKED)
close(best_by_count[0.8][at_marked], [0.52, 0.87, 0.96, 1.0])
close(best_by_count[0.4][at_marked], [0.28, 0.73, 0.87, 0.96])
close(best_by_count[0.15][at_marked], [0.07, 0.43, 0.65, 0.81])
assert all((np.diff(lambdas) >= 0).all() for lambdas in best_by_count.values())  # more data, larger lambda

# %% [markdown]
r"""
Read $N$ with care. The estimates of one rollout are correlated: neighbours in time share nearly all of their TD errors.
So a batch of 2,048 rows counts as far fewer than 2,048 independent estimates. And the rows of a batch are of many
states; how far the errors of a critic cancel over states depends on the critic.

### The same trade for $\gamma$

Suppose that what counts is the *undiscounted* reward of an episode of 12 steps. A $\gamma < 1$ in the estimator is
then a source of bias: it ignores late consequences of early actions. It also removes variance.

The policy's one parameter $\theta$ is the log-odds of going right, in every state. A rollout's estimate of the
gradient is $g = \sum_t \hat A_t\, \nabla_\theta \log \pi(a_t)$, here with the exact critic for each $\gamma$ and
$\lambda = 1$. The exact undiscounted gradient comes from differentiating $J(\theta)$ through the transition matrices.
"""


# %%
def undiscounted_return(theta: jax.Array) -> jax.Array:
    """Computes J, the expected reward of an episode from a random state, through powers of the transition matrix."""
    right = jax.nn.sigmoid(theta)
    transition = right * jnp.eye(STATES)[TO_RIGHT] + (1 - right) * jnp.eye(STATES)[TO_LEFT]
    occupied, total = jnp.full(STATES, 1 / STATES), 0.0
    for _ in range(STEPS):
        occupied = occupied @ transition
        total += occupied @ ENTERED
    return jnp.asarray(total)


def exact_critic(gamma: float) -> np.ndarray:
    """Returns V_t(s), `[T+1, S]`, of an episode that terminates after T steps."""
    values = [np.zeros(STATES)]
    for _ in range(STEPS):
        values.append(P @ (ENTERED + gamma * values[-1]))
    return np.array(values[::-1])


def gradients(states: np.ndarray, actions: np.ndarray, gamma: float) -> np.ndarray:
    """Computes the gradient estimate of each walk `[..., T+1]`; at theta = 0, grad log pi(a) is a - 1/2."""
    late = gamma ** np.maximum(np.arange(STEPS)[None, :] - np.arange(STEPS)[:, None], 0)
    reward_to_go = ENTERED[states[..., 1:]] @ np.triu(late).T
    advantages = reward_to_go - exact_critic(gamma)[np.arange(STEPS), states[..., :-1]]
    return (advantages * (actions - 0.5)).sum(-1)


GAMMAS = np.linspace(0.5, 1, 26)
true_gradient = float(jax.grad(undiscounted_return)(0.0))
every = [gradients(ALL_STATES, ALL_ACTIONS, gamma) for gamma in GAMMAS]
bias = np.array([g.mean() - true_gradient for g in every]) ** 2
variance = np.array([g.var() for g in every])
close(every[-1].mean(), true_gradient)  # without discount there is no bias
assert (np.diff(bias) < 0).all()
assert (np.diff(variance) > 0).all()

# The library on simulated episodes agrees, within 5 standard errors.
walks = simulate(jax.random.key(1), 40_000)
walked_right = walks[:, 1:] > walks[:, :-1]
walked_right |= (walks[:, 1:] == walks[:, :-1]) & (walks[:, 1:] == STATES - 1)  # against the right wall
for i in (0, 10, 25):
    ends = np.broadcast_to(np.arange(STEPS) == STEPS - 1, walked_right.shape)
    values = exact_critic(GAMMAS[i])[np.arange(STEPS + 1), walks]
    estimate = gae(ENTERED[walks[:, 1:]], values, ends, gamma=GAMMAS[i], lambda_=1.0, time_axis=1).advantages
    by_walk = (np.asarray(estimate, float) * (walked_right - 0.5)).sum(1)
    assert abs(by_walk.mean() - every[i].mean()) < 5 * by_walk.std() / np.sqrt(len(by_walk))

relative = {n: (bias + variance / n) / true_gradient**2 for n in (4, 32, 256)}
best = [GAMMAS[error.argmin()] for error in relative.values()]
assert best[0] < best[1] < best[2]
figures.gamma_of_the_estimator(GAMMAS, relative, bias / true_gradient**2)

# %% [markdown]
r"""
### How to choose $\gamma$ and $\lambda$

- **$\gamma$ first.** It belongs to the question: rewards more than about $1 / (1 - \gamma)$ steps ahead hardly count.
  The bias of a small $\gamma$ is there with a perfect critic too. Lower $\gamma$ below what the task asks for only
  where the gradient is too noisy, and raise it with the batch.
- **Then $\lambda$.** With a perfect critic, no $\lambda$ is biased. So two things decide: how wrong the critic is, and
  how much data is averaged. A poor critic or a large batch wants a large $\lambda$; a good critic and a small batch
  want a small one.
- **0.95 is a sensible start.** In the figure it is the best one for a poor critic and some 64 independent estimates.
  A much larger batch, or a critic that hardly learns, is a reason to try 0.98 or 1. Noisy gradients with a good critic
  are a reason to try 0.9 or 0.8.
"""

# %%
assert max(bias_and_variance(V_exact, x)[0] for x in LAMBDAS) < 1e-20  # a perfect critic: no bias at any lambda
assert min(np.square(g.mean() - true_gradient) for g in every[:-1]) > 1e-6  # but with every gamma below 1
assert 0.94 <= best_by_count[0.8][COUNTS == 64][0] <= 0.97

# %% [markdown]
r"""
## 4. What reaches what

The advantages are linear in rewards and values, so the derivatives $\partial \hat A_t / \partial r_s$ and
$\partial \hat A_t / \partial V(s_s)$ say all that the estimator does. JAX computes them from the code as it is. The
rollout here has ten steps: step 3 terminates an episode and step 6 is truncated.

- A reward $r_s$ reaches the steps before it in its own episode, with weight $(\gamma\lambda)^{s-t}$.
- A value $V(s_s)$ reaches its own step with weight $-1$, and an earlier step $t$ with weight
  $\gamma(1-\lambda)(\gamma\lambda)^{s-t-1}$. Nothing comes from beyond a termination.
- Beyond the truncation lies another episode, and nothing comes from there. What the truncated step bootstraps from is
  the value of its final observation, in the picture on the right.

Each boundary is a corner of a block. White cells are exact zeros.
"""

# %%
gamma, lambda_, T, END, LIMIT = 0.95, 0.8, 10, 3, 6
rng = np.random.default_rng(1)
ROLLOUT = {
    "rewards": rng.normal(size=T).astype(np.float32),
    "values": rng.normal(size=T).astype(np.float32),
    "bootstrap_value": np.float32(0.5),
    "final_values": rng.normal(size=T).astype(np.float32),
}
FLAGS = {"terminated": np.arange(T) == END, "truncated": np.arange(T) == LIMIT}


def jacobians(estimate: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns dA/dr `[T, T]`, dA/dV `[T, T+1]`, whose last column is for V(s_T), and dA/dV(final) `[T, T]`."""
    by_name = jax.jacrev(lambda x: estimate(**x, **FLAGS, gamma=gamma, lambda_=lambda_))(ROLLOUT)
    by_value = np.concatenate([by_name["values"], by_name["bootstrap_value"][:, None]], axis=1)
    return np.asarray(by_name["rewards"]), by_value, np.asarray(by_name["final_values"])


PIECES = [(0, END + 1), (END + 1, LIMIT + 1), (LIMIT + 1, T)]  # the rows of each episode
expected_r, expected_v, expected_final = np.zeros((T, T)), np.zeros((T, T + 1)), np.zeros((T, T))
for start, stop in PIECES:
    for t in range(start, stop):
        for s in range(t, stop):
            expected_r[t, s] = (gamma * lambda_) ** (s - t)
            expected_v[t, s] = -1 if s == t else gamma * (1 - lambda_) * (gamma * lambda_) ** (s - t - 1)
expected_v[LIMIT + 1 :, T] = gamma * (gamma * lambda_) ** np.arange(T - 2 - LIMIT, -1, -1)
expected_final[END + 1 : LIMIT + 1, LIMIT] = gamma * (gamma * lambda_) ** np.arange(LIMIT - END - 1, -1, -1)

by_reward, by_value, by_final = jacobians(BUGS["right"])
for expected, got in ((expected_r, by_reward), (expected_v, by_value), (expected_final, by_final)):
    close(got, expected)
    assert (got[expected == 0] == 0).all()  # exactly
figures.jacobians(by_reward, by_value, by_final, END, LIMIT)

# %% [markdown]
r"""
## 5. A gallery of bugs

Each of these mistakes is a small change to the call or to the result. Reports of them in public code:

- The result in reverse: [labml's page](https://nn.labml.ai/rl/ppo/gae.html) tells of it, see section 6.
- The flag of another step: [Stable-Baselines3 105](https://github.com/DLR-RM/stable-baselines3/issues/105), where it
  was the flag of the step after.
- Truncation as termination: [PureJaxRL 20](https://github.com/luchris429/purejaxrl/issues/20),
  [CleanRL 198](https://github.com/vwxyzjn/cleanrl/issues/198).
- Truncation not cut: [skrl 449](https://github.com/Toni-SM/skrl/issues/449).
- $V(s_t)$ for $V(\text{final})$: [rsl_rl 151](https://github.com/leggedrobotics/rsl_rl/issues/151).
- $\lambda$ missing on the first hop: [Brax 583](https://github.com/google/brax/issues/583).
"""

# %%
for name, bug in BUGS.items():
    if name != "right":
        print(inspect.getsource(bug))

# %% [markdown]
r"""
Each of them leaves a mark on the Jacobians. The upper picture of a pair is $\partial \hat A_t / \partial r_s$. The
lower one is $\partial \hat A_t / \partial V(s_s)$, and its last column, apart, belongs to the final observation of step
6. A thick border marks a cell that differs from the right one, at the top left; a white cell with a thick border should
not be zero. A minus marks a negative derivative.

The titles are the names that the library's `gae_jax.testing.check_gae` gives the mistakes. `check_gae` runs a function
on small rollouts, and compares its results with estimators that make one known mistake each.
"""

# %%
CHECKED = {
    "result in reverse": "the result is in reverse",
    "flag of the step before": "the flag of the step before",
    "termination ignored": "termination is ignored",
    "truncation as termination": "truncation as termination",
    "truncation not cut": "truncation does not cut",
    "V(s_t) for V(final)": "V(s_t) for V(final observation)",
    "λ missing on the first hop": "λ is missing on the first hop",
}
marks = {name: jacobians(bug) for name, bug in BUGS.items()}
assert check_gae(BUGS["right"]).right
for name, mistake in CHECKED.items():
    assert mistake in {verdict.mistake for verdict in check_gae(BUGS[name]).verdicts}
    assert any(np.abs(x - y).max() > 0.01 for x, y in zip(marks[name], marks["right"], strict=True))

r_of, v_of, f_of = ({name: x[i] for name, x in marks.items()} for i in range(3))
close(r_of["result in reverse"], r_of["right"][::-1])
assert r_of["flag of the step before"][END, END + 1] > 0  # the next episode leaks in,
assert (r_of["flag of the step before"][END + 1, END + 2 :] == 0).all()  # and its first step is cut off
assert r_of["termination ignored"][END, END + 1] > 0
close(r_of["truncation as termination"], r_of["right"])  # rewards are cut in the right place,
assert (f_of["truncation as termination"] == 0).all()  # but no value follows
assert r_of["truncation not cut"][LIMIT, LIMIT + 1] > 0
close(v_of["V(s_t) for V(final)"][LIMIT, LIMIT], gamma - 1)
close(r_of["λ missing on the first hop"][0, 1:4] * lambda_, r_of["right"][0, 1:4])

gap = np.zeros((T, 1))
pictures = {name: (r, np.hstack([v, gap, f[:, [LIMIT]]])) for name, (r, v, f) in marks.items()}
figures.gallery(pictures, {"right": "right"} | CHECKED, boundaries=(END + 1, LIMIT + 1))

# %% [markdown]
r"""
## 6. Five hours

The code of labml's page collects the advantages backwards in time, into an array. A remark beside it says:

> My initial code was appending to a list and I forgot to reverse it later. It took me around 4 to 5 hours to find the
> bug. The performance of the model was improving slightly during initial runs, probably because the samples are
> similar.

Two questions follow. Which bugs can a trainer see at all? And is the guess right, that such an agent improves *because
the samples are similar*?

`five_hours.py` trains a small [PPO](https://arxiv.org/abs/1707.06347) agent to balance a pole on a cart, with the right
advantages and with six of the bugs, 32 seeds each. In training an episode is truncated after 100 steps. The evaluation
has 500 steps, so it shows what training never does. The agent acts in 32 environments at once. Each of them is a
*worker*, and adds 64 consecutive steps to the rollout.

These four functions are the agent: a step in every environment, a rollout with its advantages, the loss, and one
iteration. `estimate` is one of the functions of section 5.
"""

# %%
print(inspect.getsource(five_hours.act))
print(inspect.getsource(five_hours.collect))
print(inspect.getsource(five_hours.loss))
print(inspect.getsource(five_hours.iterate))

# %% [markdown]
r"""
The results are in `five_hours.json`, with the machine and the versions that made them. A band is a 95% interval of the
mean over seeds, from resampled seeds.
"""

# %%
record = json.loads(pathlib.Path(five_hours.__file__).with_suffix(".json").read_text(encoding="utf-8"))
print(record["machine"])
GROUPS = {
    "RIGHT": ["right"],
    "LOUD": ["termination ignored"],
    "INVISIBLE": ["flag of the step before", "λ missing on the first hop"],
    "SILENT": ["truncation as termination", "truncation not cut", "result in reverse"],
}
by_training = {
    name: figures.lengths_of(record, name) for name in record["results"]
}  # [seeds, time]: what a trainer sees
by_evaluation = {name: figures.evaluations_of(record, name) for name in record["results"]}  # and what it gets


def low(samples: np.ndarray) -> float:
    """Returns the lower end of the 95% interval of the mean."""
    return figures.interval(samples)[0]


def high(samples: np.ndarray) -> float:
    """Returns the upper end."""
    return figures.interval(samples)[1]


trained = {name: lengths[:, -1] for name, lengths in by_training.items()}
final = {name: evaluations[:, -1] for name, evaluations in by_evaluation.items()}
untrained = by_evaluation["result in reverse"][:, 0]

assert high(trained["termination ignored"]) < 50  # loud: seen in training
for name in (*GROUPS["INVISIBLE"], "truncation as termination", "truncation not cut"):  # not seen at any time
    assert np.abs(by_training[name].mean(0) - by_training["right"].mean(0)).max() < 3, name
assert low(trained["result in reverse"]) > 80  # it looks like an agent that learns
for name in GROUPS["SILENT"]:  # the intervals separate
    assert high(final[name]) < low(final["right"]), name
for name in GROUPS["INVISIBLE"]:  # the intervals overlap
    assert max(low(final["right"]), low(final[name])) <= min(high(final["right"]), high(final[name])), name
figures.learning_curves(record, GROUPS, five_hours.LEFT_OUT)

# %% [markdown]
r"""
The same numbers seed by seed, at the end of training:
"""

# %%
assert untrained.mean() < 40 < 200 < low(final["result in reverse"])  # the reversed one learns
assert high(final["termination ignored"]) < 40  # this one does not
figures.seen_and_got(record, [name for group in GROUPS.values() for name in group])

# %% [markdown]
r"""
One bug is **loud**: with termination ignored the agent never learns to stand, and the training curve shows it.

Two bugs are **silent**: truncation as termination, and truncation not cut. Their agents train as the right agent does,
up to the limit of 100 steps. Beyond the limit these agents fall. In training only the bootstrap from the final
observation carries what would come after the limit, and both bugs spoil it.

The reversed result deceives most: it **learns**. Its agents rise from about 30 steps to more than 200, and their
training episodes come close to the limit. A trainer who looks at the training curve sees an agent that needs some
tuning.

Two bugs are **not visible here at all**: the flag of the step before, and $\lambda$ missing on the first hop. This
task forgives them: a good agent hardly ever terminates in training, and a larger weight on later TD errors does no
harm. Another task may not forgive them. A learning curve is no test of an estimator; `check_gae` finds each of these
bugs in seconds.
"""

# %% [markdown]
r"""
### Was the guess right?

If the samples of a worker are similar, an advantage on the wrong row of the right worker is still partly right: it
says how well this worker's 64 steps went. This can be tested. The same agent is trained with the right advantages on
other rows. Random orders are drawn anew in each iteration. The critic's targets are advantage plus value, as in labml's
agent, so they move along.

| order | what is left of the right advantages |
|---|---|
| a random order of time, within each worker | which worker did well |
| on each row, the mean of its worker | which worker did well, and nothing else |
| in reverse | which worker did well; time runs the wrong way |
| in reverse, of another worker | nothing but the numbers, and that neighbours in time are alike |
| all shuffled | nothing but the numbers |
"""

# %%
ORDERS = {
    "right": "right",
    "mean of the worker": "mean of the worker",
    "random order of time": "random order of time,\nwithin each worker",
    "result in reverse": "in reverse",
    "reverse of another worker": "in reverse,\nof another worker",
    "all shuffled": "all shuffled",
}
for name in five_hours.ORDERS:
    print(inspect.getsource(five_hours.ORDERS[name]))

# %%
at_end = {name: final[name] for name in ORDERS}
assert low(at_end["mean of the worker"]) > 300  # which worker did well is enough to learn,
assert low(at_end["random order of time"]) > 300
assert np.sum(at_end["all shuffled"] > 200) == 1  # the lucky one
for name in ("mean of the worker", "random order of time"):
    assert high(at_end[name]) < low(at_end["right"]), name  # though not to learn all,
    assert high(at_end["result in reverse"]) < low(at_end[name]), name  # and the wrong order of time does harm;
for name in ("reverse of another worker", "all shuffled"):
    assert high(at_end[name]) < low(at_end["result in reverse"]), name  # on the wrong worker nothing is left
    assert low(at_end[name]) < untrained.mean(), name  # not better than before training
figures.orders(record, ORDERS)

# %% [markdown]
r"""
In this task the guess was right, and it can be made exact. **Which worker did well survives the reversal, and that
alone trains.** Agents that are given nothing but the means of the workers reach about 400 steps. With the advantages of
other workers they end no better than they began, on average; one agent of the 32 with shuffled advantages was lucky.

The reversed agents are worse than the agents with a random order of time. So the order in time is not merely lost: it
misleads. Both halves can be seen in the advantages of agents that learn from the right ones, here in the first 16
iterations of 8 agents. *Between* workers lies about a fifth of the variance; the reversal leaves this part alone.
*Within* a worker, the reversed advantages and the right ones have a correlation of about $-0.2$, where a random order
would have 0:
"""


# %%
@jax.jit
@jax.vmap
def watched_iteration(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
    """Returns the next state of an agent, and the right advantages that it learns from, `[STEPS, ENVS]`."""
    params, _, _, envs = state
    _, _, advantages = five_hours.collect(five_hours.right, params, envs, jax.random.split(key, 3)[0])
    return five_hours.iterate(five_hours.right, five_hours.in_order, state, key)[0], advantages


SEEDS = 8
starts = jax.random.split(jax.random.key(100), (SEEDS, 3))
state = jax.vmap(lambda keys: five_hours.untrained(*keys))(starts)
shares, correlations = [], []
for i in range(16):
    state, advantages = watched_iteration(state, jax.random.split(jax.random.key(i), SEEDS))
    of_worker = np.mean(advantages, axis=1, keepdims=True)
    within = np.asarray(advantages) - of_worker
    shares.append(np.mean(of_worker.var((1, 2)) / np.var(advantages, axis=(1, 2))))
    correlations.append(np.mean([np.corrcoef(a.ravel(), a[::-1].ravel())[0, 1] for a in within]))
assert min(shares) > 0.05
assert 0.15 < np.mean(shares) < 0.25  # about a fifth
assert max(correlations) < 0
assert -0.3 < np.mean(correlations) < -0.1  # about -0.2

# %% [markdown]
r"""
## 7. A dropped row is no sample

Some environments lose the final observation; [environments.md](environments.md) says which, and where the others keep
it. Where its value is not known, a truncated row is dropped: its advantage is 0, and its target is its value. Zero
sounds neutral. It stops being neutral as soon as the advantages are standardized, since the mean is subtracted from it
too. Then the loss makes the action of that row less likely, or more likely, for no reason.

So a dropped row has to stay out of the mean, of the variance and of the loss. `normalize` takes a mask for this:
"""

# %%
T, DROPPED = 8, 5
rng = np.random.default_rng(6)
rewards, values = 1 + 0.3 * rng.normal(size=T), 0.3 * rng.normal(size=T + 1)  # better than the critic expects
flags = {"terminated": np.zeros(T, bool), "truncated": np.arange(T) == DROPPED}
advantages, targets = gae(rewards, values, **flags, gamma=0.9, lambda_=0.8)
is_sample = ~flags["truncated"]
counted, kept = normalize(advantages), normalize(advantages, mask=is_sample)
for title, x in {"A": advantages, "all rows": counted, "samples only": kept}.items():
    print(f"{title:>12}" + "".join(f"{number:7.2f}" for number in x))

assert advantages[DROPPED] == 0
close(targets[DROPPED], values[DROPPED])
close(counted[DROPPED], -np.mean(advantages) / np.std(advantages))
assert counted[DROPPED] == counted.min() < -2  # the action of the dropped row would be made much less likely
assert kept[DROPPED] == 0
close(kept[is_sample], (advantages[is_sample] - advantages[is_sample].mean()) / advantages[is_sample].std())
figures.dropped_row(*map(np.asarray, (advantages, counted, kept)), dropped=DROPPED)

# %% [markdown]
r"""
## 8. One number is all that earlier time needs

One step maps $h_{t+1}$ to $h_t$, and the map is affine:

$$h_t = a_t h_{t+1} + b_t, \qquad a_t = \gamma\lambda, \quad b_t = \lambda r_t + (1 - \lambda) V(s_t),$$

with $a_t = 0$ where an episode ends. A map of a map is affine again. So a whole piece of a rollout, of any length,
acts on earlier time through one number, and the piece itself is two numbers, $a$ and $b$.
"""

# %%
gamma, lambda_, T = 0.99, 0.95, 48
rng = np.random.default_rng(2)
rewards, values = rng.normal(size=T).astype(np.float32), rng.normal(size=T).astype(np.float32)
ends = np.zeros(T, bool)
ends[20] = True


def piece(start: int, stop: int, h: Any) -> tuple[jax.Array, jax.Array]:
    """Estimates rows start to stop - 1, given h of row `stop`; returns their advantages, and h of row `start`."""
    rows = slice(start, stop)
    advantages, _ = gae(rewards[rows], values[rows], ends[rows], gamma=gamma, lambda_=lambda_, bootstrap_value=h)
    return advantages, values[start] + lambda_ * advantages[0]


inputs = np.linspace(-4, 4, 5, dtype=np.float32)
lines = {}
for start, stop in ((47, 48), (40, 48), (28, 48), (16, 48)):
    outputs = np.array([piece(start, stop, h)[1] for h in inputs])
    slope = (outputs[-1] - outputs[0]) / 8
    close(outputs, outputs[2] + slope * inputs)  # a straight line, of the slope that it should have:
    close(slope, 0 if ends[start:stop].any() else (gamma * lambda_) ** (stop - start))
    lines[f"length {stop - start}: slope {slope:.2f}" + ", an episode ends in it" * bool(ends[start:stop].any())] = (
        outputs
    )
assert piece(16, 48, inputs[0])[1] == piece(16, 48, inputs[-1])[1]  # nothing passes the end of an episode
figures.affine_pieces(inputs, lines)

# %% [markdown]
r"""
**Streaming.** A rollout may be cut anywhere. Estimate the later piece first and pass its $h$ on as the
`bootstrap_value` of the earlier one. The pieces' advantages equal the whole rollout's.

**Time split over devices.** Each device composes its piece into $(a, b)$; the devices exchange these pairs, whatever
the length of the pieces; then each device knows its $h$ and runs its piece. In the library this is the argument
`axis_name`, inside `jax.shard_map`.

**A scan without a loop.** On one GPU the same three steps run over blocks of rows, all blocks at once. In the library
this is `implementation="blocked"`, and its program has no loop.
"""

# %%
bootstrap = np.float32(0.7)
options: dict[str, Any] = {"gamma": gamma, "lambda_": lambda_}
whole, _ = gae(rewards, values, ends, **options, bootstrap_value=bootstrap)

for cut in (1, 7, 20, 21, 33, 47):  # streaming
    later, h = piece(cut, T, bootstrap)
    earlier, _ = piece(0, cut, h)
    close(jnp.concatenate([earlier, later]), whole)

mesh = Mesh(np.array(jax.devices("cpu")[:4]), ("time",))  # four devices, 12 rows each
rows = PartitionSpec("time")
split = jax.jit(
    jax.shard_map(
        lambda r, v, e, last: gae(r, v, e, **options, bootstrap_value=last, axis_name="time").advantages,
        mesh=mesh,
        in_specs=(rows, rows, rows, PartitionSpec()),
        out_specs=rows,
    )
)
close(split(rewards, values, ends, bootstrap), whole)


def program(implementation: str) -> str:
    """Returns what JAX lowers an implementation to."""
    call = functools.partial(gae, **options, bootstrap_value=bootstrap, implementation=implementation)
    return jax.jit(call).lower(rewards, values, ends).as_text()


close(gae(rewards, values, ends, **options, bootstrap_value=bootstrap, implementation="blocked").advantages, whole)
assert "stablehlo.while" in program("scan")
assert "stablehlo.while" not in program("blocked")
figures.blocks(number=4, rows=4)

# %% [markdown]
r"""
## 9. Tokens

In a language model's sample a step is the choice of one token, and not every position is a step: the prompt was
given, a tool wrote its output, and padding fills the row. `mask` is False there. The recursion skips these rows, so
credit passes from the answer over the tool's output to the call of the tool.

This is the rule, around the step of section 1:
"""

# %%
print(inspect.getsource(_recursion.skipping_step))

# %% [markdown]
r"""
The sample below has a prompt (p), a call and an answer by the policy (x), a tool's output between (t), and padding
(.). The reward is 1 at the last chosen token. With a decay for each token, little of the reward reaches the call.
With one decay per *turn*, the tokens of a turn share an advantage: estimate on the first token of each turn, with the
turn's rewards summed there, and copy.
"""

# %%
KINDS = np.array(list("pppxxxxxxttttxxxxxxxxx...."))
chosen = KINDS == "x"
last = np.flatnonzero(chosen)[-1]
terminated = np.arange(len(KINDS)) == last
rewards = np.where(chosen, 1.0 * terminated, np.nan).astype(np.float32)  # NaN: nothing there is read
values = np.where(chosen, 0.2, np.nan).astype(np.float32)
options = {"gamma": 1.0, "lambda_": 0.8, "bootstrap_value": np.float32(np.nan)}
by_token = gae(rewards, values, terminated, mask=chosen, **options).advantages

first = chosen & ~np.append(False, chosen[:-1])  # the first token of each turn
turn = np.cumsum(first) - 1  # the number of the turn that a chosen token belongs to
at_first, ended = np.zeros_like(rewards), np.zeros_like(first)
at_first[first] = [rewards[chosen & (turn == i)].sum() for i in range(first.sum())]
ended[np.flatnonzero(first)[-1]] = True  # the last turn ends the episode
by_turn = gae(at_first, values, ended, mask=first, **options).advantages
by_turn = np.where(chosen, np.asarray(by_turn)[np.flatnonzero(first)[np.maximum(turn, 0)]], 0)

# Masked rows are as if they were not there: the estimate on the chosen tokens alone is the same.
close(by_token[chosen], gae(rewards[chosen], values[chosen], terminated[chosen], **options).advantages)
assert (np.asarray(by_token)[~chosen] == 0).all()
close(by_token[last], 1 - 0.2)
answer = chosen & (turn == 1)
close(by_turn[answer], 1 - 0.2)  # all tokens of the answer share what the answer earned,
close(by_turn[chosen & (turn == 0)], 0.8 * (1 - 0.2))  # and the call has one decay more
assert by_token[3] < 0.1 < by_turn[3]
figures.tokens(KINDS, turn, np.asarray(by_token), by_turn)

# %% [markdown]
r"""
**Lambda by length.** With a reward at the end of $L$ tokens, the first token gets the share $\lambda^{L-1}$. At
$\lambda = 0.95$ and 1,000 tokens the share is practically 0. $\lambda = 1 - 1/(\alpha L)$ lets about the same share
reach the first token at every length; in the figure $\alpha = 1$. `lambda_` takes an array, so each sample of a batch
may have its own.

**Packed sequences.** Several samples may lie one after the other in a row. The last token of each is a termination.
The Jacobian falls into blocks: no sample sees another.
"""

# %%
LENGTHS = [2**i for i in range(3, 12)]


def share_of_the_first_token(length: int, lambda_: float) -> float:
    """Returns the advantage of the first of `length` tokens, where the last has a reward of 1 and all values are 0."""
    is_last = np.arange(length) == length - 1
    zeros = np.zeros(length + 1, np.float32)
    return float(gae(1.0 * is_last, zeros, is_last, gamma=1.0, lambda_=lambda_).advantages[0])


shares = {}
for lambda_ in (0.95, 0.99):
    shares[f"$\\lambda = {lambda_}$"] = [share_of_the_first_token(length, lambda_) for length in LENGTHS]
    close(shares[f"$\\lambda = {lambda_}$"], lambda_ ** (np.array(LENGTHS) - 1.0), atol=1e-4)
shares[r"$\lambda = 1 - 1/L$"] = [share_of_the_first_token(length, 1 - 1 / length) for length in LENGTHS]
assert np.ptp(shares[r"$\lambda = 1 - 1/L$"]) < 0.03  # hardly depends on the length
assert share_of_the_first_token(1000, 0.95) < 1e-20

bounds = np.array([0, 5, 12, 18])  # where the samples begin, and where the last one ends
rng = np.random.default_rng(3)
rewards, values = (rng.normal(size=bounds[-1]).astype(np.float32) for _ in range(2))
ends = np.isin(np.arange(bounds[-1]), bounds[1:] - 1)
options = {"gamma": 1.0, "lambda_": 0.9, "bootstrap_value": np.float32(0)}
together = gae(rewards, values, ends, **options).advantages
for start, stop in itertools.pairwise(bounds):
    rows = slice(start, stop)
    close(together[rows], gae(rewards[rows], values[rows], ends[rows], **options).advantages)
reaches = np.asarray(jax.jacrev(lambda r: gae(r, values, ends, **options).advantages)(rewards))
sample = np.searchsorted(bounds, np.arange(bounds[-1]), side="right")
assert (reaches[sample[:, None] != sample] == 0).all()
figures.lengths_and_packing(LENGTHS, shares, reaches)

# %% [markdown]
r"""
## 10. One rollout, seven lambdas

One rollout of 60 steps and its advantages, for seven values of $\lambda$. At $\lambda = 0$ the advantage is the TD
error: it credits single steps, as the critic sees them. At $\lambda = 1$ the advantage is the Monte Carlo return
minus the value: it changes slowly over time, because each step shares nearly all of its future with the next. The
common choice of 0.95 lies near the right end, and much of the change happens beyond it.
"""

# %%
T, gamma, row = 60, 0.99, np.arange(60)
rng = np.random.default_rng(5)
rewards = np.where(np.isin(row, (14, 40)), 3.0, 0.0) - 3.0 * (row == 27) + 0.1 * rng.normal(size=T)
values = 1.5 * np.sin(np.arange(T + 1) / 9) + 0.3 * rng.normal(size=T + 1)
strip = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0)
batch = np.repeat(rewards[:, None], len(strip), 1), np.repeat(values[:, None], len(strip), 1)
advantages = gae(*batch, np.zeros((T, len(strip)), bool), gamma=gamma, lambda_=np.array(strip)).advantages
monte_carlo = [gamma ** np.arange(T - t) @ rewards[t:] + gamma ** (T - t) * values[T] - values[t] for t in range(T)]
close(advantages[:, 0], rewards + gamma * values[1:] - values[:-1])
close(advantages[:, -1], monte_carlo)

neighbours = [float(np.corrcoef(a[:-1], a[1:])[0, 1]) for a in np.asarray(advantages).T]
print("correlation of neighbours in time:", np.round(neighbours, 2))
assert neighbours[:5] == sorted(neighbours[:5])  # up to 0.95; beyond, the curves are all smooth
assert neighbours[0] < 0.2 < 0.9 < min(neighbours[4:])
change = np.sqrt(np.mean((np.asarray(advantages) - advantages[:, [4]]) ** 2, axis=0))  # from those of 0.95
assert change[-1] > 0.5 * change[0]  # beyond 0.95 the advantages change more than half as much as up to it
figures.lambdas(rewards, values, np.asarray(advantages), strip)
