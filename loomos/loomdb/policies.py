"""Trust policies: which logs, which witnesses, how many of them (C2SP tlog-policy)."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from typing import Self

from loomos.loomdb.checkpoints import Checkpoint
from loomos.loomdb.errors import FormatInvalid, QuorumMissing, SignatureInvalid
from loomos.loomdb.notes import KeyType, Note, VerifierKey, verify_note

NONE = "none"


@dataclass(frozen=True)
class Member:
    """A log or witness with the URL at which it may be reached."""

    key: VerifierKey
    url: str | None = None


@dataclass(frozen=True)
class Group:
    """Witnesses or groups of which `threshold` must have cosigned."""

    threshold: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class Policy:
    """A parsed policy file."""

    logs: tuple[Member, ...] = ()
    witnesses: dict[str, Member] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    quorum: str = NONE

    @classmethod
    def for_log(cls, key: VerifierKey) -> Self:
        """One log, no witnesses."""
        return cls(logs=(Member(key),))

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Read a policy file.

        Raises:
            FormatInvalid: naming the line and what is wrong with it.
        """
        return _Parser().parse(text)

    def encode(self) -> str:
        """The policy as a file."""
        lines = [_words("log", m.key.encode(), m.url) for m in self.logs]
        lines += [_words("witness", n, m.key.encode(), m.url) for n, m in self.witnesses.items()]
        lines += [
            _words("group", name, str(group.threshold), *group.members)
            for name, group in self.groups.items()
        ]
        return "".join(f"{line}\n" for line in (*lines, f"quorum {self.quorum}"))

    def verify(self, note: Note) -> Checkpoint:
        """Check that a listed log signed the checkpoint and enough witnesses cosigned it.

        Raises:
            FormatInvalid: the note is no checkpoint.
            SignatureInvalid: no listed log signed it, or a known key's signature is wrong.
            QuorumMissing: too few cosignatures.
        """
        checkpoint = Checkpoint.parse_text(note.text)
        log_keys = [m.key for m in self.logs if m.key.name == checkpoint.origin]
        if not log_keys:
            known = ", ".join(m.key.name for m in self.logs) or "none"
            raise SignatureInvalid(f"the log {checkpoint.origin!r} is not in the policy: {known}")
        verify_note(note, log_keys)
        if self.quorum != NONE:
            cosigned = self.cosigned_by(note)
            if not self._holds(self.quorum, cosigned):
                names = ", ".join(sorted(cosigned)) or "nobody"
                raise QuorumMissing(
                    f"checkpoint {checkpoint.size} of {checkpoint.origin} is cosigned by {names}; "
                    f"the policy wants {self.quorum!r}"
                )
        return checkpoint

    def is_satisfied(self, note: Note) -> bool:
        """Whether enough witnesses cosigned."""
        return self.quorum == NONE or self._holds(self.quorum, self.cosigned_by(note))

    def cosigned_by(self, note: Note) -> set[str]:
        """Names of the witnesses that cosigned.

        Raises:
            SignatureInvalid: a known witness's cosignature does not verify.
        """
        found: set[str] = set()
        for name, witness in self.witnesses.items():
            if any(witness.key.matches(s) for s in note.signatures):
                verify_note(note, [witness.key])
                found.add(name)
        return found

    def _holds(self, name: str, cosigned: Set[str]) -> bool:
        group = self.groups.get(name)
        if group is None:
            return name in cosigned
        return sum(self._holds(m, cosigned) for m in group.members) >= group.threshold


class _Parser:
    def __init__(self) -> None:
        self._logs: list[Member] = []
        self._witnesses: dict[str, Member] = {}
        self._groups: dict[str, Group] = {}
        self._quorum: str | None = None
        self._grouped: set[str] = set()
        self._keys: set[tuple[bool, bytes]] = set()

    def parse(self, text: str) -> Policy:
        if any((c < " " and c not in "\t\n") or c == "\x7f" for c in text):
            raise FormatInvalid("the policy has control characters")
        for number, line in enumerate(text.split("\n"), 1):
            words = [w for w in line.replace("\t", " ").split(" ") if w]
            if not words or words[0].startswith("#"):
                continue
            try:
                self._line(words[0], words[1:])
            except FormatInvalid as error:
                raise FormatInvalid(f"policy line {number}: {error}") from None
        if self._quorum is None:
            raise FormatInvalid("the policy has no quorum line; write `quorum none` for none")
        return Policy(tuple(self._logs), self._witnesses, self._groups, self._quorum)

    def _line(self, keyword: str, words: list[str]) -> None:
        if keyword == "log" and len(words) in (1, 2):
            self._logs.append(self._member(words, {KeyType.ED25519}))
        elif keyword == "witness" and len(words) in (2, 3):
            self._define(words[0])
            kinds = {KeyType.COSIGNATURE_ED25519, KeyType.COSIGNATURE_MLDSA44}
            self._witnesses[words[0]] = self._member(words[1:], kinds)
        elif keyword == "group" and len(words) >= 3:
            self._define(words[0])
            self._groups[words[0]] = self._group(words[1], words[2:])
        elif keyword == "quorum" and len(words) == 1:
            if self._quorum is not None:
                raise FormatInvalid("a second quorum")
            if words[0] != NONE and not self._knows(words[0]):
                raise FormatInvalid(f"{words[0]!r} is not defined above")
            self._quorum = words[0]
        else:
            raise FormatInvalid(f"{keyword!r} with {len(words)} words is not understood")

    def _member(self, words: list[str], kinds: set[KeyType]) -> Member:
        key = VerifierKey.parse(words[0])
        if key.key_type not in kinds:
            raise FormatInvalid(f"the key of {key.name} is of the wrong type")
        identity = (KeyType.ED25519 in kinds, key.public)
        if identity in self._keys:
            raise FormatInvalid(f"the key of {key.name} is there twice")
        self._keys.add(identity)
        return Member(key, words[1] if len(words) > 1 else None)

    def _group(self, threshold: str, members: list[str]) -> Group:
        for member in members:
            if not self._knows(member):
                raise FormatInvalid(f"{member!r} is not defined above")
            if member in self._grouped:
                raise FormatInvalid(f"{member!r} is in a group already")
            self._grouped.add(member)
        named = {"any": 1, "all": len(members)}
        count = named.get(threshold)
        if count is None:
            if not threshold.isascii() or not threshold.isdigit():
                raise FormatInvalid(f"{threshold!r} is none of all, any, or a number")
            count = int(threshold)
        if not 1 <= count <= len(members):
            raise FormatInvalid(f"{count} of {len(members)} members")
        return Group(count, tuple(members))

    def _define(self, name: str) -> None:
        if name == NONE or self._knows(name):
            raise FormatInvalid(f"the name {name!r} is taken")

    def _knows(self, name: str) -> bool:
        return name in self._witnesses or name in self._groups


def _words(*words: str | None) -> str:
    return " ".join(word for word in words if word)
