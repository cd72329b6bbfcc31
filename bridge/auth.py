"""Who may call: a bearer token, or a user with HTTP basic authentication; compared in constant time."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from archiver.errors import SettingsInvalid
from archiver.settings import BridgeSettings


class Guard:
    """Knows the credentials, as digests: comparing them tells neither content nor length."""

    def __init__(self, settings: BridgeSettings) -> None:
        """Raises ``SettingsInvalid`` if there is none: there is no default."""
        self._known: list[tuple[str, bytes]] = []
        if settings.token is not None:
            self._known.append(("bearer", _digest(settings.token.get_secret_value().strip().encode())))
        if settings.username is not None and settings.password is not None:
            pair = f"{settings.username}:{settings.password.get_secret_value().strip()}"
            self._known.append(("basic", _digest(pair.encode())))
        if not self._known:
            raise SettingsInvalid(
                "the bridge has no credentials",
                expected="bridge.token, or bridge.username and bridge.password",
                found="neither",
                next_step="set ARCHIVER_BRIDGE__TOKEN, or ARCHIVER_BRIDGE__TOKEN_FILE, to what  openssl rand -hex 24  says",
            )

    def admits(self, header: str | None) -> bool:
        """Whether an ``Authorization`` header is one of ours."""
        scheme, _, value = (header or "").partition(" ")
        scheme, given = scheme.lower(), value.strip().encode("utf-8", "replace")
        if scheme == "basic":
            try:
                given = base64.b64decode(given, validate=True)
            except (ValueError, binascii.Error):
                return False
        digest = _digest(given)
        matches = [hmac.compare_digest(digest, known) and scheme == kind for kind, known in self._known]
        return any(matches)


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()
