"""The command line and the OpenAI-compatible HTTP server: thin over the engine.

`create_app(engine, settings)` makes the ASGI application for servers other than `mdinfer serve`. It is imported when it
is first used, so that the command line need not wait for what it needs.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mdinfer.server.app import create_app
    from mdinfer.server.settings import Settings

__all__ = ["Settings", "create_app"]


def __getattr__(name: str) -> object:
    if name == "create_app":
        from mdinfer.server.app import create_app

        return create_app
    if name == "Settings":
        from mdinfer.server.settings import Settings

        return Settings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
