"""The outermost layer alone, around an application of a few lines."""

import asyncio
from pathlib import Path

from starlette.types import Message, Receive, Scope, Send

from serving.guard import Guard
from serving.metrics import Metrics
from serving.settings import Settings


class Conversation:
    """One request whose body arrives when the test says so."""

    def __init__(self, guard: Guard, length: int) -> None:
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.status = 0
        scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-length", b"%d" % length)]}
        self.task = asyncio.create_task(guard(scope, self.incoming.get, self._note))

    async def _note(self, message: Message) -> None:
        self.status = message.get("status", self.status)

    async def send(self, size: int, more: bool = True) -> None:
        """Sends a part of the body, and lets the server work on it."""
        self.incoming.put_nowait({"type": "http.request", "body": bytes(size), "more_body": more})
        for _ in range(10):
            await asyncio.sleep(0)


def test_a_refused_body_makes_room_for_others_at_once() -> None:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        body = await guard.read_body(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"%d" % len(body)})

    async def talk() -> None:
        first, second = Conversation(guard, 1_500_000), Conversation(guard, 1_500_000)
        await first.send(1_000_000)
        await second.send(1_000_000)
        assert second.status == 503 and not second.task.done()  # its client is still sending
        assert guard.buffered_bytes == 1_000_000
        await first.send(500_000, more=False)
        assert first.status == 200
        await second.send(500_000, more=False)
        await asyncio.gather(first.task, second.task)
        assert guard.buffered_bytes == 0

    settings = Settings(bundle=(Path("none"),), threads=1, max_buffered_bytes=1_600_000)
    guard = Guard(application, settings, Metrics(), lambda _: "/")
    asyncio.run(talk())
