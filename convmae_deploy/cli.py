"""`convmae`: predictions and features of photos and videos, what a bundle holds, checkpoints of others and for hubs."""

import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import tyro
from rich.table import Table
from rich.text import Text

from convmae_deploy.backends.base import Device, describe_backend
from convmae_deploy.backends.choice import settle
from convmae_deploy.backends.engine_record import ENGINE_SUFFIXES
from convmae_deploy.backends.runtimes import DEFAULT_RUNTIME, RuntimeOptions, start_backend
from convmae_deploy.bundle.bill_of_materials import bill_of_materials
from convmae_deploy.bundle.graph_metadata import read_metadata
from convmae_deploy.bundle.manifest import Precision
from convmae_deploy.bundle.preprocessing import parse_size
from convmae_deploy.bundle.signing import SIGNATURE_NAME, sign_folder
from convmae_deploy.conformance.command import conform_with
from convmae_deploy.description import describe, describe_engine, describe_graph
from convmae_deploy.errors import ConvMAEError, missing_extra
from convmae_deploy.extraction.cluster import NO_RAY, RayOptions
from convmae_deploy.extraction.command import MEDIA_SUFFIXES, FeatureRequest, read_origin, write_features_of
from convmae_deploy.extraction.job import ModelSpec, Part
from convmae_deploy.extraction.origin import compare
from convmae_deploy.extraction.stream import FeatureType
from convmae_deploy.extraction.tiles import Tiles
from convmae_deploy.files import check_can_create, sha256_of
from convmae_deploy.folders import find_files
from convmae_deploy.printing import PrintableFormatter, printable
from convmae_deploy.program import SOME_INPUTS_BAD, readable, run_program
from convmae_deploy.tasks import load_bundle, open_predictor
from convmae_deploy.tasks.base import PredictOptions, Predictor, Report, check_distinct_ids
from convmae_deploy.tasks.classification import is_picture
from convmae_deploy.terminal import Terminal


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """How often a video is looked at; what comes out is averaged."""

    temporal_views: int | None = None  # videos: clips spread over each (default: 1; the usual test on Kinetics has 5)
    spatial_views: int | None = None  # videos: crops along the longer side of the frames (default: 1; there 3)


@dataclass(frozen=True, kw_only=True)
class PhotoOptions:
    """How large the file of a photo may be."""

    # photos: pixels of a file, at most; of a JPEG beyond it, up to four times as many are decoded at half the width and
    # height, for models that give classes or features (default: 50000000)
    max_pixels: int | None = None
    max_side: int | None = None  # photos: pixels of the longer side, at most (default: 16384)


BundlePath = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BUNDLE")]
Sources = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE ...")]
FilePaths = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE ...")]
Views = Annotated[ViewOptions, tyro.conf.arg(name="")]
Photos = Annotated[PhotoOptions, tyro.conf.arg(name="")]
Runtime = Annotated[RuntimeOptions, tyro.conf.arg(name="")]
NO_VIEWS = ViewOptions()
NO_LIMITS = PhotoOptions()


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits with its status.

    Args:
        arguments: what follows the program's name; None for those of this process.
    """
    run_program(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int | None:
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("warning: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    commands: dict[str, Callable[..., int | None]] = {
        "predict": predict,
        "features": features,
        "compatible": compatible,
        "conform": conform,
        "info": info,
        "sign": sign,
        "import": import_checkpoint,
        "to-hub": to_hub,
    }
    status: int | None = tyro.extras.subcommand_cli_from_dict(
        commands,
        prog="convmae",
        description="ConvMAE from photos and videos to predictions and features.",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    return status


def predict(
    bundle: BundlePath,
    files: FilePaths,
    out: Path | None = None,
    top_k: int | None = None,
    threshold: float | None = None,
    explain: tuple[str, ...] | None = None,
    views: Views = NO_VIEWS,
    photos: Photos = NO_LIMITS,
    json: bool = False,
    device: Device = "auto",
    threads: int | None = None,
    runtime: Runtime = DEFAULT_RUNTIME,
) -> int:
    """Say what photos or videos show: their classes, the objects in them, or what each pixel is.

    Args:
        bundle: folder of the exported model; what it was trained for decides.
        files: photos, or videos where the model is for them; folders that are searched for them.
        out: folder to write to. Detection: pictures with boxes and masks, and results.json in COCO's format, where
            image_id is the photo's name (a number where it is one) and category_id the one of the annotations that the
            model learnt from.
            Segmentation: the labels as PNG, and pictures with a legend.
            With explain: pictures and their numbers; of one photo a name that ends in .png is the picture.
        top_k: classification: classes a photo or video (default: 5).
        threshold: detection: the smallest score of an object (default: 0.5).
        explain: classification: how much each cell of a photo adds to the logits of these classes, by name or number
            (none named: to the largest), in place of predictions: an additive decomposition of the average pooling,
            not a cause.
        views: how often a video is looked at.
        photos: how large the file of a photo may be.
        json: print one JSON object a file and line, in order, instead of a table.
        device: where the model runs; auto takes a GPU that works.
        threads: CPU threads of the model (default: one a core).
        runtime: what runs the model.
    """
    if not files:
        raise ConvMAEError("expected at least one photo or video after the bundle; got none")
    predictor = open_predictor(bundle, device=device, threads=threads, options=runtime)
    files = tuple(find_files(files, MEDIA_SUFFIXES[predictor.MEDIUM], f"{predictor.MEDIUM}s"))
    options = PredictOptions(top_k=top_k, threshold=threshold, explain=explain, **vars(views), **vars(photos))
    report = _report_of(predictor, files, options, out)
    table = Table("file", *report.columns)
    failures = 0
    for file in files:
        try:
            row = report.describe(file)
        except ConvMAEError as error:
            failures += 1
            _report(file, error)
            if json:
                _print_json({"file": str(file), "error": str(error)})
            continue
        if json:
            _print_json({"file": str(file), **row.fields})
        else:
            _add_rows(table, file, row.rows)
    if table.row_count:
        Terminal().print(table)
    for sentence in report.finish():
        print(sentence, file=sys.stderr if json else sys.stdout)
    return SOME_INPUTS_BAD if failures else 0


def features(
    bundle: BundlePath,
    sources: Sources,
    out: str,
    levels: tuple[str, ...] = ("pooled",),
    dtype: FeatureType = "f32",
    shard_rows: int | None = None,
    shard_index: str | None = None,
    column: str | None = None,
    batch_size: int | None = None,
    size: str | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    views: Views = NO_VIEWS,
    photos: Photos = NO_LIMITS,
    strict: bool = False,
    retry_failures: bool = False,
    device: Device = "auto",
    threads: int | None = None,
    runtime: Runtime = DEFAULT_RUNTIME,
    ray: Annotated[RayOptions, tyro.conf.arg(name="")] = NO_RAY,
) -> int:
    """Write features of photos or videos; what cannot be read is reported and left out. Run again, it goes on.

    Args:
        bundle: folder of the exported model.
        sources: photos, or videos where the model is for them; folders that are searched for them; @list.txt or - for
            names in a file or on standard input; tar and Parquet files; patterns such as {000..999}.tar; each also in
            an object store, as s3://bucket/photos/.
        out: the folder, or its URI, for shards in Parquet, of which each is whole or absent; or for few files one file,
            .safetensors, .npz or .parquet.
        levels: pooled, e1, e2, e3, e4, of videos pooled_frames too: what to write. Of several views only pooled.
        dtype: of the numbers; f16 takes half the room.
        shard_rows: photos or videos of a shard, at most (default: 10000, fewer where they are large).
        shard_index: for one of N processes that make a part of the shards each: 0/N to N-1/N.
        column: of Parquet files, with the photos or videos, or with where they are (default: found by its name).
        batch_size: photos or videos a run (default: what the bundle allows, at most 32).
        size: HEIGHTxWIDTH in pixels of the model's input, such as 384x640, so that photos are cropped to that shape and
            not to a square; for bundles exported for every size (default: the bundle's).
        tile: pixels; a photo is not resized but cut into squares of this side, each of which is a row with its place,
            x and y in pixels of the upright photo (default: a row for each photo).
        overlap: pixels that tiles have in common with the next ones (default: an eighth of their side).
        views: how often a video is looked at.
        photos: how large the file of a photo may be.
        strict: end with the first file that cannot be read; what it would have been a part of is not written.
        retry_failures: make those shards again beside which there are failures.
        device: where the model runs; auto takes a GPU that works.
        threads: CPU threads of all runs of the model together (default: one a core).
        runtime: what runs the model.
        ray: the same job on a Ray cluster.
    """
    model = ModelSpec(
        bundle=bundle,
        levels=tuple(dict.fromkeys(name for level in levels for name in level.split(",") if name)),
        dtype=dtype,
        batch_size=batch_size,
        options=PredictOptions(**vars(views), **vars(photos)),
        size=None if size is None else parse_size(size),
        tiles=None if tile is None else Tiles.of(tile, overlap),
        device=device,
        threads=threads,
        runtime=runtime,
    )
    if tile is None and overlap is not None:
        raise ConvMAEError("--overlap is of tiles; give --tile, or leave it out")
    request = FeatureRequest(
        model=model,
        sources=sources,
        out=out,
        shard_rows=shard_rows,
        part=None if shard_index is None else Part.parse(shard_index),
        column=column,
        strict=strict,
        retry_failures=retry_failures,
        ray=ray,
    )
    return write_features_of(request, _flag)


def compatible(
    first: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")],
    second: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="B")],
) -> int:
    """Say whether the vectors of two models, or two sets of vectors, may stand in one index.

    Ends with 0 where all levels that both have may, with 1 where one may not.

    Args:
        first: a bundle, a graph in one (bundles/encoder/model.fp16.onnx), or what convmae features wrote.
        second: the same, to hold against it.
    """
    origins = read_origin(first), read_origin(second)
    judgements = compare(*origins)
    if not judgements:
        names = " and ".join(", ".join(origin.levels) for origin in origins)
        raise ConvMAEError(f"expected two with a level in common; found {names}")
    table = Table("level", "one index", "because")
    for judgement in judgements:
        table.add_row(judgement.level, "yes" if judgement.together else "no", Text(printable(judgement.reason)))
    Terminal().print(table)
    return 0 if all(judgement.together for judgement in judgements) else SOME_INPUTS_BAD


def conform(
    bundle: BundlePath,
    url: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[URL]")] = None,
    npz: Path | None = None,
    onnx: Path | None = None,
    precision: Precision = "fp32",
    api_key_file: Path | None = None,
) -> int:
    """Say what a program in another language does otherwise with photos, by the bundle's conformance kit.

    Ends with 0 where it does as the bundle says, with 1 where it does not.

    Args:
        bundle: folder of the exported model.
        url: of a server of the Open Inference Protocol (Triton, KServe, this project's), http://HOST:PORT, or of its
            model, http://HOST:PORT/v2/models/NAME.
        npz: arrays that a program wrote, called as those of the kit: inputs/PHOTO, what it gives to the graph, and
            outputs/PHOTO/OUTPUT.
        onnx: a graph made of the bundle's by another tool.
        precision: that the program computes in.
        api_key_file: a file with the server's key.
    """
    return conform_with(bundle, url=url, npz=npz, onnx=onnx, precision=precision, key_file=api_key_file)


def info(bundle: BundlePath, sbom: bool = False, runtime: Runtime = DEFAULT_RUNTIME, *, layers: bool = False) -> None:
    """Show what a bundle holds and what was proven about it; with a runtime, start it there too.

    Args:
        bundle: folder of the exported model; or a TensorRT engine, which is described by its record; or an .onnx file
            alone, of which is shown what it says of itself.
        sbom: print what it is made of as JSON, a bill of materials in CycloneDX (of a bundle).
        runtime: what to start the model with.
        layers: of an engine, list the layers that TensorRT made, with the types that they compute in.
    """
    is_engine = bundle.suffix in ENGINE_SUFFIXES and not bundle.is_dir()
    if layers and not is_engine:
        raise ConvMAEError(f"--layers is of a TensorRT engine, FILE{ENGINE_SUFFIXES[0]}; got {bundle}")
    if is_engine:
        describe_engine(bundle, Terminal(), layers=layers)
        return
    if bundle.is_file() and not sbom:
        describe_graph(read_metadata(bundle), sha256_of(bundle), Terminal())
        return
    found = load_bundle(bundle)
    if sbom:
        print(json.dumps(bill_of_materials(found.manifest), indent=2))
        return
    if runtime == DEFAULT_RUNTIME:
        describe(found, Terminal())
        return
    options, device = settle(found, runtime)
    begun = time.perf_counter()
    backend = start_backend(found, device=device, options=options)
    seconds = time.perf_counter() - begun
    describe(found, Terminal())
    print(f"runs in {printable(describe_backend(backend))}; started in {seconds:.1f} s")


def sign(bundle: BundlePath, key: Path) -> None:
    """Sign all files of a bundle as they are, so that CONVMAE_REQUIRE_SIGNATURE=PUBLIC_KEY takes no others.

    Args:
        bundle: folder of the exported model; model.sig is written into it.
        key: file with your private key, in PEM, as openssl ecparam -name prime256v1 -genkey -noout makes one.
    """
    count = sign_folder(load_bundle(bundle, unsigned=True).path, key)
    print(f"{readable(bundle / SIGNATURE_NAME)}: signature over {count} files")


def import_checkpoint(
    original: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="ORIGINAL.pth")],
    out: Path,
    variant: str | None = None,
    image_size: tuple[int, int] | None = None,
    num_heads: int | None = None,
) -> None:
    """Turn a checkpoint of the authors (.pth) into one of this project; needs torch.

    Args:
        original: the authors' file; its code is never executed.
        out: the folder to write.
        variant: model whose number of attention heads to take (default: the one with the file's dimensions).
        image_size: height and width in pixels to which position embeddings are resized (default: as they are).
        num_heads: attention heads, for dimensions that no variant has; the file does not hold this number.
    """
    _check_torch("import")
    from convmae_deploy.checkpoints import import_original

    report = import_original(original, out, variant=variant, image_size=image_size, num_heads=num_heads)
    for line in report.lines():
        print(printable(line))


def to_hub(run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")], out: Path) -> None:
    """Write a folder that timm loads, as it is or from a hub, with a model card; needs torch.

    Args:
        run: a training run, or a checkpoint, of a classifier or an encoder of photos.
        out: the folder to write.
    """
    _check_torch("to-hub")
    from convmae_deploy.hub import write_hub_folder

    published = write_hub_folder(run, out)
    print(
        f"{readable(out)}: {published.architecture}, {published.pipeline}, weights of {readable(published.checkpoint)}"
    )
    print(f"after import convmae_deploy.timm: timm.create_model('local-dir:{readable(out)}', pretrained=True)")
    print("read README.md, its model card, before you publish it with: hf upload OWNER/NAME", readable(out))


def _check_torch(command: str) -> None:
    try:
        import timm  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise missing_extra(command, str(error.name), "train") from None


def _report_of(predictor: Predictor, files: Sequence[Path], options: PredictOptions, out: Path | None) -> Report:
    """What `predict` says of the files, after everything that can be refused before the first run.

    Raises:
        ConvMAEError: an option is not for this task or out of range, or two photos would get the same files.
    """
    predictor.check_options(options, spell=_flag)
    if out is not None and not (predictor.WRITES or options.explain is not None):
        raise ConvMAEError(f"--out says nothing to a {predictor.TASK} model, which writes no files; leave it out")
    if out is not None:
        check_distinct_ids(files)
        check_can_create(out / files[0].name if not is_picture(out) else out)
        if is_picture(out) and len(files) > 1:
            raise ConvMAEError(f"expected a folder for the pictures of {len(files)} photos after --out; got {out}")
    return predictor.report(options, out)


def _flag(name: str) -> str | None:
    """How a command spells an option; None for those that only programs give."""
    return None if name in ("function_to_apply", "frame_sampling_rate", "levels") else f"--{name.replace('_', '-')}"


def _report(file: Path, error: ConvMAEError) -> None:
    print(f"error: {printable(file)}: {printable(error)}", file=sys.stderr)


def _print_json(line: dict[str, object]) -> None:
    # ASCII only, so that it survives any terminal encoding and any file name.
    print(json.dumps(line), flush=True)


def _add_rows(table: Table, file: Path, rows: Sequence[tuple[str, ...]]) -> None:
    for index, row in enumerate(rows or [("nothing found",)]):
        name = readable(file) if index == 0 else ""
        table.add_row(*(Text(printable(cell), overflow="fold") for cell in (name, *row)))
    table.add_section()


if __name__ == "__main__":
    main()
