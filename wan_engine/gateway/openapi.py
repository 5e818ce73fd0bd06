"""The document of all doors, `/openapi.json`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute


class DescribedApp(FastAPI):
    """FastAPI, but for what it leaves out of the document: the nulls of documented examples, which
    tell a reader that a key is always there."""

    def __init__(self, routers: Iterable[APIRouter], **options: Any) -> None:
        super().__init__(**options)
        self._described = [route for router in routers for route in router.routes]

    def openapi(self) -> dict[str, Any]:
        told = self.openapi_schema is not None
        document = super().openapi()
        if not told:
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
