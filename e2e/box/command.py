"""Running other programs, with their last words in the error when they fail."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from curve_storage.errors import CurveError, FailedPrecondition

Argument = str | Path


class CommandFailed(CurveError):
    """A program ended with an error; `returncode` and its whole `output` are kept."""

    code = "command_failed"

    def __init__(self, what: str, *, returncode: int, output: str, where: str = "", todo: str = "") -> None:
        super().__init__(what, where=where, todo=todo)
        self.returncode = returncode
        self.output = output


def run(
    arguments: Sequence[Argument],
    *,
    todo: str = "",
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 600.0,
) -> str:
    """Standard output of the program. `env` is added to the present environment.

    Raises FailedPrecondition when the program is not installed, CommandFailed when it fails or is not done in
    `timeout` seconds.
    """
    words = [str(word) for word in arguments]
    try:
        done = subprocess.run(
            words,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            env={**os.environ, **env} if env else None,
            cwd=cwd,
            timeout=timeout,
            text=True,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise FailedPrecondition(
            "the program is not installed", where=words[0], todo=todo or "Run `python -m e2e.box packages`."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(
            f"not done after {timeout:.0f} s", returncode=-1, output="", where=" ".join(words), todo=todo
        ) from error
    if done.returncode != 0:
        raise failure(words, done.returncode, done.stderr + done.stdout, todo)
    return done.stdout


def stream(
    arguments: Sequence[Argument],
    line: Callable[[str], None],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Runs a long program and gives each line of its output and errors to `line` as it comes; returns them all.

    The program is ended when this process is interrupted. Raises as `run` does, without a time limit.
    """
    words = [str(word) for word in arguments]
    output: list[str] = []
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env} if env else None,
            cwd=cwd,
            text=True,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise FailedPrecondition(
            "the program is not installed", where=words[0], todo="Run `python -m e2e.box packages`."
        ) from error
    with process:
        assert process.stdout is not None
        try:
            for text in process.stdout:
                output.append(text)
                line(text)
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        raise failure(words, process.returncode, "".join(output))
    return "".join(output)


def failure(words: Sequence[str], returncode: int, output: str, todo: str = "") -> CommandFailed:
    """The error for a program that ended with `returncode`: its last ten lines say why."""
    last = "\n".join(output.strip().splitlines()[-10:]) or "it printed nothing"
    command = " ".join(words)
    return CommandFailed(
        f"ended with status {returncode}: {last}",
        returncode=returncode,
        output=output,
        where=command if len(command) < 200 else command[:200] + " …",
        todo=todo,
    )
