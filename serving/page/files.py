"""The files of the web page, held in memory: what a client asks for is looked up by name and never becomes a path."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Final

from starlette.responses import Response

from serving.errors import ApiError

PAGE: Final = Path(__file__).parent
SAMPLES: Final = (PAGE / "samples", PAGE.parent / "golf-ball.jpg")  # photos to try the page with
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "frame-ancestors {frames}; base-uri {base}; form-action 'self'"
)
START: Final = "index.html"  # found with or without a slash at the end of its address
FRAME_KEYWORDS: Final = frozenset({"none", "self"})  # of the policy's language
ASSET_TYPES: Final = {
    ".css": "text/css",
    ".html": "text/html",
    ".ico": "image/x-icon",
    ".jpg": "image/jpeg",
    ".js": "text/javascript",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}


class PageFiles:
    """The page's files by name, read once.

    Args:
        places: files, and folders whose files they are; the folders in these are not looked into.
        frame_ancestors: pages that may show these in a frame.
    """

    def __init__(self, *places: Path, frame_ancestors: Sequence[str] = ("none",)) -> None:
        self._frames = " ".join(f"'{source}'" if source in FRAME_KEYWORDS else source for source in frame_ancestors)
        found = chain.from_iterable(place.iterdir() if place.is_dir() else [place] for place in places)
        paths = sorted(path for path in found if path.suffix in ASSET_TYPES)
        self._files = {path.name: (ASSET_TYPES[path.suffix], path.read_bytes()) for path in paths}

    def response(self, name: str, root_path: str = "") -> Response:
        """One of them, whole: a Range is ignored, as HTTP allows.

        Args:
            name: of the file.
            root_path: where a proxy shows this server; addresses in the first page are then relative to that.

        Raises:
            ApiError: 404.
        """
        file = self._files.get(name)
        if file is None:
            raise ApiError(404, "not_found", "there is no such file on this server; see /docs")
        media_type, content = file
        if root_path and name == START:
            content = content.replace(b"<head>", f'<head>\n  <base href="{root_path}/">'.encode(), 1)
        policy = CONTENT_SECURITY_POLICY.format(frames=self._frames, base="'self'" if root_path else "'none'")
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
        return Response(content, media_type=media_type, headers=headers)
