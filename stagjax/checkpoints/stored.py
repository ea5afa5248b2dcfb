"""One checkpoint on disk, read back and compared with the checksums it was saved with."""

import asyncio
import contextlib
import errno
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from stagjax import distributed
from stagjax.checkpoints.facts import check_facts
from stagjax.errors import UserError
from stagjax.fingerprint import checksum, describe, digest, fingerprint, leaves


class DamagedError(Exception):
    """A checkpoint that cannot be read, or reads other than it was saved."""


class _NotOrbax(logging.Filter):
    """Drops what Orbax logs: its errors reach the user as ours, once, and its warnings are about its own options."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "/orbax/checkpoint/" not in record.pathname


logging.getLogger("absl").addFilter(_NotOrbax())


class _DrainingLoop(asyncio.SelectorEventLoop):
    def close(self) -> None:
        pending = [] if self.is_closed() else asyncio.all_tasks(self)
        if pending:
            self.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        super().close()

    def call_soon_threadsafe(self, *call: Any, **options: Any) -> asyncio.Handle | None:
        """Let TensorStore report reads that end after one has failed, when nobody listens any more."""
        try:
            return super().call_soon_threadsafe(*call, **options)
        except RuntimeError:
            if self.is_closed():
                return None
            raise


class _DrainingPolicy(asyncio.DefaultEventLoopPolicy):
    """Makes the loop that Orbax asks asyncio for a draining one."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _DrainingLoop()


@contextlib.contextmanager
def draining_loops() -> Iterator[None]:
    """Make the event loops that Orbax starts meanwhile, in any thread, finish their tasks before they close.

    Orbax leaves a loop at the first array that it cannot read or write, with the others in flight, and each of those
    would print a traceback of its own, some of them much later.
    """
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(_DrainingPolicy())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(before)


def read_metadata(path: epath.Path) -> dict[str, Any]:
    """Return the metadata of the checkpoint at `path`.

    Raises:
      DamagedError: it is missing, or not what was saved.
    """
    try:
        metadata = json.loads((path / "metadata" / "metadata").read_text())
    except Exception as error:
        raise DamagedError(f"metadata: {reason(error)}") from error
    sealed = isinstance(metadata, dict) and metadata.pop("digest", None) == digest(metadata)
    if not sealed or str(metadata.get("step")) != path.name:
        raise DamagedError("metadata: not what was saved")
    metadata.setdefault("skipped_batches", [])  # Older versions wrote none.
    try:
        check_facts("metadata", metadata)
    except UserError as error:
        raise DamagedError(str(error)) from error
    return metadata


def read_state(path: epath.Path, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
    """Return the state, laid out as `abstract_state` (of `jax.ShapeDtypeStruct` with shardings), and its metadata.

    Raises:
      UserError: the checkpoint holds other arrays than `abstract_state`.
      DamagedError: it is not what was saved.
    """
    metadata = _for_all(lambda: read_metadata(path))
    saved, wanted = metadata["arrays"], describe(abstract_state)
    for name in sorted({*saved, *wanted}):
        if saved.get(name) != wanted.get(name):
            raise UserError(
                f"{path} holds {name} as {saved.get(name, 'nothing')}, but this run has it as "
                f"{wanted.get(name, 'nothing')}; use the config it was trained with, or another --workdir"
            )
    return _verified(_for_all(lambda: _read(path, abstract_state)), metadata), metadata


def read_params(path: epath.Path, layout: Callable[[Any], Any] | None = None) -> tuple[Any, dict[str, Any]]:
    """Return the parameters and the metadata; nothing else is read.

    Args:
      path: of the checkpoint.
      layout: from the parameters' shapes to their shardings; None for the default device.

    Raises:
      DamagedError: the parameters are not what was saved.
    """
    metadata = _for_all(lambda: read_metadata(path))
    shapes = _for_all(lambda: _stored_shapes(path)["params"])
    shardings = (layout or on_default_device)(shapes)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    return _verified(_for_all(lambda: _read(path, {"params": abstract})), metadata)["params"], metadata


def check_shapes(path: epath.Path) -> dict[str, Any]:
    """Return the metadata, compared with the shapes that the arrays are stored in; no array is read.

    Raises:
      DamagedError: it is not what was saved, as far as that can be seen so.
    """
    metadata = read_metadata(path)
    if describe(_stored_shapes(path)) != metadata["arrays"]:
        raise DamagedError("the stored arrays are not those that were saved")
    return metadata


def verify(path: epath.Path) -> dict[str, Any]:
    """Return the metadata, once all arrays, a part of the state at a time, are read and have their checksums.

    They are read into the memory of this machine, by this process alone, and no device is needed.

    Raises:
      DamagedError: one is not what was saved.
    """
    metadata = check_shapes(path)
    parts = {name: shapes for name, shapes in _stored_shapes(path).items() if jax.tree.leaves(shapes)}
    # The way to a device has files of its own (array_metadatas), which any array, the smallest too, makes it read.
    least = min(parts, key=lambda name: sum(leaf.size for leaf in jax.tree.leaves(parts[name])))
    shardings = on_default_device(parts[least])
    _read(path, {least: jax.tree.map(lambda x, s: x.update(sharding=s), parts[least], shardings)})
    for name, shapes in parts.items():
        restored = _read(path, {name: shapes}, ocp.RestoreArgs(restore_type=np.ndarray))
        _compare({name: checksum(leaf) for name, leaf in leaves(restored).items()}, metadata)
    return metadata


def reason(error: BaseException) -> str:
    """Return in a few words what went wrong, for a message of one line."""
    text = str(error)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EIO):
        # TensorStore buries the one part that tells what to do behind two temporary file names.
        if os.strerror(number) in text:
            return os.strerror(number).lower()
    first = text.strip().split("\n")[0].split(" [")[0][:160]
    return f"{type(error).__name__} {first}" if len(first) < 20 else first


def on_default_device(shapes: Any) -> Any:
    """Return shardings that put each array of a tree on one device: JAX's default one."""
    device = jax.config.jax_default_device or jax.local_devices()[0]
    return jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(device), shapes)


@contextlib.contextmanager
def as_damage() -> Iterator[None]:
    """Raise `DamagedError` for whatever the reading of a file raises."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError, DamagedError):
        # A full memory says nothing about the file.
        raise
    except Exception as error:
        raise DamagedError(reason(error)) from error


def _for_all(read: Callable[[], Any]) -> Any:
    """Return what `read` returns; where it finds damage in one process of several, raise it in all of them.

    A host reads its part of the arrays only, so that it may be the only one to meet what is damaged; and the checksums
    are computed by all of them together.
    """
    result = damage = None
    try:
        result = read()
    except DamagedError as error:
        damage = str(error)
    found = distributed.gather("checkpoint", damage)
    for process, text in enumerate(found):
        if text is not None:
            raise DamagedError(text if len(found) == 1 else f"{distributed.process_name(process)}: {text}")
    return result


def _stored_shapes(path: epath.Path) -> dict[str, Any]:
    with as_damage(), draining_loops():
        tree = _reader().metadata(path / "state").tree
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(tuple(x.shape), x.dtype), dict(tree))


def _read(path: epath.Path, abstract: Any, as_what: ocp.RestoreArgs | None = None) -> Any:
    each = as_what and jax.tree.map(lambda _: as_what, abstract)
    restore_args = each or ocp.checkpoint_utils.construct_restore_args(abstract)
    with as_damage(), draining_loops():
        return _reader().restore(
            path / "state",
            args=ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args, partial_restore=True),
        )


def _verified(restored: Any, metadata: Mapping[str, Any]) -> Any:
    _compare(fingerprint(restored), metadata)
    return restored


def _compare(found: Mapping[str, int], metadata: Mapping[str, Any]) -> None:
    for name, value in found.items():
        if metadata["fingerprint"].get(name) != value:
            raise DamagedError(f"{name}: not what was saved")


def _reader() -> ocp.PyTreeCheckpointHandler:
    # Without the Checkpointer around it, in which a process that reads would wait for one that has met an error.
    return ocp.PyTreeCheckpointHandler()
