"""The gateway's OpenAPI compared with the hosted pages, property by property.

`tests/data/pages` has what the pages publish: the AI/ML API's own OpenAPI, the fields of Runpod's
page, the tables of Oxen's two pages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.conftest import Listening
from wan_engine.gateway.doors.aiml.wire import GenerationRequest

PAGES = Path(__file__).parents[1] / "data" / "pages"
_FIELD = re.compile(r"<(ParamField|ResponseField) ([^>]+)>\s*([^<]+?)\s*(?=<)")
_ROW = re.compile(r"^\| `([^`]+)` +\| `([^`]+)` +\| (?:`([^`]+)`|—) +\| (.+?) +\|$", re.M)


@pytest.fixture
def here(listen: Callable[..., Listening]) -> Listening:
    return listen()


@pytest.fixture
def openapi(here: Listening) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{here.url}/openapi.json").json()
    return found


def body(openapi: dict[str, Any], path: str) -> dict[str, Any]:
    operation = openapi["paths"][path]["post"]
    schema: dict[str, Any] = operation["requestBody"]["content"]["application/json"]["schema"]
    return schema


def answer(operation: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = operation["responses"]["200"]["content"]["application/json"]["schema"]
    return schema


def test_no_field_of_a_request_is_published_as_nullable(openapi: dict[str, Any]) -> None:
    bodies = [
        operation["requestBody"]
        for operations in openapi["paths"].values()
        for operation in operations.values()
        if "requestBody" in operation
    ]
    assert len(bodies) > 5 and '"null"' not in json.dumps(bodies)


# --- the AI/ML API -------------------------------------------------------------------------------


def test_the_aiml_api_s_document_is_its_own(openapi: dict[str, Any]) -> None:
    page = json.loads((PAGES / "aiml.json").read_text("utf-8"))
    ours = openapi["paths"]["/v2/video/generations"]
    content = page["post"]["requestBody"]["content"]["application/json"]
    assert body(openapi, "/v2/video/generations")["oneOf"][0] == content["schema"]
    for method in ("post", "get"):
        described = answer(ours[method])
        assert described["properties"].pop("warnings")["type"] == "array"  # our extension
        assert described == answer(page[method])
    (published,) = page["get"]["parameters"]
    (parameter,) = ours["get"]["parameters"]
    assert {name: parameter[name] for name in published} == published


def test_the_published_fields_of_the_aiml_api_are_the_ones_it_reads(
    openapi: dict[str, Any],
) -> None:
    published = body(openapi, "/v2/video/generations")["oneOf"][0]
    ours = ["last_image_url"]  # not on the page
    assert [*published["properties"], *ours] == list(GenerationRequest.model_fields)
    for name, field in GenerationRequest.model_fields.items():
        assert field.is_required() == (name in published["required"])
    defaults = {
        name: field["default"]
        for name, field in published["properties"].items()
        if "default" in field
    }
    minimal = {"model": "alibaba/wan-2-6-i2v", "prompt": "x", "image_url": "https://a.io/a.png"}
    request = GenerationRequest.model_validate(minimal)
    assert defaults.pop("resolution") == "1080p" and request.size == "1920*1080"
    assert {name: str(getattr(request, name)) for name in defaults} == {
        name: str(value) for name, value in defaults.items()
    }


# --- Runpod --------------------------------------------------------------------------------------


def fields(kind: str) -> Iterator[tuple[str, dict[str, str], str]]:
    """Name, attributes and text of each field of Runpod's page."""
    for found in _FIELD.finditer((PAGES / "runpod.md").read_text("utf-8")):
        if found[1] == kind:
            attributes = dict(re.findall(r'(\w+)="([^"]*)"', found[2]))
            attributes |= {"required": "yes"} if " required" in found[2] else {}
            yield attributes.get("body") or attributes["name"], attributes, found[3].strip()


def assert_described(ours: dict[str, Any], attributes: dict[str, str], text: str) -> None:
    sentence, _, options = text.partition(" Options: ")
    kind = {"float": "number"}.get(attributes["type"], attributes["type"])
    assert ours["type"] == kind
    assert ours["description"].startswith(sentence)
    if options:
        assert [str(one) for one in ours["enum"]] == re.findall("`([^`]+)`", options)
    if "default" in attributes:
        assert str(ours["default"]).lower() == attributes["default"].lower()
    else:
        assert "default" not in ours


@pytest.mark.parametrize("operation", ["run", "runsync"])
def test_runpod_s_input_is_that_of_its_page(openapi: dict[str, Any], operation: str) -> None:
    described = body(openapi, "/v2/{endpoint}/" + operation)["properties"]["input"]["anyOf"][0]
    page = {name.removeprefix("input."): rest for name, *rest in fields("ParamField")}
    assert list(described["properties"]) == list(page) and len(page) == 10
    assert described["required"] == [name for name in page if "required" in page[name][0]]
    for name, ours in described["properties"].items():
        attributes, text = page[name]
        assert_described(ours, attributes, text)


def test_runpod_s_answer_is_that_of_its_page(openapi: dict[str, Any]) -> None:
    ours = answer(openapi["paths"]["/v2/{endpoint}/runsync"]["post"])["properties"]
    found = list(fields("ResponseField"))
    assert len(found) == 7
    for name, attributes, text in found:
        *way, last = name.split(".")
        where = ours[way[0]]["properties"] if way else ours
        assert_described(where[last], attributes, text)


# --- Oxen ----------------------------------------------------------------------------------------


def rows(page: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The properties of a page's tables, and which are required."""
    required, _, optional = (PAGES / page).read_text("utf-8").partition("### Optional")
    properties, names = {}, []
    for table in (required, optional):
        for name, kind, default, text in _ROW.findall(table):
            properties[name] = property_of(kind, default, text)
            names += [name] if table is required else []
    return properties, names


def property_of(kind: str, default: str, text: str) -> dict[str, Any]:
    text, one_of, options = text.partition(" One of: ")
    said: dict[str, Any] = {"type": kind.partition("<")[0]}
    said["description"] = text.removesuffix(" Format: uri.")
    if text.endswith(" Format: uri."):
        said["format"] = "uri"
    if one_of:
        said["enum"] = [int(one) for one in options.rstrip(".").split(", ")]
    if default:
        said["default"] = json.loads(default)
    return said


@pytest.mark.parametrize(
    ("model", "page"),
    [
        ("wan-v2-6-image-to-video", "oxen_i2v.md"),
        ("wan-v2-6-reference-to-video", "oxen_r2v.md"),
    ],
)
def test_oxen_s_models_are_those_of_their_pages(
    openapi: dict[str, Any], here: Listening, model: str, page: str
) -> None:
    properties, required = rows(page)
    told = httpx.get(f"{here.url}/api/ai/models/{model}").json()
    schema = told["json_request_schema"]
    assert schema == told["request_schema"] and schema["required"] == required
    assert list(schema["properties"]) == list(properties)
    for path in ("/api/ai/videos/generate", "/api/ai/queue"):
        bodies = {one["title"]: one for one in body(openapi, path)["oneOf"]}
        assert bodies[model]["required"] == ["model", *required]
        for name, expected in properties.items():
            for described in (schema["properties"][name], bodies[model]["properties"][name]):
                assert {key: described.get(key) for key in expected} == expected, name
                assert {"default", "enum", "format"} & set(described) <= set(expected), name
