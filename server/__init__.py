"""The command line and the OpenAI-compatible HTTP server: thin over the engine.

`create_app(engine, settings)` is the ASGI application, for a host of your own; an engine given to it stays open.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mdinfer.server.app import create_app
    from mdinfer.server.settings import Settings

__all__ = ["Settings", "create_app"]


def __getattr__(name: str) -> object:
    """Loaded when they are first used: the command line does not wait for what it may not need."""
    if name == "create_app":
        from mdinfer.server.app import create_app

        return create_app
    if name == "Settings":
        from mdinfer.server.settings import Settings

        return Settings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
