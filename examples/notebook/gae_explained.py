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

- $r_t$ is the reward of the step from state $s_t$ to $s_{t+1}$.
- $V$ is the *critic*: a network that guesses the rewards that will follow a state.
- $\gamma$, the *discount*, is what a reward is worth that comes one step later. It defines what the agent maximizes.
- $\lambda$ sets how many rewards an estimate takes before it relies on the critic. It does not change what is
  estimated; it trades two errors of the estimate.

This page derives the formula, checks it on six numbers, measures what $\lambda$ trades, and shows what happens to an
agent when the formula is wrong in one place. Every number is computed by the library `gae_jax` or checked against it;
the numbers of section 6 come from a file that `bug_study.py` writes. A cell that draws a figure asserts the claim that
the figure supports. The drawing is in `gae_figures.py`, and longer computations are in `gae_measured.py`.

0. Why an advantage
1. Six steps by hand
2. The weights
3. Bias and variance; how to choose $\gamma$ and $\lambda$
4. Which rewards and values an advantage depends on
5. A gallery of bugs
6. Five hours
7. A dropped row is no sample
8. One number is all that earlier time needs
9. Tokens
10. From single steps to long stretches

This notebook is made from `gae_explained.py`. With the extra `notebook` installed, one line makes and runs it:

```sh
jupytext --to ipynb examples/notebook/gae_explained.py && jupyter execute --inplace examples/notebook/gae_explained.ipynb
```
"""

# %%
import functools
import inspect
import itertools
import json
import pathlib
from typing import Any

import bug_study
import gae_figures as figures
import gae_measured as measured
import jax
import jax.numpy as jnp
import numpy as np
from bug_study import BUGS
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

From here on rewards are discounted by $\gamma$: a reward that comes $i$ steps later counts $\gamma^i$ times as much.

A rollout is a piece of experience: states $s_0, \dots, s_T$, the rewards $r_0, \dots, r_{T-1}$ between them, and the
critic's guess $V(s_t)$ for each state. The last state has a value and no reward. A *row* is one step $t$ of it.

The shortest estimate of the advantage takes one reward, and then *bootstraps*: the critic's value of the next state
stands for all rewards that follow it. The result is the TD error:

$$A_t^{(1)} = r_t + \gamma V(s_{t+1}) - V(s_t) = \delta_t.$$

A longer estimate takes $k$ rewards as they came, and bootstraps afterwards:

$$A_t^{(k)} = r_t + \gamma r_{t+1} + \gamma^2 r_{t+2} + \dots + \gamma^{k-1} r_{t+k-1} + \gamma^k V(s_{t+k}) - V(s_t).$$

GAE is the average of all $A_t^{(k)}$ with weights that fall by a factor $\lambda$ a step. The factor $1 - \lambda$
makes an average of the sum, since $1 + \lambda + \lambda^2 + \dots = 1 / (1 - \lambda)$:

$$\hat A_t = (1 - \lambda) \left( A_t^{(1)} + \lambda A_t^{(2)} + \lambda^2 A_t^{(3)} + \dots \right).$$

### From the average to the sum of TD errors

*The values telescope.* In $\sum_{i<k} \gamma^i \delta_{t+i}$ each $\gamma^i \cdot \gamma V(s_{t+i+1})$ meets the
$-\gamma^{i+1} V(s_{t+i+1})$ of the next term. What is left are $k$ rewards, the last value and the first:

$$A_t^{(k)} = \sum_{i=0}^{k-1} \gamma^i\, \delta_{t+i}.$$

*Swap the sums.* $\delta_{t+i}$ occurs in every $A_t^{(k)}$ with $k > i$, and these have the weights
$\sum_{k>i} \lambda^{k-1} = \lambda^i + \lambda^{i+1} + \dots = \lambda^i / (1-\lambda)$:

$$\hat A_t = (1-\lambda) \sum_{k \ge 1} \lambda^{k-1} \sum_{i<k} \gamma^i \delta_{t+i}
= \sum_{i \ge 0} \gamma^i \delta_{t+i}\, (1-\lambda) \sum_{k > i} \lambda^{k-1}
= \sum_{i \ge 0} (\gamma\lambda)^i\, \delta_{t+i}.$$

*Take the first term out.* The rest is the same sum, one step later and multiplied by $\gamma\lambda$:

$$\hat A_t = \delta_t + \gamma\lambda\, \hat A_{t+1}.$$

*The end of the rollout.* After $T$ steps there are no more TD errors. Set $\delta_T = \delta_{T+1} = \dots = 0$: the
recursion starts from $\hat A_T = 0$, and, with $n = T - t$ rows left, all $A_t^{(k)}$ with $k > n$ equal $A_t^{(n)}$.
So the longest estimate has the weight of all of them: $(1-\lambda)(\lambda^{n-1} + \lambda^n + \dots) = \lambda^{n-1}$.
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

TD($\lambda$) does the same from the other side. It goes forward in time, and gives each new $\delta_j$ to all earlier
states, with a weight that falls by $\gamma\lambda$ a step. With the values held fixed, both move the critic equally.

### What is biased

$A_t^{(\infty)}$ has all rewards. [labml's page](https://nn.labml.ai/rl/ppo/gae.html) calls it unbiased, and that is
right in this sense: it contains no guess of the future. What is left of the critic, $-V(s_t)$, is free by section 0.

A rollout that is cut has no $A_t^{(\infty)}$. With $\lambda = 1$ the longest estimate is left, $n = T - t$ rewards and
then the critic: it keeps $\gamma^n$ times the error of $V(s_T)$. In the last rows that is nearly the whole error.
"""

# %%
returns = [[a + V[t] for a in A_k[t]] for t in range(T)]
close(targets, [w @ g for w, g in zip(weights, returns, strict=True)])  # the lambda-return

features = np.random.default_rng(0).normal(size=(T, 3))  # a linear critic has V(s) = features(s) @ parameters
trace, backward = np.zeros(3), np.zeros(3)
for j in range(T):
    trace = gamma * lambda_ * trace + features[j]
    backward += delta[j] * trace
close(backward, A @ features)  # TD(lambda) and GAE move the parameters equally

wrong_end = V + np.append(np.zeros(T), 10.0)  # an error of 10 in V(s_T)
change = gae(r, wrong_end, never, gamma=gamma, lambda_=1.0)[0] - gae(r, V, never, gamma=gamma, lambda_=1.0)[0]
close(change, 10 * gamma ** (T - np.arange(T)))

# %% [markdown]
r"""
### Four slips in a well-known page

This library grew from [labml's annotated GAE](https://nn.labml.ai/rl/ppo/gae.html). Its code is right. Its formulas had
four slips:

1. *A reward index.* $\hat A_t^{(\infty)} = r_t + \gamma r_{t+1} + \gamma^2 r_{t+1} + \dots - V(s)$: the third term is
   $\gamma^2 r_{t+2}$.
2. *The factor $1 - \lambda$.* The average was $\sum_k w_k \hat A_t^{(k)}$ with $w_k = \lambda^{k-1}$. These weights sum
   to $1 / (1 - \lambda)$, so the result was that many times too large.
3. *The last exponent.* The sum of TD errors ends with $(\gamma\lambda)^{T-t+1} \delta_{T-1}$. From $t$ to $T-1$ there
   are $T-t-1$ steps, so the last term is $(\gamma\lambda)^{T-t-1} \delta_{T-1}$.
4. *A missing index.* Each $\hat A_t^{(k)}$ ends with $- V(s)$; it is $- V(s_t)$.

The first two were [reported](https://github.com/labmlai/annotated_deep_learning_paper_implementations/issues/255) and
[corrected](https://github.com/labmlai/annotated_deep_learning_paper_implementations/commit/20494ae94cd3e8a73d0007e25343e43e0ee66a14)
on 24 June 2024; the average is now divided by $\sum_k w_k$. The other two were still there on 21 August 2025, in the
newest source that we read. The third is older than the page: equations (10) and (11) of the
[PPO paper](https://arxiv.org/abs/1707.06347) have the same exponent, $T-t+1$, for $r_{T-1}$ and for $\delta_{T-1}$.
"""

# %%
third_term_slips = r[0] + gamma * r[1] + gamma**2 * r[1] + gamma**3 * V[3] - V[0]
assert abs(third_term_slips - n_step_advantages(r, V, never, n=3, gamma=gamma)[0]) > 1
w = lambda_ ** np.arange(200)  # w_1, w_2, ...
average = sum(w[k - 1] * k_step_advantage(0, k) for k in range(1, 201))
close(average, by_library[0] / (1 - lambda_))
close(average / w.sum(), by_library[0])  # as corrected
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

This is the step as the library runs it, printed from the installed package. $\lambda$ may vary over time, with
$\hat A_t = \delta_t + \gamma\lambda_t \hat A_{t+1}$. Then $h_t$, which step $t-1$ reads, has the factor
$\lambda_{t-1}$: `lambda_before` in the code.
"""

# %%
print(inspect.getsource(_recursion.step))
print(inspect.getsource(_recursion.next_value))

# %% [markdown]
r"""
## 2. The weights

Far from the end of a rollout the weights are geometric. Near its end the longest estimate has the weight of all that
would have followed. With $\lambda = 0.9$, $A^{(n)}$ has 66% of the weight where five rows are left, and 90% where two
are left, however long the rollout is.

A finite-horizon variant ([arXiv:2602.03386](https://arxiv.org/abs/2602.03386)) divides by the sum of the weights that
exist instead, so that they keep their ratio $\lambda$:

$$w_k(n) = \frac{(1 - \lambda)\lambda^{k-1}}{1 - \lambda^n}, \qquad k = 1, \dots, n.$$

The variant is GAE with a $\lambda$ that varies over time. Two facts show it: $A_t^{(k)} = \delta_t + \gamma
A_{t+1}^{(k-1)}$ for $k > 1$, and $w_k(n) / (1 - w_1(n)) = w_{k-1}(n-1)$. So
$\hat A_t = \delta_t + \gamma \sum_{k>1} w_k(n) A_{t+1}^{(k-1)} = \delta_t + \gamma (1 - w_1(n)) \hat A_{t+1}$, and

$$\lambda_t = 1 - w_1(n) = \lambda\, \frac{1 - \lambda^{n-1}}{1 - \lambda^n}.$$

*Should you use it?* With $n$ rows left it moves less than $\lambda^n$ of the weight: it changes the last rows of a
rollout. [ManiSkill's author](https://github.com/mani-skill/ManiSkill/issues/804) found that it worked well with a
simulator on the CPU, and less well with the short rollouts of one on the GPU. The usual weights are the place to start.
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
for n in range(2, length + 1):
    w = renormalized_weights_of(n, lambda_)
    close(w[1:] / (1 - w[0]), renormalized_weights_of(n - 1, lambda_))
    assert 0.4 * lambda_**n < np.maximum(w - weights_of(n, lambda_), 0).sum() < lambda_**n  # the share that it moves
close([weights_of(n, lambda_)[-1] for n in (5, 2)], [0.6561, 0.9])

variants = {"GAE": weights_of, "renormalized": renormalized_weights_of}
figures.weights({name: [weigh(n, lambda_) for n in (12, 5, 2)] for name, weigh in variants.items()}, lambda_)

# %% [markdown]
r"""
## 3. Bias and variance

Why average at all? A short estimate has the critic's error in it: **bias**. A long one has the randomness of many
actions in it: **variance**. $\lambda$ sets the mixture.

The trade can be measured without any sampling error. The task is a walk on five states in a row. The policy goes left
or right with probability one half; at either end, a step outwards leaves it where it is. A step that enters state $s'$
earns the reward $r(s')$. With $P$ the matrix of the probabilities of going from $s$ to $s'$, the values $V^\pi$ solve
$(I - \gamma P) V^\pi = P\,r$, and $Q^\pi(s, a) = r(s') + \gamma V^\pi(s')$.

A rollout of 12 steps is one of $2^{12}$ sequences of actions from one of five states. All of them are enumerated. So
the mean and the variance of $\hat A_0$ are exact, for each first state and first action. The critic is
$V = V^\pi + \varepsilon u$, with $u = (+1, -1, -1, +1, -1)$ and $\varepsilon$ the critic's error.

Agents log the *explained variance* of the critic, here $1 - \mathrm{var}(V - V^\pi) / \mathrm{var}(V^\pi)$. At
$\varepsilon = 0.8$ it is negative: a constant would be a better critic. (A log compares the critic with noisy targets
in place of $V^\pi$, so its numbers differ.)

The estimate is compared with $Q^\pi(s_0, a_0) - V(s_0)$. This leaves the critic's error at $s_0$ out of the bias, since
by section 0 an error that both actions share does no harm.
"""

# %%
ERRORS, LAMBDAS, GAMMA, V_EXACT = (0.8, 0.4, 0.15), np.linspace(0, 1, 101), measured.GAMMA, measured.V_EXACT
close((np.eye(5) - GAMMA * measured.P) @ V_EXACT, measured.P @ measured.ENTERED)


def squared_bias_and_variance(critic: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns squared bias and variance for each lambda, averaged over the first state and first action."""
    bias, variance = measured.bias_and_variance(critic, LAMBDAS)
    return (bias**2).mean((0, 1)), variance.mean((0, 1))


pattern = np.array([1, -1, -1, 1, -1])
critics = {e: V_EXACT + e * pattern for e in ERRORS}
curves = {e: squared_bias_and_variance(critic) for e, critic in critics.items()}
explained = {e: float(1 - np.var(critic - V_EXACT) / np.var(V_EXACT)) for e, critic in critics.items()}
close(list(explained.values()), [-2.30, 0.17, 0.88], atol=0.005)

simulated = {
    e: {x: measured.errors_of_the_library(critic, x) for x in (0, 0.5, 0.9, 1)} for e, critic in critics.items()
}
for e, (bias, variance) in curves.items():
    assert (np.diff(bias) < 0).all()
    assert variance[0] < 1e-12
    assert (np.diff(variance) > 0).all()
    for x, errors in simulated[e].items():  # the library agrees, on 40,000 simulated rollouts
        exact = np.interp(x, LAMBDAS, bias + variance)
        assert abs(errors.mean() - exact) < 5 * errors.std() / np.sqrt(len(errors)) + 1e-6
best = [LAMBDAS[np.argmin(bias + variance)] for bias, variance in curves.values()]
assert best[0] > best[1] > best[2]  # a better critic wants a smaller lambda
figures.bias_and_variance(LAMBDAS, curves, explained, simulated)

# %% [markdown]
r"""
The mean squared error has a lowest point, and the point moves left as the critic gets better. This suggests a $\lambda$
that falls as the critic learns, at a fixed batch size.

### $\lambda$ by batch size

The usual choice is 0.95. The figure above seems to contradict it, with 0.52, 0.28 and 0.07. There is no contradiction:
the figure is about *one* estimate, and a gradient is an average over many. Averaging $N$ independent estimates for the
same state and action divides the variance by $N$. The bias stays:

$$\text{mean squared error} = \text{bias}^2 + \frac{\text{variance}}{N}.$$

The same enumeration, minimized for each $N$:
"""

# %%
COUNTS, MARKED = 2 ** np.arange(13), (1, 16, 64, 256)


def best_lambdas(squared_bias: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Returns the best lambda for each N of COUNTS."""
    return LAMBDAS[np.argmin(squared_bias + variance / COUNTS[:, None], axis=1)]


by_count = {e: best_lambdas(*curve) for e, curve in curves.items()}
figures.best_lambda(COUNTS, by_count, explained, MARKED)
at_marked = np.searchsorted(COUNTS, MARKED)
close(by_count[0.8][at_marked], [0.52, 0.87, 0.96, 1.0])
close(by_count[0.4][at_marked], [0.28, 0.73, 0.87, 0.96])
close(by_count[0.15][at_marked], [0.07, 0.43, 0.65, 0.81])
assert all((np.diff(lambdas) >= 0).all() for lambdas in by_count.values())  # more data, larger lambda

# %% [markdown]
r"""
What the numbers depend on:

- **The pattern of the error.** With another pattern of the same size the best $\lambda$ differs by up to 0.3. At
  $\varepsilon = 0.8$ it lies between 0.33 and 0.70 for $N = 1$, and between 0.84 and 1 for $N = 16$.
- **The part of the bias that both actions share.** The measured bias still contains some: 20% of bias$^2$ at
  $\lambda = 0$, 84% at 0.95, 99% at 1. It does no harm to a gradient. Without it the best $\lambda$ is smaller, by up
  to 0.06.
- **$N$ is not the batch.** The walk has ten pairs of a state and an action, so a batch of 2,048 rows has some 200 of
  each. And rows of one rollout are correlated: the gradient of a whole walk has 1.9 to 2.5 times the variance of 12
  independent rows at $\lambda = 0.95$, and up to 4.6 times at $\lambda = 0$. So at 0.95 the batch counts as some 100
  independent estimates of each pair. With a network, which generalizes from state to state, $N$ is unknown. Take the
  direction from the figure, not the number.
"""

# %%
patterns = np.array(list(itertools.product((1, -1), repeat=5)))
for e in ERRORS:
    others = np.array([best_lambdas(*squared_bias_and_variance(V_EXACT + e * u)) for u in patterns])[:, at_marked]
    assert 0.2 < abs(others - by_count[e][at_marked]).max() < 0.3 or e == 0.8
    if e == 0.8:
        close([others[:, 0].min(), others[:, 0].max(), others[:, 1].min(), others[:, 1].max()], [0.33, 0.7, 0.84, 1])

for e in ERRORS:
    bias, variance = measured.bias_and_variance(critics[e], LAMBDAS)
    shared = (bias.mean(1) ** 2).mean(0)  # the mean over both actions
    close((shared / curves[e][0])[[0, 95, 100]], [0.2, 0.84, 0.99], atol=0.005)
    without = best_lambdas(curves[e][0] - shared, curves[e][1])
    assert (without <= by_count[e]).all()
    assert abs(without - by_count[e]).max() < 0.065

relative = {x: [measured.variance_of_a_walk(critic, x) for critic in critics.values()] for x in (0, 0.95)}
close([min(relative[0.95]), max(relative[0.95]), max(relative[0])], [1.9, 2.45, 4.6], atol=0.05)
assert 80 < 2048 / 10 / max(relative[0.95]) < 2048 / 10 / min(relative[0.95]) < 120

# %% [markdown]
r"""
### How to choose $\gamma$ and $\lambda$

- **$\gamma$ first.** It belongs to the question. A reward $1 / (1 - \gamma)$ steps ahead counts about a third of a
  reward now, and one three times as far ahead 5%. A smaller $\gamma$ leaves late noise out, and late consequences with
  it, however good the critic is. In the middle of the walk, right earns 0.91 more than left within 12 steps, and the
  sum of rewards has a standard deviation of 1.83; with $\gamma = 0.9$ these are 0.63 and 1.06. So part of the noise
  goes only because everything gets smaller, and standardizing the advantages undoes that part.
- **Then $\lambda$.** With a perfect critic, no $\lambda$ is biased. So two things decide: how wrong the critic is, and
  how much data is averaged. A poor critic or a large batch wants a large $\lambda$; a good critic and a small batch
  want a small one.
- **0.95 is a sensible start.** In the walk it is about the best for $N = 256$ with an explained variance of 0.17, and
  for $N = 1{,}500$ with one of 0.88: some 6,000 and 37,000 rows. A larger batch, or a critic that hardly learns, is a
  reason to try 0.98 or 1. Noisy gradients with a good critic are a reason to try 0.9 or 0.8.
"""

# %%
for x in (0.9, 0.99, 0.999):
    close([x ** (1 / (1 - x)), x ** (3 / (1 - x))], [0.36, 0.05], atol=0.015)
differences, deviations = zip(*(measured.worth_of_going_right(x) for x in (1.0, 0.9)), strict=True)
close([x[2] for x in (*differences, *deviations)], [0.91, 0.63, 1.83, 1.06], atol=0.005)
assert max(squared_bias_and_variance(V_EXACT)[0]) < 1e-20  # a perfect critic: no bias at any lambda
for e, n, rows in ((0.4, 256, 6_000), (0.15, 1500, 37_000)):
    bias, variance = curves[e]
    assert abs(n * 10 * measured.variance_of_a_walk(critics[e], 0.95) - rows) < 300
    assert 0.945 < LAMBDAS[np.argmin(bias + variance / n)] < 0.965

# %% [markdown]
r"""
## 4. Which rewards and values an advantage depends on

The advantages are linear in rewards and values, so the derivatives $\partial \hat A_t / \partial r_j$ and
$\partial \hat A_t / \partial V(s_j)$ say all that the estimator does. JAX computes them from the code as it is. The
rollout here has ten steps: step 3 terminates an episode and step 6 is truncated.

- A reward $r_j$ has weight $(\gamma\lambda)^{j-t}$ in the advantages of its own episode, up to its own step.
- A value $V(s_j)$ has weight $-1$ at its own step, and $\gamma(1-\lambda)(\gamma\lambda)^{j-t-1}$ at an earlier step
  $t$ of the same episode.
- The value at the end of a piece has no factor $1 - \lambda$: nothing follows that the rest of the weight could go to.
  $V(s_T)$, with $j = T$, and the value of the final observation after a truncated step $j-1$ have weight
  $\gamma (\gamma\lambda)^{j-t-1}$. After a termination there is no such value.

Each boundary is a corner of a block. White cells are exact zeros.
"""

# %%
gamma, lambda_, T, END, LIMIT = 0.95, 0.8, measured.T, measured.END, measured.LIMIT
expected_r, expected_v, expected_final = np.zeros((T, T)), np.zeros((T, T + 1)), np.zeros((T, T))
for start, stop in ((0, END + 1), (END + 1, LIMIT + 1), (LIMIT + 1, T)):  # the rows of each episode
    for t in range(start, stop):
        for j in range(t, stop):
            expected_r[t, j] = (gamma * lambda_) ** (j - t)
            expected_v[t, j] = -1 if j == t else gamma * (1 - lambda_) * (gamma * lambda_) ** (j - t - 1)
        if stop == T:
            expected_v[t, T] = gamma * (gamma * lambda_) ** (T - t - 1)
        if stop == LIMIT + 1:
            expected_final[t, LIMIT] = gamma * (gamma * lambda_) ** (LIMIT + 1 - t - 1)

by_reward, by_value, by_final = measured.jacobians(BUGS["right"], gamma, lambda_)
for expected, got in ((expected_r, by_reward), (expected_v, by_value), (expected_final, by_final)):
    close(got, expected)
    assert (got[expected == 0] == 0).all()  # exactly
figures.jacobians(by_reward, by_value, by_final, END, LIMIT)

# %% [markdown]
r"""
## 5. A gallery of bugs

Each of these mistakes is a small change to the call or to the result. Reports of them in public code:

- The result in reverse: labml's author tells of it, see section 6.
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
Each of them changes the derivatives. The upper picture of a pair is $\partial \hat A_t / \partial r_j$. The lower one
is $\partial \hat A_t / \partial V(s_j)$, and its last column, apart, belongs to the final observation of step 6. A
thick border marks a cell that differs from the right one, at the top left; a white cell with a thick border should not
be zero. A minus marks a negative derivative.

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
marks = {name: measured.jacobians(bug, gamma, lambda_) for name, bug in BUGS.items()}
assert check_gae(BUGS["right"]).right
for name, mistake in CHECKED.items():
    assert mistake in {verdict.mistake for verdict in check_gae(BUGS[name]).verdicts}
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
pictures = {name: (r, np.hstack([v, np.zeros((T, 1)), f[:, [LIMIT]]])) for name, (r, v, f) in marks.items()}
figures.gallery(pictures, {"right": "right"} | CHECKED, boundaries=(END + 1, LIMIT + 1))

# %% [markdown]
r"""
## 6. Five hours

labml's code fills an array backwards in time. Until June 2024 a
[remark](https://github.com/labmlai/annotated_deep_learning_paper_implementations/blob/999f2036a5a7c54403352211b5d1cc0df42b83f6/labml_nn/rl/ppo/gae.py)
beside it said:

> My initial code was appending to a list and I forgot to reverse it later. It took me around 4 to 5 hours to find the
> bug. The performance of the model was improving slightly during initial runs, probably because the samples are
> similar.

Two questions follow. Which bugs can one see at all? And is the guess right, that such an agent improves *because the
samples are similar*?

[bug_study.py](bug_study.py) trains a small [PPO](https://arxiv.org/abs/1707.06347) agent to balance a pole on a cart,
with the right advantages and with six of the bugs, 32 seeds each. In training an episode is truncated after 100 steps.
The evaluation has 500 steps, so it shows what training never does. The agent acts in 32 environments at once. Each of
them is a *worker*, and adds 64 consecutive steps to the rollout.

The results are in `bug_study.json`, with the machine and the versions that made them. A band is a 95% interval of the
mean over seeds, from resampled seeds.
"""

# %%
record = json.loads(pathlib.Path(bug_study.__file__).with_suffix(".json").read_text(encoding="utf-8"))
GROUPS = {
    "RIGHT": ["right"],
    "LOUD": ["termination ignored"],
    "SILENT": ["truncation as termination", "truncation not cut", "result in reverse"],
    "INVISIBLE": ["flag of the step before", "λ missing on the first hop"],
}
training = {name: figures.lengths_of(record, name) for name in record["results"]}  # [seeds, time]
evaluation = {name: figures.evaluations_of(record, name) for name in record["results"]}  # [seeds, 1 + time]
trained = {name: lengths[:, -1] for name, lengths in training.items()}
final = {name: steps[:, -1] for name, steps in evaluation.items()}
untrained = evaluation["right"][:, 0].mean()
low, high = ({name: figures.interval(steps)[i] for name, steps in final.items()} for i in range(2))

print("mean steps of the last training episodes, and of the last evaluation with its 95% interval:")
for name in (name for group in GROUPS.values() for name in group):
    print(f"{name:>28} {trained[name].mean():5.0f} {final[name].mean():5.0f}, from {low[name]:.0f} to {high[name]:.0f}")
print(f"{'before training':>28} {'':5} {untrained:5.0f}")

assert trained["termination ignored"].max() < 50  # loud: seen in training
assert high["termination ignored"] < untrained
for name in GROUPS["SILENT"]:  # the training curve ends as the right one does, the agent does not
    assert trained[name].mean() > 98
    assert high[name] < low["right"], name
for name in ("truncation as termination", "truncation not cut", *GROUPS["INVISIBLE"]):  # at no time
    assert np.abs(training[name].mean(0) - training["right"].mean(0)).max() < 3, name
for name in GROUPS["INVISIBLE"]:  # the intervals overlap
    assert max(low["right"], low[name]) <= min(high["right"], high[name]), name
assert untrained < 40 < 200 < low["result in reverse"]  # the reversed one learns, more slowly
assert training["result in reverse"][:, 4].mean() < 80 < 99 < training["right"][:, 4].mean()
close([round(final[name].mean()) for name in ("right", *GROUPS["SILENT"])], [497, 456, 330, 236])
figures.learning_curves(record, GROUPS, bug_study.LEFT_OUT)

# %% [markdown]
r"""
One bug is **loud**: with termination ignored the agent never learns to stand, and the training curve shows it.

Three bugs are **silent**: at the end, the training curve looks right, and the agent is worse. With truncation as
termination the pole stays up for 456 of 500 steps, with truncation not cut for 330, and for 497 with the right
advantages. Up to the limit of 100 steps, these two train as the right one does. The reversed result even **learns**,
more slowly: from 34 steps to 236, and its training episodes come close to the limit. The training curve looks like an
agent that needs some tuning.

Two bugs are **invisible**: the flag of the step before, and $\lambda$ missing on the first hop. No difference was found
with 32 seeds: the intervals overlap. Another task may show one. A learning curve is no test of an estimator;
`check_gae` finds each of these bugs in seconds.
"""

# %% [markdown]
r"""
### Was the guess right?

If the samples of a worker are similar, an advantage on the wrong row of the right worker is still partly right: it
says how well this worker's 64 steps went. This can be tested. The same agent is trained with the right advantages on
other rows. Random orders are drawn anew in each iteration. The critic's targets are advantage plus value, as in labml's
agent, so they move along. Two more agents separate the two: one gets the reverse in the policy's loss only, and one in
the critic's targets only.

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
    "reverse for the policy only": "in reverse,\nfor the policy only",
    "reverse for the critic only": "in reverse,\nfor the critic only",
    "reverse of another worker": "in reverse,\nof another worker",
    "all shuffled": "all shuffled",
}
for name in ("mean of the worker", "random order of time"):
    assert low[name] > 300, name  # which worker did well is enough to learn,
    assert abs(final[name].mean() - 400) < 20, name
    assert high[name] < low["right"], name  # though not as well as from the right ones,
    assert high["result in reverse"] < low[name], name  # and better than from the reverse;
assert [round(final[f"reverse for the {x} only"].mean()) for x in ("policy", "critic")] == [453, 226]
assert high["reverse for the critic only"] < low["reverse for the policy only"]  # the targets do the harm,
assert low["result in reverse"] < high["reverse for the critic only"]  # as much as both together
others = "reverse of another worker", "all shuffled"
for name in others:
    assert high[name] < low["result in reverse"], name  # with another worker's, agents do not learn
    assert low[name] < untrained, name
assert [np.sum(final[name] < untrained) for name in others] == [27, 22]
assert [np.sum(final[name] > 200) for name in others] == [1, 1]
figures.orders(record, ORDERS)

# %% [markdown]
r"""
In this task the guess was right, and it can be made exact. **Which worker did well survives the reversal, and that
alone trains.** Agents that get only the means of the workers end at about 400 steps. With the advantages of other
workers most agents do not learn: 27 and 22 of the 32 end below the 34 steps from before training, and one of each above
200.

The reversed agents are worse than the agents with a random order of time. Most of that harm comes through the
**critic's targets**: with the reverse in the targets only, agents end at 226 steps, as with both reversed; with the
reverse in the policy's loss only, at 453.

The next numbers are from agents that learn from the right advantages, in their first 16 iterations. *Between* workers
lies about a fifth of the variance; the reversal leaves this part alone. *Within* a worker, the right advantages and the
reversed ones have a negative correlation, where a random order has none:
"""

# %%
shares, correlations = measured.share_between_workers_and_correlation()
print(f"share of the variance between workers: {shares.mean():.1f}")
print(f"correlation within a worker, right and reversed: {correlations.mean():.1f}")
assert shares.min() > 0.05
assert 0.15 < shares.mean() < 0.25
assert correlations.max() < 0

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

One step maps $h_{t+1}$ to $h_t$, and the map is affine, $h_t = a_t h_{t+1} + b_t$:

| step $t$ | $a_t$ | $b_t$ |
|---|---|---|
| goes on | $\gamma\lambda$ | $\lambda r_t + (1 - \lambda) V(s_t)$ |
| terminates | 0 | $\lambda r_t + (1 - \lambda) V(s_t)$ |
| is truncated | 0 | $\lambda (r_t + \gamma V(\text{final})) + (1 - \lambda) V(s_t)$ |

Two steps make an affine map again: $a_1 (a_2 h + b_2) + b_1$ has the pair $(a_1 a_2,\; a_1 b_2 + b_1)$. So a whole
piece of a rollout, of any length, depends on later time through one number $h$, and is summarized by two, $a$ and $b$.
"""

# %%
gamma, lambda_, T = 0.99, 0.95, 48
options: dict[str, Any] = {"gamma": gamma, "lambda_": lambda_}
rng = np.random.default_rng(2)
rewards, values, final_values = (rng.normal(size=T).astype(np.float32) for _ in range(3))
terminated, truncated = np.arange(T) == 20, np.arange(T) == 10
ends = terminated | truncated


def piece(start: int, stop: int, h: Any) -> tuple[jax.Array, jax.Array]:
    """Estimates rows start to stop - 1, given h of row `stop`; returns their advantages, and h of row `start`."""
    rows = [x[start:stop] for x in (rewards, values, terminated, truncated)]
    advantages = gae(*rows, final_values=final_values[start:stop], bootstrap_value=h, **options).advantages
    return advantages, values[start] + lambda_ * advantages[0]


def compose(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Returns the pair (a, b) of two pieces, of which `two` is the later one."""
    return np.array([one[0] * two[0], one[0] * two[1] + one[1]])


pairs = np.stack(
    [
        np.where(ends, 0, gamma * lambda_),
        lambda_ * (rewards + np.where(truncated, gamma * final_values, 0)) + (1 - lambda_) * values,
    ],
    axis=1,
)
inputs, lines = np.linspace(-4, 4, 5, dtype=np.float32), {}
for start, stop in ((20, 21), (10, 11), (0, 48), (47, 48), (40, 48), (28, 48), (16, 48)):
    slope, constant = functools.reduce(compose, pairs[start:stop])
    outputs = np.array([piece(start, stop, h)[1] for h in inputs])
    close(outputs, slope * inputs + constant)
    ended = ", an episode ends in it" * bool(ends[start:stop].any())
    lines[f"length {stop - start}: slope {slope:.2f}{ended}"] = outputs
figures.affine_pieces(inputs, dict(list(lines.items())[-4:]))

# %% [markdown]
r"""
**Streaming.** A rollout may be cut anywhere. Estimate the later piece first and pass its $h$ on as the
`bootstrap_value` of the earlier one. The pieces' advantages equal the whole rollout's.

**Time split over devices.** Each device composes its piece into $(a, b)$; the devices exchange these pairs, whatever
the length of the pieces; then each device knows its $h$ and runs its piece. In the library this is the argument
`time_axis_name`, inside `jax.shard_map`.

**A scan without a loop.** On one GPU the same three steps run over blocks of rows, all blocks at once. In the library
this is `implementation="blocked"`, and its program has no loop.
"""

# %%
rollout = rewards, values, terminated, truncated
last = {"final_values": final_values, "bootstrap_value": np.float32(0.7)}
whole = gae(*rollout, **last, **options).advantages

for cut in (1, 7, 10, 11, 20, 21, 33, 47):  # streaming
    later, h = piece(cut, T, np.float32(0.7))
    close(jnp.concatenate([piece(0, cut, h)[0], later]), whole)

mesh, time = Mesh(np.array(jax.devices("cpu")[:4]), ("time",)), PartitionSpec("time")  # four devices, 12 rows each
shards = {"final_values": time, "bootstrap_value": PartitionSpec()}
by_device = functools.partial(gae, **options, time_axis_name="time")
split = jax.shard_map(lambda x, y: by_device(*x, **y).advantages, mesh=mesh, in_specs=(time, shards), out_specs=time)
close(jax.jit(split)(rollout, last), whole)

for implementation, loops in (("scan", True), ("blocked", False)):
    estimate = jax.jit(functools.partial(gae, **options, implementation=implementation))
    close(estimate(*rollout, **last).advantages, whole)
    assert ("stablehlo.while" in estimate.lower(*rollout, **last).as_text()) == loops
figures.blocks(number=4, rows=4)

# %% [markdown]
r"""
## 9. Tokens

In a language model's sample a step is the choice of one token, and not every position is a step: the prompt was
given, a tool wrote its output, and padding fills the row. `mask` is False there. The recursion skips these rows, so
the advantage of a call depends on the reward of the answer behind the tool's output.

This is the rule, around the step of section 1:
"""

# %%
print(inspect.getsource(_recursion.skipping_step))

# %% [markdown]
r"""
The sample below has a prompt (p), a call and an answer by the policy (x), a tool's output between (t), and padding
(.). The reward is 1 at the last chosen token. With a decay for each token, the call gets little of the reward. With one
decay per *turn*, the tokens of a turn share an advantage: estimate on the first token of each turn, with the turn's
rewards summed there, and copy.
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
**Lambda by length.** With a reward at the end of $L$ tokens and all values 0, the first token's advantage is
$\lambda^{L-1}$ of it. At $\lambda = 0.95$ and 1,000 tokens that is practically 0. With $\lambda = 1 - 1/(\alpha L)$, as
in VAPO ([arXiv:2504.05118](https://arxiv.org/abs/2504.05118)), it is about the same at every length; in the figure
$\alpha = 1$. `lambda_` takes an array, so each sample of a batch may have its own.

**Packed sequences.** Several samples may lie one after the other in a row. The last token of each is a termination.
The Jacobian falls into blocks: no sample depends on another.
"""

# %%
LENGTHS = [2**i for i in range(3, 12)]


def share_of_the_first_token(length: int, lambda_: float) -> float:
    """Returns the advantage of the first of `length` tokens, where the last has a reward of 1 and all values are 0."""
    is_last, zeros = np.arange(length) == length - 1, np.zeros(length + 1, np.float32)
    return float(gae(1.0 * is_last, zeros, is_last, gamma=1.0, lambda_=lambda_).advantages[0])


shares = {f"$\\lambda = {x}$": [share_of_the_first_token(length, x) for length in LENGTHS] for x in (0.95, 0.99)}
shares[r"$\lambda = 1 - 1/L$"] = [share_of_the_first_token(length, 1 - 1 / length) for length in LENGTHS]
close(shares[r"$\lambda = 0.95$"], 0.95 ** (np.array(LENGTHS) - 1.0), atol=1e-4)
assert np.ptp(shares[r"$\lambda = 1 - 1/L$"]) < 0.03  # hardly depends on the length
assert share_of_the_first_token(1000, 0.95) < 1e-20

sample = np.repeat([0, 1, 2], [5, 7, 6])  # three samples in one row
ends = np.append(sample[1:] != sample[:-1], True)
rewards, values = np.random.default_rng(3).normal(size=(2, len(sample))).astype(np.float32)
options = {"gamma": 1.0, "lambda_": 0.9, "bootstrap_value": np.float32(0)}
packed = np.asarray(gae(rewards, values, ends, **options).advantages)
for i in range(3):
    rows = sample == i
    close(packed[rows], gae(rewards[rows], values[rows], ends[rows], **options).advantages)
jacobian = np.asarray(jax.jacrev(lambda r: gae(r, values, ends, **options).advantages)(rewards))
assert ((jacobian == 0) | (sample[:, None] == sample)).all()
figures.lengths_and_packing(LENGTHS, shares, jacobian)

# %% [markdown]
r"""
## 10. From single steps to long stretches

One rollout of 60 steps and its advantages, for seven values of $\lambda$. At $\lambda = 0$ the advantage is the TD
error: it credits single steps, as the critic values them. At $\lambda = 1$ the advantage is the discounted sum of the
rewards minus the value: it is smooth between large rewards, because each step shares nearly all of its future with the
next. The common choice of 0.95 lies near the right end, and much of the change happens beyond it.
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
change = np.sqrt(np.mean((np.asarray(advantages) - advantages[:, [4]]) ** 2, axis=0))  # from λ = 0.95
assert change[-1] > 0.5 * change[0]  # more from 0.95 to 1 than half of the change from 0 to 0.95
figures.lambdas(rewards, values, np.asarray(advantages), strip)
