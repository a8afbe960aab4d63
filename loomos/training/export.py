"""From a checkpoint to a model version: safetensors, tokenizer, model card, manifest last.

The version is derived from the job and the bytes of its files, so doing it twice makes one
version. Adapters are merged into the base; they are kept beside it in `adapter/`.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from loomos.arguments import take_arguments
from loomos.errors import LoomOSError
from loomos.jobs.training import CheckpointRef, ModelVersion, PublishRequest
from loomos.registry.versions import DRAFT, MANIFEST
from loomos.storage import Store, file_sha256, open_store
from loomos.storage.layout import model_prefix, tokenizer_key
from loomos.training.hosted import answer
from loomos.training.inputs import InputCache, load_tokenizer, model_source
from loomos.training.model import add_adapters, build_model
from loomos.training.requests import ExportRequest
from loomos.training.shards import TensorDict, read_tensors


def run_export(request_file: Path) -> int:
    """Publish; write the version or the error where the request says. Returns the exit code."""
    request = ExportRequest.model_validate_json(request_file.read_text())
    return answer(request.result, lambda: {"version": publish(request).model_dump(mode="json")})


def publish(request: ExportRequest) -> ModelVersion:
    """Write the model version of a finished job.

    Raises:
        CheckpointCorrupt: its last checkpoint is damaged.
        Unavailable: the store cannot be reached.
    """
    store = open_store(request.storage)
    # Below the activity's own folder, which goes with it even if this process is killed.
    with tempfile.TemporaryDirectory(dir=request.result.parent, prefix="export-") as folder:
        root = Path(folder) / "model"
        if request.publish.spec.model is not None:
            _write_model(request, store, Path(folder), root)
        else:
            from loomos.rl.publishing import write_policy

            write_policy(request.publish, store, Path(folder), root)
        job = request.publish
        return upload_version(
            store,
            root,
            name=job.name,
            source=job.job_id,
            lineage={
                "job_id": job.job_id,
                "generation": job.generation,
                "step": job.step,
                "inputs": job.inputs.model_dump(mode="json"),
                "base_version": job.inputs.base_version,
                "loss": job.outcome.loss,
                "validation_loss": job.outcome.validation_loss,
            },
        )


def _write_model(request: ExportRequest, store: Store, folder: Path, root: Path) -> None:
    job = request.publish
    spec = job.spec.model
    assert spec is not None
    cache = InputCache(store, request.storage, request.scratch / "inputs")
    trained = None
    if spec.tokenizer.startswith("bpe:"):
        trained = store.get(tokenizer_key(job.job_id)).decode()
    tokenizer = load_tokenizer(spec, job.inputs, cache, trained)
    base = build_model(spec, model_source(spec, job.inputs, cache), tokenizer)
    model = add_adapters(base, spec.fine_tuning_config)
    ref = CheckpointRef(generation=job.generation, step=job.step)
    scratch = folder / "checkpoint"
    tensors = read_tensors(store, job.job_id, ref, scratch)
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    fill(model, weights, job.step)
    with torch.no_grad():
        if spec.fine_tuning_config.method != "full":
            model.save_pretrained(root / "adapter")
            model = model.merge_and_unload()
        model.save_pretrained(root)
    tokenizer.save_pretrained(root)
    (root / "README.md").write_text(model_card(job))


def fill(model: Any, weights: TensorDict, step: int) -> None:
    """Put a checkpoint's trained tensors into the model that they were trained in.

    Checkpoints of QLoRA runs may also hold what bitsandbytes keeps beside frozen 4-bit weights,
    under the weights' names and one part more; the model here is not quantised and needs it not.

    Raises:
        LoomOSError: they do not fit.
    """
    known = {name for name, _ in model.named_parameters()}
    _, unexpected = model.load_state_dict(weights, strict=False)
    strangers = [name for name in unexpected if not _is_quantisation(name, known)]
    missing = [n for n, p in model.named_parameters() if p.requires_grad and n not in weights]
    if strangers or missing:
        raise LoomOSError(
            f"checkpoint of step {step} does not fit the model: unexpected {strangers[:3]}, "
            f"missing {missing[:3]}"
        )


def _is_quantisation(name: str, parameters: set[str]) -> bool:
    """Whether a tensor is named as a part of a parameter: `NAME.absmax`, `NAME.quant_state....`."""
    parts = name.split(".")
    return any(".".join(parts[:count]) in parameters for count in range(1, len(parts)))


def upload_version(
    store: Store,
    root: Path,
    *,
    name: str,
    source: str,
    lineage: dict[str, Any],
    is_draft: bool = True,
) -> ModelVersion:
    """Put a folder into the store as a version; the same files of the same source are the same.

    Nodes that train cannot sign. So what they upload is a draft, which exists for nobody until a
    control worker has signed it.

    Args:
        store: where to.
        root: the files.
        name: the model's name.
        source: what made them, such as a job's id.
        lineage: what they were made of.
        is_draft: false to make it exist at once, unsigned.
    """
    files: dict[str, dict[str, Any]] = {
        path.relative_to(root).as_posix(): {
            "sha256": file_sha256(path),
            "size_bytes": path.stat().st_size,
        }
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
    weights = {n: f["sha256"] for n, f in files.items() if n.endswith(".safetensors")}
    weights_sha256 = hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()
    identity = {"job": source, "files": {n: f["sha256"] for n, f in files.items()}}
    version = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    prefix = model_prefix(name, version)
    for file in files:
        store.put_file(prefix + file, root / file)
    made = ModelVersion(
        name=name,
        version=version,
        key_prefix=prefix,
        size_bytes=sum(f["size_bytes"] for f in files.values()),
        weights_sha256=weights_sha256,
    )
    manifest = {
        "format": 1,
        **made.model_dump(mode="json"),
        "files": files,
        "lineage": lineage,
    }
    if is_draft and store.exists(prefix + MANIFEST):
        return made  # signed already: this is the second time
    store.put(
        prefix + (DRAFT if is_draft else MANIFEST),
        json.dumps(manifest, indent=1, sort_keys=True).encode(),
    )
    return made


def model_card(job: PublishRequest) -> str:
    """The model card (Mitchell et al. 2019, arXiv:1810.03993), in the Hub's form."""
    spec, data, environment = job.spec.model, job.spec.data, job.spec.environment
    assert spec is not None
    tuning, outcome = spec.fine_tuning_config, job.outcome

    def number(value: float | None) -> str:
        return "not measured" if value is None else f"{value:.4f}"

    source = f"`{data.training_dataset}` (index" if data else ""
    if environment is not None:
        source = f"environment `{environment.name}` (settings"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [loomos]
---
# {job.name}

Trained by LoomOS {job.inputs.code}, job `{job.job_id}`.

| what | value |
|---|---|
| base model | `{spec.base_model}` |
| algorithm | {job.spec.algorithm} |
| method | {tuning.method}, {job.spec.strategy.type}, {tuning.precision} |
| training data | {source} sha256 `{job.inputs.training.sha256}`) |
| steps | {outcome.step} of {outcome.total_steps}, ended by {outcome.reason} |
| tokens per step, at most | {job.spec.work_per_step} |
| training loss, last step | {number(outcome.loss)} |
| validation loss | {number(outcome.validation_loss)} |
| mean reward, last step | {number(outcome.episode_return)} |
| learning rate | {tuning.learning_rate}, {tuning.scheduler}, {tuning.warmup_steps} warm-up steps |
| seed | {tuning.seed} |

Losses are mean nats per token. Nothing else about this model has been evaluated.
"""


if __name__ == "__main__":
    (file,) = take_arguments(
        "loomos.training.export", __doc__, needs={"request": "file with the request, in JSON"}
    )
    sys.exit(run_export(Path(file)))
