"""Checkpoints on Orbax: written in the background, verified when read, never trusted because they are there."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
import rich.console
from etils import epath

from stagjax import distributed
from stagjax.bucket import CHECKPOINTS, absolute, is_bucket
from stagjax.checkpoints.stored import (
    DamagedError,
    draining_loops,
    read_metadata,
    read_params,
    read_state,
    reason,
    verify,
)
from stagjax.errors import RunFailed, UserError
from stagjax.fingerprint import describe, digest, fingerprint
from stagjax.reporting.console import plain

TEMPORARY = ".orbax-checkpoint-tmp"
"""What Orbax puts into the name of a directory that it has not finished."""

COMMIT_SUCCESS_FILE = "commit_success.txt"
"""What it writes last into one in a bucket."""


def print_warning(text: str) -> None:
    """Print one line to standard error, in yellow on a terminal."""
    rich.console.Console(stderr=True, soft_wrap=True).print(plain(text), style="yellow")


class Checkpoints:
    """The checkpoints of one workdir, in `WORKDIR/checkpoints/STEP`: `state` (arrays) and `metadata` (JSON).

    Metadata is `{"step", "config", "manifest", "metrics": {"validation_loss"}, "skipped_batches", "arrays",
    "fingerprint", "digest"}`, where `skipped_batches` are the [first, end) that a run passed over, `arrays` maps a
    leaf's path to e.g. "float32[2,3]" and `fingerprint` maps it to its checksum.

    Kept are the newest `keep_last`, the one with the lowest validation loss, the newest that has one, and those of
    every `keep_every`-th step. What is no longer kept is removed once the checkpoint that replaces it is complete, that
    is at the next `save`, `wait` or `close`.

    Every process of a distributed run calls every method, in the same order; process 0 alone removes files. What one of
    them finds to be damaged is damaged for all, so that all read the same checkpoint.

    Attributes:
      directory: `WORKDIR/checkpoints`.
      keep_last: newest checkpoints that are kept.
      keep_every: checkpoints of multiples of this step are kept for ever; None for none.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        keep_last: int,
        read_only: bool = False,
        warn: Callable[[str], None] = print_warning,
        keep_every: int | None = None,
    ):
        # By the system's own meaning of ".." and links, which epath does not ask for.
        self.directory = epath.Path(absolute(workdir)) / CHECKPOINTS
        self.keep_last, self.keep_every = keep_last, keep_every
        self._read_only = read_only
        self._warn = warn
        self._writer = _new_writer()
        self._while_saving = contextlib.ExitStack()
        self._damaged: set[int] = set()
        # What a writer has read once: with `keep_every` there are many, and each may be a request to a bucket.
        self._known: dict[int, dict[str, Any]] = {}
        self._saving: int | None = None
        # Whether something was read back from here: until then nothing is known to have been saved.
        self._proved = False
        if not read_only:
            distributed.set_last_words(self._last_words)
        if not read_only and jax.process_index() == 0:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"cannot create {self.directory}: {reason(error)}; use another --workdir") from error
            self._remove_temporaries()

    def save(
        self,
        step: int,
        state: Any,
        config: Mapping[str, Any],
        manifest: Mapping[str, Any],
        validation_loss: float | None,
        skipped_batches: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Start to write a checkpoint, and return when `state` may be donated; a step that is there is left alone.

        The first one of a run is waited for, read back and compared with its checksums.

        Args:
          step: names the checkpoint.
          state: pytree of arrays, sharded or not.
          config: of the run, as plain data.
          manifest: of its data, as plain data.
          validation_loss: by which the best checkpoint is chosen; None (or not finite) is never the best.
          skipped_batches: [first, end) of batches that the run passed over.

        Raises:
          RunFailed: this save, or an earlier one in the background, failed; the last good checkpoint is named.
        """
        if self._read_only:
            raise ValueError(f"{self.directory} was opened for reading")
        self.wait()
        try:
            there = step in self.steps()
        except OSError as error:
            self._saving = step
            raise self._failure(error) from error
        # Process 0 decides: a directory listing may be older on another host.
        if distributed.gather("checkpoint is there", there)[0]:
            return
        metadata = {
            "step": int(step),
            "config": config,
            "manifest": manifest,
            "metrics": {"validation_loss": _finite(validation_loss)},
            "skipped_batches": [list(pair) for pair in skipped_batches],
            "arrays": describe(state),
            "fingerprint": fingerprint(state),
        }
        metadata["digest"] = digest(metadata)
        self._saving = step
        self._while_saving.enter_context(draining_loops())
        try:
            # What lies at this step, if anything, is damaged, hence force. Orbax reads the arrays before it returns.
            # On the CPU it reads them without a copy, but a buffer that NumPy still sees is not reused by donation.
            self._writer.save(
                self._path(step),
                args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), metadata=ocp.args.JsonSave(metadata)),
                force=True,
            )
        except Exception as error:
            raise self._failure(error) from error
        if not self._proved:
            self.wait()

    def wait(self) -> None:
        """Wait until everything is written, then remove what is no longer kept.

        Raises:
          RunFailed: a save in the background, or the removal, failed; the last good checkpoint is named.
        """
        try:
            self._writer.wait_until_finished()
        except Exception as error:
            raise self._failure(error) from error
        finally:
            self._while_saving.close()
        if self._saving is not None:
            self._damaged.discard(self._saving)
            self._prove()
            self._saving = None
            try:
                self._prune()
            except OSError as error:
                raise RunFailed(
                    f"{self.directory} cannot be cleared of old checkpoints: {reason(error)}; {self.last_good()}"
                ) from error

    def _prove(self) -> None:
        """Read back what was just saved, unless something was before; process 0 reads, for all."""
        if self._proved:
            return
        damage = None
        if jax.process_index() == 0:
            try:
                verify(self._path(self._saving))
            except DamagedError as error:
                damage = str(error)
        damage = distributed.gather("first checkpoint", damage)[0]
        if damage:
            self._damaged.add(self._saving)
            if jax.process_index() == 0:
                with contextlib.suppress(OSError):
                    self._remove(self._saving)
            raise self._failure(DamagedError(f"read back, it is not what was saved: {damage}"))
        self._proved = True

    def check(self) -> None:
        """Raise as `wait` does if the save in the background has failed by now; wait for nothing."""
        if self._saving is None:
            return
        try:
            self._writer.check_for_errors()
        except Exception as error:
            self._while_saving.close()
            raise self._failure(error) from error

    def close(self) -> None:
        """Wait as `wait` does, and release Orbax's threads.

        Raises:
          RunFailed: a save in the background failed; the last good checkpoint is named.
        """
        try:
            self.wait()
        finally:
            self._writer.close()

    def steps(self) -> list[int]:
        """Return the steps of checkpoints whose metadata can be read, in ascending order, as far as this process sees.

        Those whose arrays were found to be damaged are left out.
        """
        return sorted(self._readable())

    def latest(self) -> int | None:
        """Return the newest step, or None."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """Return the step with the lowest validation loss (the newest of equals), or None if none has one.

        Raises:
          RunFailed: a checkpoint's metadata are damaged, so that it may be the best.
        """
        found = {}
        for step in self.present():
            try:
                found[step] = read_metadata(self._path(step))
            except DamagedError as error:
                if step in self._all_steps():  # or it was removed meanwhile, by the run that has saved a newer one
                    raise self._refusal(step, error, "and may be the best") from error
        return _best(found)

    def last_good(self) -> str:
        """Say which checkpoint a run that fails now leaves behind, for its message; one being saved is waited for."""
        with contextlib.suppress(RunFailed):
            self.wait()
        try:
            last = self.latest()
        except OSError as error:
            # What made the run fail may have taken the directory with it.
            return f"checkpoints cannot be looked at in {self.directory}: {reason(error)}"
        return "there is no checkpoint yet" if last is None else f"the last good checkpoint is {self._path(last)}"

    def restore(
        self, abstract_state: Any, step: int | None = None, validated: bool = False
    ) -> tuple[Any, dict[str, Any]] | None:
        """Read the newest checkpoint that is whole; each damaged one on the way is named in a warning.

        Args:
          abstract_state: pytree of `jax.ShapeDtypeStruct` with shardings, which need not be those of the save.
          step: this checkpoint and no other.
          validated: pass over those without a validation loss: saved when a run was told to stop, they lie at steps
            that an unbroken run has no checkpoint of.

        Returns:
          The state, with the structure and shardings of `abstract_state`, and its metadata; None without checkpoints.

        Raises:
          UserError: no such step, or a checkpoint of another model.
          RunFailed: there are checkpoints, and all are damaged.
        """
        self.wait()
        read = lambda path: read_state(path, abstract_state)
        if step is not None:
            return self._named(step, read)
        reasons = []
        for candidate in reversed(present := self.present(validated)):
            try:
                state, metadata = read(self._path(candidate))
            except DamagedError as error:
                self._damaged.add(candidate)
                reasons.append(f"{self._path(candidate)} is damaged ({error})")
                self._warn(f"{reasons[-1]}; it is skipped")
            else:
                self._proved = True
                return state, metadata
        if not present:
            return None
        remedy = "remove it" if len(present) == 1 else "remove them"
        raise RunFailed(f"{'; '.join(reasons)}; {remedy} to start anew")

    def restore_params(
        self, step: int | str = "latest", layout: Callable[[Any], Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Read `state["params"]` alone, of this checkpoint and no other.

        Args:
          step: a step, "best" or "latest".
          layout: from the parameters' shapes to their shardings; None for the default device.

        Raises:
          UserError: no such checkpoint.
          RunFailed: it is damaged.
        """
        self.wait()
        return self._named(step, lambda path: read_params(path, layout))

    def read_metadata(self, step: int | str = "latest") -> dict[str, Any]:
        """Return a checkpoint's metadata without reading its arrays; arguments and errors as `restore_params`."""
        return self._named(step, read_metadata)

    def _named(self, step: int | str, read: Callable[[epath.Path], Any]) -> Any:
        present = self.present()
        if not present:
            raise UserError(f"there is no checkpoint in {self.directory}; train first, or correct --workdir")
        found = {"best": self.best, "latest": lambda: present[-1]}[step]() if isinstance(step, str) else step
        if found is None:
            raise UserError(f"no checkpoint in {self.directory} has a validation loss; use latest or a step")
        if found not in present:
            raise UserError(
                f"there is no checkpoint {found} in {self.directory}; use one of {', '.join(map(str, present))}"
            )
        try:
            return read(self._path(found))
        except DamagedError as error:
            self._damaged.add(found)
            raise self._refusal(found, error) from error

    def _refusal(self, step: int, damage: DamagedError, more: str = "") -> RunFailed:
        """Return the error for a checkpoint that is damaged: it names it, and how to name another."""
        others = ", ".join(str(other) for other in self._all_steps() if other != step)
        remedy = "there is no other; copy it again, or train anew"
        if others:
            remedy = f"name another (--checkpoint=STEP, or DIR:STEP after --init-from): {others}"
        return RunFailed(f"{self._path(step)} is damaged ({damage}){more and ', ' + more}; {remedy}")

    def _path(self, step: int) -> epath.Path:
        return self.directory / str(step)

    def present(self, validated: bool = False) -> list[int]:
        """Return the steps of all checkpoints, whole or damaged, in ascending order, as process 0 sees them.

        Those that are known to have no validation loss are left out if `validated`.
        """
        steps = self._all_steps()
        if validated:
            readable = self._readable()
            steps = [step for step in steps if step not in readable or _loss(readable[step]) is not None]
        return distributed.gather("checkpoints", steps)[0]

    def _all_steps(self) -> list[int]:
        if not self.directory.exists():
            return []
        # Only as they are written: "06" is not 6.
        named = (path for path in self.directory.iterdir() if path.name.isdecimal())
        steps = [int(path.name) for path in named if path.name == str(int(path.name))]
        return sorted(step for step in steps if step in self._known or self._is_complete(step))

    def _is_complete(self, step: int) -> bool:
        # In a bucket nothing is renamed: there a file says it.
        return not is_bucket(self.directory) or (self._path(step) / COMMIT_SUCCESS_FILE).exists()

    def _last_words(self) -> str:
        step = self.latest()
        if step is None:
            return "there is no checkpoint yet; start all processes again"
        return f"the last good checkpoint is {self._path(step)}; start all processes again to go on from there"

    def _readable(self) -> dict[int, dict[str, Any]]:
        readable = {}
        for step in self._all_steps():
            try:
                if step not in self._damaged:
                    readable[step] = self._known.get(step) or read_metadata(self._path(step))
            except DamagedError:
                continue
        if not self._read_only:
            self._known = readable
        return readable

    def _prune(self) -> None:
        readable = self._readable()
        newest = sorted(readable)[-self.keep_last :]
        validated = [step for step in readable if _loss(readable[step]) is not None]
        dropped = set(readable) - {*newest, *sorted(validated)[-1:], _best(readable)}
        if self.keep_every:
            dropped = {step for step in dropped if step % self.keep_every}
        # A damaged checkpoint is kept until training has passed it: until then it may be all that is left to repair.
        dropped |= {step for step in self._damaged if newest and step < newest[-1]}
        if jax.process_index() == 0:
            for step in dropped & set(self._all_steps()):
                # Renamed first, so that a run killed meanwhile leaves nothing that looks like a checkpoint.
                self._remove(step)
        self._damaged -= dropped

    def _remove(self, step: int) -> None:
        self._path(step).rename(self.directory / f"{step}{TEMPORARY}-removed").rmtree()

    def _remove_temporaries(self) -> None:
        for path in self.directory.iterdir() if self.directory.exists() else ():
            if TEMPORARY in path.name:
                # What a failed save is still writing cannot be removed; the next start removes it.
                with contextlib.suppress(OSError):
                    path.rmtree()

    def _failure(self, error: Exception) -> RunFailed:
        step, self._saving = self._saving, None
        # Orbax would raise some errors again at every later call.
        with contextlib.suppress(Exception):
            self._writer.close()
        self._writer = _new_writer()
        if jax.process_index() == 0:
            # Half a checkpoint is of no use, and on a full disk its space is.
            with contextlib.suppress(OSError):
                self._remove_temporaries()
        return RunFailed(
            f"checkpoint {step} could not be written to {self.directory}: {reason(error)}; {self.last_good()}"
        )


def content_key(metadata: Mapping[str, Any]) -> str:
    """Return a hex digest that two checkpoints share exactly if their parameters and their model config are the same.

    Args:
      metadata: of a checkpoint, as `read_metadata` returns it.
    """
    prints = {name: value for name, value in metadata["fingerprint"].items() if name.startswith("params/")}
    return digest({"params": prints, "model": metadata["config"]["model"]})


def _new_writer() -> ocp.AsyncCheckpointer:
    return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())


def _finite(loss: float | None) -> float | None:
    return float(loss) if loss is not None and math.isfinite(loss) else None


def _loss(metadata: Mapping[str, Any]) -> float | None:
    return metadata["metrics"]["validation_loss"]


def _best(readable: Mapping[int, Mapping[str, Any]]) -> int | None:
    losses = {step: _loss(metadata) for step, metadata in readable.items()}
    return min((step for step in losses if losses[step] is not None), key=lambda s: (losses[s], -s), default=None)
