"""The object stores: local disk and S3."""

from __future__ import annotations

import pytest

from delta_sink.adapters.localdisk import LocalDisk
from tests.contract.store_contract import StoreContract


class TestLocalDisk(StoreContract):
    RACES = 100

    @pytest.fixture
    def store(self, tmp_path):
        return LocalDisk(str(tmp_path / "lake" / "orders"))


class TestLocalDiskWithoutFlush(StoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        return LocalDisk(str(tmp_path / "orders"), fsync=False)
