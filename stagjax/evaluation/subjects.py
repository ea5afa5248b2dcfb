"""Models that are evaluated: which checkpoints a run stands for, and what each of them is, without its arrays."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from stagjax.checkpoints import origin
from stagjax.checkpoints.exported import is_export
from stagjax.checkpoints.saving import Checkpoints, content_key
from stagjax.config import Config, ModelConfig
from stagjax.decoding.placement import check_mode
from stagjax.errors import RunFailed, UserError
from stagjax.files import directory
from stagjax.library import LanguageModel, load
from stagjax.mesh import DecodeMesh
from stagjax.model.accounting import count_parameters

ALL = "all"


@dataclasses.dataclass(frozen=True)
class Subject:
    """One checkpoint, known by its content.

    Attributes:
      name: for tables; nothing depends on it.
      path: of the workdir, also in a bucket (gs://), or of the export.
      step: of training.
      content: key of its parameters and its model's config.
      vocabulary: fingerprint.
      model: its shape.
      parameters: how many it has.
      validation_loss: as training measured it, None if it did not.
    """

    name: str
    path: str
    step: int
    content: str
    vocabulary: str
    model: ModelConfig
    parameters: int
    validation_loss: float | None

    def can_decode(self, decoding: str) -> bool:
        """Return whether the model can be decoded in a mode."""
        try:
            check_mode(self.model, decoding)
        except UserError:
            return False
        return True

    def load(self, mesh: DecodeMesh) -> LanguageModel:
        """Load the model; raise `RunFailed` if another one has taken its place meanwhile."""
        lm = load(self.path, self.step, mesh)
        if self.content != content_key(origin.read_metadata(directory(self.path), self.step)):
            raise RunFailed(f"checkpoint {self.step} of {self.path} was replaced meanwhile; start again")
        return lm

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return dataclasses.asdict(self)


def subjects_of(name: str, path: str, checkpoints: Sequence[str | int | None]) -> list[Subject]:
    """Return the checkpoints of a run, each once, in the order of their steps; one that is damaged is not left out.

    Args:
      name: for tables.
      path: of a workdir or an export.
      checkpoints: "best", "latest", steps, or "all"; None is the best, or the latest if none was validated.

    Raises:
      UserError: there is no such checkpoint.
      RunFailed: it is damaged.
    """
    found: dict[int, Subject] = {}
    for checkpoint in checkpoints:
        for one in _steps(path) if checkpoint == ALL else [checkpoint]:
            metadata = origin.read_metadata(directory(path), one)
            subject = _subject(name, path, metadata)
            found[subject.step] = subject
    return [found[step] for step in sorted(found)]


def _steps(path: str) -> list[int | None]:
    if is_export(directory(path)):
        return [None]
    steps = Checkpoints(directory(path), keep_last=1, read_only=True).present()
    return steps or [None]  # whose reading says what is missing


def _subject(name: str, path: str, metadata: dict[str, Any]) -> Subject:
    model = Config.from_dict(metadata["config"]).model
    return Subject(
        name=name,
        path=path,
        step=metadata["step"],
        content=content_key(metadata),
        vocabulary=metadata["manifest"]["vocabulary_fingerprint"],
        model=model,
        parameters=count_parameters(model).total,
        validation_loss=metadata["metrics"]["validation_loss"],
    )
