"""From the configuration's `package.module:function` to the function."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path

from tenantry.handlers.message import Handler


class HandlerResolveError(Exception):
    """A handler can't be used; `topic` says which, the message why, on one line."""

    def __init__(self, topic: str, problem: str) -> None:
        super().__init__(problem)
        self.topic = topic


def resolve(specifications: Mapping[str, str]) -> dict[str, Handler]:
    """Import the handler of each topic. Raises `HandlerResolveError`.

    A module is looked for where Python looks, and then in the working directory.
    """
    here = str(Path.cwd())
    added = here not in sys.path
    if specifications and added:
        sys.path.append(here)
    return {topic: _resolve(topic, text) for topic, text in specifications.items()}


def _resolve(topic: str, text: str) -> Handler:
    module_name, _, path = text.partition(":")
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise HandlerResolveError(topic, f"there is no module {missing!r}") from error
        raise HandlerResolveError(
            topic, f"{module_name} can't be imported: there is no module {missing!r}"
        ) from error
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        raise HandlerResolveError(topic, f"{module_name} can't be imported: {problem}") from error
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            raise HandlerResolveError(topic, f"{module_name} has no {path!r}") from error
    if not callable(found):
        raise HandlerResolveError(topic, f"{text} is no function but {type(found).__name__}")
    if inspect.iscoroutinefunction(found) or inspect.isgeneratorfunction(found):
        raise HandlerResolveError(
            topic, f"{text} must be a plain function: handlers run in threads"
        )
    try:
        inspect.signature(found).bind(None, None)
    except TypeError as error:
        raise HandlerResolveError(topic, f"{text} must take (message, cursor): {error}") from error
    except ValueError:
        pass  # Nothing is known of its parameters.
    return found
