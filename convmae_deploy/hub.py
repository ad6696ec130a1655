"""A folder of a trained model for hubs: timm reads it, this project's programs read it, people read its card.

config.json         timm's description of the model and, under other names, that of our checkpoints
model.safetensors   the weights, by the names of the model that timm makes
README.md           the model card

The card says what the run and its checkpoint recorded and nothing else.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from timm.models import save_for_hf

import convmae_deploy
from convmae_deploy.bundle.manifest import Licence
from convmae_deploy.bundle.preprocessing import Preprocessing, standard_preprocessing
from convmae_deploy.checkpoints.loading import KINDS, load_classifier, load_feature_extractor
from convmae_deploy.checkpoints.native import WEIGHTS_NAME, CheckpointRecord, find_checkpoint, read_checkpoint
from convmae_deploy.engine.run_folder import RunFolder
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import RUN_RECORD, atomic_directory, check_can_create, numbered_errors, sha256_of
from convmae_deploy.models.classifier import ConvMAEClassifier
from convmae_deploy.models.convmae import MODELS, PATCH_SIZE, ConvMAEConfig
from convmae_deploy.printing import printable
from convmae_deploy.timm import PREFIX, timm_config

CARD_NAME = "README.md"
LOADERS = {"classification": load_classifier, "features": load_feature_extractor, "pretraining": load_feature_extractor}
UNSPECIFIED = "unspecified"  # how the name of a licence nobody stated begins
HUB_LICENCES = ("mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0",
                "cc-by-nc-4.0", "cc-by-nc-sa-4.0")  # fmt: skip
METRICS = {"val_top1": "top-1 accuracy (%)", "val_top5": "top-5 accuracy (%)"}  # of metrics.jsonl, for `model-index`


@dataclass(frozen=True, kw_only=True)
class Published:
    """A model to publish, and all that is known of it."""

    name: str  # of the folder that is written
    architecture: str  # timm's name of the variant
    model: ConvMAEClassifier  # in evaluation mode
    record: CheckpointRecord  # of the folder: an encoder or a classifier
    preprocessing: Preprocessing
    checkpoint: Path  # its folder
    run: Mapping[str, Any]  # run.json; empty where the checkpoint lies in no run
    scores: Mapping[str, float]  # metrics.jsonl's, of the epoch whose weights these are; empty where it has none

    @property
    def pipeline(self) -> str:
        """The hub's word for what the model is for."""
        return "image-classification" if self.record.classes else "image-feature-extraction"


def write_hub_folder(source: Path, out: Path) -> Published:
    """Writes a folder for `timm.create_model("local-dir:OUT", pretrained=True)`, `hf-hub:` and this project's programs.

    Args:
        source: a run folder or a checkpoint of a classifier, an encoder or a pretraining model; of the latter the
            encoder is taken.
        out: folder to write; must not exist.

    Raises:
        ConvMAEError: the source is another model or damaged, timm cannot describe it, or `out` exists.
    """
    check_can_create(out)
    with atomic_directory(out) as temporary:
        published = read_published(source, printable(out.absolute().name))
        save_for_timm(published, temporary)
        card_of(published).save(temporary / CARD_NAME)
    return published


def read_published(source: Path, name: str) -> Published:
    """The model of a run folder or checkpoint, see `write_hub_folder`."""
    record, _ = read_checkpoint(source)
    if record.kind not in LOADERS:
        what = KINDS[record.kind].name
        raise ConvMAEError(
            f"{source} must hold a classifier or an encoder of photos, which timm can load, and holds a {what}; give "
            "a checkpoint of one of these"
        )
    model, record = LOADERS[record.kind](source)
    preprocessing = record.preprocessing or standard_preprocessing(record.model.image_size)
    if not isinstance(preprocessing, Preprocessing):
        raise ConvMAEError(f"the preprocessing of {source} must be that of whole photos; train or import it again")
    changed = {"kind": "classification" if record.classes else "features", "pretraining": None}
    checkpoint = find_checkpoint(source)
    run, scores = recorded(checkpoint, record)
    return Published(
        name=name,
        architecture=architecture_of(record.model, source),
        model=model,
        record=record.model_copy(update=changed),
        preprocessing=preprocessing,
        checkpoint=checkpoint,
        run=run,
        scores=scores,
    )


def architecture_of(config: ConvMAEConfig, source: Path) -> str:
    """timm's name of the variant that a model is one of, whatever its image size."""
    for name, build in MODELS.items():
        if build() == ConvMAEConfig(**vars(config) | {"image_size": build().image_size}):
            return PREFIX + name
    raise ConvMAEError(
        f"{source} must hold one of the variants that timm knows by name ({', '.join(MODELS)}), and holds {config}"
    )


def recorded(checkpoint: Path, record: CheckpointRecord) -> tuple[Mapping[str, Any], Mapping[str, float]]:
    """What the run around a checkpoint says of it: run.json, and the scores of its epoch in metrics.jsonl."""
    folder = RunFolder(checkpoint.absolute().parent)
    if not (folder.path / RUN_RECORD).is_file():
        return {}, {}
    run = folder.description()
    epoch = record.provenance.get("epoch", "").partition(" ")[0]  # "36 of 40"; only the checkpoint `best` says it
    lines = [line for line in folder.metrics() if str(line.get("epoch")) == epoch]
    scores = {name: line[name] for line in lines[-1:] for name in METRICS if isinstance(line.get(name), int | float)}
    return run if isinstance(run, dict) else {}, scores


def save_for_timm(published: Published, directory: Path) -> None:
    """Writes config.json and model.safetensors with timm's own functions."""
    record, preprocessing = published.record, published.preprocessing
    height, width = preprocessing.crop
    described = {
        "input_size": (3, height, width),
        "pool_size": (height // PATCH_SIZE, width // PATCH_SIZE),
        "crop_pct": crop_share(preprocessing),
        "interpolation": preprocessing.interpolation,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "license": record.licence.name,
    }
    model = timm.create_model(
        published.architecture,
        num_classes=len(record.classes),
        global_pool=record.global_pool,
        img_size=record.model.image_size,
        pretrained_cfg=timm_config(record.model) | described | {"num_classes": len(record.classes)},
    )
    model.load_state_dict(published.model.state_dict())
    content = record.model_dump(mode="json") | {"label_names": list(record.classes)}  # ours and timm's side by side
    with numbered_errors(directory):
        save_for_hf(model, str(directory), model_config=content, safe_serialization=True)


def crop_share(preprocessing: Preprocessing) -> float:
    """timm's `crop_pct`: it covers floor(crop / crop_pct) pixels, which must be our `resize`.

    Raises:
        ConvMAEError: there is none, as it is one number for both sides.
    """
    sides = list(zip(preprocessing.crop, preprocessing.resize, strict=True))
    smallest, largest = max(crop / (resize + 1) for crop, resize in sides), min(crop / resize for crop, resize in sides)
    for share in (0.875, 1.0, (smallest + largest) / 2):
        if all(math.floor(crop / share) == resize for crop, resize in sides):
            return share
    raise ConvMAEError(
        f"timm crops the same share of both sides; the checkpoint resizes to {preprocessing.resize} and crops "
        f"{preprocessing.crop}, so it cannot be described to timm"
    )


def card_of(published: Published) -> ModelCard:
    """The model card: the head that hubs read, and what people read."""
    licence, licence_name = hub_licence(published.record.licence)
    config = published.run.get("config")
    data = config.get("data") if isinstance(config, dict) else None
    dataset = printable(Path(str(data or "unknown")).name)
    results = [
        EvalResult(
            task_type=published.pipeline,
            dataset_type=dataset,
            dataset_name=f"validation photos of {dataset}",
            dataset_split="val",
            metric_type="accuracy",
            metric_name=METRICS[name],
            metric_value=round(value, 2),
        )
        for name, value in published.scores.items()
    ]
    head = ModelCardData(
        license=licence,
        license_name=licence_name,
        library_name="timm",
        pipeline_tag=published.pipeline,
        tags=[published.pipeline, "timm", "convmae"],
        metrics=["accuracy"] if results else None,
        model_name=published.name,
        eval_results=results or None,
    )
    return ModelCard(f"---\n{head.to_yaml()}\n---\n\n" + "\n\n".join(card_sections(published)) + "\n")


def hub_licence(licence: Licence) -> tuple[str, str | None]:
    """The head's word for a licence, and for one that the hub has no word for (`other`) a name."""
    name = licence.name.lower()
    if name in HUB_LICENCES:
        return name, None
    if name.startswith(UNSPECIFIED):
        return "unknown", None
    return "other", re.sub(r"[^a-z0-9.]+", "-", name).strip("-")[:80] or None


def card_sections(published: Published) -> list[str]:
    """The card's text."""
    record, spec = published.record, published.preprocessing
    parameters = sum(parameter.numel() for parameter in published.model.parameters())
    head = f"a classifier of {len(record.classes)} classes" if record.classes else "an encoder without a head"
    stated = "" if record.preprocessing else " (the checkpoint says nothing of it: this is the paper's evaluation)"
    digest = sha256_of(published.checkpoint / WEIGHTS_NAME)
    return [
        f"# {published.name}",
        f"ConvMAE ([arXiv 2205.03892](https://arxiv.org/abs/2205.03892)), {head}: `{published.architecture}`, "
        f"{parameters:,} parameters. Written by `convmae to-hub` of convmae_deploy {convmae_deploy.__version__}; this "
        "card holds what the training run and its checkpoint recorded, and nothing else.",
        "## Use",
        USE.format(name=published.name, head=HEAD if record.classes else NO_HEAD),
        f"Input: RGB, {spec.crop[0]} x {spec.crop[1]} pixels, cut out of the centre of a photo resized to cover "
        f"{spec.resize[0]} x {spec.resize[1]} ({spec.interpolation}), mean {spec.mean}, standard deviation {spec.std}"
        f"{stated}. Any height and width that are multiples of 32 will do.",
        "## Licence of the weights",
        block([record.licence.name]),
        "## Scores",
        *score_sections(published),
        "## Where the weights are from",
        f"The checkpoint `{printable(published.checkpoint.name)}` (sha256 of its {WEIGHTS_NAME} `{digest}`) says:",
        block([f"{name}: {value}" for name, value in record.provenance.items()] or ["nothing"]),
        *run_sections(published.run, known=set(record.provenance.values())),
    ]


USE = """```python
import timm
import convmae_deploy.timm  # makes timm know the models

model = timm.create_model("hf-hub:OWNER/{name}", pretrained=True).eval()  # or local-dir:FOLDER
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
{head}
backbone = timm.create_model("hf-hub:OWNER/{name}", pretrained=True, features_only=True)  # strides 4, 8, 16, 32
```

The folder is a checkpoint of convmae_deploy too: `python -m export FOLDER --out BUNDLE`,
`python -m training.finetune PRESET --init FOLDER`."""
HEAD = "# model(transform(photo)[None]): logits, in the order of label_names in config.json"
NO_HEAD = "# model(transform(photo)[None]): one pooled vector a photo, its LayerNorm untrained"


def score_sections(published: Published) -> list[str]:
    """What the model scored, and where that stands."""
    validated = "validation" in published.record.provenance
    if not published.scores:
        return ["See `validation` below." if validated else "None were recorded."]
    rows = [f"| {METRICS[name]} | {value:.2f} | metrics.jsonl of the run |" for name, value in published.scores.items()]
    return [
        "\n".join(["| on the validation photos | | from |", "|---|---|---|", *rows]),
        "The checkpoint may be the best of several by these very photos; then the figures flatter a little.",
    ]


def run_sections(run: Mapping[str, Any], known: set[str]) -> list[str]:
    """What run.json says of how the weights came about, but for what the card says already (`known`)."""
    facts = {name: run[name] for name in ("command", "seed", "started") if name in run}
    data, versions, resumed = (run.get(name) for name in ("data", "versions", "resumed"))
    if isinstance(data, dict):
        facts |= {name: value for name, value in data.items() if isinstance(value, int | str)}
    if isinstance(versions, dict):
        facts["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    if isinstance(resumed, list):
        facts["resumed, times"] = len(resumed)
    lines = [f"{name}: {value}" for name, value in facts.items() if str(value) not in known]
    return ["The run's run.json says:", block(lines)] if lines else []


def block(lines: list[str]) -> str:
    """Text from files as an indented block, in which nothing is markup."""
    return "\n".join(f"    {printable(line)}" for line in lines)
