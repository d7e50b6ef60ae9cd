"""Mistakes in what was brought from elsewhere name where it came from: the copy in the store is nothing to mend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from src.kernel.artifact import Node
from src.kernel.config import Fault, UserError
from src.kernel.store import Store


@contextmanager
def by_origin(nodes: Iterable[Node], store: Store) -> Iterator[None]:
    """In mistakes that the body tells, a checkpoint of the store is called by the folder or hub id it was copied of."""
    try:
        yield
    except UserError as error:
        told = str(error)
        for node in nodes:
            if isinstance(repo := getattr(node.stage, "repo", None), str):
                for folder in (store.path(node).resolve(), store.path(node)):
                    told = told.replace(str(folder), repo)
        if told == str(error) or type(error) not in (UserError, Fault):
            raise
        raise type(error)(told) from error
