"""What the server tells of itself (/openapi.json, methods, HEAD) is what it does."""

import json
from typing import Any

import pytest
from servers import Server

from runtime.serving.http.errors import ErrorBody

PICTURE = {"prompt": "a cup", "steps": 2}
ROUTES = {
    "/v1/images/generations": "POST",
    "/v1/images/edits": "POST",
    "/v1/chat/completions": "POST",
    "/v1/models": "GET, HEAD",
    "/v1/models/rf-export": "GET, HEAD",
    "/health": "GET, HEAD",
    "/ready": "GET, HEAD",
    "/metrics": "GET, HEAD",
    "/": "GET, HEAD",
    "/style.css": "GET, HEAD",
}


@pytest.mark.parametrize("path", [path for path, methods in ROUTES.items() if methods != "POST"])
def test_head_is_get_without_its_body(server: Server, path: str) -> None:
    """Whoever checks whether a server is there may ask with HEAD."""
    got, asked = server.request(path), server.request(path, method="HEAD")
    assert got[0] == asked[0] == 200
    assert got[2]
    assert not asked[2]
    assert {**got[1], "content-length": "", "date": ""} == {**asked[1], "content-length": "", "date": ""}


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ROUTES)
def test_other_methods_are_refused_with_those_that_there_are(server: Server, path: str, method: str) -> None:
    """405 with `Allow`, as RFC 9110 wants it."""
    status, headers, content = server.request(path, method=method)
    if method in ROUTES[path].split(", "):
        assert status != 405
        return
    assert (status, headers["allow"]) == (405, ROUTES[path])
    assert method == "HEAD" or json.loads(content)["error"]["message"]


def asked(server: Server, method: str, path: str, route: str, body: Any, kind: str = "application/json") -> None:
    """Ask, and hold the answer against the description of its route."""
    headers = {} if body is None else {"Content-Type": kind}
    status, told, content = server.request(path, body, headers, method)
    described = server.json("/openapi.json")[1]["paths"][route][method.lower()]["responses"]
    one = described.get(str(status)) or described[f"{status // 100}XX"]
    assert told["content-type"].partition(";")[0] in one["content"]
    if status >= 400:
        ErrorBody.model_validate_json(content)


@pytest.mark.parametrize("body", [None, {}, PICTURE, {**PICTURE, "stream": True}, {"prompt": 1}, b"{", b"\xff"])
@pytest.mark.parametrize("route", [path for path, methods in ROUTES.items() if methods == "POST"])
def test_every_answer_is_described(server: Server, route: str, body: Any) -> None:
    asked(server, "POST", route, route, body)


def test_answers_to_questions_about_the_server_are_described(server: Server) -> None:
    for route in ("/v1/models", "/health", "/ready", "/metrics"):
        asked(server, "GET", route, route, None)
    for name in ("rf-export", "another"):
        asked(server, "GET", f"/v1/models/{name}", "/v1/models/{name}", None)


def test_forms_of_edits_are_described(server: Server) -> None:
    """As JSON and as a form, with the file in the place of the tokens."""
    body = server.json("/openapi.json")[1]["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]
    forms = {kind: set(each["schema"]["properties"]) for kind, each in body.items()}
    assert forms["application/json"] - forms["multipart/form-data"] == {"rep_tokens"}
    assert forms["multipart/form-data"] - forms["application/json"] == {"image"}
    asked(server, "POST", "/v1/images/edits", "/v1/images/edits", b"nothing", "text/plain")
