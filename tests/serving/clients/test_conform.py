"""`convmae conform` against the running server: tensors as to any server of the protocol, and photos as files."""

from pathlib import Path

import pytest

from convmae_deploy import cli
from tests.bundle_factory import make_bundle
from tests.conformance.kits import with_kit
from tests.serving.running_server import RunningServer


def conform(bundle: Path, url: str) -> int:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["conform", str(bundle), url])
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


def test_the_server_conforms_with_tensors_and_with_files(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = with_kit(make_bundle(tmp_path / "tiny"))
    assert conform(bundle, f"{server.url}/") == 0
    assert "It conforms: 10 of 10" in capsys.readouterr().out
    assert conform(bundle, f"{server.url}/v2/models/none") == 2
    error = capsys.readouterr().err
    assert "/v2/models/none answered 404" in error and error.count("\n") == 1
