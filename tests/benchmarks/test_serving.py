"""The serving benchmark: its gates, and one short run."""

import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import load
from benchmarks.load import ROOT, Load, Plan, generate, run_load
from benchmarks.serving import Figures, default_settings, make_job, write_photo
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.classification import Classifier
from serving.errors import ApiError
from tests.bundle_factory import make_bundle, open_as

GOOD = Figures(
    in_process_rate=100.0,
    server_rate=93.0,
    ratio=0.93,
    in_process_p50=9.0,
    server_p50=9.5,
    added_p50=0.5,
    loaded_p50=20.0,
    loaded_p99=30.0,
    added_cpu=0.2,
    failures=0,
    memory_idle=100.0,
    memory_later=101.0,
    memory_last=101.0,
    memory_requests=1000,
)


def test_good_figures_pass() -> None:
    assert GOOD.failed_gates() == []


@pytest.mark.parametrize(
    ("figures", "word"),
    [
        (replace(GOOD, ratio=0.919), "ratio"),
        (replace(GOOD, added_p50=1.21), "added p50"),
        (replace(GOOD, loaded_p99=40.1), "p99"),
        (replace(GOOD, failures=1), "failed"),
    ],
)
def test_each_gate_fails_by_itself(figures: Figures, word: str) -> None:
    (sentence,) = figures.failed_gates()
    assert word in sentence


def test_percentiles_are_of_the_sorted_latencies() -> None:
    found = Load(2.0, [0.3, 0.1, 0.2, 0.4], 0)
    assert (found.rate, found.percentile(50), found.percentile(99)) == (2.0, 0.3, 0.4)


def test_a_server_that_hangs_ends_the_load_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "SILENCE_SECONDS", 0.2)
    body = tmp_path / "body"
    body.write_bytes(b"photo")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        plan = Plan(silent.getsockname()[1], "/v1/classify", str(body), clients=2, seconds=0.1)
        with pytest.raises(ConvMAEError, match="sent nothing for 0.2 s while 2 clients waited"):
            generate(plan)


def test_a_load_that_fails_in_its_process_is_a_sentence_here(tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"photo")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(ConvMAEError, match="the load generator failed: .*refused"):
            run_load(Plan(closed.getsockname()[1], "/v1/classify", str(body), clients=1, seconds=0.1))


def test_the_work_in_process_has_the_servers_own_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVMAE_MAX_IMAGES", "1")  # of whoever runs the benchmark; its server does not see it
    settings = default_settings()
    assert (settings.max_images, settings.max_image_pixels, settings.max_request_pixels) == (
        32,
        50_000_000,
        100_000_000,
    )
    predictor = open_as(Classifier, make_bundle(tmp_path / "tiny"), device="cpu", threads=1)
    photo = write_photo(tmp_path / "photo.jpg").read_bytes()
    assert b"label" in make_job(predictor, photo, settings)()
    for limit in ("max_image_pixels", "max_image_side", "max_image_aspect", "max_request_pixels"):
        with pytest.raises(ApiError):
            make_job(predictor, photo, settings.model_copy(update={limit: 1}))


def test_the_photo_is_like_one_and_the_same_every_time(tmp_path: Path) -> None:
    first, second = (write_photo(tmp_path / name).read_bytes() for name in ("a.jpg", "b.jpg"))
    assert first == second
    assert 85_000 < len(first) < 115_000
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.size == (500, 375)


@pytest.mark.slow
def test_a_short_run_prints_its_figures(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "tiny")
    command = ["--bundle", str(bundle), "--rounds", "1", "--seconds", "0.2", "--threads", "2"]
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    assert "requests failed" not in finished.stdout
    (rate,) = re.findall(r"server throughput +([\d.]+) requests/s", finished.stdout)
    assert float(rate) > 0
    assert "gate: at least 0.92" in finished.stdout
