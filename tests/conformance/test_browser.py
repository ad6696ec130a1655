"""The kit in a browser: Chromium reads its photos as the kit says, and onnxruntime-web its inputs.

onnxruntime-web is no package of Python and is not installed with the others: the variable CONVMAE_ONNXRUNTIME_WEB names
the folder `onnxruntime-web/dist` that `npm install onnxruntime-web` makes; without it that test is skipped.
"""

import base64
import os
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from convmae_deploy.bundle.manifest import KIT_NAME
from convmae_deploy.conformance.command import conform_with
from convmae_deploy.conformance.kit import read_kit
from convmae_deploy.media.images import decode_image
from convmae_deploy.tasks import load_bundle
from export.kit_photos import kit_photos
from tests.bundle_factory import make_bundle
from tests.conformance.kits import with_kit
from tests.serving.page.page_driver import FLAGS, missing_program
from tests.waiting import PATIENCE_SECONDS

WEB = os.environ.get("CONVMAE_ONNXRUNTIME_WEB", "")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing_program() is not None, reason=missing_program() or "")]
DECODE = """
const [encoded, done] = arguments;
(async () => {
  const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
  const image = await createImageBitmap(new Blob([bytes]));
  const canvas = new OffscreenCanvas(image.width, image.height), context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const levels = context.getImageData(0, 0, image.width, image.height).data;
  let text = "";
  for (let at = 0; at < levels.length; at += 8192) text += String.fromCharCode(...levels.subarray(at, at + 8192));
  done([image.width, image.height, btoa(text)]);
})().catch((error) => done(String(error)));
"""
INFER = """
const [inputs, shape, done] = arguments;
(async () => {
  const ort = await import("/web/ort.min.mjs");
  ort.env.wasm.wasmPaths = "/web/";
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create("/bundle/model.onnx", {executionProviders: ["wasm"]});
  const found = {};
  for (const [name, encoded] of Object.entries(inputs)) {
    const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
    const image = new ort.Tensor("float32", new Float32Array(bytes.buffer), shape);
    const outputs = await session.run({image});
    found[name] = {logits: Array.from(outputs.logits.data), e3: Array.from(outputs.e3.data)};
  }
  done(found);
})().catch((error) => done(String(error)));
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the browser may fetch."""
    folder = tmp_path_factory.mktemp("served")
    with_kit(make_bundle(folder / "bundle"))
    (folder / "index.html").write_text("<!doctype html><title>kit</title>")
    if WEB:
        shutil.copytree(WEB, folder / "web")
    return folder


class _Quiet(SimpleHTTPRequestHandler):
    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript", ".wasm": "application/wasm"}

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def chrome(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = Options()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        browser = webdriver.Chrome(options=options, service=Service(str(shutil.which("chromedriver"))))
        try:
            browser.set_script_timeout(PATIENCE_SECONDS)
            browser.get(f"http://127.0.0.1:{server.server_port}/")
            yield browser
        finally:
            browser.quit()
            server.shutdown()


def test_chromium_reads_the_photos_as_the_kit_says(chrome: webdriver.Chrome) -> None:
    """All but transparency, which a canvas multiplies into the colours."""
    for photo in kit_photos():
        if photo.name in ("transparency", "large"):
            continue
        found: Any = chrome.execute_async_script(DECODE, base64.b64encode(photo.content).decode())
        assert isinstance(found, list), found
        width, height, encoded = found
        expected = decode_image(photo.content).image
        assert (width, height) == expected.size
        levels = np.frombuffer(base64.b64decode(encoded), np.uint8).reshape(height, width, 4)[..., :3]
        off = np.abs(levels.astype(int) - np.asarray(expected, int))
        assert off.mean() <= 0.5 and off.max() <= 8, (photo.file, off.mean(), off.max())


@pytest.mark.skipif(not WEB, reason="CONVMAE_ONNXRUNTIME_WEB does not name onnxruntime-web's folder dist")
def test_onnxruntime_web_conforms(chrome: webdriver.Chrome, folder: Path, tmp_path: Path) -> None:
    bundle = load_bundle(folder / "bundle")
    kit = read_kit(bundle)
    inputs = {item.photo.name: base64.b64encode(item.input.tobytes()).decode() for item in kit}
    found: Any = chrome.execute_async_script(INFER, inputs, [1, *bundle.manifest.input.shape])
    assert isinstance(found, dict), found
    arrays: dict[str, Any] = {f"inputs/{item.photo.name}": item.input for item in kit}
    for name, outputs in found.items():
        for output, values in outputs.items():
            shape = bundle.manifest.outputs[output].shape
            arrays[f"outputs/{name}/{output}"] = np.array(values, np.float32).reshape(shape)
    np.savez(tmp_path / "browser.npz", **arrays)
    assert (bundle.path / KIT_NAME).is_file()
    status = conform_with(
        bundle.path, url=None, npz=tmp_path / "browser.npz", onnx=None, precision="fp32", key_file=None
    )
    assert status == 0 and len(found) == len(kit)
