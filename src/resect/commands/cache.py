"""`resect cache list` and `resect cache clear`."""

import time
from dataclasses import asdict

from resect.cache import open_cache
from resect.commands import console

_AGES = (("d", 86400), ("h", 3600), ("min", 60))


def show(*, as_json: bool) -> None:
    """List every entry with its model, size and the time since it was last used, then the sum and the limit."""
    cache = open_cache()
    entries, now = cache.entries(), time.time()
    total = sum(e.size for e in entries)
    if as_json:
        rows = [asdict(e) | {"age_seconds": max(0.0, now - e.used)} for e in entries]
        console.show_json({"place": str(cache.place), "limit_bytes": cache.limit, "bytes": total, "entries": rows})
        return
    if entries:
        table = console.table("step", "model", "size", "last used", "key")
        for entry in entries:
            table.add_row(entry.step or "damaged", entry.model or "–", size(entry.size), age(now - entry.used), entry.key[:12])
        console.show(table)
    console.say(f"{len(entries)} entries, {size(total)} of {size(cache.limit)}: {cache.place}")


def clear(*, as_json: bool) -> None:
    """Remove every entry."""
    cache = open_cache()
    files, freed = cache.clear()
    left = len(cache.entries())
    if as_json:
        console.show_json({"place": str(cache.place), "removed": files, "bytes": freed, "left": left})
        return
    console.say(f"Removed {files} files, {size(freed)}, {left} are left: {cache.place}")


def size(count: int) -> str:
    """Return a number of bytes as people read it."""
    for unit, of in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= of:
            return f"{count / of:.1f} {unit}"
    return f"{count} B"


def age(seconds: float) -> str:
    """Return a time span in its largest whole unit."""
    for unit, of in _AGES:
        if seconds >= of:
            return f"{int(seconds // of)} {unit}"
    return "now"
