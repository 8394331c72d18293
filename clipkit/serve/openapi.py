"""The API's description, OpenAPI 3.1; tests compare it with the routes and with real answers."""

from __future__ import annotations

from typing import Any

from clipkit._version import __version__
from clipkit.serve.limits import Limits

_TEXT, _NUMBER, _COUNT = {"type": "string"}, {"type": "number"}, {"type": "integer", "minimum": 0}


def describe(limits: Limits) -> dict[str, Any]:
    """The document that ``/openapi.json`` answers."""
    search = [
        _parameter("text", {**_TEXT, "maxLength": limits.text}, "what to look for, in words"),
        _parameter("negative", {**_TEXT, "maxLength": limits.text}, "what it should not be"),
        _parameter("like", _COUNT, "a row: more like this one, whose image is left out"),
        _parameter("v", _TEXT, "the stores' id when that row was found; 409 if it is another now"),
        _parameter("rows", {"type": "boolean"}, "each row is a hit; else one of each image is"),
        _parameter(
            "where",
            {
                "type": "array",
                "maxItems": limits.conditions,
                "items": {**_TEXT, "maxLength": limits.condition},
            },
            "conditions that must all be met, such as width>=512; operators = != < <= > >= ~",
        ),
        _parameter(
            "k", {"type": "integer", "minimum": 1, "maximum": limits.k, "default": 24}, "results"
        ),
    ]
    row = {"name": "row", "in": "path", "required": True, "schema": _COUNT}
    sizes = {"type": "string", "enum": ["small", "large"], "default": "small"}
    found = _answer("what was found, the best first", "Found")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "clipkit serve",
            "version": __version__,
            "description": "Search in a store of embeddings. Nothing can be changed.",
        },
        "security": [{}, {"token": []}],
        "paths": {
            "/api/store": {
                "get": _operation("What is searched.", [], {"200": _answer("facts", "Store")})
            },
            "/api/search": {
                "get": _operation(
                    "Search by text, by a row, or both.", search, {"200": found}, 400, 409
                ),
                "post": {
                    **_operation(
                        "Search by a picture, which is the body; text and the others add to it.",
                        search,
                        {"200": found},
                        400,
                        408,
                        409,
                        413,
                    ),
                    "requestBody": {
                        "required": True,
                        "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
                    },
                },
            },
            "/api/pictures/{row}": {
                "get": _operation(
                    "The picture of a row, its longest edge at most 256 or 1,024 pixels.",
                    [
                        row,
                        _parameter("size", sizes, "256 or 1,024 pixels"),
                        _parameter(
                            "v", _TEXT, "the stores' id: browsers keep it, 404 if it is another now"
                        ),
                    ],
                    {"200": {"description": "the picture", "content": {"image/webp": {}}}},
                    400,
                    404,
                )
            },
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "Store": _object(
                    id=_TEXT,
                    name=_TEXT,
                    stores={"type": "array", "items": _object(name=_TEXT, rows=_COUNT)},
                    rows=_COUNT,
                    dim=_COUNT,
                    model=_TEXT,
                    searched={"enum": ["image", "text"]},
                    fault={"type": ["string", "null"]},
                    columns={"type": "array", "items": _ref("Column")},
                    examples={"type": "array", "items": _TEXT},
                ),
                "Column": {
                    **_object(name=_TEXT, kind={"enum": ["text", "number", "bool"]}),
                    "properties": {
                        "name": _TEXT,
                        "kind": {"enum": ["text", "number", "bool"]},
                        "values": {"type": "array", "items": _TEXT},
                        "min": {"type": ["number", "null"]},
                        "max": {"type": ["number", "null"]},
                    },
                },
                "Found": _object(
                    hits={"type": "array", "items": _ref("Hit")},
                    store={"type": "string", "description": "the stores' id, which updates change"},
                    took_ms=_NUMBER,
                ),
                "Hit": _object(
                    row={**_COUNT, "description": "counted through all stores"},
                    store={"type": "string", "description": "the store that it is in"},
                    more={**_COUNT, "description": "further rows of the same image there"},
                    score={"type": "number", "description": "the cosine, from -1 to 1"},
                    key=_TEXT,
                    caption={"type": ["string", "null"]},
                    origin={"type": "string", "description": "where the sample came from"},
                    metadata={"type": "object"},
                    picture={"type": "string", "description": "its address, from the page's"},
                ),
                "Error": _object(error=_TEXT),
            },
        },
    }


def _operation(
    summary: str, parameters: list[dict[str, Any]], answers: dict[str, Any], *statuses: int
) -> dict[str, Any]:
    errors = {
        400: "something is wrong with the request; the text says what",
        401: "the token is missing or wrong",
        403: "a page elsewhere asked",
        404: "there is no such picture",
        408: "the body came too slowly",
        409: "the store has been updated since the row was found",
        413: "the body is too large",
        421: "the Host header names another server",
        500: "the store is damaged, or something failed here",
        503: "too many requests at once, or it took too long; Retry-After says when to come back",
    }
    return {
        "summary": summary,
        "parameters": parameters,
        "responses": answers
        | {
            str(status): _answer(errors[status], "Error")
            for status in sorted({*statuses, 401, 403, 421, 500, 503})
        },
    }


def _parameter(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": text, "schema": schema}


def _answer(text: str, schema: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": _ref(schema)}}}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}
