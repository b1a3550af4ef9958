"""Whose tokens are taken: our own, and those of a provider. What is trusted may change."""

from __future__ import annotations

from collections.abc import Sequence

from tenantry.http.provider import Provider, ProviderTokens
from tenantry.http.provider_keys import ProviderKeys
from tenantry.http.tokens import ALGORITHM, BadTokenError, Principal, Tokens, header_of


class Identity:
    """Tells by a bearer token who calls. `read` is for event loops; `trust` for any thread."""

    def __init__(self, secrets: Sequence[str] = (), provider: ProviderTokens | None = None) -> None:
        """Without any of both no tokens are asked for."""
        self._provider = provider
        self.trust(secrets)

    @classmethod
    def of(cls, secrets: Sequence[str], provider: Provider | None) -> Identity:
        """Make one that reads the tokens of `provider`, too, once its `keys` run."""
        return cls(secrets, None if provider is None else ProviderTokens(provider, provider.keys()))

    def trust(self, secrets: Sequence[str]) -> None:
        """Take our own tokens signed with these secrets, and no others; the first signs.

        The provider's keys are looked at again soon.
        """
        self._tokens = Tokens(*secrets) if secrets else None
        if self._provider is not None:
            self._provider.keys.look_soon()

    @property
    def tokens(self) -> Tokens | None:
        """Our own tokens, where there is a secret to sign them with."""
        return self._tokens

    @property
    def keys(self) -> ProviderKeys | None:
        """What fetches the provider's keys, for a thread to run."""
        return None if self._provider is None else self._provider.keys

    @property
    def provider_tokens(self) -> ProviderTokens | None:
        """What reads the provider's tokens."""
        return self._provider

    @property
    def is_asked_for(self) -> bool:
        """Whether a call on TCP needs a token."""
        return self._tokens is not None or self._provider is not None

    def is_signed(self, token: str) -> bool:
        """Tell whether a token is one that is taken, without waiting for anything."""
        tokens = self._tokens
        try:
            header = header_of(token)
            if self._provider is not None and (tokens is None or header.get("alg") != ALGORITHM):
                return self._provider.is_signed(token, header)
            return tokens is not None and tokens.read(token) is not None
        except BadTokenError:
            return False

    async def read(self, token: str) -> Principal:
        """Tell who holds a token.

        Raises `BadTokenError`, and of a provider's tokens what `ProviderTokens.read` does.
        """
        tokens = self._tokens
        if self._provider is not None:
            header = header_of(token)
            # Only what is signed with our own secrets is HS256: a provider's key is never one.
            if tokens is None or header.get("alg") != ALGORITHM:
                return await self._provider.read(token, header)
        if tokens is None:
            raise BadTokenError("no tokens are taken here")
        return tokens.read(token)
