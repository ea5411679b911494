"""Configuration: pydantic models filled from YAML and dotted overrides, all faults reported at once.

A component (encoder, fusion, decoder) has a :class:`Config` of its own in its module. A file names it like this::

    fusion: {name: qformer, layers: 4}      # or just   fusion: qformer

and an override on the command line reaches any key: ``fusion.layers=6 train.lr=1e-4``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from avpipe.pipeline.errors import ConfigError, UnknownNameError, did_you_mean
from avpipe.pipeline.registry import Registry


class Config(BaseModel):
    """Base of every configuration: frozen, unknown keys refused, a docstring under each field."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _nothing_said_is_an_empty_text(cls, values: Any) -> Any:
        """``key=`` of the command line, and ``key:`` of a file, which YAML reads as null."""
        if not isinstance(values, Mapping):
            return values
        texts = {name for name, field in cls.model_fields.items() if field.annotation is str}
        return {name: "" if value is None and name in texts else value for name, value in values.items()}


AnyConfig = TypeVar("AnyConfig", bound=Config)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a dict.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        values = _parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"cannot be read: {error}"]) from None
    except yaml.YAMLError as error:
        raise ConfigError(str(path), [f"not YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(values, dict):
        raise ConfigError(str(path), [f"expected keys and values, got {type(values).__name__}"])
    return values


def recipe_names(package: str) -> list[str]:
    """The recipes that come with a stage: YAML files in ``recipes/`` of its package."""
    folder = resources.files(package) / "recipes"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def recipe_path(package: str, recipe: str, kind: str) -> Path:
    """Where a recipe lies: one of the stage's own, by name, or any YAML file, by path.

    Args:
        package: of the stage.
        recipe: a name, or a path that ends in ``.yaml`` or ``.yml``.
        kind: what it is, for the message ("training recipe").

    Raises:
        UnknownNameError: neither.
    """
    known = recipe_names(package)
    if recipe in known:
        return Path(str(resources.files(package) / "recipes" / f"{recipe}.yaml"))
    if recipe.endswith((".yaml", ".yml")):
        return Path(recipe)
    raise UnknownNameError(kind, recipe, known, "A path to a YAML file will do, too.")


def write_yaml(values: Mapping[str, Any]) -> str:
    """Nested values as YAML text, in the order given."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def override(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """``values`` with dotted overrides (``"train.lr=1e-4"``) laid over them; the right side is YAML.

    A component given by its name alone (``fusion: qformer``) becomes ``{name: qformer}`` where an override reaches
    below it, and naming another component drops the keys of the former one.

    Raises:
        ConfigError: an override is not of the form ``key=value``, or reaches below a plain value; all faults at once.
    """
    result, faults = _copy(values), []
    for text in overrides:
        key, equals, value_text = text.partition("=")
        if not equals or not key.strip() or not all(part.strip() for part in key.split(".")):
            faults.append(f"{text!r}: expected key=value, for example train.lr=1e-4")
            continue
        try:
            value = _parse_yaml(value_text)
        except yaml.YAMLError:
            faults.append(f"{text!r}: what follows '=' is not YAML")
            continue
        *parents, last = [part.strip().replace("-", "_") for part in key.split(".")]
        node, reached = result, []
        for parent in parents:
            reached.append(parent)
            below = node.get(parent)
            if isinstance(below, str) and len(reached) == 1:
                below = {"name": below}
            elif below is None:
                below = {}
            if not isinstance(below, dict):
                faults.append(f"{text!r}: {'.'.join(reached)} is a plain value ({below!r}), it has no key {last!r}")
                break
            node[parent] = below
            node = below
        else:
            old = node.get(last)
            if isinstance(old, dict) and isinstance(value, str):
                node[last] = old if old.get("name") == value else {"name": value}
            else:
                node[last] = value
    if faults:
        raise ConfigError("overrides", faults)
    return result


def parse(schema: type[AnyConfig], values: Mapping[str, Any], source: str) -> AnyConfig:
    """Check ``values`` against ``schema``.

    Raises:
        ConfigError: all faults at once; an unknown key is answered with the nearest known one.
    """
    try:
        return schema.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(source, faults(error, schema)) from None


def parse_component(registry: Registry, value: str | Mapping[str, Any], source: str) -> tuple[str, Config]:
    """Check one component (``"qformer"`` or ``{"name": "qformer", "layers": 4}``) against its module's ``Config``.

    Returns:
        The component's name and its complete configuration.

    Raises:
        UnknownNameError: no component of that name.
        ConfigError: its keys or values are wrong, or ``name`` is missing.
    """
    values = {"name": value} if isinstance(value, str) else dict(value)
    name = values.pop("name", None)
    if not isinstance(name, str):
        known = ", ".join(registry.names())
        raise ConfigError(source, [f"{registry.kind}.name: missing; known: {known}"])
    schema: type[Config] = registry.load(name).Config
    return name, parse(schema, values, f"{source}: {registry.kind} {name!r}")


def faults(error: ValidationError, schema: type[BaseModel]) -> list[str]:
    """One line for each fault that pydantic found: the dotted key, what was got, what is allowed."""
    return [_fault(detail, schema) for detail in error.errors(include_url=False)]


def _fault(detail: ErrorDetails, schema: type[BaseModel]) -> str:
    path = [str(part) for part in detail["loc"]]
    key = ".".join(path) or "(top level)"
    if detail["type"] == "extra_forbidden":
        known = _keys_at(schema, path[:-1])
        return f"{key}: unknown key{did_you_mean(path[-1], known)}; known: {', '.join(known) or 'none'}"
    if detail["type"] == "missing":
        return f"{key}: missing"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{key}: {message[0].lower()}{message[1:]}, got {detail['input']!r}"


def _keys_at(schema: type[BaseModel], path: list[str]) -> list[str]:
    """The keys allowed at a dotted path below ``schema``."""
    for part in path:
        field = schema.model_fields.get(part)
        # A list index, a dict key or a union's branch stands in the path, but is no field: stay where we are.
        models = _models_in(field.annotation) if field else [schema]
        if not models:
            return []
        schema = models[0]
    return list(schema.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models in a type, however wrapped: ``X``, ``X | None``, ``list[X]``, ``dict[str, X]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with two repairs.

    ``1e-4`` is a number, as everybody who writes a learning rate expects; and a key that stands twice is an error,
    where YAML silently takes the last.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE]
        doubles = [key for key, count in Counter(keys).items() if count > 1]
        if doubles:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {doubles[0]!r} stands more than once", node.start_mark
            )
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what :class:`_Loader` reads back the same: quotes the text ``"1e-4"``, escapes odd line breaks."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)

for _either in (_Loader, _Dumper):
    _either.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
        list("-+0123456789."),
    )


_MERGE = "tag:yaml.org,2002:merge"


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level of dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}
