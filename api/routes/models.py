"""The model registry: list, upload, look, edit, delete, deploy, ask."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, Path, Request

from api.blobs import receive
from api.bodies import Route
from api.context import Parts, Reader, Submitter
from api.named_in_service import check_detectors, check_remote
from api.problems import problem_responses
from api.routes.serving import ask, describe_endpoint
from loomos.client.delivery_models import (
    Deployment,
    EndpointDetail,
    InferenceAnswer,
    InferenceRequest,
    ModelDetail,
    ModelEdit,
    ModelList,
    ModelSummary,
    ModelUpload,
    Notes,
    Verdict,
)
from loomos.errors import InvalidInput, LoomOSError, NotFound
from loomos.jobs.serving import FileFacts, ModelChange
from loomos.prism.evidence import newest_verdict
from loomos.registry import Registry, check_files, parse_reference
from loomos.registry.aliases import check_alias
from loomos.registry.versions import SIGNATURE
from loomos.storage import Store
from loomos.storage.layout import attestation_key, blob_key

router = APIRouter(route_class=Route, prefix="/api/v1", tags=["models"])

ModelId = Annotated[
    str, Path(min_length=1, max_length=200, description="`NAME`, `NAME@ALIAS` or `NAME@VERSION`.")
]
Alias = Annotated[str, Path(pattern=r"^[a-z][a-z0-9._-]{0,62}$", description="Such as `stable`.")]
Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the body.")]


@router.get("/models", responses=problem_responses())
async def list_models(parts: Parts, who: Reader) -> ModelList:
    """Every model."""

    def look() -> ModelList:
        registry = Registry(parts.store)
        found = [_summary(registry, name) for name in registry.names()]
        # A model whose versions are deleted may leave an empty folder.
        return ModelList(models=[model for model in found if model.versions])

    return await asyncio.to_thread(look)


def _summary(registry: Registry, name: str) -> ModelSummary:
    versions = len(registry.versions(name))
    try:
        aliases = registry.aliases(name).read().aliases
    except (LoomOSError, ValueError) as error:
        why = f"its aliases cannot be read: {str(error).splitlines()[0]}"
        return ModelSummary(name=name, versions=versions, aliases={}, partial=why)
    return ModelSummary(name=name, versions=versions, aliases=aliases)


@router.head("/blobs/{sha256}", status_code=204, responses=problem_responses(404))
async def has_blob(sha256: Digest, parts: Parts, who: Submitter) -> None:
    """Whether a file has been uploaded already."""
    if not await asyncio.to_thread(parts.store.exists, blob_key(sha256)):
        raise NotFound(f"no blob {sha256}; PUT /api/v1/blobs/... it")


@router.put("/blobs/{sha256}", status_code=204, responses=problem_responses())
async def put_blob(sha256: Digest, request: Request, parts: Parts, who: Submitter) -> None:
    """Upload a file, named by its digest; it may then be part of a model."""
    handle, name = tempfile.mkstemp(prefix="loomos-blob-")
    os.close(handle)
    path = FilePath(name)
    declared = request.headers.get("content-length", "")
    declared_bytes = int(declared[:20]) if declared.isdecimal() else 0
    try:
        found = await receive(request.stream(), path, parts.most_uploaded, declared_bytes)
        if found != sha256:
            raise InvalidInput(f"the body's SHA-256 is {found}, not {sha256}")
        if not await asyncio.to_thread(parts.store.exists, blob_key(sha256)):
            await asyncio.to_thread(parts.store.put_file, blob_key(sha256), path)
    finally:
        path.unlink(missing_ok=True)  # noqa: ASYNC240


@router.post("/models", status_code=201, responses=problem_responses(409))
async def register_model(upload: ModelUpload, parts: Parts, who: Submitter) -> ModelDetail:
    """Make a version of uploaded blobs, and sign it; the same files make the same version."""
    check_files(upload.files)
    await asyncio.to_thread(_check_blobs, parts.store, upload.files)
    change = ModelChange(
        action="register", name=upload.name, files=upload.files, person=who.subject
    )
    made = await parts.delivery.change_registry(change)
    return await asyncio.to_thread(_detail, parts.store, f"{made.name}@{made.version}")


def _check_blobs(store: Store, files: dict[str, FileFacts]) -> None:
    for path, facts in files.items():
        if not store.exists(blob_key(facts.sha256)):
            raise NotFound(f"files: {path}: no blob {facts.sha256}; PUT /api/v1/blobs/... it first")


@router.get("/models/{model_id}", responses=problem_responses(404))
async def get_model(model_id: ModelId, parts: Parts, who: Reader) -> ModelDetail:
    """A version of a model, and the model around it."""
    return await asyncio.to_thread(_detail, parts.store, model_id)


def _detail(store: Store, reference: str) -> ModelDetail:
    registry = Registry(store)
    ref = parse_reference(reference, "model_id")
    if not ref.selector:
        versions = registry.versions(ref.name)
        if len(versions) > 1 and "stable" not in registry.aliases(ref.name).read().aliases:
            ref = ref._replace(selector=versions[-1])
    manifest = registry.manifest(ref)
    version = f"{manifest.name}@{manifest.version}"
    notes = registry.notes(manifest.name, manifest.version).read()
    verdict = newest_verdict(store, version)
    card = ""
    with contextlib.suppress(NotFound):
        card = store.get(f"{manifest.key_prefix}README.md").decode(errors="replace")
    return ModelDetail(
        name=manifest.name,
        version=manifest.version,
        versions=registry.versions(manifest.name),
        aliases=registry.aliases(manifest.name).read().aliases,
        size_bytes=manifest.size_bytes,
        weights_sha256=manifest.weights_sha256,
        is_signed=store.exists(attestation_key(manifest.name, manifest.version, SIGNATURE)),
        files=manifest.files,
        lineage=manifest.lineage,
        card=card,
        notes=Notes.model_validate_json(notes.data) if notes else Notes(),
        verification=Verdict.model_validate(verdict.model_dump()) if verdict else None,
    )


@router.put("/models/{model_id}", responses=problem_responses(404, 409))
async def edit_model(
    model_id: ModelId, edit: ModelEdit, parts: Parts, who: Submitter
) -> ModelDetail:
    """Point aliases at a version; describe and tag it. The version itself never changes."""
    detail = await asyncio.to_thread(_detail, parts.store, model_id)
    for alias in edit.aliases:
        check_alias(alias)
    for alias, expected in edit.aliases.items():
        change = ModelChange(
            action="alias",
            name=detail.name,
            version=detail.version,
            alias=alias,
            expected=expected,
            person=who.subject,
        )
        await parts.delivery.change_registry(change)
    if edit.description is not None or edit.tags is not None:
        await asyncio.to_thread(_write_notes, parts.store, detail, edit)
    return await asyncio.to_thread(_detail, parts.store, f"{detail.name}@{detail.version}")


def _write_notes(store: Store, detail: ModelDetail, edit: ModelEdit) -> None:
    def changed(present: Notes | None) -> Notes:
        notes = present or Notes()
        return Notes(
            description=notes.description if edit.description is None else edit.description,
            tags=notes.tags if edit.tags is None else edit.tags,
        )

    Registry(store).notes(detail.name, detail.version).change(Notes, changed)


@router.delete(
    "/models/{model_id}/aliases/{alias}", status_code=204, responses=problem_responses(404, 409)
)
async def remove_alias(model_id: ModelId, alias: Alias, parts: Parts, who: Submitter) -> None:
    """Remove an alias, unless an endpoint serves the version by it; the version stays."""
    name = parse_reference(model_id, "model_id").name
    aliases = (await asyncio.to_thread(Registry(parts.store).aliases(name).read)).aliases
    if alias not in aliases:
        known = ", ".join(sorted(aliases)) or "none"
        raise NotFound(f"model {name!r} has no alias {alias!r}; it has {known}")
    version = aliases[alias]
    change = ModelChange(
        action="unalias",
        name=name,
        version=version,
        alias=alias,
        expected=version,
        person=who.subject,
    )
    await parts.delivery.change_registry(change)


@router.delete("/models/{model_id}", status_code=204, responses=problem_responses(404, 409))
async def delete_model(model_id: ModelId, parts: Parts, who: Submitter) -> None:
    """Delete a version that nobody serves and no alias points at; what was signed stays."""
    ref = parse_reference(model_id, "model_id")
    if not ref.selector:
        raise InvalidInput("model_id: name a version to delete, as in NAME@VERSION")
    manifest = await asyncio.to_thread(Registry(parts.store).manifest, ref)
    change = ModelChange(
        action="delete", name=manifest.name, version=manifest.version, person=who.subject
    )
    await parts.delivery.change_registry(change)


@router.post("/models/{model_id}/deploy", status_code=201, responses=problem_responses(404, 409))
async def deploy_model(
    model_id: ModelId, deployment: Deployment, parts: Parts, who: Submitter
) -> EndpointDetail:
    """Serve a version; an endpoint that is there goes over to it at once. See also rollouts."""
    check_remote(deployment.remote, parts.remote_keys, "remote")
    check_detectors(deployment.detectors, "detectors")
    manifest = await asyncio.to_thread(Registry(parts.store).manifest, model_id)
    spec = deployment.spec(f"{manifest.name}@{manifest.version}")
    await parts.delivery.deploy(deployment.endpoint, spec, who.subject)
    return await describe_endpoint(parts, deployment.endpoint)


@router.post("/models/{model_id}/inference", responses=problem_responses(404, 409, 429))
async def infer(
    model_id: ModelId, body: InferenceRequest, request: Request, parts: Parts, who: Reader
) -> InferenceAnswer:
    """Ask an endpoint, or the endpoint that serves a model."""
    endpoint = await parts.traffic.endpoint_of(model_id)
    return await ask(parts, request, endpoint, body)
