"""Whether somebody is logged in to W&B, found as W&B itself finds it."""

from __future__ import annotations

import os

from pydantic import ValidationError

from src.kernel.config import UserError
from src.reporting.tracking.mirror import reason_of


class Unusable(UserError):
    """W&B's library refuses its settings."""


def server() -> str:
    """Its address."""
    import wandb

    return os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url


def has_key() -> bool:
    """In the environment or, from `wandb login`, in the netrc file.

    Raises UserError for one that is none, Unusable where W&B could not even look.
    """
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    from wandb.errors import AuthenticationError, Error
    from wandb.sdk.lib import wbauth

    try:
        return wbauth.read_netrc_auth(host=server()) is not None
    except AuthenticationError as error:
        raise UserError(f"W&B's key: {' '.join(str(error).split())}") from error
    except UnicodeDecodeError as error:
        raise Unusable("W&B's key: the netrc file is no text") from error
    except (ValidationError, Error, OSError) as error:
        raise Unusable(f"W&B's settings: {reason_of(error)}") from error
