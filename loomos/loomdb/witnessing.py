"""Asking witnesses to cosign, and what they have cosigned (C2SP tlog-witness, the log's side)."""

from __future__ import annotations

import httpx

from loomos.loomdb.checkpoints import Checkpoint, parse_decimal
from loomos.loomdb.errors import HistoryChanged, LedgerUnavailable, VerificationFailed
from loomos.loomdb.ledger import Ledger
from loomos.loomdb.notes import Note, Signature, VerifierKey, verify_note
from loomos.loomdb.policies import Member, Policy
from loomos.loomdb.witness.request import encode_request

TIMEOUT_S = 10.0


class Cosigners:
    """The witnesses of a policy that have a URL."""

    def __init__(self, ledger: Ledger, policy: Policy, http: httpx.AsyncClient) -> None:
        self._ledger, self._policy, self._http = ledger, policy, http
        self._sizes: dict[str, int] = {}

    async def cosign(self) -> dict[str, str]:
        """Have the newest checkpoint cosigned by every witness that has not done so.

        Returns:
            Per witness that failed, why.
        """
        note = await self._ledger.checkpoint()
        failures: dict[str, str] = {}
        if note is None:
            return failures
        cosigned = self._policy.cosigned_by(note)
        for name, witness in self._policy.witnesses.items():
            if witness.url is None or name in cosigned:
                continue
            try:
                await self._ask(name, witness, note)
            except (VerificationFailed, LedgerUnavailable) as error:
                failures[name] = str(error)
        return failures

    async def _ask(self, name: str, witness: Member, note: Note) -> None:
        checkpoint = Checkpoint.parse_text(note.text)
        response = await self._post(name, witness, note, checkpoint.size)
        if response.status_code == 409 and "tlog.size" in response.headers.get("content-type", ""):
            self._sizes[name] = parse_decimal(response.text.strip(), "the witness's size")
            if self._sizes[name] > checkpoint.size:
                raise HistoryChanged(
                    f"{name} has cosigned {self._sizes[name]} entries, the log has "
                    f"{checkpoint.size}: it was truncated or restored from an older backup"
                )
            response = await self._post(name, witness, note, checkpoint.size)
        if response.status_code in (409, 422):
            raise HistoryChanged(f"{name} refuses: {response.text.strip()}")
        if response.status_code != 200:
            raise LedgerUnavailable(f"{name}: {response.status_code} {response.text.strip()[:200]}")
        signatures = [Signature.parse(line) for line in response.text.splitlines()]
        own = [s for s in signatures if witness.key.matches(s)]
        verify_note(Note(note.text, tuple(own)), [witness.key])
        await self._ledger.add_cosignatures(checkpoint.size, own)
        self._sizes[name] = checkpoint.size

    async def _post(self, name: str, witness: Member, note: Note, size: int) -> httpx.Response:
        old = min(self._sizes.get(name, 0), size)
        proof = await self._ledger.consistency_proof(old, size) if 0 < old < size else ()
        try:
            return await self._http.post(
                f"{str(witness.url).rstrip('/')}/add-checkpoint",
                content=encode_request(old, proof, note),
                timeout=TIMEOUT_S,
            )
        except httpx.HTTPError as error:
            raise LedgerUnavailable(f"{name} cannot be reached: {type(error).__name__}") from None


async def newest_cosigned(
    origin: str, witness: Member, log_keys: list[VerifierKey], http: httpx.AsyncClient
) -> Checkpoint | None:
    """The newest checkpoint that a witness cosigned for a log; None if it knows none.

    Raises:
        LedgerUnavailable: it cannot be reached.
        SignatureInvalid: it is not what the log and the witness signed.
    """
    try:
        response = await http.get(
            f"{str(witness.url).rstrip('/')}/checkpoint",
            params={"origin": origin},
            timeout=TIMEOUT_S,
        )
    except httpx.HTTPError as error:
        raise LedgerUnavailable(
            f"{witness.key.name} cannot be reached: {type(error).__name__}"
        ) from None
    if response.status_code == 404:
        return None
    if response.status_code != 200:
        raise LedgerUnavailable(f"{witness.key.name}: {response.status_code}")
    note = Note.parse(response.text)
    verify_note(note, log_keys)
    verify_note(note, [witness.key])
    return Checkpoint.parse_text(note.text)
