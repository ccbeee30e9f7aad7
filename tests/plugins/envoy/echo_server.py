"""A small real server over HTTP and gRPC that answers with its name: ``python echo_server.py NAME HTTP GRPC``.

What it is asked for in the header x-do decides: `slow=SECONDS` waits first. A POST to /behave with `ok`, `fail` (500
or INTERNAL), or `sick` (fails, and says that it is not ready) changes all that follow; one to /reset has it be as it
was when it started.
"""

from __future__ import annotations

import asyncio
import json
import sys

import grpc

SERVICE = "inference.GRPCInferenceService"


class Server:
    def __init__(self, name: str) -> None:
        self.name = name
        self.mode = "ok"
        self.seen = 0
        self.headers: dict[str, str] = {}

    async def ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                _, path, _ = line.decode().split(" ")
                headers = {}
                while (raw := await reader.readline()) not in {b"\r\n", b""}:
                    key, _, value = raw.decode().partition(":")
                    headers[key.strip().lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                status, answer = await self.answer(path, headers, body)
                payload = json.dumps(answer).encode()
                head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n"
                head += f"content-length: {len(payload)}\r\n\r\n"
                writer.write(head.encode() + payload)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def answer(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, object]]:
        if path == "/behave":
            self.mode = body.decode()
        if path == "/reset":
            self.mode, self.seen, self.headers = "ok", 0, {}
        if path in {"/behave", "/reset", "/seen"}:
            return 200, {"seen": self.seen, "headers": self.headers}
        if path.startswith("/v2/health"):
            return (503 if self.mode == "sick" else 200), {}
        self.seen += 1
        self.headers = headers
        await self.wait(headers.get("x-do", ""))
        return (200 if self.mode == "ok" else 500), {"name": self.name, "bytes": len(body)}

    @staticmethod
    async def wait(order: str) -> None:
        if order.startswith("slow="):
            await asyncio.sleep(float(order.removeprefix("slow=")))

    async def infer(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        self.seen += 1
        self.headers = {key: str(value) for key, value in context.invocation_metadata() or ()}
        await self.wait(self.headers.get("x-do", ""))
        if self.mode != "ok":
            await context.abort(grpc.StatusCode.INTERNAL, "told to")
        return self.name.encode()


async def main(name: str, http: int, grpc_port: int) -> None:
    server = Server(name)
    handler = grpc.unary_unary_rpc_method_handler(server.infer)
    grpc_server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    grpc_server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": handler}),)
    )
    grpc_server.add_insecure_port(f"127.0.0.1:{grpc_port}")
    await grpc_server.start()
    async with await asyncio.start_server(server.ask, "127.0.0.1", http) as listening:
        await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
