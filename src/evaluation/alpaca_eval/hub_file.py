"""Files of AlpacaEval's data set: on the hub, in a folder that mirrors it, or anywhere on this machine."""

from __future__ import annotations

from pathlib import Path

from src.kernel.config import Free, UserError, YamlPath, config
from src.kernel.record import sha256


@config
class HubFile:
    repo: Free[str]
    """Hub id of a data set, or a local folder with its files."""
    name: str
    """Of the file in it."""
    revision: Free[str | None]
    """Of the hub: commit, tag or branch; null: main."""
    path: Free[YamlPath | None]
    """Read in place of it."""
    key: Free[str]
    """Of `path` in the config, for messages."""
    instead: Free[str] = ""
    """What else could be done where it cannot be had, for messages."""

    @property
    def local(self) -> Path | None:
        """Where it lies; None: on the hub. Raises UserError for a path where there is no file."""
        if self.path is not None:
            if not self.path.is_file():
                raise UserError(f"{self.key}: no file {self.path}")
            return self.path
        folder = Path(self.repo)
        if not folder.is_dir():
            return None
        if not (folder / self.name).is_file():
            raise UserError(f"{self.key}: no file {self.name} in the folder {folder}; give its path here")
        return folder / self.name

    def source_version(self) -> str:
        """The content of a local file; of the hub, what is asked for."""
        local = self.local
        return sha256(local) if local else f"{self.repo}@{self.revision or 'main'}"

    def fetch(self) -> Path:
        """The file, from the hub's cache where it was fetched before. Raises UserError where it cannot be had."""
        if local := self.local:
            return local
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(self.repo, self.name, repo_type="dataset", revision=self.revision))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            told = f"{self.key}: {self.name} of {self.repo} cannot be fetched from the hub"
            raise UserError(f"{told}; give its path here{self.instead} ({reason})") from None
