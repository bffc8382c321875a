"""examples/swap_in.py: each replacement equals the estimator that it replaces; the comparison; what the page shows."""

import ast
import inspect
import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import pages, peers
from support.laws import assert_close
from support.oracle import oracle

pytest.importorskip("tyro")
import swap_in

pytestmark = [pytest.mark.examples, pytest.mark.usefixtures("implicit_promotion")]
PAGE = "examples/guides/agents.md"


ROLLOUT = peers.kind_of_rollout("dropped", 0, 0.9, 0.8)
STORED_BY_BRAX = peers.names_of("Brax", ROLLOUT)
BRAX_ARGUMENTS: dict[str, Any] = {
    name: jnp.asarray(STORED_BY_BRAX[name]) for name in inspect.signature(swap_in.brax_gae).parameters
}


def test_brax_gae_matches_oracle():
    advantages, targets = oracle(**ROLLOUT.arguments())
    assert_close(swap_in.brax_gae(**BRAX_ARGUMENTS), (targets, advantages))


def test_brax_as_it_is_equals_brax():
    losses = pytest.importorskip("brax.training.agents.ppo.losses")
    assert_close(swap_in.brax_as_it_is(**BRAX_ARGUMENTS), losses.compute_gae(**BRAX_ARGUMENTS))


@pytest.mark.parametrize("replacement", [swap_in.brax_gae, swap_in.brax_as_it_is])
def test_brax_replacement_is_detached(replacement):
    """Brax differentiates its loss with the estimator in it."""
    gradient = jax.grad(lambda values: sum(x.sum() for x in replacement(**BRAX_ARGUMENTS | {"values": values})))
    assert not gradient(BRAX_ARGUMENTS["values"]).any()


@pytest.mark.parametrize("reward_axes", [(), (1,)])
def test_rejax_gae_matches_rejax_and_oracle(reward_axes):
    rollout = peers.kind_of_rollout("terminated", 0, 0.9, 0.8)
    stored = SimpleNamespace(**peers.names_of("rejax", rollout))
    rewards = jnp.asarray(rollout.rewards).reshape(*rollout.rewards.shape, *reward_axes)
    arguments = stored.self, stored.trajectories._replace(reward=rewards), stored.last_val
    assert_close(swap_in.rejax_gae(*arguments), oracle(**rollout.arguments()))
    rejax = pytest.importorskip("rejax")
    assert_close(swap_in.rejax_gae(*arguments), rejax.PPO.calculate_gae(*arguments))


# The comparison, with an agent that is no package.


def unit_estimator(rewards, values):
    return rewards - values, rewards


def half_off(rewards, values):
    """An estimator that is wrong by 0.5 in its first result."""
    return rewards - values + 0.5, rewards


def toy_agent(targets_first=False):
    module = SimpleNamespace(estimate=unit_estimator)

    def train(seed, iterations):
        rewards = jnp.full((2, 3), float(seed))
        first, _ = jax.jit(lambda: module.estimate(rewards=rewards, values=-rewards - 1))()
        return [0.0] * swap_in.EVALUATIONS + [float(first[0, 0]) * iterations]

    return swap_in.Agent("none", module, "estimate", {"half off": half_off}, train, targets_first)


@pytest.mark.parametrize("targets_first", [False, True])
def test_comparison_tells_what_differs(targets_first):
    agent = toy_agent(targets_first)
    result = swap_in.compare("jax", agent, swap_in.Options(seeds=2, steps=20_481))
    assert agent.owner.estimate is unit_estimator  # it is put back
    assert result["steps"][-1] == 40_960  # rounded up
    assert {label: [x[-1] for x in returns] for label, returns in result["returns"].items()} == {
        "theirs": [2.0, 6.0],
        "half off": [3.0, 7.0],
    }
    (row,) = (dict(zip(swap_in.HEADER, row, strict=True)) for row in result["rows"])
    first, second = ("targets", "advantages")[:: 1 if targets_first else -1]
    assert row[f"{first} differ by"] == "5.0e-01 of 1"
    assert row[f"{second} differ by"] == "0.0e+00 of 0"
    assert (row["return, theirs"], row["return, with gae"]) == ("4 ± 2", "5 ± 2")


# The page.


def test_page_has_the_table_and_the_file_has_its_returns():
    results = json.loads((pages.ROOT / "examples" / "swap_in.json").read_text())
    rows = [row for result in results.values() for row in result["rows"]]
    assert pages.table(PAGE, f"| {' | '.join(swap_in.HEADER)} |") == rows
    for name, *_, label, _, _, theirs, ours in rows:
        last = (np.array(results[name]["returns"][x])[:, -1] for x in ("theirs", label))
        assert [f"{x.mean():.4g} ± {x.std():.2g}" for x in last] == [theirs, ours]


@pytest.mark.parametrize("replacement", [swap_in.brax_gae, swap_in.rejax_gae])
def test_page_shows_the_lines_that_run(replacement):
    (function,) = ast.parse(inspect.getsource(replacement)).body
    shown = {ast.dump(node) for block in pages.blocks(PAGE) for node in ast.walk(ast.parse(block))}
    assert isinstance(function, ast.FunctionDef)
    assert all(ast.dump(statement) in shown for statement in function.body[1:])
