"""Prints the README's table of conformance: every peer that is installed, on the same random rollouts as `gae`.

python tests/conformance.py
"""

import importlib.metadata

import numpy as np
from support import peers
from support.peers import DEVIATIONS, PEERS, Deviation, Peer

from gae_jax import gae

SEEDS = range(5)
PARAMETERS = [(0.99, 0.95), (0.9, 0.5)]
HEAD = """\
The largest difference of an advantage from that of `gae`, relative to the root mean square of the latter: float32, on a
CPU, 10 random rollouts of 64 steps and 8 workers. Where it is not rounding, the peer says something else than GAE, and
`tests/test_peers.py` pins down what.
"""
FOOT = """
All of them multiply what they must not read by 0, the value after a terminated row or a padding token, so a NaN there
spoils the advantages before it; `gae` does not read it.\
"""


def largest_difference(entry: Peer | Deviation) -> float:
    """Between the peer's advantages and those of `gae`, over the root mean square of the latter."""
    differences = []
    for seed in SEEDS:
        for gamma, lambda_ in PARAMETERS:
            rollout = peers.kind_of_rollout(entry.rollouts, seed, gamma, lambda_)
            theirs = peers.time_major(peers.run_peer(entry, entry.arrays(rollout)), rollout)
            ours = np.asarray(gae(**rollout.arguments()).advantages)
            differences.append(np.abs(theirs - ours).max() / np.sqrt(np.mean(ours**2)))
    return max(differences)


def row(entry: Peer | Deviation) -> list[str]:
    name = entry.name if isinstance(entry, Peer) else f"{entry.peer}: {entry.what}"
    try:
        version = importlib.metadata.version(entry.distribution)
    except importlib.metadata.PackageNotFoundError:
        return [name, "not installed", "", entry.remark]
    try:
        return [name, version, f"{largest_difference(entry):.2g}", entry.remark]
    except ImportError:
        return [name, version, "cannot be imported", entry.remark]


def main():
    rows = [["peer", "version", "largest difference", "what differs and why"], ["---"] * 4]
    for peer in PEERS:
        rows += [row(peer), *(row(x) for x in DEVIATIONS if x.peer == peer.name)]
    print(HEAD, *(f"| {' | '.join(cells)} |" for cells in rows), FOOT, sep="\n")


if __name__ == "__main__":
    main()
