"""What parsers made of captions, remembered on disk: to parse MSR-VTT's references takes half an hour, to read it none.

One SQLite file, which several processes may use at once. It can always be made again, so whatever is wrong with it is a
warning and an empty memory, never an error.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

_WAIT_SECONDS = 10.0  # for another process that writes
_AT_ONCE = 500  # captions a query


class Parses:
    """JSON-ready values by caption. Safe in threads.

    Args:
        path: of the file; made, with its folders, when something is put. Another parser wants another file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._warned = False

    def get(self, captions: Iterable[str]) -> dict[str, Any]:
        """Of those captions that it holds."""
        found: dict[str, Any] = {}
        keys = [key for key in map(_key, captions) if key is not None]
        with self._forgiving("read"):
            if not self._path.exists():
                return found
            with self._connect() as connection:
                for first in range(0, len(keys), _AT_ONCE):
                    some = keys[first : first + _AT_ONCE]
                    places = ", ".join("?" * len(some))
                    query = f"SELECT caption, parse FROM parses WHERE caption IN ({places})"
                    found |= {caption: json.loads(parse) for caption, parse in connection.execute(query, some)}
        return found

    def put(self, parses: Mapping[str, Any]) -> None:
        """Hold these too, all of them or none."""
        rows = [(key, json.dumps(parse)) for caption, parse in parses.items() if (key := _key(caption)) is not None]
        with self._forgiving("write"):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._connect() as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS parses (caption TEXT PRIMARY KEY, parse TEXT NOT NULL)")
                connection.executemany("INSERT OR REPLACE INTO parses VALUES (?, ?)", rows)

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        """One transaction."""
        with closing(sqlite3.connect(self._path, timeout=_WAIT_SECONDS)) as connection, connection:
            yield connection

    @contextmanager
    def _forgiving(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            if not self._warned:
                _log.warning("cannot %s %s: %s. Captions are parsed anew; it may be deleted", doing, self._path, error)
            self._warned = True


def _key(caption: str) -> str | None:
    """A caption as SQLite takes it; ``None`` where it holds half a character, which is not to be written as text."""
    try:
        caption.encode()
    except UnicodeEncodeError:
        return None
    return caption
