"""The one store that a database names: opened only if DATA_DIR has it, made only by the first migration.

A mount point without its mount looks like a new DATA_DIR. A store that is made there is hidden as soon as the
mount is back, and rows that refer to it are lost. So the store's id stands in the database, and each opening
compares.
"""

import os
from dataclasses import dataclass

from sqlalchemy import Connection, Engine

from worker.db import stores
from worker.db.engine import autocommit
from worker.db.retry import when_free
from worker.db.stores import Named
from worker.errors import StoreElsewhereError
from worker.runtime import log
from worker.settings import Settings
from worker.store.store import Store

_log = log.get(__name__)

_ASKED_FOR = 20
"""So many datasets of an earlier release's database are looked for before a store is taken for another
one's.
"""


@dataclass
class Remembered:
    """The store id that a process has found to be the right one. Where another one is found, the database
    decides.
    """

    store_id: str | None = None


def open_store(settings: Settings, engine: Engine, remembered: Remembered, *, create: bool) -> Store:
    """The store, if DATA_DIR holds the one that the database names. Raises `StoreElsewhereError` otherwise.

    A database that names none yet: with `create` a store that is found is named, or else a new one is made
    and named; without, nothing is written. store.json is read each time, because a mount may go under a
    process that lives. Twice or at once: one makes it, all others find it. Dying between making and naming:
    the next attempt finds the store.
    """
    store = _look(settings)
    if store.store_id is None or store.store_id != remembered.store_id:
        with autocommit(engine) as conn:
            named = stores.named(conn)
            if not _may_choose(named):
                # Looked at again: another worker may have made and named it between the look and the
                # question.
                store = _look(settings)
                _check_is(store, named)
            elif not create:
                _check_fits(store, named, conn)
                return store
        if _may_choose(named):
            store = when_free(lambda: _name_one(settings, engine))
        remembered.store_id = store.store_id
    if create:
        store.make_directories()
    return store


def _look(settings: Settings, *, create: bool = False) -> Store:
    return Store.open(settings.store_dir, settings.datasets_dir, settings.store_digest, create=create)


def _name_one(settings: Settings, engine: Engine) -> Store:
    with engine.begin() as conn:
        stores.lock_naming(conn)
        named, store = stores.named(conn), _look(settings)
        if not _may_choose(named):
            _check_is(store, named)
            return store
        _check_fits(store, named, conn)
        made = store.store_id is None
        store = _look(settings, create=True)
        assert store.store_id is not None  # noqa: S101 - for the type checker: it has just been described
        # The row must not outlive the store: no other would ever be taken again.
        store.sync()
        stores.name(conn, store.store_id, store.algorithm)
    _log.info("store_named", store=store.store_id, made=made, at=str(store.root))
    return store


def _may_choose(named: Named | None) -> bool:
    return named is None or named.store_id is None


def _check_is(store: Store, named: Named | None) -> None:
    """Is it the one that is named?"""
    wanted = named.store_id if named is not None else None
    if store.store_id != wanted:
        raise StoreElsewhereError(
            f"{_found(store)} is at {store.root}, and this database's is store {wanted}"
        )


def _check_fits(store: Store, named: Named | None, conn: Connection) -> None:
    """A database of an earlier release names no store: one that has none of its datasets is another one's."""
    if named is not None:
        return
    hashes = stores.stored_lately(conn, _ASKED_FOR)
    if hashes and not any(os.path.lexists(store.manifest_path(one)) for one in hashes):
        raise StoreElsewhereError(
            f"{_found(store)} is at {store.root}, and this database's datasets are in another one"
        )


def _found(store: Store) -> str:
    return "no store" if store.store_id is None else f"store {store.store_id}"
