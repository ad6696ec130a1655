"""The comparison with other servers: its table, and the bare one in a short run."""

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import peer_servers
from benchmarks.load import Load, Plan
from benchmarks.peers import HEADER, Options, Peer, main, print_table
from convmae_deploy.errors import ConvMAEError
from tests.bundle_factory import make_bundle


def test_the_figures_of_a_peer_are_medians_over_the_rounds() -> None:
    process: Any = None
    loads = [Load(1.0, [0.02] * 10, 0), Load(1.0, [0.04] * 30, 0), Load(1.0, [0.06] * 20, 0)]
    peer = Peer("LitServe", process, Plan(1, "/", "", 8, 1.0), loads, [0.5, 0.9, 0.8], [0.003, 0.001, 0.002], 123.4)
    assert peer.row() == ("LitServe", "20.0", "0.800", "40.0 / 60.0", "2.00", "123")
    assert len(peer.row()) == len(HEADER)


def test_the_first_column_begins_and_the_others_end_at_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([("", "requests/s"), ("LitServe", "9.5")])
    assert capsys.readouterr().out == "          requests/s\nLitServe         9.5\n"


def test_a_peer_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["peer_servers", "nginx"])
    with pytest.raises(ConvMAEError, match="expected one of starlette, litserve, got nginx; name one"):
        peer_servers.main()


@pytest.mark.slow
def test_a_short_run_measures_every_server_that_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.peers.find_spec", lambda name: None)  # LitServe: it takes long
    assert main(Options(bundle=make_bundle(tmp_path / "tiny"), rounds=1, seconds=0.1, threads=2, clients=2)) == 0
    printed = capsys.readouterr().out
    assert "LitServe is not installed" in printed
    for name in ("in process", "this server", "Starlette, uvicorn"):
        assert re.search(rf"^{name} +\d+\.\d +", printed, re.MULTILINE)
