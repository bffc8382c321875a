"""examples/scaling_out.py in two processes of two devices each, connected over the loopback interface."""

import pathlib
import socket
import subprocess
import sys

import pytest
from support import pages

pytestmark = pytest.mark.examples
SCRIPT = pathlib.Path(__file__).parents[2] / "examples" / "scaling_out.py"
SECONDS = 280


def table(printed):
    """The rows of the table, each as a list of cells."""
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("|")]
    return lines[2:]


@pytest.fixture(scope="module")
def tables():
    """The tables of one process, and of the first of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, str(SCRIPT), "--steps", "256", "--devices", "4"]
    shared = ["--processes", "2", "--coordinator", address]
    processes = [
        subprocess.Popen([*command, *how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for how in ([], [*shared, "--process", "0"], [*shared, "--process", "1"])
    ]
    try:
        outputs = [process.communicate(timeout=SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    for process, (_, complaints) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, complaints
    (alone, _), (first, _), (second, _) = outputs
    assert not table(second)
    return table(alone), table(first)


def test_split_rollout_equals_one_device(tables):
    for lines in tables:
        assert len(lines) == 9
        assert all(float(difference) < 1e-5 for *_, difference in lines)


def test_the_page_has_the_collectives_that_are_printed(tables):
    """They do not depend on the number of devices or steps."""
    head = "| split | mesh | by | implementation | collectives | bytes per device | largest difference |"
    page = pages.table("examples/guides/scaling_out.md", head)
    on_page, printed = ([(split, *how) for split, _, *how, _, _ in lines] for lines in (page, tables[0]))
    assert on_page == printed


def test_two_processes_compile_the_collectives_of_one(tables):
    alone, first = ([cells[:-1] for cells in lines] for lines in tables)
    assert first == alone
    exchanged = {split: collectives for split, *_, collectives, _ in alone if not collectives.startswith("5 ")}
    assert exchanged == {
        "workers": "none",
        "time": "1 all-gather",
        "time, λ by step": "1 collective-permute, 1 all-gather",
        "time and workers": "1 all-gather",
    }
