import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def example() -> ModuleType:
    """`example_run.py`: a run folder with every part, of synthetic numbers."""
    spec = importlib.util.spec_from_file_location("example_run", Path(__file__).parent / "example_run.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
