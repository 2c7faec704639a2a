"""2,000 requests of every kind leave memory, threads and open files of the server as they were.

python -m pytest -m slow -s tests/runtime/serving/test_endurance.py    prints the numbers
"""

import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
from servers import Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
DRAW, EDIT, CHAT = "/v1/images/generations", "/v1/images/edits", "/v1/chat/completions"
ROUND, ROUNDS = 250, 8
MOST_MIB = 16  # that memory may have grown after the first round; arenas of the allocator come and go


def request(server: Server, index: int, drawn: dict[str, Any]) -> int:
    """Of ten requests three draw, one streams, edits, asks; the others are wrong, too large, or given up."""
    body = {"prompt": ("a cup", "two blue fish", "a red car")[index % 3], "seed": index, "steps": 5}
    kind = index % 10
    if kind == 3:
        return server.request(DRAW, {**body, "stream": True, "partial_images": 3, "progress": True})[0]
    if kind == 4:
        return server.request(EDIT, {**body, "rep_tokens": drawn["rep_tokens"], "edit": ["0,0=redraw:3"]})[0]
    if kind == 5:
        url = f"data:image/png;base64,{drawn['b64_json']}"
        content = [{"type": "image_url", "image_url": {"url": url}}]
        return server.request(CHAT, {"messages": [{"role": "user", "content": content}], "stream": index % 20 == 5})[0]
    if kind == 6:
        return server.request(DRAW, {**body, "prompt": "an elephant"})[0]
    if kind == 7:
        return server.request(DRAW, b" " * 3_000_000)[0]
    if kind == 8:
        server.open(DRAW, {**body, "steps": 1000, "stream": index % 20 == 8}).close()
        return 0
    return server.request(DRAW, {**body, "size": ("auto", "32x16")[index % 2]})[0]


def test_memory_threads_and_files_stay_as_they_are(server: Server) -> None:
    drawn = server.json(DRAW, {"prompt": "a cup", "steps": 5})[1]["data"][0]
    assert base64.b64decode(drawn["b64_json"])
    process = psutil.Process(server.process.pid)
    found, seen = [], []
    with ThreadPoolExecutor(4) as pool:
        for round_ in range(ROUNDS):
            indices = range(round_ * ROUND, (round_ + 1) * ROUND)
            found += list(pool.map(lambda index: request(server, index, drawn), indices))
            server.wait_for(lambda: server.in_flight() == 0)
            seen.append((process.memory_info().rss / 2**20, process.num_threads(), process.num_fds()))
            print(f"{len(found)} requests: {seen[-1][0]:.1f} MiB, {seen[-1][1]} threads, {seen[-1][2]} files")
    assert {status: found.count(status) for status in set(found)} == {200: 1400, 400: 200, 413: 200, 0: 200}
    (memory, threads, files), (memory_end, threads_end, files_end) = seen[0], seen[-1]
    assert memory_end - memory < MOST_MIB
    assert threads_end <= threads + 8  # pools grow to what is asked of them
    assert files_end <= files + 8
    assert "Traceback" not in server.err.read_text()
