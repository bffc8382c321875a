"""`gae` agrees with the real packages where they can say what it says. Where they are wrong, it is pinned down how.

tests/peers.py calls them. What cannot be imported is skipped; the extra `peers` brings those that install together.
"""

import contextlib

import numpy as np
import pytest
from support import peers
from support.laws import assert_close
from support.peers import DEVIATIONS, INLINE, PEERS

from gae_jax import gae

SEEDS = range(5)
PARAMETERS = [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0)]
OF_TOKENS = [peer for peer in PEERS if peer.rollouts == "tokens"]
OF_EPISODES = [peer for peer in PEERS if peer.rollouts != "tokens"]


def each(entries):
    return pytest.mark.parametrize("peer", entries, ids=peers.slug)


@contextlib.contextmanager
def or_skip():
    try:
        yield
    except ImportError as error:
        pytest.skip(f"cannot be imported: {error}")


def ask(peer, rollout):
    """The peer's arrays and its answer, or a skip that says why there is none."""
    with or_skip():
        names = peer.arrays(rollout)
        return names, peers.run_peer(peer, names)


def gae_of(rollout):
    return np.asarray(gae(**rollout.arguments()).advantages)


@each(PEERS)
@pytest.mark.parametrize(("gamma", "lambda_"), PARAMETERS)
def test_peer_agrees(peer, gamma, lambda_):
    """The peer, the README's row on the peer's arrays, and `gae` on the rollout that they tell of: all the same."""
    if peer.name == "torchrl, `vec_`" and lambda_ == 0:
        with pytest.raises(IndexError):  # it makes a series of the powers of 0 with an axis too few
            ask(peer, peers.kind_of_rollout(peer.rollouts, 0, gamma, lambda_))
        return
    for seed in SEEDS:
        rollout = peers.kind_of_rollout(peer.rollouts, seed, gamma, lambda_)
        names, theirs = ask(peer, rollout)
        assert_close([peers.advantages_by_readme(peer.name, names)], [theirs])
        assert_close([gae_of(rollout)], [peers.time_major(theirs, rollout)])


@each(DEVIATIONS)
@pytest.mark.parametrize(("gamma", "lambda_"), [(0.99, 0.95), (0.9, 0.5)])
def test_peer_deviates_as_we_know(peer, gamma, lambda_):
    """What it gives is not GAE, by far, and is what `gae` gives when the same mistake is made in calling it."""
    for seed in SEEDS:
        rollout = peers.kind_of_rollout(peer.rollouts, seed, gamma, lambda_)
        names, theirs = ask(peer, rollout)
        assert_close([peer.as_if(**names)], [theirs])
        assert np.abs(peers.time_major(theirs, rollout) - gae_of(rollout)).max() > 0.05


def test_advantages_of_brax_skip_lambda_on_the_first_hop():
    """They are delta_t + gamma A_{t+1}: too much by gamma (1 - lambda) A_{t+1}, within an episode."""
    (brax,) = [x for x in DEVIATIONS if x.peer == "Brax"]
    rollout = peers.kind_of_rollout("dropped", 0, 0.9, 0.5)
    _, theirs = ask(brax, rollout)
    advantages = gae_of(rollout)
    goes_on = ~(rollout.terminated | rollout.truncated)[:-1]
    too_much = 0.9 * (1 - 0.5) * goes_on * advantages[1:]
    assert_close([theirs[:-1] - advantages[:-1], theirs[-1]], [too_much, advantages[-1]])
    _, theirs = ask(brax, rollout.replace(lambda_=1.0))  # the one case where they are GAE
    assert_close([theirs], [gae_of(rollout.replace(lambda_=1.0))])


@each(OF_EPISODES)
def test_peer_reads_past_the_end_of_an_episode(peer):
    """It multiplies by 0 the value that a terminated row must not read, and 0 * NaN is NaN. `gae` does not read it."""
    rollout = peers.kind_of_rollout("terminated", 0, 0.99, 0.95)
    rollout.terminated[-1] = True
    if peer.rollouts != "terminated":
        rollout = rollout.replace(
            truncated=np.zeros_like(rollout.terminated), final_values=np.zeros_like(rollout.rewards)
        )
    want = gae_of(rollout)
    rollout.values[-1] = np.nan
    names, theirs = ask(peer, rollout)
    ours = peers.advantages_by_readme(peer.name, names)
    assert np.isnan(peers.time_major(theirs, rollout)[-1]).all()
    assert_close([peers.time_major(ours, rollout)], [want])


@each(OF_TOKENS)
def test_peer_reads_padding(peer):
    """Likewise a NaN in the padding: it spoils every token before it."""
    rollout = peers.kind_of_rollout("tokens", 0, 0.99, 0.95)
    padding = ~rollout.live
    padding[-4:] = True
    rollout = rollout.replace(mask=~padding)
    want = gae_of(rollout)
    rollout.values[:-1][padding] = np.nan
    rollout.rewards[padding] = np.nan
    names, theirs = ask(peer, rollout)
    ours = peers.advantages_by_readme(peer.name, names)
    assert np.isnan(peers.time_major(theirs, rollout)[~padding]).all()
    assert_close([peers.time_major(ours, rollout)], [want])


def test_tunix_whitens_one_token_to_nan():
    """With one live token in the batch the variance is 0 / 0. `gae` leaves whitening to the caller."""
    one = np.ones((1, 1), np.float32)
    with or_skip(), peers.as_peers_want():
        advantages, returns = peers.load("tunix.rl.algo_core").compute_gae_advantages(one, one / 2, one, 0.99, 0.95)
    assert np.isnan(advantages).all()
    assert_close(returns, one)


@pytest.mark.parametrize("name", INLINE)
@pytest.mark.parametrize(("gamma", "lambda_"), PARAMETERS)
def test_readme_for_those_who_copied_their_code(name, gamma, lambda_):
    """No package to call: the README's row is held to the rollout that its arrays tell of."""
    rollout = peers.kind_of_rollout("terminated", 0, gamma, lambda_)
    ours = peers.advantages_by_readme(name, INLINE[name](rollout))
    assert_close([ours], [gae_of(rollout)], rtol=0)


def test_readme_has_a_row_for_each():
    assert set(peers.adapters()) == {peers.row_of(peer.name) for peer in PEERS} | set(INLINE)
