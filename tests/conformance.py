"""Prints the tables of tests/README.md: of agents, or with `--recipes` of the recipes of examples/guides/tokens.md."""

import argparse
import importlib.metadata

import jax
import numpy as np
from support import pages, peers, recipes
from support.references import RECIPES

SEEDS = range(5)


def agent_row(agent: str) -> list[str]:
    """The largest differences, relative to the root mean square of what the agent computes."""
    compared = "its formula" if agent in peers.FORMULAS else "GAE by definition"
    differences = []
    for seed in SEEDS:
        rollout = peers.kind_of_rollout(peers.AGENTS[agent], seed, 0.99, 0.95)
        wanted, live = peers.wanted(agent, rollout), rollout.live
        theirs, distribution = wanted, peers.PACKAGES.get(agent, [""])[0]
        if distribution:
            theirs = peers.run_package(agent, rollout)
            compared = f"its function, {distribution} {importlib.metadata.version(distribution)}"
        ours = peers.run_call(agent, rollout)
        gae = peers.gae_of(agent, rollout).reshape(*live.shape, *[1] * (wanted.ndim - 2))
        errors = [np.abs(ours - theirs)[live].max(), np.abs(wanted - gae)[live].max()]
        differences.append(errors / np.sqrt(np.mean(wanted[live] ** 2)))
    call, agent_itself = np.max(differences, axis=0)
    return [agent, compared, f"{call:.0e}", f"{agent_itself:.1f}" if agent in peers.FORMULAS else "0"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", action="store_true", help="print the table of recipes")
    if parser.parse_args().recipes:
        jax.config.update("jax_num_cpu_devices", 8)  # one recipe splits its arrays over a mesh
        rows = [["recipe", "lines", "largest difference"]]
        for heading in RECIPES:
            worst = max(recipes.largest_difference(heading, seed) for seed in SEEDS)
            rows.append([heading, str(len(pages.recipes(recipes.PAGE)[heading].splitlines())), f"{worst:.1g}"])
    else:
        head = ["agent", "compared with", "the call differs by", "the agent differs from GAE by"]
        rows = [head, *map(agent_row, peers.AGENTS)]
    for cells in (rows[0], ["---"] * len(rows[0]), *rows[1:]):
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
