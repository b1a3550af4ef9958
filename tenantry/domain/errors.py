"""Why a command is refused. Each error names the thing and says what to do."""

from __future__ import annotations


class DomainError(Exception):
    """A command was refused; nothing has changed."""


class TenantNotFoundError(DomainError):
    """No such tenant, or it has been deleted."""

    def __init__(self, tenant_id: str) -> None:
        super().__init__(f"there is no tenant {tenant_id!r}")
        self.tenant_id = tenant_id


class TenantExistsError(DomainError):
    """The id is taken."""

    def __init__(self, tenant_id: str) -> None:
        super().__init__(f"tenant {tenant_id!r} exists already; choose another id")
        self.tenant_id = tenant_id


class InvalidCommandError(DomainError):
    """A field of the command is out of its range."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class WrongStateError(DomainError):
    """The tenant's state does not allow the command."""

    def __init__(self, tenant_id: str, state: str, wanted: str) -> None:
        super().__init__(f"tenant {tenant_id!r} is {state} and can't {wanted} now")
        self.tenant_id = tenant_id
        self.state = state
