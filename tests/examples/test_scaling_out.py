"""Bad options of examples/scaling_out.py, and its count of collectives."""

import os

import jax
import pytest
import scaling_out

pytestmark = pytest.mark.examples


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--devices 0", "--devices: must be a whole number, at least 1; got 0"),
        ("--devices 3", "--devices must be an even number up to 1024; got 3"),
        ("--devices 99998", "--devices must be an even number up to 1024; got 99998"),
        (
            "--steps 1" + 23 * "0",
            f"1{23 * '0'} × 8 needs 223,517,417,907,714,843 GiB of memory; this machine has 1 GiB",
        ),
        ("--coordinator bogus", "--coordinator must be HOST:PORT, such as 127.0.0.1:12345; got 'bogus'"),
        ("--coordinator=", "--coordinator must be HOST:PORT, such as 127.0.0.1:12345; got ''"),
        ("--workers 0", "--workers: must be a whole number, at least 1; got 0"),
        ("--workers 12", "--devices must divide --workers; got 8 devices for 12"),
        ("--steps 1001", "--devices must divide --steps; got 8 devices for 1001"),
        ("--steps many", "--steps: must be a whole number, at least 1; got many"),
        ("--processes 3", "--processes must divide --devices; got 3 for 8 devices"),
        ("--process 5", "--process must be less than --processes, 1; got 5"),
        ("--process -1", "--process: must be a whole number, at least 0; got -1"),
        ("--step 8", "unrecognized arguments: --step 8"),
    ],
)
def test_bad_options_are_one_line(arguments, complaint, capsys, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda _: 2**15)
    with pytest.raises(SystemExit) as stop:
        scaling_out.read_options(arguments.split())
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {complaint}\n"


def test_counts_collectives_and_their_bytes():
    class Program:
        def as_text(self):
            return """
  %a = f32[8,4]{1,0} all-gather(%x), dimensions={0}
  %b = (f32[4]{0}, f32[32]{0}) all-gather-start(%y), dimensions={0}
  %c = f32[32]{0} all-gather-done(%b)
  %d = pred[2]{0} collective-permute(%z)
"""

    assert scaling_out.collectives(Program()) == {"all-gather": 2, "collective-permute": 1}
    assert scaling_out.collective_bytes(Program()) == 8 * 4 * 4 + 32 * 4 + 2


def test_every_split_covers_all_devices():
    devices = jax.device_count()
    for split in scaling_out.splits(devices):
        product = 1
        for size in split.mesh.values():
            product *= size
        assert product == devices
