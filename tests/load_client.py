"""Constant load on a door, by Triton's own client: ``python load_client.py ADDRESS MODEL RATE OUTPUT [SHARE_OF_ONES]``.

Open loop: a request is begun every 1/RATE s whatever became of the others. One line of JSON per request goes to OUTPUT:
when it was begun (seconds since the epoch), how long it took (seconds), the version that answered, or what went wrong.
Runs until its standard input closes.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.http import aio


async def ask(client: Any, model: str, inputs: Any, number: int, write: Any) -> None:
    """Send one request and write down what became of it."""
    began = time.time()
    line: dict[str, Any] = {"at": began}
    try:
        answer = await asyncio.wait_for(
            client.infer(model, inputs, headers={"x-user-id": f"user-{number % 200}"}), 10
        )
        line["version"] = answer.get_response()["model_version"]
    except Exception as exc:  # noqa: BLE001  (a failed request is what is counted here)
        line["error"] = f"{type(exc).__name__}: {exc}"[:200]
    line["seconds"] = time.time() - began
    write(json.dumps(line) + "\n")


async def load(address: str, model: str, rate: float, output: Path, share: float) -> None:
    """Send requests until standard input closes."""
    loop = asyncio.get_running_loop()
    closed = loop.run_in_executor(None, sys.stdin.read)
    rng = np.random.default_rng(0)
    choices = []
    for index in range(64):
        row = rng.standard_normal((1, 4)).astype(np.float32)
        row[0, 3] = 1.0 if index < share * 64 else 0.0
        tensor = aio.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(row)
        choices.append([tensor])
    order = rng.permutation(64)
    tasks: set[asyncio.Task[None]] = set()
    with output.open("w", buffering=1) as file:
        client = aio.InferenceServerClient(address, conn_limit=256, conn_timeout=5)
        begin, number = time.monotonic(), 0
        while not closed.done():
            inputs = choices[order[number % 64]]
            task = asyncio.create_task(ask(client, model, inputs, number, file.write))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
            await asyncio.sleep(max(0.0, begin + number / rate - time.monotonic()))
        await asyncio.gather(*tasks)
        await client.close()


if __name__ == "__main__":
    asyncio.run(
        load(
            sys.argv[1],
            sys.argv[2],
            float(sys.argv[3]),
            Path(sys.argv[4]),
            float(sys.argv[5]) if len(sys.argv) > 5 else 0.0,
        )
    )
