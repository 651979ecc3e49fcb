"""The committed protobuf modules are what the .proto files generate."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]


def test_generated_modules_are_current(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from curve_storage.proto.generate import generate;"
        "generate(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    subprocess.run([sys.executable, "-c", code, str(REPOSITORY), str(tmp_path)], check=True, env={"PATH": path})
    fresh = sorted(path for path in tmp_path.rglob("*_pb2*"))
    assert len(fresh) >= 16
    stale = [
        str(path.relative_to(tmp_path))
        for path in fresh
        if path.read_bytes() != (REPOSITORY / path.relative_to(tmp_path)).read_bytes()
    ]
    assert not stale, f"run `make proto` and commit: {stale}"
