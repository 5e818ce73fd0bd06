"""Builds `/openapi.json`, the document of all doors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

_FASTAPIS_OWN = ("HTTPValidationError", "ValidationError")


class DescribedApp(FastAPI):
    """FastAPI with a document of the doors.

    Nulls in the documented examples stay, because they show that a key is always present. There is
    no 422, because each door has its own errors, with the statuses that its routes name.
    """

    def __init__(self, routers: Iterable[APIRouter], **options: Any) -> None:
        super().__init__(**options)
        self._described = [route for router in routers for route in router.routes]

    def openapi(self) -> dict[str, Any]:
        told = self.openapi_schema is not None
        document = super().openapi()
        if not told:
            for operations in document["paths"].values():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
            for name in _FASTAPIS_OWN:
                document.get("components", {}).get("schemas", {}).pop(name, None)
            for route in self._described:
                if isinstance(route, APIRoute) and route.include_in_schema:
                    _restore(document["paths"][route.path_format], route)
        return document


def without_null(schema: Any) -> Any:
    """A schema of pydantic in the style of the hosted pages: an optional field has the type of its
    values, without null."""
    if isinstance(schema, list):
        return [without_null(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    written = {name: without_null(value) for name, value in schema.items()}
    kinds = written.get("anyOf", [])
    if {"type": "null"} not in kinds or len(kinds) != 2:
        return written
    (kind,) = [one for one in kinds if one != {"type": "null"}]
    rest = {name: value for name, value in written.items() if name != "anyOf"}
    if rest.get("default", ...) is None:
        del rest["default"]
    return {**kind, **rest}


def _restore(operations: dict[str, Any], route: APIRoute) -> None:
    for method in route.methods or ():
        answers = operations[method.lower()]["responses"]
        for status, described in route.responses.items():
            for kind, content in described.get("content", {}).items():
                if "example" in content:
                    answers[str(status)]["content"][kind]["example"] = content["example"]
