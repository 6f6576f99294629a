"""The cache of results."""

from resect.cli.application import cache_app, importing
from resect.commands import options as o


@cache_app.command("list")
def cache_list(as_json: o.Json = False) -> None:  # noqa: FBT002
    """List what is kept, with sizes and ages, the entry used last first."""
    with importing():
        from resect.commands import cache

    cache.show(as_json=as_json)


@cache_app.command("clear")
def cache_clear(as_json: o.Json = False) -> None:  # noqa: FBT002
    """Remove everything that is kept."""
    with importing():
        from resect.commands import cache

    cache.clear(as_json=as_json)
