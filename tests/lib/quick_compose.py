"""What the commands of one process share when Hydra composes them: files that were read, and choices of groups.

Hydra does both again for each command, which is most of the time of a test that ends in a mistake. A command's own
values are applied by Hydra each time. `tests/launch/test_config.py` compares it with Hydra's own way.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import omegaconf

from src.kernel.config import CONF

create_defaults_list = defaults_list.create_defaults_list
compose_defaults = ConfigLoaderImpl._compose_config_from_defaults_list


@contextmanager
def hydras_own() -> Iterator[None]:
    """Compose as if nothing was composed before."""
    with _composing(yaml.load, create_defaults_list, compose_defaults):
        yield


@contextmanager
def quick_compose() -> Iterator[None]:
    """Compose with what earlier commands of this context have read and chosen."""
    read: dict[str, Any] = {}
    chosen: dict[Any, Any] = {}
    merged: dict[int, bytes] = {}

    def load(file: Any, Loader: Any) -> Any:
        if isinstance(file, str):
            return yaml.load(file, Loader=Loader)
        if (text := file.read()) not in read:
            file.seek(0)  # YAML's errors name the file
            read[text] = yaml.load(file, Loader=Loader)
        return read[text]

    def choose(repo: Any, config_name: str, overrides_list: list[Any], **options: Any) -> Any:
        """Hydra's choices depend on the words that name a group, and on the folders that it searches."""
        plain = defaults_list.Overrides(repo=repo, overrides_list=overrides_list).config_overrides
        folders = [source.path for source in repo.get_sources() if source.scheme() == "file"]
        if folders != [str(CONF)]:
            return create_defaults_list(repo, config_name, overrides_list, **options)
        of_groups = [word.input_line for word in overrides_list if word not in plain]
        key = (config_name, *of_groups, *options.values())
        if key not in chosen:
            chosen[key] = create_defaults_list(repo, config_name, overrides_list, **options)
        return replace(chosen[key], config_overrides=plain)

    def merge(loader: Any, defaults: Any, repo: Any) -> Any:
        if not any(defaults is known.defaults for known in chosen.values()):
            return compose_defaults(loader, defaults, repo)
        if id(defaults) not in merged:
            merged[id(defaults)] = pickle.dumps(compose_defaults(loader, defaults, repo))
        return pickle.loads(merged[id(defaults)])  # ten times as fast as a deep copy

    with _composing(load, choose, merge):
        yield


@contextmanager
def _composing(load: Any, choose: Any, merge: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(omegaconf, "yaml", SimpleNamespace(**vars(yaml) | {"load": load}))
        patch.setattr(config_loader_impl, "create_defaults_list", choose)
        patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", merge)
        yield
