"""Structured logs: one JSON object per line on stderr, with the keys ts, level, event, component, node, request_id.

`request_id` comes from a context variable, so that everything logged while a request is handled carries its id.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import structlog
from structlog.contextvars import bind_contextvars, reset_contextvars
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

from curve_storage.errors import InvalidArgument

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_SECRET_WORDS = ("token", "secret", "password", "passphrase", "private_key", "keyring")


def get(name: str) -> FilteringBoundLogger:
    """A logger whose lines carry `source` = name. Usable at import time, before `configure`."""
    logger: FilteringBoundLogger = structlog.get_logger(source=name)
    return logger


def configure(level: str = "info", component: str = "", node: str = "", stream: TextIO | None = None) -> None:
    """Once per process, before anything is logged. Also takes in what libraries log through `logging`."""
    number = _LEVELS.get(level.lower())
    if number is None:
        raise InvalidArgument(f"{level!r} is not a log level", todo=f"Use one of {', '.join(_LEVELS)}")
    output = stream or sys.stderr

    def identify(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        if component:
            event.setdefault("component", component)
        if node:
            event.setdefault("node", node)
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        identify,
        _hide_secrets,
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=output),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(max(number, logging.WARNING) if number > logging.DEBUG else logging.INFO)


@contextmanager
def request_context(request_id: str) -> Iterator[None]:
    """Everything logged inside carries this request id."""
    tokens = bind_contextvars(request_id=request_id)
    try:
        yield
    finally:
        reset_contextvars(**tokens)


def _hide_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for key in event:
        if any(word in key.lower() for word in _SECRET_WORDS):
            event[key] = "(hidden)"
    return event
