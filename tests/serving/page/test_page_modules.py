"""The page's modules without the server: colours of components, safetensors, schemas in words, run in the browser."""

import base64
import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from convmae_deploy.tasks.explanation_drawing import AGAINST, FOR, OPACITY
from convmae_deploy.tasks.label_colours import palette
from convmae_deploy.tasks.masks import encode_mask

pytest.importorskip("selenium", reason="selenium is not installed: pip install '.[dev]'")

from tests.serving.page.page_driver import PageDriver, missing_program  # noqa: E402

pytestmark = pytest.mark.skipif(missing_program() is not None, reason=missing_program() or "")

SERVING = Path(__file__).parents[3] / "serving"


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves the page's folder as the server does, at /page/."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the requests of a test are no news."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageDriver]:
    handler = functools.partial(QuietHandler, directory=str(SERVING))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        driver = PageDriver(f"http://127.0.0.1:{files.server_port}", tmp_path_factory.mktemp("profile"))
        driver.open("/page/favicon.svg")
        yield driver
        driver.close()
        files.shutdown()


def test_schemas_with_references_become_examples_and_words(page: PageDriver) -> None:
    document: dict[str, Any] = {
        "components": {
            "schemas": {
                "Node": {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string", "example": "root"},
                        "size": {"type": "integer", "minimum": 2, "maximum": 9},
                        "kind": {"anyOf": [{"type": "null"}, {"enum": ["a", "b"]}]},
                        "nodes": {"type": "array", "items": {"$ref": "#/components/schemas/Node"}},
                    },
                }
            }
        }
    }
    example = page.module(
        "schema.js", "return module.exampleOf(given[0], {$ref: '#/components/schemas/Node'})", document
    )
    assert (example["name"], example["size"], example["kind"]) == ("root", 2, "a")
    assert example["nodes"][0]["name"] == "root"
    words = page.module(
        "schema.js",
        "return ['name', 'size', 'kind'].map((key) => module.typeInWords(given[0], given[1][key]))",
        document,
        document["components"]["schemas"]["Node"]["properties"],
    )
    assert words == ["string", "integer, 2 to 9", "a | b"]


def test_components_become_colours_between_their_percentiles_and_one_without_variation_is_grey(
    page: PageDriver,
) -> None:
    random = np.random.default_rng(0)
    components = np.stack([random.standard_normal(200), np.zeros(200), np.arange(200.0)])
    body = "return [...module.toPixels(Float32Array.from(given[0]), given[1])]"
    pixels = np.reshape(page.module("levels.js", body, components.ravel().tolist(), 200), (200, 4))
    low, high = np.percentile(components, (1, 99), axis=1)
    for band in (0, 2):
        expected = np.clip(255 * (components[band] - low[band]) / (high[band] - low[band]), 0, 255)
        np.testing.assert_allclose(pixels[:, band], expected, atol=0.51)
    assert np.all(pixels[:, 1] == 128) and np.all(pixels[:, 3] == 255)


def test_safetensors_of_floats_are_read_and_other_types_refused(page: PageDriver) -> None:
    values = np.array([[0.0, -1.5, 65504.0], [1e-7, 0.333, -2.0]])
    tensors: dict[str, NDArray[Any]] = {
        "single": values.astype(np.float32),
        "third": np.zeros((0,), np.float32),
    }
    body = """const bytes = Uint8Array.from(atob(given[0]), (character) => character.charCodeAt(0));
        const tensors = [...module.parseSafetensors(bytes.buffer)];
        return tensors.map(([name, {shape, data}]) => [name, {shape, data: [...data]}]);"""

    def read(content: bytes) -> Any:
        return page.module("tensors.js", body, base64.b64encode(content).decode())

    found = dict(read(safetensors.numpy.save(tensors)))
    assert {name: tuple(tensor["shape"]) for name, tensor in found.items()} == {n: t.shape for n, t in tensors.items()}
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name]["data"], tensor.ravel())
    for kind, other in (("I64", np.int64), ("F16", np.float16)):
        assert f"has type {kind}; this page reads F32" in read(safetensors.numpy.save({"x": np.zeros(2, other)}))
    assert "at least 8 bytes" in read(b"short")
    assert "claims" in read(safetensors.numpy.save(tensors)[:20])


def test_classes_have_the_colours_that_pictures_of_the_command_have(page: PageDriver) -> None:
    found = page.module("colours.js", "return given[0].map((index) => module.classColour(index))", list(range(150)))
    assert np.abs(np.array(found) - palette(150)[:150].astype(int)).max() <= 1  # halves are rounded another way
    assert page.module("colours.js", "return [module.classColour(-1), module.textColour([255, 255, 0])]") == [
        [128, 128, 128],
        "#101010",
    ]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_run_lengths_are_read_as_the_server_writes_them(page: PageDriver, share: float) -> None:
    mask = np.random.default_rng(0).random((70, 90)) < share
    mask[20:60, 30:80] = share > 0
    body = """const runs = module.decodeRunLengths(given[0]);
        return [module.areaOf(runs), [...module.maskOf(runs, given[1], given[2])]];"""
    area, columns = page.module("run_lengths.js", body, encode_mask(mask)["counts"], *mask.shape)
    assert area == mask.sum()
    assert np.array_equal(np.array(columns, dtype=bool).reshape(90, 70).T, mask)


@pytest.mark.parametrize(
    ("label", "name", "synonyms"),
    [
        ("golf_ball", "golf ball", ""),
        ("great_white_shark, white shark, man-eater", "great white shark", "white shark, man-eater"),
        ("French horn", "French horn", ""),
        ("1,000 metres", "1,000 metres", ""),
        ("_", "_", ""),
        (", b", ", b", ""),
    ],
)
def test_labels_are_read_as_people_write_them(page: PageDriver, label: str, name: str, synonyms: str) -> None:
    assert page.module("labels.js", "return module.readLabel(given[0])", label) == {"name": name, "synonyms": synonyms}
    body = "const node = module.labelElement(given[0]); return [node.getAttribute('title'), node.textContent]"
    assert page.module("labels.js", body, label) == [label, f"{name} {synonyms}".strip()]


def test_of_many_classes_a_few_are_named(page: PageDriver) -> None:
    body = "return given[0].map((count) => module.knownClasses(given[1].slice(0, count), 3))"
    assert page.module("labels.js", body, [1, 3, 5], ["a_b, c", "d", "e", "f", "g"]) == [
        "1 class: a b",
        "3 classes: a b, d, e",
        "5 classes: a b, d, e and 2 more",
    ]


def test_numbers_of_16_bits_are_read_as_numpy_reads_them(page: PageDriver) -> None:
    bits = np.arange(0, 65536, 7, dtype=np.uint16)
    body = """const bytes = Uint8Array.from(atob(given[0]), (character) => character.charCodeAt(0));
        return [...module.halfFloats(bytes.buffer)].map((value) => Number.isFinite(value) ? value : String(value))"""
    found = page.module("similarity.js", body, base64.b64encode(bits.tobytes()).decode())
    np.testing.assert_array_equal(np.array(found, dtype=np.float32), bits.view(np.float16).astype(np.float32))


def test_likeness_is_the_cosine_of_the_vectors_of_two_cells(page: PageDriver) -> None:
    vectors = np.random.default_rng(0).standard_normal((5, 12)).astype(np.float32)  # (channels, cells)
    vectors[:, 3] = 0
    body = "return [...module.similarities(Float32Array.from(given[0]), 12, given[1])]"
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=0), 1e-9)
    for cell in (0, 7):
        found = page.module("similarity.js", body, vectors.ravel().tolist(), cell)
        np.testing.assert_allclose(found, unit[:, cell] @ unit, atol=1e-6)
    assert page.module("similarity.js", body, vectors.ravel().tolist(), 3) == [0.0] * 12
    colours = page.module("similarity.js", "return [-1, 0, 0.25, 1, 2].map(module.heat)")
    assert colours[0] == colours[1] == [12, 8, 38] and colours[3] == colours[4] == [252, 255, 164]
    assert colours[2] == [87, 16, 110]


@pytest.mark.parametrize(
    ("cells", "sentence", "low", "high"),
    [
        ([[0.02, -0.5], [0.25, 123.4]], "Orange cells speak for golf ball, blue ones against", "\u22120.50", "+120"),
        ([[0.02, 0.5]], "Orange cells speak for golf ball, none against", "+0.020", "+0.50"),
        ([[-2e-9], [-0.0314]], "Blue cells speak against golf ball, none for it", "\u22120.031", "\u22122e-9"),
        ([[0.0, 0.0]], "Orange cells speak for golf ball, none against", "0", "0"),
    ],
)
def test_an_explanation_has_the_colours_of_the_commands_pictures_and_says_what_they_mean(
    page: PageDriver, cells: list[list[float]], sentence: str, low: str, high: str
) -> None:
    values = np.array(cells)
    answer = {"label": "golf_ball, ball", "contributions": cells, "bias": -0.25, "logit": values.sum() - 0.25}
    found = page.module(
        "explanation.js", "return module.picture(given[0])", answer | {"meaning": "a sum", "note": "so"}
    )
    assert (found["height"], found["width"]) == values.shape
    colours = np.array(found["colours"])  # (cells, 4)
    largest = np.abs(values).max() or 1
    np.testing.assert_allclose(colours[:, 3], OPACITY * np.abs(values.ravel()) / largest)
    assert [tuple(colour) for colour in colours[:, :3]] == [FOR if value > 0 else AGAINST for value in values.ravel()]
    numbers = f"{values.sum() - 0.25:.2f} = {values.sum():.2f} of the cells \u2212 0.25 bias".replace("-", "\u2212")
    numbers = numbers.replace("\u22120.00", "0.00")
    assert found["note"].replace("\u00a0", " ") == f"{sentence}: logit {numbers}. A sum. So."
    assert (found["scale"]["low"], found["scale"]["high"]) == (low, high)
    assert page.script("return CSS.supports('background', arguments[0])", found["scale"]["background"])
    row, column = np.unravel_index(values.argmax(), values.shape)
    assert f"golf ball, from {low} to {high}, most in row {row + 1}, column {column + 1}" in found["description"]
