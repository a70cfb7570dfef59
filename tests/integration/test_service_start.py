"""Starting: one service per port and per data directory, told in one sentence."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from demo.ports import free_port
from tests.integration.service_rig import running_service

from leeward.core.errors import Unavailable
from leeward.daemons.serve import run_service
from leeward.daemons.settings import ServiceSettings, Settings

pytestmark = pytest.mark.integration


def test_a_taken_port_is_said_before_anything_is_made(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = Settings(data=tmp_path / "data", service=ServiceSettings(port=port))
        with pytest.raises(Unavailable, match=f"port {port}: address already in use"):
            run_service(settings)
    assert not (tmp_path / "data").exists()


def test_two_services_never_share_a_data_directory(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        assert (tmp_path / "service" / "api-token").stat().st_mode & 0o777 == 0o600
        code = (
            "from leeward.daemons.settings import load_settings\n"
            "from leeward.daemons.serve import run_service\n"
            "run_service(load_settings())\n"
        )
        second = subprocess.run(
            [sys.executable, "-c", code],
            env={"LEEWARD_DATA": str(tmp_path), "LEEWARD_SERVICE__PORT": str(free_port())},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert second.returncode != 0
        assert "another service already runs" in second.stderr
        assert service.answers()
