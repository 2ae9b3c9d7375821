"""A server that answers as no server should: any bytes, lies about lengths, half an answer, one that never ends.

It speaks over plain sockets, because a library for servers would refuse to say most of this.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import random
import socket
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from hypothesis import strategies as st

from tests.loopback import Loopback
from tests.unit.compile.mutations import JUNK

Ending = Literal["close", "keep", "reset", "hang", "drip", "endless"]


@dataclass(frozen=True)
class Reply:
    """What is written to whoever asks, and what becomes of the connection."""

    content: bytes
    ending: Ending = "close"


class Hostile(Loopback):
    """A server on loopback, in a thread of its own. ``play(path, body)`` is asked what to reply."""

    def __init__(self, play: Callable[[str, bytes], Reply]) -> None:
        self.play = play
        self.url = ""
        self.asked = 0
        self.head = b""
        """Of the request that ``play`` is asked about."""
        super().__init__()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _stop(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Whoever is answered so may leave at any moment.
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
                )
                body = await reader.readexactly(length)
                self.asked += 1
                self.head = head
                reply = self.play(head.split()[1].decode(), body)
                await self._write(reader, writer, reply)
                if reply.ending != "keep":
                    break
        writer.close()

    async def _write(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reply: Reply) -> None:
        if reply.ending == "drip":
            for index in range(len(reply.content)):
                writer.write(reply.content[index : index + 1])
                await writer.drain()
                await asyncio.sleep(0.02)
            return
        writer.write(reply.content)
        await writer.drain()
        while reply.ending == "endless":
            writer.write(b"x" * (1 << 16))
            await writer.drain()
        if reply.ending == "hang":
            # Until whoever asked leaves.
            await reader.read()
        elif reply.ending == "reset":
            # Leaving with what was not sent thrown away makes the kernel say "reset".
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    """An answer that is none of this."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def as_json(value: Any) -> bytes:
    """JSON as a hostile server may write it: with halves of surrogate pairs, NaN, numbers of any length."""
    return json.dumps(value).encode("utf-8", "surrogatepass")


STATUSES = (
    *("200 OK",) * 12,
    *("100 Continue", "101 Switching Protocols", "102 Processing", "103 Early Hints", "204 No Content"),
    *("206 Partial Content", "300 Multiple Choices", "301 Moved", "302 Found", "304 Not Modified", "307 Temporary"),
    *("308 Permanent", "400 Bad Request", "401 Unauthorized", "403 Forbidden", "404 Not Found", "405 No", "408 Late"),
    *("413 Large", "418 Teapot", "422 Unfit", "425 Early", "429 Busy", "451 Law", "500 Bug", "502 Bad Gateway"),
    *("503 Later", "529 Overloaded", "599 None", "600 None", "999 None", "0 None", "-1 None", "99999 None", "abc"),
    *("200", "200 " + "x" * 9000, "200 \x00", "200 \xff", ""),
)
HEADERS = (
    *("Retry-After: nan", "Retry-After: 1e400", "Retry-After: 0.01", "Retry-After: Mon, 99 Foo 99999"),
    *("Content-Type: application/json; charset=no-such-code", "Content-Type: text/html; charset=utf-16"),
    *("Content-Type: multipart/form-data", "Content-Type: \xff", "Content-Type: a; charset=idna"),
    *("Content-Encoding: gzip", "Content-Encoding: deflate", "Content-Encoding: br", "Content-Encoding: zstd"),
    *("Content-Encoding: gzip, gzip", "Content-Encoding: no-such-code", "Transfer-Encoding: chunked"),
    *("Transfer-Encoding: gzip", "Transfer-Encoding: chunked, chunked", "Content-Length: 5", "Content-Length: -5"),
    *("Content-Length: 99999999999999999999999", "Content-Length: abc", "Content-Length: 1, 1", "Connection: close"),
    *("Location: http://[", "Location: /", "Location: file:///etc/passwd", "Location: //\xff", "Location: http://a:b/"),
    *("Location: http://\u2603.invalid/", "Location: ", "Set-Cookie: a=b", "Set-Cookie: \x01=\x02; x"),
    *("Set-Cookie: a b=c; Max-Age=" + "9" * 400, "Set-Cookie: x=1; expires=Mon, 99 Foo 99999; domain=.."),
    *('Set-Cookie: a,b="c\\"; d', "Set-Cookie: __proto__[=1; Path=/; Secure", "Set-Cookie: ü=ü", "Upgrade: websocket"),
    *("WWW-Authenticate: Basic", "X: " + "y" * 9000, ": z", "no colon", "A\x00: b", " folded", "Link: <", "Date: x"),
)
REPEATED = "X: y\r\n" * 20_000


def _packed(kind: str, body: bytes) -> bytes:
    if kind == "gzip":
        return gzip.compress(body, mtime=0)
    return zlib.compress(body) if kind == "deflate" else gzip.compress(body, mtime=0)[:-6]


def _chunked(body: bytes, how: str) -> bytes:
    size = {"right": f"{len(body):x}", "long": f"{len(body) + 9:x}", "none": "zz", "huge": "f" * 40, "minus": "-1"}[how]
    return f"{size};x=y\r\n".encode() + body + b"\r\n0\r\nT: x\r\n\r\n"


@st.composite
def replies(draw: st.DrawFn, bodies: st.SearchStrategy[bytes]) -> Reply:
    """An answer with one of these bodies, in whatever is called HTTP."""
    body = draw(bodies)
    if draw(st.integers(0, 9)) == 0:
        return Reply(draw(st.binary(max_size=200)) or b"\r\n", draw(ENDINGS))
    headers = draw(st.lists(st.sampled_from(HEADERS), max_size=3))
    framing = draw(st.sampled_from(["right", "right", "right", "none", "less", "more", "twice", "chunked"]))
    packing = draw(st.sampled_from([None, None, None, None, "gzip", "deflate", "half"]))
    if packing:
        body = _packed(packing, body)
        headers.append(f"Content-Encoding: {'gzip' if packing == 'half' else packing}")
    if framing == "chunked":
        headers.append("Transfer-Encoding: chunked")
        body = _chunked(body, draw(st.sampled_from(["right", "right", "long", "none", "huge", "minus"])))
    elif framing != "none":
        lengths = {"right": [0], "less": [-3], "more": [7], "twice": [0, 1]}[framing]
        headers += [f"Content-Length: {len(body) + off}" for off in lengths]
    head = "\r\n".join([f"HTTP/1.1 {draw(st.sampled_from(STATUSES))}", *headers, "", ""])
    content = head.encode("utf-8", "surrogatepass") + body
    if draw(st.integers(0, 9)) == 0:
        content = content[: draw(st.integers(0, len(content)))]
    return Reply(content, draw(ENDINGS))


ENDINGS: st.SearchStrategy[Ending] = st.sampled_from(
    ("close", "close", "close", "close", "keep", "keep", "reset", "hang", "drip")
)


@st.composite
def bent(draw: st.DrawFn, *values: Any) -> bytes:
    """JSON like one of ``values``, with none to three places changed for what does not belong there."""
    holder = {"it": json.loads(json.dumps(draw(st.sampled_from(values))))}
    dice = random.Random(draw(st.integers(0, 1 << 32)))
    for _ in range(draw(st.integers(0, 3))):
        at, key = dice.choice(_places(holder))
        if dice.random() < 0.2 and at is not holder:
            at.pop(key, None) if isinstance(at, dict) else at.clear()
        else:
            at[key] = json.loads(json.dumps(dice.choice(WRONG)))
    return as_json(holder["it"])


def _places(value: Any) -> list[tuple[Any, Any]]:
    found, rest = [], [value]
    while rest:
        at = rest.pop()
        for key, inner in at.items() if isinstance(at, dict) else enumerate(at):
            found.append((at, key))
            if isinstance(inner, dict | list):
                rest.append(inner)
    return found


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] if levels % 2 else {"a": value}
    return value


WRONG: tuple[Any, ...] = (
    *(one for one in JUNK if not (isinstance(one, int) and abs(one) >= 10**400)),
    *(10**300, -(10**300), 10**399, {"choices": [1]}, [[1]], _deep(150), _deep(151), _deep(900), "x" * 5000),
)
"""Values that stand where another should."""


def bodies(*values: Any) -> st.SearchStrategy[bytes]:
    """Bodies like the JSON of ``values``, and unlike anything."""
    odd = st.sampled_from(
        [b"", b"[" * 100_000, b'{"a":' * 50_000, b"1" * 5000, b"null", b"\xff\xfe[\x00]\x00", b'"\\ud8']
    )
    return st.one_of(bent(*values), bent(*values), bent(*values), st.binary(max_size=100), odd)
