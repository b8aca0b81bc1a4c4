"""The channel: what one end sends the other end hears, whole, in order, and never garbage."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from jobs.request import ImageRequest
from workers.channel import ChannelError, ChildEnd, SupervisorEnd
from workers.messages import Cancel, Previewed, Run, Stepped, Stop, ToChild

REQUEST = ImageRequest(
    model="m",
    profile="float",
    prompt="a “red” circle\n",
    width=64,
    height=64,
    num_inference_steps=3,
    guidance_scale=4.5,
    seed=1,
)
IDS = {"job_id": "a" * 32, "token": "b" * 16}


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[SupervisorEnd, ChildEnd]]:
    ours, theirs = socket.socketpair()
    supervisor, child = await SupervisorEnd.open(ours), ChildEnd(theirs)
    try:
        yield supervisor, child
    finally:
        supervisor.close()
        child.close()


def test_the_child_hears_what_the_supervisor_sends_until_it_closes() -> None:
    sent: list[ToChild] = [
        Run(**IDS, request=REQUEST, results_dir=Path("/tmp/r"), queue_seconds=0.25),
        Cancel(**IDS),
        Stop(),
    ]

    async def talk() -> list[object]:
        async with pair() as (supervisor, child):
            for message in sent:
                supervisor.send(message)
            await asyncio.sleep(0)
            supervisor.close()
            return await asyncio.to_thread(list, child)

    assert asyncio.run(talk()) == sent


def test_many_threads_and_large_messages_do_not_mix() -> None:
    per_thread = 50

    def chatter(child: ChildEnd, index: int) -> None:
        for step in range(per_thread):
            child.send(Previewed(**IDS, index=index, mime="image/png", b64=str(step) * 50_000))

    async def talk() -> list[list[str]]:
        async with pair() as (supervisor, child):
            threads = [threading.Thread(target=chatter, args=(child, index)) for index in range(4)]
            for thread in threads:
                thread.start()
            heard: list[list[str]] = [[] for _ in threads]
            for _ in range(4 * per_thread):
                message = await supervisor.receive()
                assert isinstance(message, Previewed)
                heard[message.index].append(message.b64[:2])
            return heard

    expected = [(str(step) * 2)[:2] for step in range(per_thread)]
    assert asyncio.run(talk()) == [expected] * 4


def test_the_end_of_the_child_is_the_end_of_the_stream_even_within_a_line() -> None:
    async def talk() -> list[object]:
        async with pair() as (supervisor, child):
            child.send(Stepped(**IDS, step=1, total=2))
            child._sock.sendall(b'{"type":"stepp')
            child.close()
            return [await supervisor.receive(), await supervisor.receive()]

    assert asyncio.run(talk()) == [Stepped(**IDS, step=1, total=2), None]


NO_MESSAGES = [b"hello\n", b'{"type":"stepped"}\n', b'{"type":"run"}\n', b'{"type":"alive","more":1}\n']


@pytest.mark.parametrize("line", NO_MESSAGES)
def test_what_is_no_message_is_refused(line: bytes) -> None:
    async def talk() -> None:
        async with pair() as (supervisor, child):
            child._sock.sendall(line)
            await supervisor.receive()

    with pytest.raises(ChannelError, match="not a message"):
        asyncio.run(talk())
