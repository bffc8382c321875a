"""Checkpoints of a run by Orbax: written whole or not at all, and never half believed."""

import json
import logging
import pathlib
import sys
import zlib
from typing import Any, NamedTuple

import absl.logging
import jax
import numpy as np
from command_line import refuse

absl.logging.set_verbosity(absl.logging.ERROR)
logging.getLogger("asyncio").setLevel(logging.ERROR)


class Checkpoint(NamedTuple):
    """What a file of a run holds."""

    config: dict[str, Any]
    rows: list[list[float]]  # the reports so far
    arrays: dict[str, np.ndarray]  # the state by name


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by name, such as `params.params.Dense_0.kernel`."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def manager(directory: pathlib.Path) -> Any:
    """Opens the checkpoints of a run. Orbax writes one beside its predecessor and renames it at the end."""
    import orbax.checkpoint as ocp  # half a second

    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    return ocp.CheckpointManager((directory / "checkpoints").absolute(), options=options)


def save(manager: Any, step: int, config: dict[str, Any], rows: list[list[float]], state: Any) -> None:
    """Saves a state that replaces the one of before; where that fails, the one of before stays."""
    import orbax.checkpoint as ocp

    arrays = named_leaves(jax.device_get(state))
    about = {"config": config, "rows": rows}
    about["checksum"] = checksum(Checkpoint(**about, arrays=arrays))
    try:
        manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(arrays), about=ocp.args.JsonSave(about)))
    except Exception as error:  # of the file system, in many wrappings
        refuse(f"cannot save a checkpoint: {error}")


def load(directory: pathlib.Path) -> Checkpoint:
    """Reads the latest checkpoint of a run, or refuses a directory without one and one with damage."""
    import orbax.checkpoint as ocp

    if not (directory / "checkpoints").is_dir():
        refuse(f"there is no run in {directory}")
    # Where one array cannot be read, Orbax's threads print that the others cannot be either.
    unraisablehook, sys.unraisablehook = sys.unraisablehook, lambda *_: None
    try:
        with manager(directory) as opened:
            step = opened.latest_step()
            if step is None:
                refuse(f"the run in {directory} has no checkpoint")
            args = ocp.args.Composite(state=ocp.args.StandardRestore(), about=ocp.args.JsonRestore())
            stored = opened.restore(step, args=args)
        arrays = {name: np.asarray(x) for name, x in stored["state"].items()}
        checkpoint = Checkpoint(stored["about"]["config"], stored["about"]["rows"], arrays)
        if checksum(checkpoint) != stored["about"]["checksum"]:  # Orbax itself restores flipped bits
            raise ValueError("wrong checksum")
    except Exception as error:
        refuse(f"the checkpoint in {directory} is damaged, or not one of this program: {str(error)[:100]}")
    sys.unraisablehook = unraisablehook
    return checkpoint


def checksum(checkpoint: Checkpoint) -> int:
    """Returns the CRC-32 of everything in a checkpoint."""
    crc = zlib.crc32(json.dumps([checkpoint.config, checkpoint.rows]).encode())
    for name, x in sorted(checkpoint.arrays.items()):
        crc = zlib.crc32(f"{name} {x.dtype} {x.shape}".encode() + x.tobytes(), crc)
    return crc


def fill(like: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Returns a tree of the structure, shapes and dtypes of `like`, with the arrays of a checkpoint, or refuses."""
    leaves = named_leaves(like)
    for name, x in leaves.items():
        if name not in arrays or (arrays[name].shape, arrays[name].dtype) != (x.shape, x.dtype):
            refuse(f"the checkpoint has no {name} of {x.dtype}{list(x.shape)}: it is not one of this program")
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in leaves])
