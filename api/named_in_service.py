"""What documents name for endpoints and rollouts, decided before anything starts."""

from __future__ import annotations

from loomos.errors import FieldError, InvalidInput, InvalidManifest
from loomos.jobs.serving import RemoteTarget
from loomos.serving.remote import RemoteKeys, find_key


def check_remote(remote: RemoteTarget | None, keys: RemoteKeys, where: str) -> None:
    """Refuse a server elsewhere that would get a key which the operator does not send there.

    Args:
        remote: the server, if the document names one.
        keys: the operator's.
        where: path of the field in the document.

    Raises:
        InvalidManifest: with the field.
    """
    if remote is None:
        return
    try:
        find_key(remote, keys)
    except InvalidInput as error:
        message = str(error).removeprefix("api_key_env: ")
        field = FieldError(path=f"{where}.api_key_env", message=message)
        raise InvalidManifest([field], "request") from None
