"""Print the gateway's OpenAPI document: `python -m api.openapi`."""

from __future__ import annotations

import json

from loomos.arguments import take_arguments


def document() -> str:
    """The document as it is checked in."""
    from api.app import create_app

    return json.dumps(create_app().openapi(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    take_arguments("api.openapi", __doc__)
    print(document(), end="")
