"""Licences of start policies: a trained policy is under the terms of what it was trained from."""

from __future__ import annotations

import re
from typing import NamedTuple

_IDENTIFIER = re.compile(r"[a-z0-9]+([.+-][a-z0-9]+)*")


class Licence(NamedTuple):
    name: str
    address: str
    asks: str
    """Of those who pass the weights on, in short; its own text decides."""


KNOWN = {
    "apache-2.0": Licence(
        "Apache License 2.0",
        "https://www.apache.org/licenses/LICENSE-2.0",
        "Its text goes with every copy, and changed files say that they were changed.",
    ),
    "gemma": Licence(
        "Gemma Terms of Use",
        "https://ai.google.dev/gemma/terms",
        "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms. They, with "
        "their prohibited use policy, go with every copy and bind whoever receives it.",
    ),
    "llama3": Licence(
        "Meta Llama 3 Community License",
        "https://llama.meta.com/llama3/license/",
        "Built with Meta Llama 3. Its text goes with every copy, and the name of a model made from Llama 3 begins with "
        "“Llama 3”.",
    ),
}
"""By the hub's identifier."""


def hub_identifier(licence: str | None) -> str | None:
    """`licence` where it is spelt as the hub spells its identifiers, such as apache-2.0; else None."""
    return licence if licence and _IDENTIFIER.fullmatch(licence) else None
