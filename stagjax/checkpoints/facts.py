"""What is stated of a saved model, checked before anything is made of it: a seal does not say who wrote it."""

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from stagjax.config import Config, ModelConfig
from stagjax.data.manifest import Manifest
from stagjax.errors import UserError
from stagjax.fingerprint import describe
from stagjax.model.stagformer import abstract_params
from stagjax.printable import one_line

_ARRAY = re.compile(r"[a-z]+\d*\[(\d{1,15}(,\d{1,15})*)?\]", re.ASCII)
_PARAMETER_TYPES = ("float32", "bfloat16")


def check_facts(place: Any, facts: Any) -> None:
    """Raise `UserError`, naming `place`, where a fact that every saved model has is missing or of another type."""
    if not isinstance(facts, dict):
        raise UserError(f"{place} holds a {type(facts).__name__} instead of facts; save or export the model anew")
    for name, (holds, rule) in _RULES.items():
        if name not in facts:
            raise UserError(f"{place} has no {name!r}; save or export the model anew")
        if not holds(facts[name]):
            raise UserError(f"{place}: {name}={one_line(facts[name], 60)} is not {rule}; save or export the model anew")
    if facts["arrays"].keys() != facts["fingerprint"].keys():
        raise UserError(f"{place}: 'arrays' and 'fingerprint' name other arrays; save or export the model anew")


def check_model(place: Any, metadata: Mapping[str, Any]) -> Config:
    """Return the config that a model was saved with, whose parameters have the shapes that it stands for.

    Raises:
      UserError: the config or the manifest is none, or the arrays are another model's; `place` is named.
    """
    try:
        config = Config.from_dict(metadata["config"])
        wanted = _parameter_shapes(config.model)
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        raise UserError(f"{place}: its config is none of this version: {one_line(error, 300)}") from error
    # Of other versions the manifest may have other fields; this one says what the ids are.
    for field, kind in Manifest.__annotations__.items():
        value = metadata["manifest"].get(field)
        if type(value) is not kind and (value is not None or field == "vocabulary_fingerprint"):
            raise UserError(f"{place}: its manifest's {field} is not {kind.__name__}; save or export the model anew")
    saved = {name: text for name, text in metadata["arrays"].items() if name.startswith("params/")}
    for name in sorted({*saved, *wanted}):
        dtype, _, shape = saved.get(name, "nothing").partition("[")
        if (dtype, shape) not in {(dtype, wanted.get(name)) for dtype in _PARAMETER_TYPES}:
            stands = f"float32[{wanted[name]}" if name in wanted else "nothing"
            raise UserError(
                f"{place}: it holds {one_line(name, 100)} as {saved.get(name, 'nothing')}, where its config has "
                f"{stands}; the config is another model's: save or export the model anew"
            )
    return config


@functools.lru_cache(maxsize=64)
def _parameter_shapes(model: ModelConfig) -> dict[str, str]:
    return {name: text.partition("[")[2] for name, text in describe({"params": abstract_params(model)}).items()}


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_loss(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and math.isfinite(value))


def _each(holds: Callable[[Any, Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(holds(name, one) for name, one in value.items())


def _is_skipped(value: Any) -> bool:
    pairs = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
    return pairs and all(_is_count(first) and _is_count(end) and first < end for first, end in value)


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "step": (_is_count, "a number, 0 or more"),
    "config": (_each(lambda _, section: isinstance(section, dict)), "a table of sections"),
    "manifest": (_each(lambda *_: True), "a table"),
    "metrics": (
        lambda value: isinstance(value, dict) and "validation_loss" in value and _is_loss(value["validation_loss"]),
        "a table with validation_loss, which is a finite number or null",
    ),
    "skipped_batches": (_is_skipped, "a list of [first, end)"),
    "arrays": (
        _each(lambda name, text: all(name.split("/")) and isinstance(text, str) and bool(_ARRAY.fullmatch(text))),
        'a table of e.g. "float32[2,3]"',
    ),
    "fingerprint": (_each(lambda _, value: _is_count(value) and value < 2**32), "a table of checksums of 32 bits"),
}
