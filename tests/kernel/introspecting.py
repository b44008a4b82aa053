"""What a running service says of itself: its interfaces and methods, by org.varlink.service.

Read from the interface descriptions as varlink.org/Interface-Definition has them, so that a test of
every method cannot forget a new one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from serving import Serving

SERVICE = "org.varlink.service"


@dataclass(frozen=True)
class Method:
    """A method: its full name and its parameters' types as they are written ("?int")."""

    name: str
    parameters: dict[str, str]


@dataclass(frozen=True)
class Described:
    """All that is described: methods, structures (fields by the type's name) and errors."""

    methods: tuple[Method, ...]
    types: dict[str, dict[str, str]]
    errors: frozenset[str]


def described(daemon: Serving) -> Described:
    """What the running service describes."""
    methods: list[Method] = []
    types: dict[str, dict[str, str]] = {}
    errors: set[str] = set()
    for interface in daemon.call(f"{SERVICE}.GetInfo")["parameters"]["interfaces"]:
        reply = daemon.call(f"{SERVICE}.GetInterfaceDescription", interface=interface)
        text = re.sub(r"#[^\n]*", "", reply["parameters"]["description"])
        for name, fields in re.findall(r"\bmethod (\w+)\s*\(([^()]*)\)\s*->", text):
            methods.append(Method(f"{interface}.{name}", _fields(fields)))
        for name, fields in re.findall(r"\btype (\w+)\s*\(([^()]*)\)", text):
            types[name] = _fields(fields)
        errors.update(f"{interface}.{name}" for name in re.findall(r"\berror (\w+)", text))
    return Described(tuple(methods), types, frozenset(errors))


def _fields(text: str) -> dict[str, str]:
    pairs = (field.split(":", 1) for field in text.split(",") if field.strip())
    return {name.strip(): kind.strip() for name, kind in pairs}
