"""Signatures of bundles, held against one that OpenSSF's own tool made.

`fixtures/signed` was signed with model-signing 1.1.1 (`model_signing sign key signed --private_key …`), whose
`model_signing verify key` takes ours too: that it signs the same statement is what the first test shows.
"""

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from convmae_deploy import load
from convmae_deploy.bundle import signing
from convmae_deploy.bundle.loading import BundleError
from convmae_deploy.bundle.signing import SIGNATURE_NAME, check_signature, sign_folder, statement
from convmae_deploy.cli import main
from convmae_deploy.errors import ConvMAEError
from serving.api.models import load_named
from tests.bundle_factory import make_bundle

SIGNED = Path(__file__).parents[1] / "fixtures" / "signed"
MAKERS_KEY = SIGNED.with_name("signed.pub.pem")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_keys(tmp_path_factory.mktemp("keys"))


def make_keys(folder: Path, curve: str = "SECP256R1") -> tuple[Path, Path]:
    """Files with a private key and its public one."""
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(getattr(ec, curve)())
    private, public = folder / "key.pem", folder / "key.pub.pem"
    plain = forms.NoEncryption()
    private.write_bytes(key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.TraditionalOpenSSL, plain))
    public.write_bytes(key.public_key().public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def test_the_standard_s_own_tool_signs_the_same_statement_and_its_signature_is_taken(tmp_path: Path) -> None:
    check_signature(SIGNED, MAKERS_KEY)
    envelope = json.loads((SIGNED / SIGNATURE_NAME).read_text(encoding="utf-8"))["dsseEnvelope"]
    theirs, ours = json.loads(base64.b64decode(envelope["payload"])), statement(SIGNED)
    for each in (theirs, ours):  # theirs names files of git too
        assert SIGNATURE_NAME in each["predicate"]["serialization"].pop("ignore_paths")
    assert ours == theirs
    copy = shutil.copytree(SIGNED, tmp_path / "signed")
    (copy / "model.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"model\.onnx was changed after it was signed"):
        check_signature(copy, MAKERS_KEY)


def add_in_a_folder(bundle: Path) -> None:
    (bundle / "engines").mkdir()
    (bundle / "engines" / "a").write_bytes(b"")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a graph": (lambda bundle: (bundle / "model.onnx").write_bytes(b"x"), "model.onnx was changed after it was signed"),
    "the manifest": (
        lambda bundle: (bundle / "manifest.json").write_text((bundle / "manifest.json").read_text() + " "),
        "manifest.json was changed after it was signed",
    ),
    "a file less": (lambda bundle: (bundle / "LICENSE-WEIGHTS").unlink(), "lacks 'LICENSE-WEIGHTS', which was signed"),
    "a file more": (
        lambda bundle: (bundle / "model.engine").write_bytes(b"x"),
        "holds 'model.engine', which is not in its signature",
    ),
    "a file in a folder": (
        add_in_a_folder,
        "holds 'engines/a', which is not in its signature",
    ),
    "a link": (lambda bundle: (bundle / "more").symlink_to(bundle), "is a link, and a signed bundle has none"),
    "no signature": (lambda bundle: (bundle / SIGNATURE_NAME).unlink(), "must be signed by the owner of"),
    "no JSON": (lambda bundle: (bundle / SIGNATURE_NAME).write_text("[" * 100_000), "must be a signature of convmae"),
    "another shape": (lambda bundle: (bundle / SIGNATURE_NAME).write_text("[1]"), "must be a signature of convmae"),
    "another statement": (
        lambda bundle: (bundle / SIGNATURE_NAME).write_text(with_payload(bundle, b"{}")),
        "but it was changed after it was signed",
    ),
    "another file name": (
        lambda bundle: (bundle / SIGNATURE_NAME).write_text(
            with_payload(bundle, payload_of(bundle).replace(b"LICENSE-WEIGHTS", b"LICENSE-WEIGHT2"))
        ),
        "but it was changed after it was signed",
    ),
}


def payload_of(bundle: Path) -> bytes:
    content = json.loads((bundle / SIGNATURE_NAME).read_text(encoding="utf-8"))
    return base64.b64decode(content["dsseEnvelope"]["payload"])


def with_payload(bundle: Path, payload: bytes) -> str:
    content = json.loads((bundle / SIGNATURE_NAME).read_text(encoding="utf-8"))
    content["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    return json.dumps(content)


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_was_changed_after_it_was_signed_is_refused(
    keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    private, public = keys
    bundle = make_bundle(tmp_path / "bundle")
    sign_folder(bundle, private)
    monkeypatch.setenv("CONVMAE_REQUIRE_SIGNATURE", str(public))
    assert load(bundle, device="cpu").manifest.name == "tiny"
    edit, said = CHANGES[change]
    edit(bundle)
    with pytest.raises(BundleError) as caught:
        load_named(bundle, None)  # what the server does
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("curve", ["SECP384R1", "SECP521R1"])
def test_another_key_is_refused_whatever_its_curve(keys: tuple[Path, Path], tmp_path: Path, curve: str) -> None:
    (other, others_public), (_, public) = make_keys(tmp_path, curve), keys
    bundle = make_bundle(tmp_path / "bundle")
    assert sign_folder(bundle, other) == 3
    check_signature(bundle, others_public)
    with pytest.raises(BundleError, match="must be a signature by the key [0-9a-f]{64} in .*, but it is by the key"):
        check_signature(bundle, public)


def test_the_command_signs_again_and_info_says_so(
    keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = keys
    bundle = make_bundle(tmp_path / "bundle")

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        printed = capsys.readouterr()
        return int(ended.value.code or 0), " ".join((printed.out + printed.err).split())

    monkeypatch.setenv("CONVMAE_REQUIRE_SIGNATURE", str(public))
    assert run("info", str(bundle))[0] != 0
    for _ in range(2):  # its own signature is not among what is signed
        status, said = run("sign", str(bundle), "--key", str(private))
        assert status == 0 and said.endswith("signature over 3 files")
    status, said = run("info", str(bundle))
    assert status == 0 and "by the owner of" in said
    monkeypatch.delenv("CONVMAE_REQUIRE_SIGNATURE")
    assert "not checked: set CONVMAE_REQUIRE_SIGNATURE" in run("info", str(bundle))[1]


def test_a_key_that_is_none_is_refused_with_how_to_make_one(keys: tuple[Path, Path], tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    for bad in (keys[1], tmp_path / "none.pem", bundle / "model.onnx"):
        with pytest.raises(ConvMAEError, match="expected a private key of the curve P-256.*openssl ecparam"):
            sign_folder(bundle, bad)
    assert not (bundle / signing.SIGNATURE_NAME).exists()
