"""Requests that are wrong, hostile, huge, slow or given up: each is refused in a sentence, and the server goes on."""

import base64
import http.client
import json
import re
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from servers import Server, events

DRAW, EDIT, CHAT = "/v1/images/generations", "/v1/images/edits", "/v1/chat/completions"
CUP = {"prompt": "a cup", "steps": 2}
NO_JSON = [b"", b"{", b"[]", b"null", b'"a cup"', b"\xff\xfe", b'{"prompt": "a cup"', b"\0" * 1000]
NO_JSON += [b"[" * 100_000, b'{"a":' * 50_000, b'{"prompt": "\\ud800"}', b'{"prompt": NaN}', b'{"prompt": 1e999}']


@pytest.fixture(autouse=True)
def still_serves(server: Server, tiny_bundle: Path) -> Iterator[None]:
    """After every test the server draws, and its log has no traceback and no answer had a path."""
    yield
    assert server.request(DRAW, CUP)[0] == 200
    assert "Traceback" not in server.err.read_text()


def refused(server: Server, path: str, body: Any, status: int = 400, **more: Any) -> dict[str, Any]:
    found, _, content = server.request(path, body, **more)
    assert found == status, content
    error: dict[str, Any] = json.loads(content)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert not re.search(r"(/work|/tmp|/home|site-packages|runtime/|Traceback)", error["message"])
    assert not re.search(r"rf-export [a-z]+ |`| --[a-z]", error["message"]), "a client has no command line of ours"
    return error


@pytest.mark.parametrize("body", NO_JSON, ids=lambda body: repr(body[:12]))
@pytest.mark.parametrize("path", [DRAW, EDIT, CHAT])
def test_malformed_json(server: Server, path: str, body: bytes) -> None:
    refused(server, path, body)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a cup"]}, "prompt"),
        ({"prompt": "a " * 20_000}, "32000"),
        ({"prompt": "a cup " * 2000}, "token"),
        ({"prompt": "an elephant"}, "Use words of its vocabulary"),
        ({"n": 0}, "greater than or equal to 1"),
        ({"n": 11}, "less than or equal to 10"),
        ({"n": 2, "stream": True}, "one picture"),
        ({"n": 2, "seed": 2**64 - 1}, "2**64"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 1e300}, "seed"),
        ({"steps": 0}, "steps"),
        ({"steps": 10**30}, "steps"),
        ({"size": "big"}, "WIDTHxHEIGHT"),
        ({"size": "99999x99999"}, "99999"),
        ({"size": "٤x٤"}, "WIDTHxHEIGHT"),
        ({"guidance": 1e9}, "guidance"),
        ({"temperature": -1}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"plan": "best"}, "plan"),
        ({"plan": "tuned"}, "tuned"),
        ({"shift": 0}, "shift"),
        ({"guided": [1, 0]}, "guided"),
        ({"window": 0}, "window"),
        ({"partial_images": -1}, "partial_images"),
        ({"response_format": "url"}, "b64_json"),
        ({"output_format": "jpeg"}, "png"),
        ({"background": "transparent"}, "opaque"),
        ({"edit": ["0,0=1"]}, "no parameter"),
        ({"__proto__": 1}, "no parameter"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_values_are_told_by_their_names(server: Server, change: dict[str, Any], told: str) -> None:
    assert told in refused(server, DRAW, {**CUP, **change})["message"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({**CUP, "edit": ["0,0=/etc/passwd"]}, "reads no files"),
        ({**CUP, "edit": "0,0"}, "not understood"),
        ({**CUP, "rep_tokens": {}}, "rep_tokens"),
        ({**CUP, "rep_tokens": {"format": "rf-export-tokens", "format_version": 1}}, "rep_tokens"),
        ({**CUP, "rep_tokens": [1]}, "rep_tokens"),
    ],
    ids=str,
)
def test_wrong_edits(server: Server, body: dict[str, Any], told: str) -> None:
    assert told in refused(server, EDIT, body)["message"]


def form(*parts: tuple[str, bytes, str]) -> dict[str, Any]:
    lines = b""
    for name, content, extra in parts:
        lines += f'--B\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + content + b"\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    return {"body": lines + b"--B--\r\n", "headers": headers}


def test_wrong_forms(server: Server) -> None:
    png = base64.b64decode(server.json(DRAW, CUP)[1]["data"][0]["b64_json"])
    file = '; filename="a.png"'
    prompt = ("prompt", b"a cup", "")
    foreign = bomb(16, 24)
    assert "no representation tokens" in refused(server, EDIT, **form(prompt, ("image", foreign, file)))["message"]
    assert "PNG" in refused(server, EDIT, **form(prompt, ("image", b"GIF89a", file)))["message"]
    refused(server, EDIT, **form(prompt, ("image", png[:200], file)), status=400)
    assert "mask" in refused(server, EDIT, **form(prompt, ("image", png, file), ("mask", b"1", "")))["message"]
    refused(server, EDIT, **form(prompt, ("image", png, file), ("image", png, file)))
    refused(server, EDIT, **form(*[prompt] * 200))
    refused(server, EDIT, b"--B", headers={"Content-Type": "multipart/form-data; boundary=B"})
    refused(server, EDIT, b"x", headers={"Content-Type": "multipart/form-data"})
    refused(server, EDIT, b"{}", headers={"Content-Type": "text/plain"}, status=415)
    assert server.request(EDIT, **form(prompt, ("image", png, file), ("edit[]", b"0,0=1", "")))[0] == 200


def bomb(height: int, width: int) -> bytes:
    """A PNG file of a few bytes that is black, whatever its size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * min(height * (1 + 3 * width), 50_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def picture(content: bytes | str) -> dict[str, Any]:
    url = content if isinstance(content, str) else f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no picture"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture"),
        (bomb(60_000, 60_000), "pixels"),
        (bomb(2**31 - 1, 2**31 - 1), "pixels"),
        ("file:///etc/passwd", "no address"),
        ("/etc/passwd", "no address"),
        ("http://127.0.0.1:1/x.png", "no address"),
        ("data:image/png;base64,!!!!", "base64"),
        ("data:image/png,abc", "base64"),
        ("data:" + "a" * 100_000, "no address"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_hostile_pictures(server: Server, content: Any, told: str) -> None:
    assert told in refused(server, CHAT, picture(content))["message"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "hello"}]}, "no picture"),
        ({"messages": [{"role": "system", "content": "be kind"}]}, "role"),
        ({"messages": [{"role": "assistant", "content": "a cup"}]}, "user"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "audio"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**9}, ""),
        ({"top_p": 0}, "top_p"),
        ({"n": 2}, "n"),
        ({"tools": []}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"seed": -1}, "seed"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_questions(server: Server, change: dict[str, Any], told: str) -> None:
    sound = picture(bomb(16, 24))
    assert server.request(CHAT, sound)[0] == 200
    assert told in refused(server, CHAT, {**sound, **change})["message"]


def test_routes_that_are_not_there(server: Server) -> None:
    for path in ("/v1/nothing", "/../../etc/passwd", "/%2e%2e/cli.py", "/v1/models/other", "/index.html/x", "//etc"):
        refused(server, path, None, status=404)
    refused(server, "/style.css", {}, status=405)
    assert server.request("/docs")[0] == 404  # a page of FastAPI's that would load scripts from elsewhere


def test_bodies_that_are_too_large_are_told_so(server: Server) -> None:
    """Of 100 MB with their length told beforehand, and in chunks: memory does not grow, and the client hears why."""
    before = resident_mib(server)
    assert "2 MiB" in refused(server, DRAW, b" " * 3_000_000, status=413)["message"]
    with closing(http.client.HTTPConnection(server.host, server.port, timeout=60)) as connection:
        chunks = (b" " * 1_000_000 for _ in range(8))
        connection.request("POST", DRAW, chunks, {"Content-Type": "application/json"}, encode_chunked=True)
        assert connection.getresponse().status == 413
    for _ in range(3):
        with socket.create_connection((server.host, server.port), timeout=60) as connection:
            head = f"POST {DRAW} HTTP/1.1\r\nHost: {server.host}\r\nContent-Length: 100000000\r\n\r\n"
            connection.sendall(head.encode())
            with pytest.raises(OSError):  # it reads for a while, answers, and hangs up
                for _ in range(1000):
                    connection.sendall(b" " * 100_000)
                raise OSError
            assert b"413" in connection.recv(100)
    assert resident_mib(server) - before < 20


def test_a_client_that_asks_for_leave_is_refused_before_it_sends(server: Server) -> None:
    with socket.create_connection((server.host, server.port), timeout=60) as connection:
        head = (
            f"POST {DRAW} HTTP/1.1\r\nHost: {server.host}\r\nExpect: 100-continue\r\nContent-Length: 100000000\r\n\r\n"
        )
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def resident_mib(server: Server) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


LONG = {"prompt": "a cup", "steps": 1000, "size": "32x32"}


@pytest.mark.parametrize(
    ("clients", "body"), [(4, LONG), (1, {**LONG, "n": 4}), (4, {**LONG, "stream": True})], ids=["plain", "n", "stream"]
)
def test_clients_that_vanish_leave_no_work_behind(server: Server, clients: int, body: dict[str, Any]) -> None:
    cancelled = server.metric("rf_cancelled_total", work="picture")
    with server.slow():
        connections = [server.open(DRAW, body) for _ in range(clients)]
        server.wait_for(lambda: server.metric("rf_in_flight", stage="pixels") == 4)
        for each in connections:
            each.close()
        server.wait_for(lambda: server.in_flight() == 0, timeout_s=10)
        server.wait_for(lambda: server.metric("rf_cancelled_total", work="picture") == cancelled + 4)
    steps = server.metric("rf_step_seconds_count", stage="pixels")
    time.sleep(0.1)
    assert server.metric("rf_step_seconds_count", stage="pixels") <= steps + 2


def test_a_client_that_reads_nothing_disturbs_nobody(server: Server) -> None:
    slow = server.open(DRAW, {"prompt": "a cup", "steps": 200, "stream": True, "partial_images": 200, "size": "32x32"})
    with closing(slow):
        for seed in range(3):
            assert server.request(DRAW, {**CUP, "seed": seed})[0] == 200
        server.wait_for(lambda: server.metric("rf_in_flight", stage="pixels") == 0)
        slow.settimeout(30)
        content = b""
        while b"image_generation.completed" not in content:
            content += slow.recv(1000)


def test_500_connections_at_once_get_an_answer_each(server: Server) -> None:
    def draw(seed: int) -> int:
        with socket.create_connection((server.host, server.port), timeout=120) as connection:
            body = json.dumps({**CUP, "seed": seed}).encode()
            head = f"POST {DRAW} HTTP/1.1\r\nHost: {server.host}\r\nContent-Type: application/json\r\nConnection: close"
            connection.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
            return int(answer.split()[1])

    with ThreadPoolExecutor(500) as pool:
        found = list(pool.map(draw, range(500)))
    assert set(found) <= {200, 429}
    assert found.count(200) >= 16
    server.wait_for(lambda: server.in_flight() == 0)


def test_progress_is_told_where_it_is_asked_for(server: Server) -> None:
    told = events(server.request(DRAW, {**CUP, "stream": True, "progress": True, "partial_images": 2})[2])
    names = [name for name, _ in told]
    assert names == ["rf.progress"] * 7 + ["image_generation.partial_image"] + ["rf.progress"] + [
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    codes = [data["rep_id"] for name, data in told if data.get("stage") == "tokens"]
    assert codes == [code for row in told[-1][1]["rep_tokens"]["rep_ids"] for code in row]


def test_pages_of_other_sites_and_other_names_are_refused(server: Server) -> None:
    assert "other sites" in refused(server, DRAW, CUP, 403, headers={"Origin": "https://evil.example"})["message"]
    assert "evil.example" in refused(server, DRAW, CUP, 403, headers={"Host": "evil.example"})["message"]
    own = {"Origin": server.url}
    assert server.request(DRAW, CUP, headers=own)[0] == 200


def test_metrics_count_what_was_done(server: Server) -> None:
    pictures, answers = server.metric("rf_pictures_total"), server.metric("rf_answers_total")
    server.request(DRAW, {**CUP, "n": 2, "stream": False})
    server.request(CHAT, picture(bomb(16, 24)))
    assert server.metric("rf_pictures_total") == pictures + 2
    assert server.metric("rf_answers_total") == answers + 1
    assert server.metric("rf_http_requests_total", route=DRAW, status="200") >= 1
    assert server.metric("rf_batch_size_count", stage="pixels") > 0
    assert server.metric("rf_in_flight", stage="queued") == 0
