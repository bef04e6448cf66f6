"""Which values of the configuration no output may contain."""

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import SecretStr

from bridge.app.settings import Settings

if TYPE_CHECKING:
    from bridge.app.routes import Routes

MIN_KEY_CHARS = 16
"""A part of a URL's path that has at least this length may be a key, and is kept out of
the log."""


def secrets_of(conf: Settings, routes: "Routes") -> set[str]:
    """Values of the configuration that no log may contain."""
    fields = type(conf).model_fields
    values = [getattr(conf, name) for name, it in fields.items() if not it.repr]
    secrets = {it.get_secret_value() for it in values if isinstance(it, SecretStr)}
    secrets |= {*conf.twilio_shared_keys.values(), *conf.model_headers.values()}
    secrets |= {token for tokens in conf.twilio_accounts.values() for token in tokens}
    redis = conf.redis_url.get_secret_value() if conf.redis_url else None
    reports = [it.report.url for it in (*routes.routes, routes.defaults) if it.report]
    for url in (redis, conf.model_url, conf.report_url, *reports):
        secrets |= _secrets_in(url)
    return {part for secret in secrets for part in (secret, *secret.split()[1:])}


def _secrets_in(url: str | None) -> set[str]:
    """Parts of a URL that may be secret: query, password, and long parts of the path,
    such as those of a webhook."""
    parts = urlsplit(url or "")
    query = {value for _, value in parse_qsl(parts.query)}
    path = {it for it in parts.path.split("/") if len(it) >= MIN_KEY_CHARS}
    return query | path | {parts.query, unquote(parts.password or "")}
