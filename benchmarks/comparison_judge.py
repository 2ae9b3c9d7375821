"""A judge of no latency, for comparison.py: comparison_judge.py PORT, in the venv of nemo-gym (uvloop and orjson).

It must take less of the machine than what is measured, so it has no web framework: requests come from aiohttp, one
after the other on a connection and with the length of their body. The verdict is read from both answers, so that an
answer that went to the wrong place would give a wrong reward.
"""

import asyncio
import random
import re
import sys

import orjson
import uvloop

QUALITY = "quality "
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
SLOW = "slow"
"""How a conversation begins whose judge takes 0.1 to 1 s."""


class Judge(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport):
        self.transport, self.received = transport, b""

    def data_received(self, data):
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        length = LENGTH.search(head + b"\r\n")
        if not found or len(body) < (int(length[1]) if length else 0):
            return
        self.received = b""
        answer, wait_s = answered(head.split(b" ", 2)[1], body)
        if wait_s:
            asyncio.get_running_loop().call_later(wait_s, self.say, answer)
        else:
            self.say(answer)

    def say(self, answer):
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(answer)
        self.transport.write(head + answer)


def answered(path: bytes, body: bytes) -> tuple[bytes, float]:
    """The answer to a request, and how long it takes."""
    if path.endswith(b"/chat/completions"):
        messages = orjson.loads(body)["messages"]
        said = verdict(*(message["content"] for message in messages[-2:]))
        message = {"role": "assistant", "content": said}
        choice = {"index": 0, "finish_reason": "stop", "logprobs": None, "message": message}
        usage = {"prompt_tokens": 40, "completion_tokens": 20, "total_tokens": 60}
        whole = {"id": "c", "object": "chat.completion", "created": 1, "model": "judge", "choices": [choice]}
        return orjson.dumps({**whole, "usage": usage}), pause(messages[0]["content"])
    if path.endswith(b"/responses"):
        asked = orjson.loads(body)
        told = asked["metadata"]
        part = {"type": "output_text", "text": verdict(told["response_1"], told["response_2"]), "annotations": []}
        item = {"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
        whole = {"id": "r", "object": "response", "created_at": 1, "model": "judge", "output": [item]}
        rest = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
        return orjson.dumps({**whole, **rest}), pause(asked["input"][0]["content"])
    return orjson.dumps({"data": [{"id": "judge"}]}), 0.0


def verdict(one: str, two: str) -> str:
    scores = [float(text.rpartition(QUALITY)[2]) for text in (one, two)]
    return orjson.dumps({"score_1": scores[0], "score_2": scores[1], "ranking": 3.5}).decode()


def pause(prompt: str) -> float:
    return random.uniform(0.1, 1.0) if prompt.startswith(SLOW) else 0.0


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Judge, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
