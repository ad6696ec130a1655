"""Where the real clips are that some tests need; those are skipped without them."""

import os
from pathlib import Path

import pytest

_DATA = Path(os.environ.get("CONVMAE_DATA", "data-packs-are-not-here"))
MOTION8 = _DATA / "video_motion8"
ASL20 = _DATA / "video_asl20"
needs_motion8 = pytest.mark.skipif(not MOTION8.is_dir(), reason="needs the video_motion8 pack (CONVMAE_DATA)")
needs_asl20 = pytest.mark.skipif(not ASL20.is_dir(), reason="needs the video_asl20 pack (CONVMAE_DATA)")
