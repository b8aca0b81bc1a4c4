"""The command line's shared options and the one place where faults become messages. Knows no command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from halftone.client import Client
from halftone.render import complain
from halftone.wire import RetryPolicy
from jobs.errors import HalftoneError


def _remember_json(context: typer.Context, value: bool) -> bool:
    """Errors are told as JSON too, so the group must know; `meta` is shared by a command and its groups."""
    context.meta["json"] = value
    return value


Json = Annotated[bool, typer.Option("--json", help="Print JSON, errors included.", callback=_remember_json)]
Url = Annotated[str | None, typer.Option("--url", envvar="HALFTONE_URL", help="The gateway's address.")]
ApiKey = Annotated[str | None, typer.Option("--api-key", envvar="HALFTONE_API_KEY", help="The key to send.")]
Local = Annotated[bool, typer.Option("--local", help="Needs no server: works in this process.")]


class FaultsAsMessages(TyperGroup):
    """A group whose commands end with a line on stderr and status 1 where a user is at fault, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except HalftoneError as fault:
            complain(fault, as_json=bool(ctx.meta.get("json")))
            raise typer.Exit(1) from fault
        except OSError as fault:
            complain(HalftoneError(str(fault)), as_json=bool(ctx.meta.get("json")))
            raise typer.Exit(1) from fault


@contextmanager
def connected(url: str | None, api_key: str | None) -> Iterator[Client]:
    """A client that gives up soon when nobody answers: a person is waiting."""
    with Client(url, api_key=api_key, retry=RetryPolicy(retries=2)) as client:
        yield client
