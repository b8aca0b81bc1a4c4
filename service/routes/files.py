"""/v1/files/{id}: result files by id. Knows no ranges and no media: that is `sending`'s."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from service import documents
from service.context import gateway_of, owner_of
from service.sending import send_file

router = APIRouter(tags=["Files"])


@router.get("/v1/files/{file_id}", response_class=Response, responses=documents.FILE)
@router.head("/v1/files/{file_id}", response_class=Response, responses=documents.FILE)
async def get_file(request: Request, file_id: str, owner: Annotated[str, Depends(owner_of)]) -> Response:
    """A result file. It never changes, so its id is its ETag. One `Range` at a time."""
    return await send_file(gateway_of(request), request, owner, file_id)
