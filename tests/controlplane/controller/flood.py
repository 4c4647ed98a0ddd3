"""python flood.py PLAN: fills the receiver with kept-alive connections that send tokens which nobody has signed.

The tokens are the worst that a pod can make up: right in shape, audience, expiry and pod, fresh each time.
"""

import asyncio
import json
import os
import random
import resource
import ssl
import sys
import time
from base64 import urlsafe_b64encode
from collections import Counter
from typing import Any

from fleet import post


def token(audience: str, pod_uid: str) -> str:
    payload = {"aud": [audience], "exp": time.time() + 3600, "kubernetes.io": {"pod": {"uid": pod_uid}}}
    parts = [json.dumps({"alg": "RS256", "kid": "x"}).encode(), json.dumps(payload).encode(), os.urandom(256)]
    return ".".join(urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(plan: dict[str, Any], number: int, limit: asyncio.Semaphore) -> Connection:
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    source = f"127.0.0.{2 + number % plan['addresses']}"
    async with limit:
        return await asyncio.open_connection("127.0.0.1", plan["port"], ssl=tls, local_addr=(source, 0))


async def send(plan: dict[str, Any], found: Connection, seen: Counter[int], until: float) -> None:
    """Send so often that all connections together make the plan's rate; none waits for the others."""
    reader, writer = found
    pause = plan["connections"] / plan["per_second"]
    await asyncio.sleep(random.uniform(0, pause))
    while time.monotonic() < until:
        began = time.monotonic()
        writer.write(post(plan["path"], token(plan["audience"], plan["pod_uid"]), "{}", "keep-alive"))
        seen[int((await reader.readline()).split()[1])] += 1
        length = 0
        while (line := await reader.readline()).strip():
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        await reader.readexactly(length)
        await asyncio.sleep(max(0.0, pause - (time.monotonic() - began)))


async def main(plan: dict[str, Any]) -> None:
    limit = asyncio.Semaphore(20)
    opened = await asyncio.gather(*(connect(plan, number, limit) for number in range(plan["connections"])))
    print("open", flush=True)
    seen: Counter[int] = Counter()
    began = time.monotonic()
    until = began + plan["seconds"]
    done = await asyncio.gather(*(send(plan, found, seen, until) for found in opened), return_exceptions=True)
    broken = [repr(error) for error in done if error is not None]
    rate = sum(seen.values()) / (time.monotonic() - began)
    print(json.dumps({"answers": seen, "per_second": round(rate), "broken": len(broken), "why": broken[:3]}))


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(main(json.loads(sys.argv[1])))
