"""TOML, the part of it that a plan needs: strings, numbers, booleans, flat lists, one level of
tables.

The standard library reads TOML (3.11 and later) but does not write it.
"""

import json
from collections.abc import Mapping
from typing import Any

from revedge.errors import PlanFormatError


def dump(
    scalars: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]], *, comment: str
) -> str:
    """Return TOML text: ``comment``, then ``scalars``, then each table. Keys must be plain ASCII
    names.

    Raises:
        PlanFormatError: a key or value that this subset cannot write.
    """
    lines = [f"# {comment}", *_pairs(scalars)]
    for name, table in tables.items():
        lines += ["", f"[{_key(name)}]", *_pairs(table)]
    return "\n".join(lines) + "\n"


def _pairs(values: Mapping[str, Any]) -> list[str]:
    return [f"{_key(name)} = {value_text(value)}" for name, value in values.items()]


def _key(name: str) -> str:
    if not (name.isascii() and name.replace("-", "_").isidentifier()):
        raise PlanFormatError(f"plan: key {name!r} cannot be written; use letters, digits and _")
    return name


def value_text(value: object) -> str:
    """Return one value as TOML; JSON's strings are TOML's but for DEL and lone surrogates.

    Raises:
        PlanFormatError: it has no form in TOML, or in UTF-8.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)  # repr keeps every bit of a float
    if isinstance(value, list | tuple):
        return "[" + ", ".join(value_text(item) for item in value) + "]"
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise PlanFormatError(
                f"plan: the text {value!r} cannot be written as UTF-8; rename it"
            ) from None
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    raise PlanFormatError(
        f"plan: {value!r} cannot be written; give a number, a text, a boolean or a list"
    )
