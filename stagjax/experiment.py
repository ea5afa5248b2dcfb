"""From an experiment file and a command line to a checked config; a `ConfigDict` never travels further than this."""

import ast
import dataclasses
import importlib.util
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from stagjax.config import Config, TrainingConfig
from stagjax.errors import UserError, unknown

_EXAMPLE = "experiments/stdlib.py:separate_2x3"


def variant_names(path: str) -> list[str]:
    """Return the variants that an experiment file names.

    Raises:
      UserError: a missing file, or one without a table of variants.
    """
    module = _load_file(path, _EXAMPLE)
    if not hasattr(module, "VARIANTS"):
        raise UserError(f"--config={path}: the file has no table VARIANTS; name the variants")
    return list(module.VARIANTS)


def load_config(spec: str, overrides: Sequence[str] = ()) -> Config:
    """Load an experiment.

    Args:
      spec: "FILE.py:VARIANT[,key=value...][,runlocal]"; the file defines `get_config(arg)`.
      overrides: "section.field=value", applied last.

    Raises:
      UserError: missing file, no `get_config`, unknown variant, unknown field, broken rule.
    """
    tree = call_file(spec, "get_config", _EXAMPLE)
    if not isinstance(tree, ml_collections.ConfigDict):
        raise UserError(f"--config={spec}: get_config returns {type(tree).__name__}, not a ConfigDict; see {_EXAMPLE}")
    override(tree, overrides)
    tree = tree.to_dict()
    if isinstance(tree.get("training"), dict):
        tree["training"].setdefault("schedule", TrainingConfig.schedule)
    return Config.from_dict(tree)


def call_file(spec: str, function: str, example: str) -> Any:
    """Return what a function of a Python file returns.

    Args:
      spec: "FILE.py[:ARG]", as the user gave it for --config.
      function: its name; it takes ARG.
      example: of a spec, for messages.

    Raises:
      UserError: there is no such file or function, or one of them does not run.
    """
    module, (path, _, arg) = _load_file(spec, example), spec.partition(":")
    if not hasattr(module, function):
        raise UserError(f"--config={spec}: {path!r} defines no {function}(arg); see {example.partition(':')[0]}")
    try:
        return getattr(module, function)(arg)
    except (KeyError, TypeError, AttributeError) as error:
        # Also what ConfigDict raises for a field that the file sets wrongly.
        raise UserError(f"--config={spec}: {function} does not run: {type(error).__name__}: {error}") from error


def select_variant(
    arg: str,
    base: ml_collections.ConfigDict,
    variants: Mapping[str, Mapping[str, Any]],
    runlocal: Mapping[str, Any],
) -> ml_collections.ConfigDict:
    """Resolve an experiment file's `arg`: base, then the variant's difference, then `runlocal`, then key=value pairs.

    Args:
      arg: "VARIANT[,section.field=value...][,runlocal]".
      base: the experiment; it is not changed.
      variants: name to {"section.field": value}.
      runlocal: {"section.field": value} that makes any variant tiny.

    Raises:
      UserError: no variant, an unknown one, or an unknown field.
    """
    name, *options = [part.strip() for part in arg.split(",")]
    if not name:
        raise UserError(f"--config=FILE.py:VARIANT lacks the variant; known: {', '.join(variants)}")
    if name not in variants:
        raise unknown("variant", name, variants)
    config = ml_collections.ConfigDict(base.to_dict())
    _assign(config, variants[name])
    if "runlocal" in options:
        _assign(config, runlocal)
    for option in options:
        if option == "runlocal":
            continue
        if "=" not in option:
            raise UserError(f"variant option {option!r} is neither 'runlocal' nor section.field=value")
        override(config, [option])
    return config


def override(config: ml_collections.ConfigDict, assignments: Sequence[str]) -> None:
    """Set "section.field=value" strings on `config`, in place; values are Python literals or plain strings.

    Raises:
      UserError: a field that does not exist, with the nearest one named.
    """
    for assignment in assignments:
        key, _, text = assignment.partition("=")
        try:
            value = ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
        _assign(config, {key: value})


def _load_file(spec: str, example: str) -> Any:
    path = spec.partition(":")[0]
    file = pathlib.Path(path)
    if not file.is_file():
        raise UserError(f"--config={spec}: there is no file {path!r}; use e.g. {example}")
    module_spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"--config={spec}: {path!r} is not a Python file; use e.g. {example}")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"--config={spec}: {path!r} does not run: {type(error).__name__}: {error}") from error
    return module


def _assign(config: ml_collections.ConfigDict, values: Mapping[str, Any]) -> None:
    fields = {
        section.name: [field.name for field in dataclasses.fields(section.type)]
        for section in dataclasses.fields(Config)
    }
    for key, value in values.items():
        section, _, field = key.partition(".")
        if section not in fields or field not in fields[section]:
            raise unknown("config field", key, [f"{s}.{f}" for s, names in fields.items() for f in names])
        if section not in config:
            config[section] = ml_collections.ConfigDict()
        with config.unlocked():
            # Gone first: a ConfigDict makes a number of True where a number was.
            if field in config[section]:
                del config[section][field]
            config[section][field] = value
