"""Who is asking: API keys known by their SHA-256 only, and the owner name that a key's jobs carry. Knows no route."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from jobs.errors import Unauthorized

ANONYMOUS = ""
"""The owner of every job where no keys are configured."""


class Keys:
    """The configured keys, as lower-case hexadecimal SHA-256 digests."""

    def __init__(self, hashes: Sequence[str]) -> None:
        self._hashes = tuple(hashes)

    @property
    def required(self) -> bool:
        """Whether a request must carry a key."""
        return bool(self._hashes)

    def owner(self, authorization: str | None) -> str:
        """The owner name for an Authorization header; raises Unauthorized.

        Every configured hash is compared, so the time taken tells nothing about which came near.
        """
        if not self._hashes:
            return ANONYMOUS
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthorized("an API key is required: send the header Authorization: Bearer <key>")
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).hexdigest()
        matches = [hmac.compare_digest(digest, known) for known in self._hashes]
        if not any(matches):
            raise Unauthorized("the API key is not valid")
        return digest[:16]
