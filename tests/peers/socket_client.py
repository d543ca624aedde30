"""Speaks to the echo through the gateway: `socket_client.py URL TOKEN`.

Prints `echoed` when three messages came back, then waits and prints `closed after SECONDS` when the other side ends
the connection, counted from the line that it reads on its standard input.
"""

import asyncio
import sys
import time

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


async def main():
    url, token = sys.argv[1:]
    async with connect(url, additional_headers={"Cookie": f"access_token={token}"}) as socket:
        for message in ("one", "두 번째", b"\x00\xff" * 50_000):
            await socket.send(message)
            assert await socket.recv() == message
        print("echoed", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        began = time.monotonic()
        try:
            async with asyncio.timeout(30):
                await socket.recv()
            print("a message came", flush=True)
        except ConnectionClosed:
            print(f"closed after {time.monotonic() - began:.3f}", flush=True)


asyncio.run(main())
