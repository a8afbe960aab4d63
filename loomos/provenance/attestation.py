"""What LoomOS signs about a model version, in three public formats.

- an in-toto statement with an SLSA provenance v1 predicate (slsa.dev/spec/v1.0/provenance), whose
  byproducts are the ledger's entries about the run;
- an OpenSSF model signature (github.com/ossf/model-signing-spec), as a Sigstore bundle;
- a CycloneDX 1.6 ML-BOM (cyclonedx.org/capabilities/mlbom), not signed itself but named by digest
  in the ledger.

All are functions of digests that exist already; no model file is read again.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from loomos.loomdb.errors import FormatInvalid
from loomos.loomdb.events import Event
from loomos.provenance import dsse

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
SLSA_PROVENANCE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://loomos.dev/training-run/v1"
MODEL_SIGNATURE = "https://model_signing/signature/v1.0"
BUNDLE_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"

STATEMENT_FILE, SIGNATURE_FILE, BOM_FILE = "statement.dsse.json", "model.sig", "bom.cdx.json"

Files = Mapping[str, Mapping[str, Any]]
"""Per file of a model version, its `sha256` and `size_bytes`."""


def provenance_statement(
    manifest: Mapping[str, Any], facts: Sequence[Event], origin: str
) -> dict[str, Any]:
    """The SLSA provenance of a model version.

    Args:
        manifest: of the version.
        facts: what the ledger says of its run, in order.
        origin: the ledger's.
    """
    lineage = manifest["lineage"]
    submitted = next(f for f in reversed(facts) if f.event_type == "job_submitted")
    leases = [f.data for f in facts if f.event_type == "lease_granted"]
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": name, "digest": {"sha256": file["sha256"]}}
            for name, file in sorted(manifest["files"].items())
        ],
        "predicateType": SLSA_PROVENANCE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "job_id": lineage["job_id"],
                    "model": f"{manifest['name']}@{manifest['version']}",
                    "spec": submitted.data["spec"],
                },
                "internalParameters": {
                    "checkpoint": {
                        "generation": lineage["generation"],
                        "step": lineage["step"],
                    },
                    "leases": leases,
                },
                "resolvedDependencies": _dependencies(lineage["inputs"], leases),
            },
            "runDetails": {
                "builder": {
                    "id": f"https://loomos.dev/ledger/{origin}",
                    "version": {"loomos": lineage["inputs"]["code"]},
                },
                "metadata": {
                    "invocationId": submitted.event_id,
                    "startedOn": _rfc3339(submitted),
                    "finishedOn": _rfc3339(facts[-1]),
                },
                "byproducts": [
                    {
                        "name": fact.event_type,
                        "uri": f"loomdb:{origin}/{fact.position}",
                        "digest": {"sha256": hashlib.sha256(fact.entry.encode()).hexdigest()},
                    }
                    for fact in facts
                ],
            },
        },
    }


def _dependencies(
    inputs: Mapping[str, Any], leases: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    found = [
        {"name": name, "uri": inputs[name]["uri"], "digest": {"sha256": inputs[name]["sha256"]}}
        for name in ("model", "tokenizer", "training", "validation")
        if inputs.get(name)
    ]
    nodes = [node for lease in leases for node in lease["nodes"]]
    for name, field, uri in (
        ("code", "code_sha256", f"pkg:pypi/loomos@{inputs['code']}"),
        ("environment", "environment_sha256", "blobs/"),
    ):
        for digest in sorted({node[field] for node in nodes if node.get(field)}):
            where = f"{uri}{digest}" if uri.endswith("/") else uri
            found.append({"name": name, "uri": where, "digest": {"sha256": digest}})
    return found


def model_signature(name: str, files: Files, key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
    """An OpenSSF model signature over the files, as a Sigstore bundle."""
    resources = [
        {"algorithm": "sha256", "digest": files[path]["sha256"], "name": path}
        for path in sorted(files)
    ]
    root = hashlib.sha256(b"".join(bytes.fromhex(str(r["digest"])) for r in resources))
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": root.hexdigest()}}],
        "predicateType": MODEL_SIGNATURE,
        "predicate": {
            "resources": resources,
            "serialization": {
                "allow_symlinks": False,
                "hash_type": "sha256",
                "ignore_paths": [],
                "method": "files",
            },
        },
    }
    payload = json.dumps(statement, sort_keys=True).encode()
    envelope = dsse.envelope(payload, key)
    envelope["signatures"][0]["keyid"] = ""
    hint = hashlib.sha256(dsse.public_pem(key.public_key()).encode()).hexdigest()
    return {
        "mediaType": BUNDLE_MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": envelope,
    }


def bill_of_materials(
    manifest: Mapping[str, Any],
    spec: Mapping[str, Any],
    environment: Mapping[str, Any] | None,
    made_at: str,
) -> dict[str, Any]:
    """The CycloneDX ML-BOM of a model version.

    Args:
        manifest: of the version.
        spec: what the job was asked to do.
        environment: packages of the node that trained first, if known.
        made_at: RFC 3339 time.
    """
    name, version = manifest["name"], manifest["version"]
    inputs = manifest["lineage"]["inputs"]
    model_ref = f"model:{name}@{version}"
    data = [
        _dataset(kind, inputs[kind], spec) for kind in ("training", "validation") if inputs[kind]
    ]
    base = {
        "type": "machine-learning-model",
        "bom-ref": "base-model",
        "name": spec["model"]["base_model"] if spec.get("model") else inputs["model"]["uri"],
        "hashes": [{"alg": "SHA-256", "content": inputs["model"]["sha256"]}],
    }
    packages = [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{package}@{number}",
            "name": package,
            "version": number,
            "purl": f"pkg:pypi/{package}@{number}",
        }
        for package, number in (environment or {}).get("packages", {}).items()
    ]
    losses = {
        "training loss": manifest["lineage"].get("loss"),
        "validation loss": manifest["lineage"].get("validation_loss"),
    }
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, model_ref)}",
        "version": 1,
        "metadata": {
            "timestamp": made_at,
            "tools": {
                "components": [{"type": "application", "name": "loomos", "version": inputs["code"]}]
            },
            "component": {
                "type": "machine-learning-model",
                "bom-ref": model_ref,
                "name": name,
                "version": version,
                "components": [
                    {
                        "type": "file",
                        "bom-ref": f"file:{path}",
                        "name": path,
                        "hashes": [{"alg": "SHA-256", "content": file["sha256"]}],
                    }
                    for path, file in sorted(manifest["files"].items())
                ],
                "modelCard": {
                    "modelParameters": {
                        "task": (
                            "text-generation" if spec.get("model") else "reinforcement-learning"
                        ),
                        "datasets": [{"ref": item["bom-ref"]} for item in data],
                    },
                    "quantitativeAnalysis": {
                        "performanceMetrics": [
                            {"type": kind, "value": repr(value)}
                            for kind, value in losses.items()
                            if value is not None
                        ]
                    },
                },
            },
        },
        "components": [base, *data, *packages],
        "dependencies": [
            {
                "ref": model_ref,
                "dependsOn": [item["bom-ref"] for item in (base, *data, *packages)],
            }
        ],
    }


def _dataset(kind: str, reference: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    if spec.get("data"):
        source = spec["data"].get(f"{kind}_dataset") or spec["data"]["training_dataset"]
    else:
        source = reference["uri"]  # what a policy learned in
    return {
        "type": "data",
        "bom-ref": f"data:{kind}",
        "name": source,
        "hashes": [{"alg": "SHA-256", "content": reference["sha256"]}],
        "data": [
            {
                "type": "dataset",
                "name": f"{kind} data",
                "contents": {
                    "properties": [
                        {"name": "loomos:index", "value": reference["uri"]},
                        {"name": "loomos:size_bytes", "value": str(reference["size_bytes"])},
                    ]
                },
            }
        ],
    }


def encode_signed(statement: Mapping[str, Any], key: ec.EllipticCurvePrivateKey) -> bytes:
    """A statement as a signed envelope, ready to store."""
    payload = json.dumps(statement, sort_keys=True).encode()
    return json.dumps(dsse.envelope(payload, key), indent=1).encode()


def open_statement(text: str, key: ec.EllipticCurvePublicKey) -> dict[str, Any]:
    """The provenance statement in a signed envelope.

    Raises:
        VerificationFailed: the key did not sign it, or it is none.
    """
    statement = dsse.open_envelope(text, key)
    if statement.get("predicateType") != SLSA_PROVENANCE:
        raise FormatInvalid("the envelope holds no SLSA provenance")
    return statement


def open_model_signature(text: str, key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    """Path and SHA-256 of each file that a model signature covers.

    Raises:
        VerificationFailed: the key did not sign it, or it is none.
    """
    try:
        bundle = json.loads(text)
        envelope = json.dumps(bundle["dsseEnvelope"])
    except (ValueError, KeyError, TypeError):
        raise FormatInvalid("not a Sigstore bundle with a DSSE envelope") from None
    statement = dsse.open_envelope(envelope, key)
    if statement.get("predicateType") != MODEL_SIGNATURE:
        raise FormatInvalid("the bundle holds no model signature")
    return {r["name"]: r["digest"] for r in statement["predicate"]["resources"]}


def _rfc3339(event: Event) -> str:
    return event.time.isoformat(timespec="seconds").replace("+00:00", "Z")
