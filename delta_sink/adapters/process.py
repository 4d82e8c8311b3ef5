"""What a worker process does before it works: a collector and an Arrow fit for many records."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from types import ModuleType

import pyarrow as pa

GC_OBJECTS = 200_000
"""New objects between two collections. A poll makes thousands that live for a moment and form no
cycles: with Python's default of 700, looking through them took a fifth of a drain's CPU."""


def prepare_process() -> None:
    """Make this process fit for its work; call it once, before the first record."""
    gc.freeze()
    gc.set_threshold(GC_OBJECTS, 20, 50)
    _keep_pandas_out()


def _keep_pandas_out() -> None:
    """Let pyarrow find that there is no pandas.

    It looks for pandas when it first makes an array, and if there is one, imports it: a second and
    60 MB for nothing. It looks once; what imports pandas by itself afterwards still gets it.
    """
    if "pandas" in sys.modules:
        return
    blocker = _NoPandas()
    sys.meta_path.insert(0, blocker)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(blocker)


class _NoPandas:
    """A finder that knows of one module, and that it is not there."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        """Raise for pandas; for every other name, leave it to the finders after this one."""
        del path, target
        if name == "pandas":
            raise ModuleNotFoundError("pandas is kept out of this process", name=name)
