"""Errors at the test's command."""

from __future__ import annotations

from copy import copy

from tenantry.broker.port import BrokerUnavailableError


class Faults:
    """Errors to be raised at named steps, each so many times."""

    def __init__(self) -> None:
        self._planned: dict[str, list[BaseException]] = {}
        self.steps: list[str] = []

    def plan(self, step: str, error: BaseException, times: int = 1) -> None:
        self._planned.setdefault(step, []).extend([error] * times)

    def clear(self) -> None:
        self._planned.clear()

    def reach(self, step: str) -> None:
        self.steps.append(step)
        planned = self._planned.get(step)
        if planned:
            # A fresh one each time: a raised exception gathers its traceback.
            raise copy(planned.pop(0))


def outage() -> BrokerUnavailableError:
    return BrokerUnavailableError("the broker is away")
