"""The database's errors, as its users need to tell them apart."""

from __future__ import annotations

from tenantry.unavailable import UnavailableError


class DatabaseError(Exception):
    """The database can't be used as asked; the message is one line and holds no password."""


class DatabaseUnavailableError(DatabaseError, UnavailableError):
    """The database can't be reached or gave up; the same work may succeed later.

    Whether the work was committed is unknown. `permanent` means that waiting won't help: the
    password, the user or the database is wrong.
    """

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


class DatabaseUnfitError(DatabaseUnavailableError):
    """The database answers but can't be used until something in it is corrected."""

    def __init__(self, problem: str, remedy: str, *, permanent: bool = True) -> None:
        super().__init__(f"{problem}; {remedy}", permanent=permanent)
        self.problem = problem
        self.remedy = remedy

    def of(self, where: str) -> DatabaseUnfitError:
        """Return the same error with the database's name, unless it is named already."""
        if where in self.problem:
            return self
        problem = f"{where} can't be used: {self.problem}"
        return DatabaseUnfitError(problem, self.remedy, permanent=self.permanent)


class TermOverError(DatabaseUnavailableError):
    """The session's term has been taken by another daemon: nothing it writes is committed."""


class DatabaseUrlError(DatabaseError, ValueError):
    """The database's URL is not valid."""


class MigrationError(DatabaseError):
    """The schema can't be brought up to date."""


class OpenSchemaError(MigrationError):
    """Code of another owner would run with the rights of the database's user."""


class SchemaTooNewError(MigrationError):
    """A newer program has migrated the database; this one must not touch it."""

    def __init__(self, database: int, program: int) -> None:
        super().__init__(
            f"the database's schema is at migration {database}, newer than this program's "
            f"{program}; run the newer tenantry, or restore an older database"
        )
        self.database = database
        self.program = program
