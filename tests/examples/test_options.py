"""Wrong options of the scripts: a short message on standard error, an exit status, and nothing is begun."""

import importlib
import sys

import pytest

pytest.importorskip("tyro")
pytestmark = pytest.mark.examples


@pytest.mark.parametrize(
    ("script", "options", "complaint"),
    [
        ("swap_in", "--seeds 0", "--seeds and --steps must be at least 1; got 0 and 204800"),
        ("swap_in", "--agent --out .", "--agent: name an agent; there is no swap_in.json in . to show"),
        ("swap_in", "--out file", "--out: [Errno 17] File exists: 'file'"),
        ("swap_in", "--agent dqn", None),
        ("benchmark", "--shapes 8x8 0x4", "--shapes must be steps x workers, such as 128x4096; got 8x8 0x4"),
        ("benchmark", "--picture x.bogus", "--picture: the name must end in .png, .pdf or .svg; got x.bogus"),
        ("benchmark", "--json nowhere/x.json", "there is no directory nowhere"),
        ("benchmark", "--against nowhere", "--against: there is no package gae_jax in nowhere"),
        ("benchmark", "--cells h200", None),
        *(("bug_study", line, None) for line in ("--seeds 0", "--seeds 1025", "--out no/such/file", "--draw .", "--x")),
        ("scaling_out", "--devices 3", "--devices must be an even number from 2 to 1024; got 3"),
        ("scaling_out", "--process 5", "cannot split 8 devices over 1 processes, of which this is number 5"),
        ("scaling_out", "--step 8", None),
    ],
)
def test_wrong_option_is_refused(script, options, complaint, monkeypatch, tmp_path, capsys):
    """What tyro itself refuses has the frame that tyro draws; what a script refuses is one line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *options.split()])
    module, tyro = (importlib.import_module(name) for name in (script, "tyro"))
    with pytest.raises(SystemExit) as stop:
        tyro.cli(module.main) if script == "scaling_out" else module.main()
    assert stop.value.code == f"error: {complaint}" if complaint else 2  # a text goes to standard error, with status 1
    printed = capsys.readouterr()
    assert not printed.out
    assert not printed.err if complaint else options.split()[0] in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
