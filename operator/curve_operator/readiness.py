"""Why a running daemon is not ready, in its own words: the answer of its /readyz. Never an exception."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

from curve_operator.observed import ready_since

TIMEOUT = 2.0
"""Seconds for all answers together: a round must not wait for a pod that says nothing."""
ASKED = 8
"""Pods asked in a round; the status shows fewer."""
LENGTH = 400


def unready(pods: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(name, address) of pods that run and are not ready. Pure."""
    found = []
    for pod in pods:
        status = pod.get("status") or {}
        if status.get("phase") == "Running" and status.get("podIP") and ready_since(pod) is None:
            found.append((pod["metadata"]["name"], str(status["podIP"])))
    return found


async def complaints(pods: Sequence[Mapping[str, Any]], port: int) -> dict[str, str]:
    """Pod → its reason. Pods that are ready, do not answer in time or give no reason are left out."""
    asked = unready(pods)[:ASKED]
    if not asked:
        return {}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT)) as session:
        answers = await asyncio.gather(*(_ask(session, address, port) for _, address in asked))
    return {name: text for (name, _), text in zip(asked, answers, strict=True) if text}


async def _ask(session: aiohttp.ClientSession, address: str, port: int) -> str:
    host = f"[{address}]" if ":" in address else address
    try:
        async with session.get(f"http://{host}:{port}/readyz") as answer:
            if answer.status != 503:
                return ""
            text = (await answer.content.read(4 * LENGTH)).decode(errors="replace").strip()
    except (aiohttp.ClientError, TimeoutError, OSError):
        return ""
    return text.splitlines()[0][:LENGTH] if text else ""
