"""Who made a bundle: a signature over all of its files, checked before any of them is read.

The signature is one of OpenSSF's Model Signing with a key of one's own, `model.sig` in the bundle, which `model_signing
verify key` reads as well: the SHA-256 of every file in an in-toto statement (github.com/in-toto/attestation, spec/v1),
in a DSSE envelope (github.com/secure-systems-lab/dsse), in a Sigstore bundle (docs.sigstore.dev/about/bundle). Keys are
of elliptic curves, in PEM, as OpenSSL makes them. Nothing is asked over a network and no time is looked at, so a key
that is no longer trusted has to be taken away from where bundles are checked.

A signature says that the owner of the key signed exactly these files. As with the hashes of a manifest, whoever can
write into the folder while it is read can put other files there.
"""

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from convmae_deploy.bundle.loading import BundleError, strict_json
from convmae_deploy.errors import ConvMAEError, missing_extra
from convmae_deploy.files import atomic_file, open_regular, read_regular, shortened

SIGNATURE_NAME = "model.sig"
MAX_SIGNATURE_BYTES = 4 * 2**20
MAX_KEY_BYTES = 64 * 1024
MAX_FILES = 10_000
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
HASHES = {256: "SHA256", 384: "SHA384", 521: "SHA512"}  # of what is signed, by the bits of a key


def sign_folder(folder: Path, key: Path) -> int:
    """Signs all files of a folder as they are; an older signature is replaced.

    Args:
        folder: of a bundle.
        key: file with a private key of the curve P-256, P-384 or P-521, in PEM and not encrypted.

    Returns:
        How many files were signed.

    Raises:
        ConvMAEError: the key or a file cannot be read, or the package for it is not installed.
    """
    private = _load_key(key, private=True)
    payload = json.dumps(statement(folder)).encode("utf-8")
    signature = private.sign(_signed_bytes(payload), _algorithm(private))
    content = {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": fingerprint(private.public_key())}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode("ascii"),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode("ascii"), "keyid": ""}],
        },
    }
    with atomic_file(folder / SIGNATURE_NAME) as temporary:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
    return len(json.loads(payload)["predicate"]["resources"])


def check_signature(folder: Path, key: Path) -> None:
    """Refuses a folder that is not, file for file, what the owner of a key signed.

    Args:
        folder: of a bundle.
        key: file with the public key in PEM.

    Raises:
        BundleError: there is no signature, it is of another key, or a file was changed, added or taken away.
        ConvMAEError: the key cannot be read, or the package for it is not installed.
    """
    public = _load_key(key, private=False)
    path = folder / SIGNATURE_NAME
    if not os.path.lexists(path):
        raise BundleError(
            f"bundle {folder} must be signed by the owner of {key}, found no {SIGNATURE_NAME}; get it from its maker, "
            "or sign it with convmae sign"
        )
    try:
        content = strict_json(read_regular(path, MAX_SIGNATURE_BYTES))
        envelope, hint = content["dsseEnvelope"], content["verificationMaterial"]["publicKey"]["hint"]
        (only,) = envelope["signatures"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        signature = base64.b64decode(only["sig"], validate=True)
        kinds = content["mediaType"], envelope["payloadType"]
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, TypeError, KeyError, RecursionError):
        raise _no_signature(path) from None
    if kinds != (BUNDLE_TYPE, PAYLOAD_TYPE):
        raise _no_signature(path)
    if not _is_signed_by(public, signature, payload):
        own = fingerprint(public)
        by = "was changed after it was signed" if hint == own else f"is by the key {shortened(str(hint))}"
        raise BundleError(f"{path} must be a signature by the key {own} in {key}, but it {by}; get it from its maker")
    try:
        _compare(folder, _digests(strict_json(payload)))
    except (ValueError, TypeError, KeyError):
        raise _no_signature(path) from None


def required_key() -> Path | None:
    """The public key of whoever must have signed bundles here (`CONVMAE_REQUIRE_SIGNATURE`); None: nobody must."""
    text = os.environ.get("CONVMAE_REQUIRE_SIGNATURE", "").strip()
    return Path(text) if text else None


def statement(folder: Path) -> dict[str, Any]:
    """What is signed: the name and SHA-256 of each file, and one over all of these.

    Raises:
        BundleError: a file is a link or cannot be read, or there are too many.
    """
    digests = {name: _sha256(folder, name) for name in _names(folder)}
    overall = hashlib.sha256(b"".join(map(bytes.fromhex, digests.values()))).hexdigest()
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": folder.resolve().name, "digest": {"sha256": overall}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [SIGNATURE_NAME],
            },
            "resources": [{"name": name, "algorithm": "sha256", "digest": digest} for name, digest in digests.items()],
        },
    }


def fingerprint(public: Any) -> str:
    """By which a key is known, as Model Signing has it: the SHA-256 of the public key in PEM, in hexadecimal."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _compare(folder: Path, signed: dict[str, str]) -> None:
    found = _names(folder)
    for name in signed:
        if name not in found:
            raise BundleError(f"bundle {folder} lacks {shortened(name)}, which was signed; copy the bundle again")
    for name in found:
        if name not in signed:
            raise BundleError(
                f"bundle {folder} holds {shortened(name)}, which is not in its signature; take it away, or if you made "
                "it sign the bundle again with convmae sign"
            )
        if _sha256(folder, name) != signed[name]:
            raise BundleError(f"{folder / name} was changed after it was signed; copy the bundle again")


def _digests(signed: Any) -> dict[str, str]:
    """Name of each file that a statement is about -> its SHA-256.

    Raises:
        ValueError, TypeError, KeyError: it is no such statement.
    """
    if (signed["_type"], signed["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise ValueError
    resources = signed["predicate"]["resources"]
    if any(resource["algorithm"] != "sha256" for resource in resources):
        raise ValueError
    digests = {resource["name"]: resource["digest"] for resource in resources}
    if len(digests) != len(resources):
        raise ValueError
    return digests


def _names(folder: Path) -> list[str]:
    """The files of a folder at any depth but its signature, by their names with slashes, in the order of these."""
    names: list[str] = []
    for directory, folders, files in os.walk(folder, onerror=_refuse_folder):
        for entry in (*folders, *files):
            path = Path(directory, entry)
            if path.is_symlink():
                raise BundleError(f"{path} is a link, and a signed bundle has none; put what it leads to in its place")
        names += [Path(directory, file).relative_to(folder).as_posix() for file in files]
        if len(names) > MAX_FILES:
            raise BundleError(f"bundle {folder} must have at most {MAX_FILES} files to be signed; take some away")
    return sorted(name for name in names if name != SIGNATURE_NAME)


def _refuse_folder(error: OSError) -> None:
    raise BundleError(f"{error.filename} cannot be read ({error.strerror}); check its permissions") from error


def _sha256(folder: Path, name: str) -> str:
    try:
        with open_regular(folder / name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{folder / name} cannot be read ({error.strerror}); check its permissions") from error


def _is_signed_by(public: Any, signature: bytes, payload: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(signature, _signed_bytes(payload), _algorithm(public))
    except InvalidSignature:
        return False
    return True


def _signed_bytes(payload: bytes) -> bytes:
    """DSSE's encoding of a payload before it is authenticated."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode("ascii"), len(payload), payload)


def _algorithm(key: Any) -> Any:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.ECDSA(getattr(hashes, HASHES[key.curve.key_size])())


def _load_key(path: Path, *, private: bool) -> Any:
    """A key of one of the curves, from PEM.

    Raises:
        ConvMAEError: it is none, or the package for it is not installed.
    """
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
    except ImportError as error:
        raise missing_extra("to sign bundles and to check signatures", "cryptography", "sign") from error
    kind = "private" if private else "public"
    expected = f"expected a {kind} key of the curve P-256, P-384 or P-521, in PEM and not encrypted, in {path}"
    make_one = (
        "openssl ecparam -name prime256v1 -genkey -noout -out key.pem makes one, and openssl ec -in key.pem -pubout "
        "-out key.pub.pem the public one of it"
    )
    try:
        content = read_regular(path, MAX_KEY_BYTES)
        key: Any = load_pem_private_key(content, None) if private else load_pem_public_key(content)
    except OSError as error:
        raise ConvMAEError(f"{expected}, which cannot be read ({error.strerror}); {make_one}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConvMAEError(f"{expected}, found something else; {make_one}") from None
    wanted = ec.EllipticCurvePrivateKey if private else ec.EllipticCurvePublicKey
    if not isinstance(key, wanted) or key.curve.name not in ("secp256r1", "secp384r1", "secp521r1"):
        raise ConvMAEError(f"{expected}, found another kind of key; {make_one}")
    return key


def _no_signature(path: Path) -> BundleError:
    return BundleError(f"{path} must be a signature of convmae sign, found something else; get it from its maker")
