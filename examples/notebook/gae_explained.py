# ---
# jupyter:
#   pyright: reportMissingParameterType=false
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

This page derives it, gives a loop to copy, measures what $\lambda$ trades, and shows what bugs do to an agent. It ends
with exercises.

| symbol | meaning |
|---|---|
| $s_t,\ a_t,\ r_t$ | the state, the action, and the reward of the step from $s_t$ to $s_{t+1}$ |
| $\pi(a \mid s)$ | the policy: the probability of action $a$ in state $s$ |
| $\gamma$ | the *discount*: a reward that comes $i$ steps later counts $\gamma^i$ times as much |
| $V^\pi(s),\ Q^\pi(s, a)$ | the expected discounted sum of the rewards after $s$, and after $a$ in $s$ |
| $A(s, a)$ | the *advantage* $Q^\pi(s, a) - V^\pi(s)$: how much better $a$ is than the policy's average action |
| $V(s)$ | the *critic*: a network that guesses $V^\pi(s)$ |
| $\delta_t$ | the *TD error* |
| $\lambda$ | sets how many rewards an estimate takes before it relies on the critic |
| $r(s')$ | in section 6: the reward for entering $s'$; there $\gamma = 0.9$ |
| rollout, row | $T$ consecutive steps of an agent, and one of them; $s_T$ is the state after the last |
| standardize | subtract the mean and divide by the standard deviation |

This notebook is made from `gae_explained.py` ([how](../README.md#the-notebook)). `gae_figures.py` draws.
`gae_measured.py` asserts the numbers of the text, in functions `check_...`. `bug_study.py` trained the agents.
"""

# %%
import inspect

import gae_figures as figures
import gae_measured as measured
import numpy as np
from bug_study import BUGS, read_results

from gae_jax import _recursion, gae, normalize
from gae_jax.testing import check_gae

# %% [markdown]
r"""
## 0. Why an advantage

1. A policy has parameters $\theta$. The goal is a large expected sum of rewards, $J(\theta)$.
2. Its gradient is $\nabla J = \mathbb E \left[ \sum_t \nabla \log \pi(a_t \mid s_t)\, Q^\pi(s_t, a_t) \right]$. Actions
   with a large $Q^\pi$ become more likely.
3. Subtracting any function $b$ of the state is free, because the probabilities of all actions sum to 1:
   $\sum_a \pi(a \mid s)\, \nabla \log \pi(a \mid s)\, b(s) = b(s)\, \nabla \sum_a \pi(a \mid s) = b(s)\, \nabla 1 = 0$.
4. With $b = V^\pi$, the weight of an action is its advantage: the same gradient, and as a rule much less variance.
5. Nobody knows $A$. An agent has a rollout and a critic. GAE makes an estimate $\hat A_t$ of $A(s_t, a_t)$ from them.

With $\gamma < 1$, $Q^\pi$ counts late rewards less than $J$ does. The paper calls this a bias, accepted for less
variance. On this page $\gamma$ is given, and $A$ is the advantage for it.

In numbers, for four actions:
"""

# %%
pi, Q = np.array([0.1, 0.2, 0.3, 0.4]), np.array([3.0, 1.0, 2.0, 6.0])
score = np.eye(4) - pi  # row a: the gradient of log pi(a) with respect to the four logits
for name, weight in {"Q": Q, "A": Q - pi @ Q}.items():
    samples = score * weight[:, None]  # row a: what action a adds to the gradient
    variance = pi @ ((samples - pi @ samples) ** 2).sum(1)
    print(f"weighted by {name}: mean {(pi @ samples).round(2)}, variance {variance:.2f}")
measured.check_baseline(pi, score, Q)

# %% [markdown]
r"""
## 1. The derivation

**One step.** Let the critic be right, $V = V^\pi$. Given $s_t$ and $a_t$, the mean of $r_t + \gamma V(s_{t+1})$ is
$Q^\pi(s_t, a_t)$, so $\mathbb E[\delta_t \mid s_t, a_t] = A(s_t, a_t)$: the TD error estimates the advantage. It takes
one reward and *bootstraps*: $V(s_{t+1})$ stands for all rewards that follow. If the critic is wrong, its error at
$s_{t+1}$ biases the estimate; its error at $s_t$ is free by line 3. The paper calls an estimate *$\gamma$-just* if it
gives the same expected gradient as $A$.

**$k$ steps.** A longer estimate takes $k$ rewards as they came, and bootstraps afterwards:

$$A_t^{(k)} = r_t + \gamma r_{t+1} + \dots + \gamma^{k-1} r_{t+k-1} + \gamma^k V(s_{t+k}) - V(s_t)
= \sum_{i=0}^{k-1} \gamma^i\, \delta_{t+i}.$$

The sum of TD errors is the same because the values telescope: each $\gamma^i \cdot \gamma V(s_{t+i+1})$ cancels the
$-\gamma^{i+1} V(s_{t+i+1})$ of the next term.

**The average.** GAE averages all $A_t^{(k)}$ with weights that fall by a factor $\lambda$ a step; the factor
$1 - \lambda$ makes their sum 1. Swap the sums: $\delta_{t+i}$ occurs in every $A_t^{(k)}$ with $k > i$, and these have
the weights $\lambda^i + \lambda^{i+1} + \dots = \lambda^i / (1-\lambda)$.

$$\hat A_t = (1 - \lambda) \sum_{k \ge 1} \lambda^{k-1} A_t^{(k)}
= (1-\lambda) \sum_{i \ge 0} \gamma^i \delta_{t+i} \sum_{k > i} \lambda^{k-1}
= \sum_{i \ge 0} (\gamma\lambda)^i\, \delta_{t+i}.$$

**The recursion.** Take the first term out; the rest is the sum of the next step, times $\gamma\lambda$:

$$\hat A_t = \delta_t + \gamma\lambda\, \hat A_{t+1}.$$

**The end of the rollout.** There are no more TD errors, so the recursion starts from $\hat A_T = 0$. In the average,
the longest estimate, with $n = T - t$ rewards, gets the weight of all longer ones:
$(1-\lambda)(\lambda^{n-1} + \lambda^n + \dots) = \lambda^{n-1}$.

In numbers, for six steps:
"""

# %%
gamma, lambda_, T = 0.9, 0.8, 6
r = np.array([1.0, 0.0, 2.0, -1.0, 0.0, 3.0])  # r_0 ... r_5
V = np.array([2.0, 1.5, 2.5, 0.5, 1.0, 2.0, 1.0])  # V(s_0) ... V(s_6)
delta = r + gamma * V[1:] - V[:-1]
A_k = [np.cumsum(gamma ** np.arange(T - t) * delta[t:]) for t in range(T)]
weights = [measured.weights_of(T - t, lambda_) for t in range(T)]
A = [w @ a for w, a in zip(weights, A_k, strict=True)]
measured.print_by_length(A_k, "A^(k)")
measured.print_by_length(weights, "weight of A^(k)", sums=A)
measured.check_derivation(r, V, gamma, lambda_, A_k, A)

# %% [markdown]
r"""
**The target of the critic** is $\hat A_t + V(s_t)$. Adding $V(s_t)$ removes the last term of each $A_t^{(k)}$, so the
target is the same average of $k$-step returns: the *$\lambda$-return*.

**What is biased.** With $\lambda = 1$ an estimate takes all rewards and no guess of the future. A rollout that is cut
has fewer: the estimate keeps $\gamma^n$ times the error of $V(s_T)$, nearly all of it in the last rows.

## 2. From single steps to long stretches

At $\lambda = 0$ the advantage is the TD error: it credits single steps, as the critic values them. At $\lambda = 1$ it
is the discounted sum of the rewards minus the value: each step shares nearly all of its future with the next. Much of
the change happens beyond 0.95.
"""

# %%
rewards, values = measured.stretches()
strip = [0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0]
advantages = np.array([gae(rewards, values, False, gamma=0.99, lambda_=x)[0] for x in strip])
measured.check_stretches(rewards, values, 0.99, advantages)
figures.lambdas(rewards, values, advantages, strip)

# %% [markdown]
r"""
## 3. Where an episode ends

What row $t$ bootstraps from depends on what its step did:

| the step from $s_t$ | example | row $t$ bootstraps from | $\hat A_{t+1}$ |
|---|---|---|---|
| goes on | | $V(s_{t+1})$ | counts |
| *terminates* | the robot fell | 0: nothing of value follows | does not count |
| *is truncated* | a time limit | $V(\text{final observation})$: it could have gone on | does not count |
| is the last row of the rollout | row $T - 1$ | $V(s_T)$, unless the step ended an episode | is 0 |
| is *masked*: no step of the policy | padding | nothing: the row is skipped | goes to the row before |

If both flags are set, the episode terminated. **One flag is too few:** one `done` for both ends tells the critic that
nothing follows the time limit.

**Autoreset hides the final observation.** A vector environment resets an ended episode itself. So the next observation
in the rollout is of another episode, and $V(s_{t+1})$ in the critic's array is the value after the reset. The final
observation is elsewhere (in `info`), or in a row of its own, which must be masked, or lost (section 11).
[environments.md](../guides/environments.md) says where.

## 4. A loop to copy, and a check of your own

The recursion with all ends in it, in NumPy, for arrays `[T, N]` of N workers:
"""


# %%
def loop(rewards, values, terminated, truncated, final_values, bootstrap_value, gamma, lambda_):
    """Returns the advantages [T, N], from the last row to the first."""
    advantages, next_value, later = np.zeros(rewards.shape), bootstrap_value, 0.0
    for t in reversed(range(len(rewards))):
        next_value = np.select([terminated[t], truncated[t]], [0, final_values[t]], next_value)
        later = np.where(terminated[t] | truncated[t], 0, later)  # A_{t+1} of the same episode
        delta = rewards[t] + gamma * next_value - values[t]
        later = advantages[t] = delta + gamma * lambda_ * later
        next_value = values[t]
    return advantages


# %% [markdown]
r"""
`check_gae` runs a function on small rollouts, compares it with a reference, and names its mistake:
"""

# %%
print(check_gae(loop))

# %% [markdown]
r"""
For your own code, write a function with these argument names that calls it. Leave out the arguments that your code does
not have. This one passes both ends in one flag:
"""


# %%
def mine(rewards, values, terminated, truncated, bootstrap_value, gamma, lambda_):
    """My GAE, called by the names that check_gae uses."""
    done, never = terminated | truncated, np.zeros_like(truncated)
    return loop(rewards, values, done, never, values, bootstrap_value, gamma, lambda_)


print(check_gae(mine))
measured.check_own(loop, mine)

# %% [markdown]
r"""
**The library's code** carries one number instead of two. Write $h_{t+1}$ for what step $t$ bootstraps from:

$$\hat A_t = r_t + \gamma h_{t+1} - V(s_t), \qquad h_t = V(s_t) + \lambda \hat A_t, \qquad h_T = V(s_T).$$

Put the second equation into the first to get the recursion. An end replaces $h_{t+1}$. If $\lambda$ varies,
$\hat A_{t-1}$ weighs $\hat A_t$ by $\lambda_{t-1}$, so $h_t$ contains $\lambda_{t-1}$: `lambda_before` in the code.
"""

# %%
print(inspect.getsource(_recursion.step))
print(inspect.getsource(_recursion.next_value))

# %% [markdown]
r"""
Since $h$ is all that earlier rows need of later rows, a rollout can be [processed in pieces, or split over
devices](../guides/scaling_out.md).

## 5. The weights near the end

Near the end of a rollout the longest estimate takes over. With $\lambda = 0.9$ it has 66% of the weight where five rows
are left, and 90% where two are left, however long the rollout is. A [finite-horizon
variant](../guides/tokens.md#renormalized-weights-of-a-finite-horizon)
([arXiv:2602.03386](https://arxiv.org/abs/2602.03386)) divides the weights by their sum. It changes the last rows: of a
rollout, and of each episode that ends in it; the paper reports gains there, on Lunar Lander. ManiSkill's author found
that it [worked sometimes](https://github.com/mani-skill/ManiSkill/pull/816), and less with short rollouts.
"""

# %%
weights = [measured.weights_of(n, 0.9) for n in (12, 5, 2)]
measured.check_weights(0.9)
figures.weights(weights, 0.9)

# %% [markdown]
r"""
## 6. Bias and variance

A short estimate contains the critic's error: **bias**. A long one contains the randomness of many actions:
**variance**. $\lambda$ sets the mixture.

The trade can be measured without sampling error. Take a walk on five states in a row. The policy goes left or right
with probability one half; a step beyond an end stays there. Entering state $s'$ earns $r(s')$: 0.5 at the left end, 1
at the right end, else 0. With $P$ the matrix of the probabilities of going from $s$ to $s'$, the values solve
$(I - \gamma P) V^\pi = P\,r$, and $Q^\pi(s, a) = r(s') + \gamma V^\pi(s')$.

A rollout of 12 steps is one of $2^{12}$ sequences of actions from one of five states. All are enumerated, so mean and
variance of $\hat A_0$ are exact. The critic is $V = V^\pi + \varepsilon u$, with $u = (+1, -1, -1, +1, -1)$ and
$\varepsilon$ its error. Agents log its *explained variance*, here $1 - \mathrm{var}(V - V^\pi) / \mathrm{var}(V^\pi)$
(with noisy targets in place of $V^\pi$). The estimate is compared with $Q^\pi(s_0, a_0) - V(s_0)$, since the error at
$s_0$ is free.
"""

# %%
errors_of_critic = (0.8, 0.4, 0.15)
explained = {e: measured.explained_variance(e) for e in errors_of_critic}
curves = {e: measured.squared_bias_and_variance(e) for e in errors_of_critic}
simulated = {e: measured.simulated_errors(e) for e in errors_of_critic}  # by gae, on 40,000 walks
measured.check_trade(curves, simulated)
figures.bias_and_variance(measured.LAMBDAS, curves, explained, simulated)

# %% [markdown]
r"""
The error has a lowest point, which moves left as the critic gets better: 0.52, 0.28, 0.07. The usual choice is 0.95.
But the figure is about *one* estimate, and a gradient averages many. Averaging $N$ independent estimates for the same
state and action divides the variance by $N$ and leaves the bias: the error is $\text{bias}^2 + \text{variance} / N$.
"""

# %%
best = {e: measured.best_lambdas(curve) for e, curve in curves.items()}
measured.check_counts(curves)
figures.best_lambda(measured.COUNTS, best, explained, measured.MARKED)

# %% [markdown]
r"""
Take the direction from this figure, not the numbers:

- With another pattern $u$ of the critic's error, the best $\lambda$ differs by up to 0.27.
- A bias that both actions share does no harm to a gradient: it is 20% of bias$^2$ at $\lambda = 0$, 84% at 0.95 and 99%
  at 1. Without it the best $\lambda$ is smaller, by at most 0.05.
- $N$ is not the number of rows. Rows of one rollout are correlated: the gradient of a whole walk has 1.9 to 2.5 times
  the variance of 12 independent rows at $\lambda = 0.95$, and up to 4.6 times at 0.

### How to choose $\gamma$ and $\lambda$

- **$\gamma$ first**: it belongs to the question. A reward $1 / (1 - \gamma)$ steps ahead counts about a third, and one
  three times as far ahead 5%. A smaller $\gamma$ leaves out late noise, and late consequences.
- **Then $\lambda$**: large for a poor critic or a large batch, small for a good critic and a small batch. With a
  perfect critic no $\lambda$ is biased.
- **0.95 is a start.** A large batch, or a critic that hardly learns, is a reason to try 0.98 or 1; noisy gradients with
  a good critic are a reason to try 0.9 or 0.8.

## 7. $\lambda$ on an agent

A small [PPO](https://arxiv.org/abs/1707.06347) agent learns to balance a pole on a cart, with $\gamma = 0.99$. It acts
in 32 environments at once; each is a *worker* that adds 64 consecutive steps to the rollout. Episodes are truncated
after 100 steps in training, after 500 in evaluations.
"""

# %%
record = read_results()
names = {"λ = 0": 0.0, "λ = 0.5": 0.5, "λ = 0.8": 0.8, "λ = 0.9": 0.9, "right": 0.95, "λ = 0.98": 0.98, "λ = 1": 1.0}
squared_bias, variance = curves[0.4]
measured.check_sweep(record)
figures.sweep(record, names, measured.LAMBDAS, {n: squared_bias + variance / n for n in (1, 16, 256)})

# %% [markdown]
r"""
On this pole a larger $\lambda$ is better all the way: a mean of 224 steps at $\lambda = 0$, 480 at 0.9, 497 at 0.95,
and at least 495 for each of the 64 agents with 0.98 or 1. Every reward is 1 and the pole moves without noise, so there
is little variance to save, and 2,048 rows are averaged. In the paper's Figure 2, on another cart-pole with the same
$\gamma$, 0.92 to 0.98 were the best. No number is the best everywhere. For your own agent:

1. Fix $\gamma$ and the batch. Run 0.9, 0.95, 0.98 and 1, eight seeds or more each.
2. Compare evaluations that do not saturate, by intervals over seeds.
3. If the best is at an end, go on there; if intervals overlap, keep 0.95.

## 8. Which rewards and values an advantage depends on

The advantages are linear in rewards and values, so their derivatives tell all that the estimator does. JAX computes
them from the code. The rollout here has ten steps; step 3 terminates an episode and step 6 is truncated.

- A reward $r_j$ has weight $(\gamma\lambda)^{j-t}$ in the advantages of its own episode, up to its own step.
- A value $V(s_j)$ has weight $-1$ at its own step, and $\gamma(1-\lambda)(\gamma\lambda)^{j-t-1}$ at an earlier step
  $t$ of the same episode.
- The last value that an episode bootstraps from has weight $\gamma (\gamma\lambda)^{j-t-1}$, since the longest estimate
  has the weight of all longer ones. This is $V(s_T)$, with $j = T$, or $V(\text{final})$ after a truncated step $j-1$.
  After a termination there is none.

White cells are exact zeros.
"""

# %%
gamma, lambda_ = 0.95, 0.8
jacobians = measured.jacobians(BUGS["right"], gamma, lambda_)
measured.check_jacobians(jacobians, gamma, lambda_)
figures.jacobians(*jacobians, measured.END, measured.LIMIT)

# %% [markdown]
r"""
## 9. A gallery of bugs

Each mistake is a small change to the call or to the result. Reports from public code:

| mistake | report |
|---|---|
| the result in reverse | section 10 |
| another step's flag | [Stable-Baselines3](https://github.com/DLR-RM/stable-baselines3/issues/105): the step after |
| truncation as termination | [PureJaxRL](https://github.com/luchris429/purejaxrl/issues/20) |
| truncation not cut | [skrl](https://github.com/Toni-SM/skrl/issues/449) |
| $V(s_t)$ for $V(\text{final})$ | [rsl_rl](https://github.com/leggedrobotics/rsl_rl/issues/151) |
| $\lambda$ missing on the first hop | [Brax](https://github.com/google/brax/issues/583) |
"""

# %%
print(*(inspect.getsource(bug) for name, bug in BUGS.items() if name != "right"), sep="\n")

# %% [markdown]
r"""
The upper picture of a pair is $\partial \hat A_t / \partial r_j$, the lower one $\partial \hat A_t / \partial V(s_j)$;
the last column of the lower one, apart, is for the final observation of step 6. The titles are the names that
`check_gae` gives.
"""

# %%
marks = {name: measured.jacobians(bug, gamma, lambda_) for name, bug in BUGS.items()}
measured.check_gallery(marks, gamma, lambda_)
titles = {"right": "right"} | measured.CHECKED
figures.gallery(marks, titles, measured.END, measured.LIMIT)

# %% [markdown]
r"""
## 10. What a bug does to an agent

[labml's annotated GAE](https://nn.labml.ai/rl/ppo/gae.html) fills an array backwards in time. Until June 2024 a
[remark](https://github.com/labmlai/annotated_deep_learning_paper_implementations/blob/999f2036a5a7c54403352211b5d1cc0df42b83f6/labml_nn/rl/ppo/gae.py)
beside the code said:

> My initial code was appending to a list and I forgot to reverse it later. It took me around 4 to 5 hours to find the
> bug. The performance of the model was improving slightly during initial runs, probably because the samples are
> similar.

Which bugs can one see at all? And is the guess right? The agent of section 7, with $\lambda = 0.95$, is trained with
six of the bugs, 32 seeds each.
"""

# %%
measured.check_bugs(record)
figures.learning_curves(record, measured.GROUPS)

# %% [markdown]
r"""
- One bug is **loud**: with termination ignored the agent never learns to stand.
- Three bugs are **silent**: the training curve ends as the right one does, and the agent is worse. With truncation as
  termination, 22 of 32 agents reach 495 of 500 steps, and the worst reaches 183; with the right advantages it is 26
  agents, and 470. With truncation not cut, one reaches 495; the median is 326. The reversed result even **learns**,
  more slowly: from 34 steps to a median of 200.
- Two bugs are **invisible**: the intervals overlap. The design hides them. After 49,000 of 131,000 steps next to no
  episode terminates, so no flag is in a wrong row; at $\lambda = 0.95$ a missing $\lambda$ changes weights by 5%.
  Elsewhere they matter: in the report on Stable-Baselines3, PPO "improved dramatically" after the repair.

A learning curve is no test of an estimator. `check_gae` finds each of these bugs in seconds.

### Was the guess right?

If the samples of a worker are similar, an advantage on the wrong row of the right worker still tells how well this
worker's 64 steps went. To test this, agents are trained with the right advantages on other rows. The critic's targets
are advantage plus value, so they move along, except in the two agents "only".

| order | what is left of the right advantages |
|---|---|
| mean of the worker | which worker did well, and nothing else |
| random order of time | which worker did well |
| result in reverse | which worker did well; time runs the wrong way |
| reverse of another worker | nothing but the numbers, and that neighbours in time are alike |
| all shuffled | nothing but the numbers |
"""

# %%
measured.check_orders(record)
figures.orders(record)

# %% [markdown]
r"""
Here the guess was right. **Which worker did well survives the reversal, and that alone trains.** Agents that get only
the means of the workers end at about 400 steps. With advantages of other rows of other workers, 27 and 22 of the 32 end
below the 34 steps from before training.

The reversed agents end at 236 steps, the right ones at 497. Most of that difference comes through the critic's
**targets**: with the reverse in the targets only, agents end at 226; with the reverse in the policy's loss only,
at 453.

## 11. Around the estimator

Where the final observation is lost, a truncated row has no estimate, and `gae` *drops* it: advantage 0, target
$V(s_t)$. Zero is not neutral once the mean is subtracted from it: the loss would make the action less or more likely
for no reason.
"""

# %%
rng, dropped = np.random.default_rng(6), 5
rewards, values = 1 + 0.3 * rng.normal(size=8), 0.3 * rng.normal(size=9)
is_dropped = np.arange(8) == dropped
advantages, _ = gae(rewards, values, False, is_dropped, gamma=0.9, lambda_=0.8)
counted, kept = normalize(advantages), normalize(advantages, mask=~is_dropped)
for title, x in {"A": advantages, "all rows": counted, "without row 5": kept}.items():
    print(f"{title:>13}" + "".join(f"{number:7.2f}" for number in x))
measured.check_dropped_row(advantages, counted, kept, dropped)

# %% [markdown]
r"""
- **Dropped and masked rows** carry no training signal: leave them out of the mean, of the variance and of the loss.
- **Stop the gradient**: in a loss, advantages and targets are constants (`jax.lax.stop_gradient`).
- **Targets** come from the advantages before standardization.
- **Standardize** over the whole batch or over each minibatch: the two differ, most where minibatches are small.
- **Tokens** of a language model, turns and tools: [tokens.md](../guides/tokens.md).

## Summary

1. $\delta_t$ estimates the advantage; GAE averages estimates of all lengths:
   $\hat A_t = \delta_t + \gamma\lambda \hat A_{t+1}$.
2. $\lambda$ trades the critic's error against the noise of the rewards; start with 0.95, and let a sweep decide.
3. A termination bootstraps from 0, a truncation from $V(\text{final})$, the last row from $V(s_T)$; nothing crosses an
   end.
4. Training curves hide mistakes at these ends: test the function, by derivatives or by `check_gae`.
5. Rows without an estimate stay out of the loss and of the standardization.

## Exercises

**1.** Three steps have rewards 1, 1, 1 and values 0.5, 0.5, 0.5; $V(s_3) = 0.5$, $\gamma = \lambda = 0.5$, and step 1
terminates. Compute the advantages.

<details><summary>Answer</summary>

$\hat A_2 = 1 + 0.25 - 0.5 = 0.75$. Step 1 bootstraps from 0 and takes nothing of $\hat A_2$:
$\hat A_1 = 1 - 0.5 = 0.5$. $\hat A_0 = (1 + 0.25 - 0.5) + 0.25 \cdot 0.5 = 0.875$.

</details>

**2.** In the rollout of section 8 (step 3 terminates, step 6 is truncated) raise $r_5$ by 1. Which advantages move, and
how much? Make a test of your own loop from this.

<details><summary>Answer</summary>

$\hat A_5$ by 1 and $\hat A_4$ by $\gamma\lambda$; the others belong to other episodes, or come later. The test: raise a
reward after an end; no advantage before the end may move.

</details>

**3.** Which mistake is in this loop, and how does your test of exercise 2 show it?

```python
for t in reversed(range(T)):
    next_value = 0 if terminated[t] else values[t + 1]
    delta = rewards[t] + gamma * next_value - values[t]
    later = advantages[t] = delta + gamma * lambda_ * later
```

<details><summary>Answer</summary>

The value is cut, and `later` is not: the next episode's advantage enters the one before. In the test, $\hat A_3$ moves
by $(\gamma\lambda)^2$. `check_gae`: "the carry is not cut at a termination". Multiply the last term by
`not terminated[t]`.

</details>

**4.** An agent has 8 environments, rollouts of 128 steps, noisy rewards, $\gamma = 0.99$, $\lambda = 0.95$, and a
critic with an explained variance of 0.9. Which $\lambda$ would you try, and how would you decide?

<details><summary>Answer</summary>

A good critic and few noisy rows: 0.9 and 0.8, beside 0.95. Compare evaluations of eight seeds or more each, by
intervals.

</details>

**5.** A language model's answer has $L$ tokens, a reward of 1 at the end, values 0, and $\gamma = 1$. How much of it
reaches the first token with $\lambda = 0.95$ and $L = 1000$? With $\lambda = 1 - 1/(\alpha L)$
([VAPO](https://arxiv.org/abs/2504.05118)), for $\alpha = 1$ and for the paper's $\alpha = 0.05$?

<details><summary>Answer</summary>

$\lambda^{L-1}$, below $10^{-22}$. By length it is about $e^{-1/\alpha}$ where $L$ is large: 0.37, and $2 \cdot 10^{-9}$
for 0.05. The rule makes the horizon $\alpha L$ the same part of each answer; it brings the reward to the first token
only if $\alpha$ is large.

</details>

## Appendix: four slips in a well-known page

This library grew from labml's annotated GAE. Its code is right. Its formulas had $\gamma^2 r_{t+1}$ for
$\gamma^2 r_{t+2}$ in $\hat A_t^{(\infty)}$; the weights $\lambda^{k-1}$ without $1 - \lambda$;
$(\gamma\lambda)^{T-t+1} \delta_{T-1}$ for $(\gamma\lambda)^{T-t-1} \delta_{T-1}$ in the sum; and $V(s)$ for $V(s_t)$.
The first two were [reported](https://github.com/labmlai/annotated_deep_learning_paper_implementations/issues/255) and
corrected in June 2024; the others were there in August 2025. Equations (10) and (11) of the PPO paper have the exponent
$T-t+1$, too.
"""

# %%
measured.check_exercises()
measured.check_slips(r, V, 0.9, 0.8)
