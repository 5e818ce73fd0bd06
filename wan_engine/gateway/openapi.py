"""Builds `/openapi.json`, the document of all doors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

_FASTAPIS_OWN = ("HTTPValidationError", "ValidationError")


class DescribedApp(FastAPI):
    """FastAPI with a document of the doors.

    It keeps nulls in the documented examples, which show that a key is always there. It has no 422,
    because each door refuses in its own words, with the statuses that its routes name.
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


def _restore(operations: dict[str, Any], route: APIRoute) -> None:
    for method in route.methods or ():
        answers = operations[method.lower()]["responses"]
        for status, described in route.responses.items():
            for kind, content in described.get("content", {}).items():
                if "example" in content:
                    answers[str(status)]["content"][kind]["example"] = content["example"]
