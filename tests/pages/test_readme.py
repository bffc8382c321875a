"""README.md against the code, the other pages and pyproject.toml; the files that all pages link to.

`.ci/run docs` checks the links to headings.
"""

import ast
import doctest
import inspect
import json
import re
import tomllib

import numpy as np
import pytest
from support import pages
from support.oracle import oracle

import gae_jax
from gae_jax import _recursion, testing

README, API, CHANGES = "README.md", ".ci/api.md", ".github/CHANGELOG.md"
PAGES = sorted(
    str(path.relative_to(pages.ROOT))
    for folder in (".", ".github", "tests", "examples", "examples/guides")
    for path in (pages.ROOT / folder).glob("*.md")
)


def linked_files(page):
    without_code = re.sub(r"^```.*?^```$|`[^`\n]+`", "", pages.read(page), flags=re.M | re.S)
    links = re.findall(r"\]\(([^)\s#]+)", without_code)
    return {((pages.ROOT / page).parent / link).resolve() for link in links if not link.startswith("https://")}


@pytest.mark.parametrize("page", PAGES)
def test_linked_files_exist(page):
    assert [path for path in linked_files(page) if not path.exists()] == []


def test_readme_links_to_every_page():
    assert {pages.ROOT / page for page in PAGES} - linked_files(README) == {pages.ROOT / README}


# The code.


def test_printed_advantages_match_oracle():
    names, printed = {}, []
    for block in pages.blocks(README)[:2]:  # the first call, and time limits
        for example in doctest.DocTestParser().get_examples(block):
            if example.want:
                printed.append(np.array([row.strip("[] ").split() for row in example.want.splitlines()], float))
            else:
                exec(example.source, names)
    arguments = {name: names[name] for name in ("rewards", "values", "terminated")} | {"gamma": 0.5, "lambda_": 0.5}
    limits = {"truncated": names["truncated"], "final_values": np.full((3, 2), 2.0)}
    np.testing.assert_allclose(printed, [oracle(**arguments)[0], oracle(**arguments, **limits)[0]])


def test_step_is_the_source():
    source = f"{inspect.getsource(_recursion.step)}\n\n{inspect.getsource(_recursion.next_value)}"
    assert [block for block in pages.blocks(README) if block.startswith("def step")] == [source]


def test_signature_is_the_one_of_gae():
    [printed] = [block for block in pages.blocks(README) if block.startswith("gae(rewards, values, terminated, trunc")]
    parameters = inspect.signature(gae_jax.gae).parameters.values()
    signature = inspect.Signature([x.replace(annotation=inspect.Parameter.empty) for x in parameters])
    assert " ".join(printed.split()) == f"gae{signature} -> GAEOutput(advantages, targets)"


def test_api_has_the_public_names():
    public = [name for name, x in vars(gae_jax).items() if not (name.startswith("_") or inspect.ismodule(x))]
    checks = [f"testing.{name}" for name in vars(testing) if name.startswith("check_")]
    rows = [name for name, _ in pages.table(README, "| name | what it does |")]
    assert sorted(rows) == sorted(f"`{name}`" for name in public + checks)
    documented = re.findall(r"^\.\. auto\w+:: (?:gae_jax\.)?(.*)", pages.read(API), re.M)
    assert documented[0] == "gae"
    assert {*public, *checks} <= set(documented)


def calls(page):
    """The calls in the page's blocks of code, without their formatting."""
    nodes = [node for code in pages.blocks(page) if ">>>" not in code for node in ast.parse(code).body]
    return {ast.unparse(node.value) for node in nodes if isinstance(node, ast.Assign | ast.Expr)}


def test_replacements_are_calls_of_migrating():
    """`test_migrating.py` compares these calls with the libraries."""
    [block] = [block for block in pages.blocks(README) if block.startswith("# PureJaxRL")]
    replacements = {ast.unparse(call) for call in ast.parse(block).body}
    assert len(replacements) == 6
    assert replacements <= calls("examples/guides/migrating.md")


def test_page_of_the_tests_names_every_module():
    tests = pages.ROOT / "tests"
    modules = {str(path.relative_to(tests)) for path in tests.rglob("test_*.py")}
    table = pages.table("tests/README.md", "| what is tested | test |")
    assert {name for _, names in table for name in names.replace("`", "").split(", ")} == modules


# The figures.


def test_speed_is_the_first_sentence_of_the_benchmark():
    [speed] = re.findall(r"PureJaxRL's loop takes (.*?) times at\s+2048 × 2048", pages.read(README), re.S)
    assert f"PureJaxRL's loop takes {' '.join(speed.split())} times at 2048 × 2048" in pages.read(
        "examples/guides/benchmark.md"
    )


def test_figure_has_the_returns_of_its_file():
    results = json.loads(pages.read("examples/notebook/bug_study.json"))["results"]
    shown = ("right", "truncation as termination", "truncation not cut")
    ends = [np.array([seed[-1] for seed in results[name]["evaluations"]]) for name in shown]
    medians, reached, worst = [np.median(x) for x in ends], [sum(x >= 495) for x in ends], [min(x) for x in ends]
    caption = pages.read(README).partition("the medians are")[2].partition("(")[0]
    assert [int(x) for x in re.findall(r"\d+", caption)] == [round(x) for x in [*medians, *reached, 32, 495, *worst]]
    assert all(len(x) == 32 for x in ends)


def test_five_of_six_bugs_reach_the_top_training_score():
    results = json.loads(pages.read("examples/notebook/bug_study.json"))["results"]
    bugs = ["result in reverse", "flag of the step before", "termination ignored", "λ missing on the first hop"]
    bugs += ["truncation as termination", "truncation not cut"]
    scores = [np.mean([seed[-1] for seed in results[name]["training_lengths"]]) for name in bugs]
    assert sum(score > 98 for score in scores) == 5
    assert "Of six agents with a planted bug, five still reach the top training score" in pages.read(README)


# Versions.


def test_requirements_are_those_of_pyproject():
    project = tomllib.loads(pages.read("pyproject.toml"))["project"]
    [jax] = [x.removeprefix("jax>=") for x in project["dependencies"] if x.startswith("jax>=")]
    python = project["requires-python"].removeprefix(">=")
    assert f"jax {jax} or newer and Python {python} or newer" in pages.read(README).partition("## Install")[2]


def test_version_is_cited_and_has_its_changes():
    assert f"version = {{{gae_jax.__version__}}}" in pages.read(README)
    assert pages.read(CHANGES).startswith(f"# Changes\n\n## {gae_jax.__version__}\n")
