"""The files of the web page, held in memory: what a client asks for is looked up by name and never becomes a path."""

from itertools import chain
from pathlib import Path
from typing import Final

from starlette.responses import Response

from serving.errors import ApiError

PAGE: Final = Path(__file__).parent
SAMPLES: Final = (PAGE / "samples", PAGE.parent / "golf-ball.jpg")  # photos to try the page with
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
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
    """

    def __init__(self, *places: Path) -> None:
        found = chain.from_iterable(place.iterdir() if place.is_dir() else [place] for place in places)
        paths = sorted(path for path in found if path.suffix in ASSET_TYPES)
        self._files = {path.name: (ASSET_TYPES[path.suffix], path.read_bytes()) for path in paths}

    def response(self, name: str) -> Response:
        """One of them, whole: a Range is ignored, as HTTP allows.

        Raises:
            ApiError: 404.
        """
        file = self._files.get(name)
        if file is None:
            raise ApiError(404, "not_found", "there is no such file on this server; see /docs")
        media_type, content = file
        headers = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "Cache-Control": "no-cache"}
        return Response(content, media_type=media_type, headers=headers)
