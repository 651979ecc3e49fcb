"""The compiled form of the hot modules: that it is what runs, and that the list of them is right."""

from __future__ import annotations

import ast
import importlib
import os
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HOT: dict[str, str] = runpy.run_path(str(ROOT / "setup.py"), run_name="list")["HOT"]
MODULES = [f"{package}.{module}" for package, modules in HOT.items() for module in modules.split()]


def source(module: str) -> ast.Module:
    return ast.parse((ROOT / "storage_daemon/curve_storage" / (module.replace(".", "/") + ".py")).read_text())


@pytest.mark.parametrize("module", MODULES)
def test_form(module: str) -> None:
    """Compiled where that is asked for (`make compiled`, the stage of this name), pure elsewhere."""
    file = importlib.import_module(f"curve_storage.{module}").__file__
    assert file is not None
    assert file.endswith(".so") == (os.environ.get("CURVE_EXPECT_COMPILED") == "1"), file


@pytest.mark.parametrize("module", MODULES)
def test_no_struct_of_msgspec_is_compiled(module: str) -> None:
    """mypyc keeps only simple annotations of such a class: `X | None` would be decoded as a `type`."""
    for node in ast.walk(source(module)):
        if isinstance(node, ast.ClassDef):
            bases = [ast.unparse(base) for base in node.bases]
            assert not any(base.endswith("Struct") for base in bases), node.name
