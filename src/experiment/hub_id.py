"""What the hub would take as the name of a repository."""

from __future__ import annotations


def check_hub_id(push_to_hub: str, iterations: int) -> None:
    """Raises ValueError for a name under which the hub would not keep every iteration."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if push_to_hub.count("/") != 1:
        raise ValueError(f"push_to_hub: {push_to_hub!r} must be <you or your organisation>/<name>")
    try:
        validate_repo_id(push_to_hub)
        validate_repo_id(f"{push_to_hub}-Iter{iterations}")
    except HFValidationError as error:
        raise ValueError(f"push_to_hub: {error}") from None
