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

$$\hat A_t = \sum_{k \ge 0} (\gamma\lambda)^k\, \delta_{t+k}, \qquad \delta_t = r_t + \gamma V(s_{t+1}) - V(s_t).$$

This page derives the formula on six numbers, measures what $\gamma$ and $\lambda$ trade, draws what each reward and
value reaches, and shows what happens to an agent when the formula is wrong in one place. Every figure is computed
here by the library `gae_jax`, and the cell that draws a figure asserts the claim that the figure supports.

1. Six steps by hand
2. The weights
3. Bias and variance, measured
4. What reaches what
5. A gallery of bugs
6. Five hours
7. One number is all that earlier time needs
8. Tokens
9. A lambda to move

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
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from five_hours import BUGS
from jax.sharding import Mesh, PartitionSpec
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from gae_jax import _recursion, gae, n_step_advantages
from gae_jax.testing import check_gae

jax.config.update("jax_num_cpu_devices", 4)  # section 7 splits time over four devices; a CPU can pose as four
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)  # float32 against float64

plt.rcParams |= {"figure.dpi": 80, "figure.constrained_layout.use": True, "font.size": 10, "axes.titlesize": 10}
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
DARK, MIDDLE, LIGHT = "#16325c", "#c2553f", "#e3b261"  # their lightness differs, so they differ in grey
MINUS = "\N{MINUS SIGN}"

# %% [markdown]
r"""
## 1. Six steps by hand

A rollout is a piece of experience: states $s_0, \dots, s_T$, the rewards $r_0, \dots, r_{T-1}$ between them, and a
critic's guess $V(s_t)$ of the discounted reward that follows each state. The last state has a value and no reward.

The shortest estimate of the advantage trusts the critic after one step. It is the TD error:

$$A_t^{(1)} = r_t + \gamma V(s_{t+1}) - V(s_t) = \delta_t.$$

A longer estimate takes $k$ rewards as they came, and trusts the critic afterwards:

$$A_t^{(k)} = r_t + \gamma r_{t+1} + \gamma^2 r_{t+2} + \dots + \gamma^{k-1} r_{t+k-1} + \gamma^k V(s_{t+k}) - V(s_t).$$

Each reward has an index of its own. A well-known annotated page writes $\gamma^2 r_{t+1}$ for the third term; the
third term is $\gamma^2 r_{t+2}$.

GAE is the average of all $A_t^{(k)}$ with weights that fall by a factor $\lambda$ a step:

$$\hat A_t = (1 - \lambda) \left( A_t^{(1)} + \lambda A_t^{(2)} + \lambda^2 A_t^{(3)} + \dots \right).$$

The factor $1 - \lambda$ makes an average of the sum, since $1 + \lambda + \lambda^2 + \dots = 1 / (1 - \lambda)$. The
same page drops this factor on the way to its last line; without the factor the result is $1 / (1 - \lambda)$ times
too large.

A rollout of $T$ steps has no $A_t^{(k)}$ beyond $k = n$, with $n = T - t$ the rows that are left. The longest one
takes the weight of all that would have followed: $(1-\lambda)(\lambda^{n-1} + \lambda^n + \dots) = \lambda^{n-1}$.
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
    print(
        f"{title:>17}{'':9}"
        + "".join(f"k = {k:<5}" for k in range(1, T + 1))
        + "sum of weights x A^(k)" * (rows is weights)
    )
    print("t     r     V  delta")
    for t in range(T):
        cells = "".join(f"{x:9.3f}" for x in rows[t]) + " " * 9 * t
        print(f"{t} {r[t]:5.1f} {V[t]:5.1f} {delta[t]:6.2f}{cells}" + f"   A = {A[t]:6.3f}" * (rows is weights))
    print()

# %% [markdown]
r"""
Four claims hold for this table. The library's `n_step_advantages` gives its columns, the weights of each row sum to
1, the weighted sum is what `gae` gives, and the same numbers come from a recursion that runs backwards in time:

$$\hat A_t = \delta_t + \gamma\lambda \hat A_{t+1}.$$
"""

# %%
never = np.zeros(T, bool)  # no episode ends here
for t in range(T):
    for k in range(1, T - t + 1):
        close(n_step_advantages(r, V, never, n=k, gamma=gamma)[t], A_k[t][k - 1])
    close(weights[t].sum(), 1)
close(gae(r, V, never, gamma=gamma, lambda_=lambda_).advantages, A)
close(A, delta + gamma * lambda_ * np.append(A[1:], 0))

# The two slips: another reward in the third term, and the missing factor.
third_term_slips = r[0] + gamma * r[1] + gamma**2 * r[1] + gamma**3 * V[3] - V[0]
assert abs(third_term_slips - n_step_advantages(r, V, never, n=3, gamma=gamma)[0]) > 1
factor_missing = sum(lambda_ ** (k - 1) * k_step_advantage(0, k) for k in range(1, 200))
close(factor_missing, gae(r, V, never, gamma=gamma, lambda_=lambda_).advantages[0] / (1 - lambda_))

# %% [markdown]
r"""
### The library's code

The library runs the recursion in one number. Write $h_{t+1}$ for the value that step $t$ bootstraps from:

$$\hat A_t = r_t + \gamma h_{t+1} - V(s_t), \qquad h_t = V(s_t) + \lambda \hat A_t, \qquad h_T = V(s_T).$$

Put the second equation into the first and it is the recursion above. Every rule about the end of an episode is a rule
about $h_{t+1}$: after a *termination* nothing follows, so the step bootstraps from 0; after a *truncation*, by a time
limit for example, the episode would have gone on, so the step bootstraps from the value of the final observation.

This is the step as the library runs it, printed from the installed package:
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


figure, grid = plt.subplots(2, 3, figsize=(9.5, 4.6), sharex=True, sharey=True)
both = {"GAE": (weights_of, usual, DARK), "renormalized": (renormalized_weights_of, renormalized, LIGHT)}
for axes_row, (name, (weigh, advantages, colour)) in zip(grid, both.items(), strict=True):
    for axes, n in zip(axes_row, (12, 5, 2), strict=True):
        w = weigh(n, lambda_)
        close(advantages[length - n], sum(w[k] * by_length[k][length - n] for k in range(n)))
        close(w.sum(), 1)
        axes.bar(np.arange(1, n + 1), w, color=colour, edgecolor="black", linewidth=0.6)
        if weigh is weights_of:
            axes.bar(n, w[-1] - (1 - lambda_) * w[-1], bottom=(1 - lambda_) * w[-1], color="white", hatch="////")
            axes.bar(n, w[-1], color="none", edgecolor="black", linewidth=0.6)
        axes.set_title(f"{n} rows left: mean k = {w @ np.arange(1, n + 1):.1f}")
        axes.set_xticks([1, 4, 8, 12])
    axes_row[0].set_ylabel(f"{name}:\nweight of $A^{{(k)}}$")
for axes in grid[1]:
    axes.set_xlabel("k (steps)")
grid[0, 0].annotate("the tail (hatched)", (12, 0.29), (6.2, 0.6), arrowprops={"arrowstyle": "->"})
figure.suptitle(r"Weights of the k-step advantages, $\lambda = 0.9$")
close(weights_of(2, lambda_), [0.1, 0.9])  # two rows left: nearly all on the longest
close(renormalized_weights_of(2, lambda_), np.array([1, 0.9]) / 1.9)

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
$V = V^\pi + \varepsilon u$, with $u$ a fixed pattern of size 1.

The estimate is compared with $Q^\pi(s_0, a_0) - V(s_0)$. The critic's error at $s_0$ itself is left out of the bias:
it shifts both actions alike, and the policy gradient does not depend on it.
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


def simulate(key: jax.Array, number: int) -> np.ndarray:
    """Returns the states `[number, T+1]` of random walks."""
    start_key, action_key = jax.random.split(key)
    start = jax.random.randint(start_key, (number,), 0, STATES)
    return walk(np.asarray(start), np.asarray(jax.random.bernoulli(action_key, 0.5, (number, STEPS)), int))


ERRORS = {"large": 0.8, "medium": 0.4, "small": 0.15}
LAMBDAS = np.linspace(0, 1, 51)
walks = simulate(jax.random.key(0), 40_000)
figure, grid = plt.subplots(1, 3, figsize=(10.5, 3.6), sharey=True)
best = []
for axes, (name, size) in zip(grid, ERRORS.items(), strict=True):
    critic = V_exact + size * PATTERN
    bias, variance = np.array([bias_and_variance(critic, x) for x in LAMBDAS]).T
    error = bias + variance
    best.append(LAMBDAS[error.argmin()])
    axes.plot(LAMBDAS, bias, color=LIGHT, linestyle="--", linewidth=2, label="bias squared")
    axes.plot(LAMBDAS, variance, color=MIDDLE, linestyle=":", linewidth=2.5, label="variance")
    axes.plot(LAMBDAS, error, color=DARK, linewidth=2, label="mean squared error")
    axes.axvline(best[-1], color="0.6", linewidth=1, zorder=0)
    axes.set_title(f"{name} critic error, {size}: best $\\lambda$ = {best[-1]:.2f}")
    axes.set_xlabel(r"$\lambda$")
    for i in (0, 25, 45, 50):  # the library on simulated rollouts agrees, within 5 standard errors
        rewards, values = ENTERED[walks[:, 1:]], critic[walks]
        estimate = gae(rewards, values, np.zeros(rewards.shape, bool), gamma=gamma, lambda_=LAMBDAS[i], time_axis=1)
        squared = (np.asarray(estimate.advantages, float)[:, 0] - exact_target(walks, critic)) ** 2
        assert abs(squared.mean() - error[i]) < 5 * squared.std() / np.sqrt(len(squared)) + 1e-6
        axes.plot(LAMBDAS[i], squared.mean(), "o", color="black", markersize=5, label="simulated" if i == 0 else None)
    assert bias[0] > bias[25] > bias[50]
    assert variance[0] < 1e-12
    assert variance[0] < variance[25] < variance[50]
grid[0].set_ylabel("squared error of the advantage (reward$^2$)")
grid[2].legend(loc="upper left")
assert best[0] > best[1] > best[2]  # a better critic wants a smaller lambda

# %% [markdown]
r"""
The mean squared error is a valley, and its lowest point moves left as the critic gets better. This suggests a
$\lambda$ that falls as the critic learns. The dots are the library's estimates on 40,000 simulated rollouts; each of
them agrees with the enumeration.

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
    simulated = (np.asarray(estimate, float) * (walked_right - 0.5)).sum(1)
    assert abs(simulated.mean() - every[i].mean()) < 5 * simulated.std() / np.sqrt(len(simulated))

figure, axes = plt.subplots(figsize=(6.5, 3.8))
best = []
styles = {4: (LIGHT, "-"), 32: (MIDDLE, "--"), 256: (DARK, "-.")}
for episodes, (colour, style) in styles.items():
    error = (bias + variance / episodes) / true_gradient**2
    best.append(GAMMAS[error.argmin()])
    axes.semilogy(GAMMAS, error, color=colour, linestyle=style, linewidth=2, label=f"{episodes} episodes")
    axes.plot(best[-1], error.min(), "o", color=colour, markeredgecolor="black", markersize=8)
axes.semilogy(GAMMAS[:-1], bias[:-1] / true_gradient**2, color="black", linestyle=":", label="bias alone")
axes.set_ylim(1e-3, None)
axes.set_xlabel(r"$\gamma$ of the estimator")
axes.set_ylabel("squared error of the gradient\n/ squared gradient")
axes.set_title("With few episodes a discount pays, though the task has none (dots: the best)")
axes.legend()
assert best[0] < best[1] < best[2]

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


def heat(axes: Axes, jacobian: np.ndarray, numbers: bool = True) -> Any:
    """Draws a Jacobian: zeros white, the size as darkness, and the sign as colour and as a number or a minus."""
    rows, columns = jacobian.shape
    shown = np.ma.masked_equal(jacobian, 0)
    image = axes.pcolormesh(shown, cmap="PuOr_r", vmin=-1.3, vmax=1.3, edgecolors="0.85", linewidth=0.5)
    for t, s in np.argwhere(jacobian != 0):
        text = (
            f"{jacobian[t, s]:.2f}".replace("0.", ".").replace("-", MINUS)
            if numbers
            else MINUS * int(jacobian[t, s] < 0)
        )
        ink = "white" if abs(jacobian[t, s]) > 0.75 else "black"
        axes.text(s + 0.5, t + 0.5, text, ha="center", va="center", fontsize=7.5, color=ink)
    for boundary in (END + 1, LIMIT + 1):
        axes.axhline(boundary, color="black", linewidth=0.8, linestyle=":")
        axes.axvline(boundary, color="black", linewidth=0.8, linestyle=":") if columns > 1 else None
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    axes.set_aspect("equal")
    axes.spines[:].set_visible(True)
    return image


by_reward, by_value, by_final = jacobians(BUGS["right"])
PIECES = [(0, END + 1), (END + 1, LIMIT + 1), (LIMIT + 1, T)]  # the rows of each episode
expected_r, expected_v = np.zeros((T, T)), np.zeros((T, T + 1))
for start, stop in PIECES:
    for t in range(start, stop):
        for s in range(t, stop):
            expected_r[t, s] = (gamma * lambda_) ** (s - t)
            expected_v[t, s] = -1 if s == t else gamma * (1 - lambda_) * (gamma * lambda_) ** (s - t - 1)
expected_v[PIECES[-1][0] :, T] = gamma * (gamma * lambda_) ** np.arange(T - 1 - PIECES[-1][0], -1, -1)
expected_final = np.zeros((T, T))
expected_final[4:7, LIMIT] = gamma * (gamma * lambda_) ** np.array([2, 1, 0])
figure, grid = plt.subplots(1, 3, figsize=(12, 5.2), width_ratios=[10, 11, 1.4])
image = heat(grid[0], by_reward)
heat(grid[1], by_value)
heat(grid[2], by_final[:, LIMIT : LIMIT + 1])
titles = (
    r"$\partial \hat A_t / \partial r_s$",
    r"$\partial \hat A_t / \partial V(s_s)$",
    r"$\partial \hat A_t / \partial V$",
)
for axes, title, columns in zip(grid, titles, (T, T + 1, 0), strict=True):
    axes.set_title(title, fontsize=13)
    axes.set_xticks(np.arange(columns) + 0.5, np.arange(columns))
    axes.set_yticks(np.arange(T) + 0.5, np.arange(T))
    axes.set_xlabel("s (step of the reward)" if columns == T else "s (step of the value; 10 is $V(s_T)$)")
grid[0].set_ylabel("t (step of the advantage)")
grid[2].set_xlabel("final\nobservation\nof step 6")
grid[0].text(T - 0.2, END + 0.95, "step 3 terminates", ha="right", va="bottom", fontsize=9, style="italic")
grid[0].text(0.2, LIMIT + 0.95, "step 6 is truncated", va="bottom", fontsize=9, style="italic")
figure.colorbar(image, ax=grid, label="derivative (no unit)", shrink=0.8)

close(by_reward, expected_r)
close(by_value, expected_v)
close(by_final, expected_final)
for expected, got in ((expected_r, by_reward), (expected_v, by_value), (expected_final, by_final)):
    assert (got[expected == 0] == 0).all()  # exactly

# %% [markdown]
r"""
## 5. A gallery of bugs

Most of these mistakes have been made in public code, some of them many times. Each is a small change to the call or
to the result, and each leaves a mark on the Jacobians.
"""

# %%
for name, bug in BUGS.items():
    if name != "right":
        print(inspect.getsource(bug))

# %% [markdown]
r"""
In each pair the upper picture is $\partial \hat A_t / \partial r_s$. The lower one is
$\partial \hat A_t / \partial V(s_s)$, and its last column, apart, belongs to the final observation of step 6. A thick
border marks a cell that differs from the right one, at the top left; a white cell with a thick border should not be
zero. A minus marks a negative derivative.

Below each title stands the name that the library's `gae_jax.testing.check_gae` gives the mistake. `check_gae` runs a
function on small rollouts, and compares its results with estimators that make one known mistake each.
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
figure, grid = plt.subplots(4, 4, figsize=(12, 11.8), height_ratios=[1, 0.83, 1, 0.83])
right_pictures, marks = None, {}
for i, (name, bug) in enumerate(BUGS.items()):
    by_reward, by_value, by_final = marks[name] = jacobians(bug)
    gap = np.zeros((T, 1))
    pictures = by_reward, np.concatenate([by_value, gap, by_final[:, LIMIT : LIMIT + 1]], axis=1)
    right_pictures = right_pictures or pictures
    for j, picture in enumerate(pictures):
        axes = grid[2 * (i // 4) + j, i % 4]
        heat(axes, picture, numbers=False)
        for t, s in np.argwhere(np.abs(picture - right_pictures[j]) > 1e-5):
            axes.add_patch(Rectangle((s + 0.04, t + 0.04), 0.92, 0.92, fill=False, linewidth=1.8))
        axes.set_xticks(np.array([0, 3, 6, 9, 12][: 4 + j]) + 0.5, [0, 3, 6, 9, "final"][: 4 + j])
        axes.set_yticks(np.array([0, 3, 6, 9]) + 0.5, [0, 3, 6, 9])
    found = {verdict.mistake for verdict in check_gae(bug).verdicts} - {None}
    if name == "right":
        assert not found
    else:
        assert CHECKED[name] in found
        assert any(np.abs(x - y).max() > 0.01 for x, y in zip(marks[name], marks["right"], strict=True))
    grid[2 * (i // 4), i % 4].set_title(f"{name}\n" + (f"“{CHECKED[name]}”" if found else "no mistake found"))
    grid[2 * (i // 4), i % 4].set_xlabel("s (step of the reward)")
    grid[2 * (i // 4) + 1, i % 4].set_xlabel("s (step of the value)")
for axes in grid[:, 0]:
    axes.set_ylabel("t (step of the advantage)")

r_of, v_of, f_of = ({name: x[i] for name, x in marks.items()} for i in range(3))
close(r_of["result in reverse"], r_of["right"][::-1])
assert r_of["flag of the step before"][END, END + 1] > 0  # the next episode leaks in,
assert (r_of["flag of the step before"][END + 1, END + 2 :] == 0).all()  # and its first step is cut off
assert r_of["termination ignored"][END, END + 1] > 0
close(r_of["truncation as termination"], r_of["right"])  # rewards are cut in the right place,
assert (f_of["truncation as termination"] == 0).all()  # but no value follows
assert r_of["truncation not cut"][LIMIT, LIMIT + 1] > 0
close(v_of["V(s_t) for V(final)"][LIMIT, LIMIT], gamma - 1)
close(r_of["λ missing on the first hop"][0, 1], gamma)
close(r_of["right"][0, 1], gamma * lambda_)

# %% [markdown]
r"""
## 6. Five hours

The author of the annotated page once appended the advantages to a list in the order of the recursion, backwards in
time, and never reversed the list. Finding that took five hours, because *the agent still got a little better*.

Which bugs are loud, and which are silent? `five_hours.py` trains a small PPO agent to balance a pole on a cart, with
the right advantages and with six of the bugs, 32 seeds each. In training an episode is truncated after 100 steps. The
evaluation has 500 steps, so it shows what training never does.

These three functions are the agent: a step in every environment, the loss, and one iteration. `estimate` is one of
the functions of section 5.
"""

# %%
print(inspect.getsource(five_hours.act))
print(inspect.getsource(five_hours.loss))
print(inspect.getsource(five_hours.iterate))

# %% [markdown]
r"""
The result is in `five_hours.json`, with the machine and the versions that made it. A band is a 95% interval of the
mean over seeds, by bootstrap. The dashed line is the mean length of the training episodes: it is what the trainer
sees.
"""

# %%
record = json.loads(pathlib.Path(five_hours.__file__).with_suffix(".json").read_text(encoding="utf-8"))
settings, results = record["settings"], record["results"]
print(record["machine"])


def interval(samples: Any) -> np.ndarray:
    """Returns a 95% interval `[2, ...]` of the mean over the first axis, by bootstrap."""
    samples = np.asarray(samples)
    picks = np.random.default_rng(0).integers(len(samples), size=(2000, len(samples)))
    return np.quantile(samples[picks].mean(axis=1), [0.025, 0.975], axis=0)


final = {name: np.array(result["evaluations"])[:, -1] for name, result in results.items()}
trained = {name: np.array(result["training_lengths"])[:, -1] for name, result in results.items()}
figure, grid = plt.subplots(2, 4, figsize=(12.5, 6), sharex=True, sharey=True)
thousands = np.arange(len(results["right"]["evaluations"][0])) * settings["steps_between_evaluations"] / 1e3
right_mean = np.mean(results["right"]["evaluations"], axis=0)
for axes, (name, result) in zip(grid.flat, results.items(), strict=False):
    evaluations, lengths = np.array(result["evaluations"]), np.array(result["training_lengths"])
    axes.plot(thousands, right_mean, color="0.6", linewidth=1)
    axes.fill_between(thousands, *interval(evaluations), color=LIGHT, linewidth=0)
    axes.plot(thousands, evaluations.mean(0), color=DARK, linewidth=2, label="evaluation, up to 500")
    axes.plot(thousands[1:], lengths.mean(0), color=MIDDLE, linestyle="--", linewidth=2, label="training, up to 100")
    axes.set_title(f"{name}: {evaluations[:, -1].mean():.0f}")
for axes in grid[:, 0]:
    axes.set_ylabel("steps that the pole stays up")
for axes in grid[1]:
    axes.set_xlabel("training steps (thousands)")
grid[0, 0].legend(loc="lower right", bbox_to_anchor=(1, 0.2), fontsize=9)

grid[1, 3].set_axis_off()
grid[1, 3].text(0, 0.5, "thin line: the mean\nof the right one", color="0.4", transform=grid[1, 3].transAxes)

untrained = np.array(results["result in reverse"]["evaluations"])[:, 0]
assert interval(untrained)[1] < interval(final["result in reverse"])[0]  # the reversed one learns
assert untrained.mean() < 40 < 200 < final["result in reverse"].mean()
assert interval(trained["termination ignored"])[1] < 50  # loud: seen in training
training_curves = {name: np.mean(result["training_lengths"], axis=0) for name, result in results.items()}
silent = ("flag of the step before", "truncation as termination", "truncation not cut", "λ missing on the first hop")
for name in silent:  # in training they look like the right one, from the beginning to the end
    assert np.abs(training_curves[name] - training_curves["right"]).max() < 2, name

# %% [markdown]
r"""
The same numbers seed by seed, at the end of training. The left picture is what the trainer sees, the right one what
it gets.
"""

# %%
figure, (seen, got) = plt.subplots(1, 2, figsize=(11, 3.8), sharey=True)
jitter = np.random.default_rng(0).uniform(-0.25, 0.25, settings["seeds"])
for axes, numbers in ((seen, trained), (got, final)):
    for i, samples in enumerate(numbers.values()):
        axes.plot(samples, i + jitter, "o", color=LIGHT, markeredgecolor="0.3", markeredgewidth=0.5, markersize=4)
        low, high = interval(samples)
        axes.plot([low, high], [i, i], color=DARK, linewidth=6, solid_capstyle="butt", alpha=0.9)
seen.set_yticks(range(len(final)), list(final))
seen.invert_yaxis()
seen.set_xlim(0, 105)
seen.set_xlabel("steps of a training episode (limit 100)")
got.set_xlabel("steps of an evaluation (limit 500)")
figure.suptitle("One dot a seed; bar: 95% interval of the mean")

low, high = interval(final["right"])
for name in ("result in reverse", "termination ignored", "truncation as termination", "truncation not cut"):
    assert interval(final[name])[1] < low, name  # the intervals separate
for name in ("flag of the step before", "λ missing on the first hop"):
    assert max(low, interval(final[name])[0]) <= min(high, interval(final[name])[1]), name  # the intervals overlap
assert interval(trained["result in reverse"])[0] > 80

# %% [markdown]
r"""
One bug is **loud**: with termination ignored the agent never learns to stand, and the training curve shows it.

Two bugs are **silent in training and costly afterwards**: truncation as termination, and truncation not cut. Their
agents train as the right agent does, up to the limit of 100 steps. Beyond the limit these agents fall. In training
only the bootstrap from the final observation carries what would come after the limit, and both bugs spoil
it.

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
The same, live: seed 0 of the right agent and of the reversed one, trained from the start in this notebook.
"""

# %%
figure, axes = plt.subplots(figsize=(6.5, 3.4))
live = {name: five_hours.train_seeds(BUGS[name], seeds=1)[0][0] for name in ("right", "result in reverse")}
for (name, evaluations), colour, style in zip(live.items(), (DARK, MIDDLE), ("-", "--"), strict=True):
    axes.plot(thousands, evaluations, color=colour, linestyle=style, marker="o", markersize=4, linewidth=2, label=name)
axes.set_xlabel("training steps (thousands)")
axes.set_ylabel("steps that the pole stays up")
axes.set_title("Evaluations beyond the time limit, one seed each")
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
close(live["right"][0], live["result in reverse"][0])  # one and the same agent, before training
assert live["right"][-8:].mean() > live["result in reverse"][-8:].mean()

# %% [markdown]
r"""
## 7. One number is all that earlier time needs

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


figure, axes = plt.subplots(figsize=(6.5, 3.8))
inputs = np.linspace(-4, 4, 5, dtype=np.float32)
styles = ((47, 48, DARK, "-"), (40, 48, MIDDLE, "--"), (28, 48, LIGHT, "-."), (16, 48, "black", ":"))
for start, stop, colour, style in styles:
    outputs = np.array([piece(start, stop, h)[1] for h in inputs])
    slope = (outputs[-1] - outputs[0]) / 8
    close(outputs, outputs[2] + slope * inputs)  # a straight line,
    close(
        slope, 0 if ends[start:stop].any() else (gamma * lambda_) ** (stop - start)
    )  # of the slope that it should have
    label = f"length {stop - start}: slope {slope:.2f}" + ", an episode ends in it" * bool(ends[start:stop].any())
    axes.plot(inputs, outputs, color=colour, linestyle=style, linewidth=2, marker="o", markersize=4, label=label)
axes.set_xlabel("h behind the piece (reward)")
axes.set_ylabel("h before the piece (reward)")
axes.set_title("What a piece of a rollout does to h")
axes.legend()
assert piece(16, 48, inputs[0])[1] == piece(16, 48, inputs[-1])[1]  # nothing passes the end of an episode

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


def draw_blocks(axes: Axes, blocks: int, rows: int) -> None:
    """Draws the three steps: rows into maps, maps into h, h into rows; time runs to the right."""
    shades = plt.get_cmap("cividis")(np.linspace(0.15, 0.95, blocks))
    for block in range(blocks):
        left = block * (rows + 1)
        for row in range(rows):
            for y in (4.4, 0.0):
                axes.add_patch(Rectangle((left + row, y), 0.9, 0.9, facecolor=shades[block], edgecolor="black"))
        axes.add_patch(Rectangle((left + 0.6, 2.2), rows - 1.3, 0.9, facecolor=shades[block], edgecolor="black"))
        ink = "white" if block < blocks / 2 else "black"
        axes.text(left + rows / 2, 2.65, f"$(a, b)_{block}$", ha="center", va="center", color=ink, fontsize=12)
        arrow = {"arrowstyle": "-|>", "color": "black"}
        axes.annotate("", (left + rows / 2, 3.15), (left + rows / 2, 4.35), arrowprops=arrow)
        axes.annotate("", (left + rows / 2, 0.95), (left + rows / 2, 2.15), arrowprops=arrow)
        behind = left + rows + 1.6 if block < blocks - 1 else left + rows + 1.2
        axes.annotate("", (left + rows - 0.65, 2.65), (behind, 2.65), arrowprops=arrow)
        axes.text(left + rows + 0.35, 2.85, f"$h_{{{(block + 1) * rows}}}$", ha="center", va="bottom", fontsize=12)
    right = blocks * (rows + 1) + 1
    texts = ((4.85, "1. compose each block,\nall at once"), (2.65, "2. pass h through the maps,\nlast block first"))
    for y, text in (*texts, (0.45, "3. run each block with its h,\nall at once")):
        axes.text(right, y, text, va="center", fontsize=11)
    axes.set_xlim(-0.3, right + 9)
    axes.set_ylim(-0.9, 5.6)
    axes.annotate("", (right - 2, -0.5), (0, -0.5), arrowprops={"arrowstyle": "->", "color": "0.4"})
    axes.text(0, -0.45, "time (rows)", color="0.4", va="bottom")
    axes.set_axis_off()


figure, axes = plt.subplots(figsize=(11, 3.8))
draw_blocks(axes, blocks=4, rows=4)

# %% [markdown]
r"""
## 8. Tokens

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
With one decay for each *turn*, the tokens of a turn share an advantage: estimate on the first token of each turn,
with the turn's rewards summed there, and copy.
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
turn_rewards = np.array([rewards[chosen & (turn == i)].sum() for i in range(first.sum())], np.float32)
at_first = np.zeros_like(rewards)
at_first[first] = turn_rewards
ended = np.zeros_like(first)
ended[np.flatnonzero(first)[-1]] = True  # the last turn ends the episode
by_turn = gae(at_first, values, ended, mask=first, **options).advantages
by_turn = np.where(chosen, np.asarray(by_turn)[np.flatnonzero(first)[np.maximum(turn, 0)]], 0)

figure, grid = plt.subplots(2, 1, figsize=(9.5, 4.2), sharex=True, sharey=True)
for axes, advantages, title in zip(
    grid, (by_token, by_turn), ("a decay for each token", "a decay for each turn"), strict=True
):
    axes.bar(
        np.arange(len(KINDS)), advantages, color=np.where(turn == 0, LIGHT, DARK), edgecolor="black", linewidth=0.6
    )
    for i in np.flatnonzero(~chosen):
        axes.axvspan(i - 0.5, i + 0.5, color="0.9", linewidth=0)
    axes.set_title(title)
    axes.set_ylabel("advantage (reward)")
grid[1].set_xticks(np.arange(len(KINDS)), list(KINDS))
grid[1].set_xlabel("token (p prompt, x chosen by the policy, t written by the tool, . padding; grey: masked)")

# Masked rows are as if they were not there: the estimate on the chosen tokens alone is the same.
close(by_token[chosen], gae(rewards[chosen], values[chosen], terminated[chosen], **options).advantages)
assert (np.asarray(by_token)[~chosen] == 0).all()
close(by_token[last], 1 - 0.2)
answer = chosen & (turn == 1)
close(by_turn[answer], 1 - 0.2)  # all tokens of the answer share what the answer earned,
close(by_turn[chosen & (turn == 0)], 0.8 * (1 - 0.2))  # and the call has one decay more
assert by_token[3] < 0.1 < by_turn[3]

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


figure, (by_length, packed) = plt.subplots(1, 2, figsize=(10, 4), width_ratios=[1.3, 1])
for lambda_, colour, style in ((0.95, LIGHT, "--"), (0.99, MIDDLE, ":")):
    shares = [share_of_the_first_token(length, lambda_) for length in LENGTHS]
    close(shares, lambda_ ** (np.array(LENGTHS) - 1.0), atol=1e-4)
    by_length.plot(
        LENGTHS, shares, color=colour, linestyle=style, marker="o", linewidth=2, label=f"$\\lambda = {lambda_}$"
    )
shares = [share_of_the_first_token(length, 1 - 1 / length) for length in LENGTHS]
assert np.ptp(shares) < 0.03  # hardly depends on the length
by_length.plot(LENGTHS, shares, color=DARK, marker="o", linewidth=2, label=r"$\lambda = 1 - 1/L$")
by_length.set_xscale("log", base=2)
by_length.set_xticks(LENGTHS, LENGTHS)
by_length.set_xlabel("length L (tokens)")
by_length.set_ylabel("share of the final reward\nthat reaches the first token")
by_length.legend()

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
image = packed.pcolormesh(np.ma.masked_equal(reaches, 0), cmap="cividis_r", edgecolors="0.85", linewidth=0.5)
packed.set_ylim(bounds[-1], 0)
packed.set_aspect("equal")
packed.spines[:].set_visible(True)
packed.set_xlabel("s (token of the reward)")
packed.set_ylabel("t (token of the advantage)")
packed.set_title("three samples in one row")
figure.colorbar(image, ax=packed, label=r"$\partial \hat A_t / \partial r_s$ (no unit)")
assert (reaches[sample[:, None] != sample] == 0).all()

# %% [markdown]
r"""
## 9. A lambda to move

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

figure, grid = plt.subplots(1, len(strip), figsize=(12.5, 2.8), sharex=True, sharey=True)
for i, axes in enumerate(grid):
    a = np.asarray(advantages[:, i])
    axes.fill_between(row, a, where=a >= 0, interpolate=True, color=LIGHT, linewidth=0)
    axes.fill_between(row, a, where=a <= 0, interpolate=True, color=DARK, linewidth=0)
    axes.plot(row, a, color="black", linewidth=0.8)
    axes.set_title(f"$\\lambda = {strip[i]:g}$")
    axes.set_xlabel("t (step)")
grid[0].set_ylabel("advantage (reward)")
neighbours = [float(np.corrcoef(a[:-1], a[1:])[0, 1]) for a in np.asarray(advantages).T]
print("correlation of neighbours in time:", np.round(neighbours, 2))
assert neighbours[:5] == sorted(neighbours[:5])  # up to 0.95; beyond, the curves are all smooth
assert neighbours[0] < 0.2 < 0.9 < min(neighbours[4:])
