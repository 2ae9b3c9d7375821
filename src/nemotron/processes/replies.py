"""What a server answers, read to a bound: an endless body must not take the memory of whoever asks."""

from __future__ import annotations

import aiohttp


class TooLongError(Exception):
    """A body goes on beyond what an answer can have."""

    def __init__(self, most: int) -> None:
        super().__init__(f"an answer of more than {most >> 20} MiB")


async def read_text(response: aiohttp.ClientResponse, most: int) -> str:
    """The body as UTF-8, whatever its headers call it; bytes that are none become replacement characters.

    Raises:
        TooLongError: it has more than ``most`` bytes, unpacked. aiohttp.ClientError, TimeoutError: it breaks off.
    """
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > most:
            # The rest would be read by whoever uses the connection next.
            response.close()
            raise TooLongError(most)
    return content.decode("utf-8", "replace")
