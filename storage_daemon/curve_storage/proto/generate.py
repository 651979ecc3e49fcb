"""Regenerates the protobuf modules beside every .proto of the repository: `make proto`.

The generated files are committed, so that an installation needs no compiler; a test runs this into a
temporary folder and fails when the committed ones differ.
"""

from __future__ import annotations

import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOTS = ("storage_daemon", "csi")


def generate(repository: Path, out: Path) -> list[Path]:
    """Writes *_pb2.py, *_pb2.pyi, *_pb2_grpc.py and *_pb2_grpc.pyi under out/<root>/; returns the .proto files."""
    done: list[Path] = []
    for root in ROOTS:
        base = repository / root
        target = out / root
        target.mkdir(parents=True, exist_ok=True)
        for proto in sorted(base.rglob("*.proto")):
            builtin = Path(grpc_tools.__file__).parent / "_proto"  # google/protobuf/*.proto
            args = [
                "protoc", f"-I{base}", f"-I{builtin}", f"--python_out={target}", f"--grpc_python_out={target}",
                f"--mypy_out={target}", f"--mypy_grpc_out={target}", str(proto),
            ]  # fmt: skip
            if protoc.main(args) != 0:
                raise SystemExit(f"protoc refused {proto}")
            done.append(proto)
    return done


if __name__ == "__main__":
    import os

    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    where = Path(__file__).resolve().parents[3]
    for path in generate(where, where):
        print(path.relative_to(where))
