"""README.md against the code, the other pages and pyproject.toml; the links of all pages."""

import inspect
import re
import tomllib
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from support import pages, peers
from support.laws import assert_close
from support.oracle import oracle

import gae_jax
from gae_jax import _recursion, testing

README, MIGRATING = "README.md", "examples/migrating.md"
PAGES = sorted(
    {README, "tests/README.md", *(f"examples/{path.name}" for path in (pages.ROOT / "examples").glob("*.md"))}
)

# Links.


def prose(page):
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", pages.read(page), flags=re.M | re.S)


def links(page):
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]+`", "", prose(page)))


def anchors(page):
    """The anchors that GitHub gives to the headings."""
    headings = re.findall(r"^#+ +(.*?) *$", prose(page), re.M)
    text = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    names = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in text]
    return {f"{name}-{names[:i].count(name)}".removesuffix("-0") for i, name in enumerate(names)}


def broken(page):
    """The links to files that are not there, and to headings that the page does not have."""
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (pages.ROOT / page).parent / path if path else pages.ROOT / page
        if link.startswith("https://"):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target.resolve().relative_to(pages.ROOT))):
            yield link


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page):
    assert list(broken(page)) == []


def test_readme_links_to_every_page():
    assert set(PAGES) - {README} <= {link.partition("#")[0] for link in links(README)}


# The recursion and the API.


def test_step_is_the_source():
    source = f"{inspect.getsource(_recursion.step)}\n\n{inspect.getsource(_recursion.next_value)}"
    assert [block for block in pages.blocks(README) if block.startswith("def step")] == [source]


def test_api_names_are_the_public_names():
    rows = re.findall(r"^\| `([\w.]+)` \|", prose(README).partition("\n## API\n")[2].partition("\n## ")[0], re.M)
    public = {name for name, x in vars(gae_jax).items() if not (name.startswith("_") or inspect.ismodule(x))}
    checks = {
        name for name, x in vars(testing).items() if name.startswith("check_") and x.__module__ == testing.__name__
    }
    assert sorted(rows) == sorted(public | {f"testing.{name}" for name in checks})


# The tables.


def test_page_of_the_tests_names_every_module():
    modules = {path.name for path in (pages.ROOT / "tests").glob("test_*.py")}
    assert set(re.findall(r"`(test_\w+\.py)`", pages.read("tests/README.md"))) == modules


def rejax_arrays(rollout):
    """`done` is the flag of the step in its row."""
    trajectories = types.SimpleNamespace(reward=rollout.rewards, value=rollout.values[:-1], done=rollout.terminated)
    agent = types.SimpleNamespace(gamma=rollout.gamma, gae_lambda=rollout.lambda_)
    return {"self": agent, "trajectories": trajectories, "last_val": rollout.values[-1]}


class Replaced(NamedTuple):
    rollouts: str  # the kind that the code has flags for
    arrays: Callable[..., dict[str, Any]]  # of a rollout, under the names of the code
    row: str  # of examples/migrating.md, if there is one


REPLACED = {
    "PureJaxRL, `ppo.py`": Replaced("terminated", peers.purejaxrl_arrays, "PureJaxRL"),
    "Brax": Replaced("dropped", peers.brax_arrays, "Brax"),
    "rejax": Replaced("terminated", rejax_arrays, ""),
    "CleanRL, JAX": Replaced("terminated", peers.cleanrl_jax_arrays, "CleanRL, JAX (`ppo_atari_envpool_xla_jax`)"),
    "stable-baselines3": Replaced("final_values", peers.sb3_arrays, "stable-baselines3"),
}


def replacements():
    """The last column, by row."""
    return {row: code.strip("`") for row, _, code in pages.table(README, "| your code | its call | with gae_jax |")}


def run_replacement(row, names):
    return eval(replacements()[row], pages.imports(MIGRATING), names)


def test_every_replacement_has_a_test():
    assert replacements().keys() == REPLACED.keys()


@pytest.mark.parametrize("row", REPLACED)
def test_replacement_matches_oracle(row):
    rollout = peers.kind_of_rollout(REPLACED[row].rollouts, 0, 0.99, 0.95)
    assert_close(run_replacement(row, REPLACED[row].arrays(rollout)), oracle(**rollout.arguments()))


def test_replacement_of_rejax_with_rewards_of_one_channel():
    """Some environments of gymnax have rewards `[T, N, 1]`."""
    rollout = peers.kind_of_rollout("terminated", 0, 0.99, 0.95)
    names = rejax_arrays(rollout.replace(rewards=rollout.rewards[..., None]))
    assert_close(run_replacement("rejax", names), oracle(**rollout.arguments()))


@pytest.mark.parametrize("row", [row for row, replaced in REPLACED.items() if replaced.row])
def test_replacement_is_the_row_of_migrating(row):
    """`test_migrating.py` compares that row with the library."""
    assert replacements()[row] == peers.adapters()[REPLACED[row].row]


# Versions.


def test_requirements_are_those_of_pyproject():
    project = tomllib.loads(pages.read("pyproject.toml"))["project"]
    (jax,) = [x.removeprefix("jax>=") for x in project["dependencies"] if x.startswith("jax>=")]
    python = project["requires-python"].removeprefix(">=")
    first_lines = " ".join(pages.read(README).splitlines()[:10])
    assert f"jax {jax} or newer and Python {python} or newer" in first_lines


def test_version_is_cited_and_has_its_changes():
    assert f"version = {{{gae_jax.__version__}}}" in pages.read(README)
    assert pages.read(README).partition("## Citation and changes")[2].count(f"- **{gae_jax.__version__}**: ") == 1
