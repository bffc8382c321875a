import contextlib
import jax, numpy as np, pytest
from support import peers
from support.laws import assert_close
from support.peers import AGENTS, PACKAGES
SEEDS, PARAMETERS = range(2), [(0.99, 0.95), (0.9, 0.0)]
def rollouts(agent):
    return [peers.kind_of_rollout(AGENTS[agent], s, g, l) for g, l in PARAMETERS for s in SEEDS]
@pytest.mark.parametrize("agent", AGENTS)
def test_call_matches_definition(agent):
    for rollout in rollouts(agent):
        got = peers.in_rows(peers.run_call(agent, peers.names_of(agent, rollout)), rollout)
        want = peers.wanted(agent, rollout)
        live = rollout.live
        assert_close([got[live]], [want[live]])
@pytest.mark.parametrize("agent", PACKAGES)
def test_call_matches_package(agent):
    for rollout in rollouts(agent):
        names = peers.names_of(agent, rollout)
        try:
            theirs = peers.run_package(agent, names)
        except ImportError as error:
            pytest.skip(f"cannot be imported: {error}")
        got = peers.in_rows(peers.run_call(agent, names), rollout)
        assert_close([got[rollout.live]], [peers.in_rows(theirs, rollout)[rollout.live]])
