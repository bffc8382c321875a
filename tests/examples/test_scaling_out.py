"""examples/scaling_out.py in two processes that share its devices. `test_sharded.py` tests its count of collectives."""

import socket
import subprocess
import sys

import pytest
import scaling_out
from support import pages

pytestmark = pytest.mark.examples
HEAD = "| split | mesh | by | implementation | collectives | bytes per device | largest difference |"


@pytest.fixture(scope="module")
def printed():
    """The table of the first of two processes, which are connected over the loopback interface."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, scaling_out.__file__, "--steps", "256", "--devices", "4", "--processes", "2"]
    command += ["--coordinator", address, "--process"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, str(process)], **pipes) for process in (0, 1)]
    try:
        (first, complaints), (second, more) = [process.communicate(timeout=280) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0, 0], complaints + more
    assert HEAD not in second
    lines = first.partition(f"{HEAD}\n")[2].splitlines()[1:]
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]  # Gloo prints, too


def test_split_rollout_equals_one_device(printed):
    assert len(printed) == 9
    assert all(float(difference) < 1e-5 for *_, difference in printed)


def test_page_has_the_collectives_that_are_printed(printed):
    """They do not depend on the number of devices, steps or processes."""
    page = pages.table("examples/guides/scaling_out.md", HEAD)
    wanted, found = ([(split, *how) for split, _, *how, _, _ in lines] for lines in (page, printed))
    assert found == wanted
