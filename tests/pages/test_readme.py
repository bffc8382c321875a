"""README.md against the code, the other pages and pyproject.toml; the links of all pages."""

import inspect
import json
import re
import tomllib

import bug_study
import numpy as np
import pytest
from support import pages, peers
from support.laws import assert_close
from support.oracle import oracle

import gae_jax
from gae_jax import _recursion, testing

README, MIGRATING = "README.md", "examples/guides/migrating.md"
PAGES = sorted(
    {
        README,
        "tests/README.md",
        *(str(path.relative_to(pages.ROOT)) for path in (pages.ROOT / "examples").rglob("*.md")),
    }
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


def test_first_call_matches_oracle():
    [call] = [block for block in pages.blocks(README) if block.startswith("from gae_jax import gae\n")]
    arguments = peers.kind_of_rollout("final_values", 0, 0.99, 0.95).arguments()
    names = {name: arguments[name] for name in ("rewards", "terminated", "truncated", "final_values")}
    names |= {"values": arguments["values"][:-1], "last_value": arguments["values"][-1]}
    result = pages.run(call, names)
    assert_close((result["advantages"], result["targets"]), oracle(**arguments))


def test_step_is_the_source():
    source = f"{inspect.getsource(_recursion.step)}\n\n{inspect.getsource(_recursion.next_value)}"
    assert [block for block in pages.blocks(README) if block.startswith("def step")] == [source]


def test_signature_is_the_one_of_gae():
    [printed] = [block for block in pages.blocks(README) if block.startswith("gae(")]
    parameters = inspect.signature(gae_jax.gae).parameters.values()
    signature = inspect.Signature([x.replace(annotation=inspect.Parameter.empty) for x in parameters])
    assert " ".join(printed.split()) == f"gae{signature} -> GAEOutput(advantages, targets)"


def test_api_names_are_the_public_names():
    rows = re.findall(r"^\| `([\w.]+)` \|", prose(README).partition("\n## API\n")[2].partition("\n## ")[0], re.M)
    public = {name for name, x in vars(gae_jax).items() if not (name.startswith("_") or inspect.ismodule(x))}
    checks = {name for name in vars(testing) if name.startswith("check_")}
    assert sorted(rows) == sorted(public | {f"testing.{name}" for name in checks})


# The tables.


def test_page_of_the_tests_names_every_module():
    modules = {path.name for path in (pages.ROOT / "tests").rglob("test_*.py")}
    assert set(re.findall(r"`(test_\w+\.py)`", pages.read("tests/README.md"))) == modules


REPLACED = {  # the row of examples/guides/migrating.md, by the row of the README
    "PureJaxRL, `ppo.py`": "PureJaxRL",
    "PureJaxRL, `ppo_rnn.py`": "PureJaxRL, recurrent (`ppo_rnn`, `ppo_s5`)",
    "Brax": "Brax",
    "rejax": "rejax",
    "CleanRL, JAX": "CleanRL, JAX (`ppo_atari_envpool_xla_jax`)",
    "stable-baselines3": "stable-baselines3",
}


def test_replacements_are_rows_of_migrating():
    """`test_migrating.py` compares these rows with the libraries."""
    table = pages.table(README, "| your code | its call | with gae_jax |")
    assert {row: code.strip("`") for row, _, code in table} == {
        row: peers.adapters()[name] for row, name in REPLACED.items()
    }


# The figures.


def test_speed_is_the_first_sentence_of_the_benchmark():
    [speed] = re.findall(r"PureJaxRL's loop takes (.*?) times at\s+2048 × 2048", pages.read(README), re.S)
    assert f"PureJaxRL's loop takes {' '.join(speed.split())} times at 2048 × 2048" in pages.read(
        "examples/guides/benchmark.md"
    )


def test_compile_times_are_those_of_the_agents():
    [row] = [row for row in pages.table("examples/guides/agents.md", "| T | skrl | gae |")[1:] if row[0] == "128"]
    found = re.findall(
        r"its\s+first call takes (.*? s) of CPU time at T = 128.*?of `gae` (.*? s) ", pages.read(README), re.S
    )
    assert found == [tuple(row[1:])]


def test_figure_has_the_returns_of_its_file():
    results = json.loads(pages.read("examples/notebook/bug_study.json"))["results"]

    def at_the_end(name, curve):
        return np.mean([seed[-1] for seed in results[name][curve]])

    names = ("right", "truncation as termination", "truncation not cut")
    printed = re.findall(r"the agents reach (\d+), (\d+) and (\d+) ", pages.read(README))
    assert printed == [tuple(f"{at_the_end(name, 'evaluations'):.0f}" for name in names)]
    bugs = [name for name in bug_study.BUGS if name in results and name != "right"]
    assert len(bugs) == 6
    assert sum(at_the_end(name, "training_lengths") > 98 for name in bugs) == 5
    assert "five of six buggy agents reach the time limit in training" in pages.read(README)


# Versions.


def test_requirements_are_those_of_pyproject():
    project = tomllib.loads(pages.read("pyproject.toml"))["project"]
    (jax,) = [x.removeprefix("jax>=") for x in project["dependencies"] if x.startswith("jax>=")]
    python = project["requires-python"].removeprefix(">=")
    assert f"jax {jax} or newer and Python {python} or newer" in pages.read(README).partition("## Install")[2]


def test_version_is_cited_and_has_its_changes():
    assert f"version = {{{gae_jax.__version__}}}" in pages.read(README)
    assert pages.read(README).partition("## Citation and changes")[2].count(f"- **{gae_jax.__version__}**: ") == 1
