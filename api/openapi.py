"""Print the gateway's OpenAPI document: `python -m api.openapi`."""

from __future__ import annotations

import json

from api.app import create_app


def document() -> str:
    """The document as it is checked in."""
    return json.dumps(create_app().openapi(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    print(document(), end="")
