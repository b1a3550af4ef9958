"""Which tokens are accepted: our own and a provider's; both can change while the program runs."""

from __future__ import annotations

from collections.abc import Sequence

from tenantry.http.provider import Provider, ProviderTokens
from tenantry.http.provider_keys import ProviderKeys
from tenantry.http.tokens import ALGORITHM, BadTokenError, Principal, Tokens, header_of


class Identity:
    """Identifies callers by bearer tokens. `read` is for event loops; `trust` for any thread."""

    def __init__(self, secrets: Sequence[str] = (), provider: ProviderTokens | None = None) -> None:
        """Without secrets and provider no tokens are asked for."""
        self._provider = provider
        self.trust(secrets)

    @classmethod
    def of(cls, secrets: Sequence[str], provider: Provider | None) -> Identity:
        """Make one that also accepts tokens of `provider`, once its `keys` run."""
        return cls(secrets, None if provider is None else ProviderTokens(provider, provider.keys()))

    def trust(self, secrets: Sequence[str]) -> None:
        """Accept our own tokens signed with these secrets, and no others; the first one signs.

        The provider's keys are fetched again soon.
        """
        self._tokens = Tokens(*secrets) if secrets else None
        if self._provider is not None:
            self._provider.keys.look_soon()

    @property
    def tokens(self) -> Tokens | None:
        """Issues and reads our own tokens; None without a secret."""
        return self._tokens

    @property
    def keys(self) -> ProviderKeys | None:
        """The provider's keys, whose `run` needs a thread; None without a provider."""
        return None if self._provider is None else self._provider.keys

    @property
    def provider_tokens(self) -> ProviderTokens | None:
        """Reads the provider's tokens; None without a provider."""
        return self._provider

    @property
    def is_asked_for(self) -> bool:
        """Whether a call on TCP needs a token."""
        return self._tokens is not None or self._provider is not None

    def is_signed(self, token: str) -> bool:
        """Tell whether a token is accepted, without waiting for keys to be fetched."""
        tokens = self._tokens
        try:
            header = header_of(token)
            if self._provider is not None and (tokens is None or header.get("alg") != ALGORITHM):
                return self._provider.is_signed(token, header)
            return tokens is not None and tokens.read(token) is not None
        except BadTokenError:
            return False

    async def read(self, token: str) -> Principal:
        """Give the holder of a token.

        Raises `BadTokenError`, and for a provider's token what `ProviderTokens.read` raises.
        """
        tokens = self._tokens
        if self._provider is not None:
            header = header_of(token)
            # HS256 means our own secrets: a provider's public key must never verify it.
            if tokens is None or header.get("alg") != ALGORITHM:
                return await self._provider.read(token, header)
        if tokens is None:
            raise BadTokenError("no tokens are taken here")
        return tokens.read(token)
