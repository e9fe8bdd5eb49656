"""Strict YAML: one document of plain data, no duplicate keys, no aliases, a limit on size."""

from collections.abc import Hashable
from typing import Any

import yaml

from portcullis.errors import DataError

MAX_YAML_BYTES = 1 << 20


def load_yaml(text: bytes) -> dict[str, Any]:
    """Read one YAML mapping of plain data (YAML 1.1, PyYAML's safe loader).

    Raises:
        DataError: Too large, not UTF-8, not YAML, not a mapping, a duplicate key, an explicit tag, a merge key, a
            number in base 60, or an alias (which can expand without bound).
    """
    if len(text) > MAX_YAML_BYTES:
        raise DataError(f"YAML of {len(text)} bytes exceeds the {MAX_YAML_BYTES} allowed")
    try:
        document = yaml.load(text.decode("utf-8"), Loader=_StrictLoader)  # noqa: S506 - a SafeLoader below
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise DataError("YAML is not a mapping with text keys")
    return document


class _StrictLoader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) != len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key is repeated", node.start_mark)
        return mapping

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Refuse YAML 1.1's base 60: `22:22` is rarely meant as 1342, and a long one takes minutes to add up."""
        if ":" in node.value:
            raise yaml.constructor.ConstructorError(
                None, None, "numbers in base 60 are not allowed; put it in quotes", node.start_mark
            )
        integer = node.tag == "tag:yaml.org,2002:int"
        return self.construct_yaml_int(node) if integer else self.construct_yaml_float(node)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leave merge keys (`<<`) in place; they have no constructor, so they are refused."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed")
        # PyYAML's constructors leak IndexError, KeyError and AttributeError on text that a tag forces on them.
        if getattr(self.peek_event(), "tag", None) is not None:  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "explicit tags are not allowed")
        return super().compose_node(parent, index)


for _kind in ("int", "float"):
    _StrictLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _StrictLoader.construct_number)
