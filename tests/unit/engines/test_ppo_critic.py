"""Where a critic says it can be reached, and whose cores the two sides use."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from nemotron.engines.embedded.critic import _lone_threads, _reachable
from nemotron.processes.addresses import stays_here
from nemotron.processes.cores import usable_cores


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:5", "http://127.0.0.1:5"),
        ("http://0.0.0.0:5", f"http://{socket.gethostname()}:5"),
        ("http://[::]:5", f"http://{socket.gethostname()}:5"),
        ("http://[::1]:5", "http://[::1]:5"),
    ],
)
def test_an_address_that_listens_everywhere_is_said_by_name(url: str, said: str) -> None:
    assert _reachable(url) == said


def test_only_a_loopback_address_shares_the_cores() -> None:
    from nemotron.config.schema.ppo import CriticConfig

    base = {
        **{"address": None, "token": None, "port": 0, "request_timeout_s": 1.0, "max_retries": 0},
        **{"ready_timeout_s": 1.0, "heartbeat_s": 1.0, "max_request_mib": 1, "offload": "none"},
    }
    lone = [
        _lone_threads(CriticConfig.model_validate({**base, "host": host, "threads": threads}))
        for host, threads in (("0.0.0.0", "auto"), ("127.0.0.1", "auto"), ("127.0.0.1", 3))
    ]
    assert lone == [usable_cores(), max(1, usable_cores() // 4), 3]
    assert stays_here("localhost")
    assert not stays_here("critic.example")


def test_starting_a_run_imports_no_torch_before_the_threads_are_set() -> None:
    modules = "nemotron.engines.worker, nemotron.engines.embedded.scene, nemotron.rl.critic.local"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
