"""The Python client for asyncio: the same methods as `halftone.client`, awaited. Knows the API only.

async with AsyncClient() as client:
    (await client.generate("a large red circle", profile="w8a8", seed=7)).save("circle.png")
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from itertools import count
from types import TracebackType
from typing import Any, Self

import httpx

from halftone import views, wire
from halftone.images import Images, Picture, Video, finished, video_file
from halftone.wire import Call, Event, EventParser, RetryPolicy
from jobs.errors import HalftoneError


class AsyncClient:
    """A connection to one gateway. Share it between tasks; close it, or use it in an `async with` statement.

    Calls that are refused for now (429, 503) or break off are made again, waiting as long as Retry-After says; submits
    carry an idempotency key, so a job is never made twice. All methods raise the errors of `jobs.errors`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        retry: RetryPolicy | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Connects when first used.

        Args:
            url: the gateway's address; $HALFTONE_URL, or http://127.0.0.1:8000, when left out.
            api_key: $HALFTONE_API_KEY when left out.
            timeout: seconds that one HTTP call may be silent.
            retry: when to try again.
            transport: another httpx transport, for tests.
        """
        base, headers = wire.connection(url, api_key, os.environ)
        self._http = httpx.AsyncClient(base_url=base, headers=headers, timeout=timeout, transport=transport)
        self._retry = retry or RetryPolicy()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def generate(
        self,
        prompt: str,
        *,
        size: str | None = None,
        timeout: float | None = None,
        on_event: Callable[[Event], None] | None = None,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> Images:
        """Makes pictures of a prompt and waits for them. A job that nobody waits for any more is canceled.

        Args:
            prompt: what to show.
            size: such as 64x64; or pass width and height.
            timeout: seconds to wait; for ever when left out.
            on_event: called with each event of the job.
            idempotency_key: the same key and fields give the same job again.
            fields: any other field of POST /v1/jobs: model, profile, negative_prompt, num_inference_steps,
                guidance_scale, seed, n, output_format, output_compression, previews, priority.
        """
        job = await self.submit(prompt, size=size, idempotency_key=idempotency_key, **fields)
        result = await self._result(job, timeout, on_event)
        pictures = tuple([Picture(await self.file(file.id), file) for file in result.files])
        return Images(job.id, pictures, result.used, result.costs, result.notices)

    async def generate_video(
        self,
        prompt: str,
        *,
        size: str | None = None,
        timeout: float | None = None,
        on_event: Callable[[Event], None] | None = None,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> Video:
        """Makes a video of a prompt and waits for it; as `generate` does, but for these fields.

        Args:
            prompt: what to show.
            size: such as 64x64; or pass width and height.
            timeout: seconds to wait; for ever when left out.
            on_event: called with each event of the job.
            idempotency_key: the same key and fields give the same job again.
            fields: model, profile, negative_prompt, num_frames or seconds, fps, num_inference_steps, guidance_scale,
                seed, output_format (mp4, webm, webp, gif, frames), output_compression, previews, priority.
        """
        fields["kind"] = "video"
        job = await self.submit(prompt, size=size, idempotency_key=idempotency_key, **fields)
        result = await self._result(job, timeout, on_event)
        file = video_file(result.files)
        return Video(job.id, await self.file(file.id), file, result.used, result.costs, result.notices)

    async def _result(
        self, job: views.JobView, timeout: float | None, on_event: Callable[[Event], None] | None
    ) -> views.ResultView:
        """What a job made; it is canceled when it fails to be waited for."""
        try:
            return finished(await self.wait(job.id, timeout=timeout, on_event=on_event))
        except BaseException:
            with contextlib.suppress(HalftoneError):  # it may be over already; the first error is what matters
                await self.cancel(job.id)
            raise

    async def compare(
        self,
        prompts: str | Sequence[str],
        *,
        size: str | None = None,
        timeout: float | None = None,
        on_event: Callable[[Event], None] | None = None,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> views.ReportView:
        """Holds profiles against float on a prompt or several, and waits for the report. As `generate`, it cancels
        what nobody waits for any more.

        Args:
            prompts: what to show.
            size: such as 64x64; or pass width and height.
            timeout: seconds to wait; for ever when left out.
            on_event: called with each event of the job.
            idempotency_key: the same key and fields give the same report again.
            fields: any other field of POST /v1/quality/compare: model, profiles, seed, seeds, thresholds,
                negative_prompt, num_inference_steps, guidance_scale, num_frames, fps, temporal, priority.
        """
        job = wire.read(views.JobView, await self._send(wire.comparison(prompts, size, idempotency_key, fields)))
        await self._result(job, timeout, on_event)
        return await self.report(job.id)

    async def report(self, report_id: str) -> views.ReportView:
        """A comparison as it stands, with everything found once it has succeeded."""
        return wire.read(views.ReportView, await self._send(Call("GET", wire.report_path(report_id))))

    async def report_page(self, report_id: str) -> str:
        """A comparison's report as one self-contained HTML page."""
        return (await self._send(Call("GET", wire.report_path(report_id), query={"format": "html"}))).text

    async def reports(
        self, *, limit: int = 20, after: str | None = None, status: str | None = None
    ) -> views.ReportList:
        """One page of this key's comparisons, newest first."""
        return wire.read(views.ReportList, await self._send(wire.listing(limit, after, status, "/v1/quality/reports")))

    async def submit(
        self, prompt: str, *, size: str | None = None, idempotency_key: str | None = None, **fields: Any
    ) -> views.JobView:
        """Queues a job and returns at once. Fields as for `generate`; with `kind="video"` as for `generate_video`."""
        return wire.read(views.JobView, await self._send(wire.submission(prompt, size, idempotency_key, fields)))

    async def job(self, job_id: str) -> views.JobView:
        """A job as it stands."""
        return wire.read(views.JobView, await self._send(Call("GET", wire.job_path(job_id))))

    async def jobs(self, *, limit: int = 20, after: str | None = None, status: str | None = None) -> views.JobList:
        """One page of this key's jobs, newest first."""
        return wire.read(views.JobList, await self._send(wire.listing(limit, after, status)))

    async def cancel(self, job_id: str) -> views.JobView:
        """Cancels a job; a running one stops within two steps."""
        return wire.read(views.JobView, await self._send(Call("POST", wire.job_path(job_id, "/cancel"))))

    async def wait(
        self, job_id: str, *, timeout: float | None = None, on_event: Callable[[Event], None] | None = None
    ) -> views.JobView:
        """Waits until a job is over, however it ends.

        Raises:
            TimedOut: it was not over after `timeout` seconds; it goes on.
        """
        async with contextlib.aclosing(self.watch(job_id, timeout=timeout)) as events:
            async for event in events:
                if on_event is not None:
                    on_event(event)
        return await self.job(job_id)

    async def watch(
        self, job_id: str, *, after: str | None = None, timeout: float | None = None
    ) -> AsyncGenerator[Event, None]:
        """The job's events from the first, or from the one after id `after`, as they come, until the job is over.

        A stream that breaks off is taken up again where it ended, so no event is lost or doubled.

        Raises:
            TimedOut: the job was not over after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        failures = 0
        while True:
            opened = time.monotonic()
            error: HalftoneError
            try:
                async with contextlib.aclosing(self._stream(job_id, after, deadline)) as events:
                    async for event in events:
                        after, failures = event.id, 0
                        yield event
                        if event.final:
                            return
            except httpx.TransportError as fault:
                error = wire.unreachable(self._http.base_url, fault)
            except HalftoneError as fault:
                error = fault
            else:
                if (await self.job(job_id)).status.final:  # its events have expired, or `after` was the last
                    return
                error = wire.broken_off(job_id)
            wire.silence(job_id, deadline)
            if time.monotonic() - opened > wire.LIVED_SECONDS:
                failures = 0
            await asyncio.sleep(self._retry.pause(failures, error, deadline))
            failures += 1

    async def models(self) -> tuple[views.ModelView, ...]:
        """The models that the service knows."""
        return wire.read(views.ModelList, await self._send(Call("GET", "/v1/models"))).data

    async def profiles(self) -> tuple[views.ProfileView, ...]:
        """The quantization profiles of all models."""
        return wire.read(views.ProfileList, await self._send(Call("GET", "/v1/profiles"))).data

    async def guard(self) -> views.GuardView:
        """What comparisons on users' jobs say of each profile."""
        return wire.read(views.GuardView, await self._send(Call("GET", "/v1/quality/guard")))

    async def lift(self, model: str, profile: str) -> views.GuardCardView:
        """Takes the guard's verdict on a profile back."""
        return wire.read(views.GuardCardView, await self._send(wire.lifting(model, profile)))

    async def capabilities(self) -> dict[str, Any]:
        """What the service takes: limits, formats, defaults."""
        capabilities: dict[str, Any] = (await self._send(Call("GET", "/v1/capabilities"))).json()
        return capabilities

    async def file(self, file_id: str) -> bytes:
        """The bytes of a finished picture's file."""
        return (await self._send(Call("GET", wire.file_path(file_id)))).content

    async def _send(self, call: Call) -> httpx.Response:
        for attempt in count():
            try:
                response = await self._http.request(
                    call.method, call.path, json=call.body, params=call.query, headers=call.headers
                )
                if response.status_code < 400:
                    return response
                error = wire.error_of(response)
            except httpx.TransportError as fault:
                error = wire.unreachable(self._http.base_url, fault)
            await asyncio.sleep(self._retry.pause(attempt, error))
        raise AssertionError  # count() does not end

    async def _stream(self, job_id: str, after: str | None, deadline: float | None) -> AsyncGenerator[Event, None]:
        """The events of one connection; ends where the connection ends."""
        parser = EventParser()
        path, headers = wire.job_path(job_id, "/events"), wire.event_headers(after)
        limit = wire.silence(job_id, deadline)
        async with self._http.stream("GET", path, headers=headers, timeout=limit) as response:
            if response.status_code >= 400:
                await response.aread()
                raise wire.error_of(response)
            async for line in response.aiter_lines():
                wire.silence(job_id, deadline)
                event = parser.feed(line)
                if event is not None:
                    yield event
