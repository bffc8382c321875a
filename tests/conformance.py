"""Prints the tables of tests/README.md, or makes random calls.

python tests/conformance.py             # every peer that is installed, against `gae`
python tests/conformance.py --recipes   # every recipe of examples/guides/tokens.md, against its definition
python tests/conformance.py --random 60 # random calls over all arguments for 60 seconds, against the oracle
"""

import argparse
import importlib.metadata

import jax
import numpy as np
from support import pages, peers, random_calls, recipes
from support.peers import AGENTS, DEVIATIONS, PEERS, Agent, Deviation, Peer
from support.references import RECIPES

import gae_jax
from gae_jax import gae

SEEDS = range(5)
PARAMETERS = [(0.99, 0.95), (0.9, 0.5)]


def difference_from_gae(entry: Peer | Agent | Deviation) -> float:
    """The largest difference of an advantage from `gae`, relative to the root mean square of the latter."""
    differences = []
    for seed in SEEDS:
        for gamma, lambda_ in PARAMETERS:
            rollout = peers.kind_of_rollout(entry.rollouts, seed, gamma, lambda_)
            theirs = peers.time_major(peers.run_peer(entry, entry.arrays(rollout)), rollout)
            ours = np.asarray(gae(**rollout.arguments()).advantages)
            differences.append(np.abs(theirs - ours)[rollout.live].max() / np.sqrt(np.mean(ours[rollout.live] ** 2)))
    return max(differences)


def peer_row(entry: Peer | Agent | Deviation) -> list[str]:
    if isinstance(entry, Agent):
        return [entry.row, "its formula", f"{difference_from_gae(entry):.2g}", entry.remark]
    name = peers.title(entry)
    try:
        version = importlib.metadata.version(entry.distribution)
    except importlib.metadata.PackageNotFoundError:
        return [name, "not installed", "", entry.remark]
    try:
        return [name, version, f"{difference_from_gae(entry):.2g}", entry.remark]
    except ImportError:
        return [name, version, "cannot be imported", entry.remark]


def peer_table() -> list[list[str]]:
    rows = [["peer", "version", "largest difference", "what differs and why"]]
    for peer in PEERS:
        rows += [peer_row(peer), *(peer_row(x) for x in DEVIATIONS if x.peer == peer.name)]
    return rows + [peer_row(agent) for agent in AGENTS]


def recipe_table() -> list[list[str]]:
    rows = [["recipe", "lines", "largest difference"]]
    for heading in RECIPES:
        lines = len(pages.recipes(recipes.PAGE)[heading].splitlines())
        difference = max(recipes.largest_difference(heading, seed) for seed in SEEDS)
        rows.append([heading, str(lines), f"{difference:.1g}"])
    return rows


def main() -> None:
    """Prints one of the tables, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", action="store_true", help="print the table of recipes")
    parser.add_argument("--random", type=float, metavar="SECONDS", help="make random calls for so many seconds")
    options = parser.parse_args()
    if options.random:
        count, worst = random_calls.run(gae_jax, options.random)
        print(f"{count} random calls; the largest error is {worst:.2g} times the epsilon of the dtype")
        return
    jax.config.update("jax_num_cpu_devices", 8)  # one recipe splits its arrays over a mesh
    head, *rows = recipe_table() if options.recipes else peer_table()
    for cells in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
