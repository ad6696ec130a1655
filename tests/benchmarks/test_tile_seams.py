"""What an edge of a tile does, with graphs of which it is known."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.tile_seams import distance_from_cuts, main
from convmae_deploy.errors import ConvMAEError
from tests.bundle_factory import make_bundle


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """One of 200 x 130 pixels, of which 128 x 128 fit."""
    (tmp_path / "photos").mkdir()
    levels = np.random.default_rng(0).integers(0, 256, (130, 200, 3), np.uint8)
    Image.fromarray(levels).save(tmp_path / "photos" / "a.png")
    return tmp_path / "photos"


def test_where_no_cell_sees_its_neighbours_tiles_are_the_whole(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(tmp_path / "bundle", largest=128)
    main([str(bundle), str(photos), "--tile", "64", "--overlap", "0"])
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[1:4] for line in printed[2:4]] == [["0.0e+00"] * 3] * 2  # e1, e2
    assert "cosine 1.0000 at least, 1.0000 on average" in printed[-2]
    assert printed[-1] == "1 photos, tiles of 64 every 64 pixels"


def test_only_edges_within_the_photo_are_cuts() -> None:
    far = distance_from_cuts((0, 64), 64, (128, 128), 16)  # left below: cut above and on the right
    assert far.tolist() == [[8, 8, 8, 8], [24, 24, 24, 8], [40, 40, 24, 8], [56, 40, 24, 8]]
    assert np.isinf(distance_from_cuts((0, 0), 64, (64, 64), 16)).all()


def test_a_bundle_of_one_size_is_refused(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(ConvMAEError, match="export one with --dynamic-size"):
        main([str(make_bundle(tmp_path / "bundle")), str(photos), "--tile", "64", "--overlap", "0"])
