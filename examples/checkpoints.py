"""Files of a run: arrays without pickle, written whole or not at all, by one process at a time.

A file is written under another name and then renamed. So a crash, a kill or a full disk leaves the file of before.
"""

import contextlib
import json
import os
import pathlib
import socket
import zipfile
from collections.abc import Iterator
from typing import IO, Any

import jax
import numpy as np
from command_line import refuse
from jax import Array
from jax.experimental.multihost_utils import process_allgather

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def lock(directory: pathlib.Path) -> IO[str]:
    """Makes the directory and locks it, or refuses and names the process that holds the lock.

    The kernel drops the lock when the process ends, in whatever way: no lock outlives its process. Windows has no such
    lock, and there none is taken.

    Args:
      directory: where a run writes its files.

    Returns:
      The open lock file. To close it is to unlock the directory.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / ".lock").open("a+")
        if fcntl and not _take(file, fcntl):
            file.seek(0)
            holder = file.read() or "an unknown process"
            file.close()
            refuse(f"--out: another run writes to {directory}: {holder}; wait for its end, or choose another --out")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
    except OSError as error:
        refuse(f"--out: cannot write to {directory}: {error.strerror}")
    return file


def _take(file: IO[str], fcntl: Any) -> bool:
    """Locks an open file, unless another process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the path of a temporary file that replaces `path` at the end; refuses to go on where that fails."""
    temporary = path.with_name(f"new-{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # a disk may be found to be full as late as here
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        kept = f"; {path} is as it was before" if path.exists() else ""
        refuse(f"cannot write {path}: {error.strerror}{kept}")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Flattens a tree to arrays with readable names."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def save(path: pathlib.Path, config: dict[str, Any], tree: Any) -> None:
    """Writes arrays and options. All processes call it, since each has only a part of each array; the first writes."""
    leaves = named_leaves(tree)
    leaves |= {name: process_allgather(x, tiled=True) for name, x in leaves.items() if isinstance(x, Array)}
    if jax.process_index() == 0:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, config=np.array(json.dumps(config)), **leaves)


def read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads all of a file that `save` wrote, or refuses; the checksums of the file find flipped bytes.

    Args:
      path: an npz file.

    Returns:
      The options and the arrays by name.
    """
    try:
        with zipfile.ZipFile(path) as file:
            if damaged := file.testzip():  # before anything in the file is believed, such as the size of an array
                raise ValueError(f"wrong checksum of {damaged}")
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        config = json.loads(str(arrays.pop("config")))
        if not isinstance(config, dict):
            raise TypeError(f"the options are a {type(config).__name__}")
    except FileNotFoundError:
        refuse(f"there is no {path}")
    except Exception as error:  # of many kinds: damage can make a zip file ask for a password
        refuse(f"{path} is damaged, or no file of this program: {error}")
    return config, arrays


def fill(path: pathlib.Path, arrays: dict[str, np.ndarray], like: Any) -> Any:
    """Builds a tree of the structure, shapes and dtypes of `like` from what `read` returned, or refuses."""
    for name, x in named_leaves(like).items():
        if name not in arrays:
            refuse(f"{path} has no {name}: not a file of this kind")
        if (arrays[name].shape, arrays[name].dtype) != (x.shape, x.dtype):
            got, want = (f"{y.dtype}{list(y.shape)}" for y in (arrays[name], x))
            refuse(f"{path} has {name} of {got} where the run needs {want}")
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in named_leaves(like)])
