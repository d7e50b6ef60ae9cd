"""What rows of servers have in common: how they are asked, and what is told when they fail."""

from __future__ import annotations

from bad_inputs import Given, Setting

ASKED = "data.answers.mine.endpoint"
KEPT = "replies so far are kept, the same command goes on from them"
WHERE = "is the server running, and this its address?"
HERE = "127.0.0.1:…"


def impatient(key: str, url: str) -> list[str]:
    """Words for an endpoint that one thread asks and gives up at once."""
    said = {"base_url": url, "concurrent": 1, "retries": 1, "backoff_s": 0.01, "timeout_s": 0.5}
    return [f"{key}.{name}={value}" for name, value in said.items()]


def environment(key: str | None, url: str | None = None) -> Given:
    def given(setting: Setting) -> None:
        for name, value in {"OPENAI_API_KEY": key, "OPENAI_BASE_URL": url}.items():
            setting.patch.delenv(name, raising=False)
            if value is not None:
                setting.patch.setenv(name, value)

    return given


def away(url: str) -> Given:
    return lambda setting: environment("sk-x")(setting) or impatient(ASKED, url)
