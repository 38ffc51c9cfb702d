"""Made-up accounts on the model server: what a CLI is told about the quota that its account has left.

    account = claude_account(server, env)       # env of make_home or agent_env: logged in from now on
    account.has(five_hour=Window(12), seven_day=Window(41, resets_in_s=86400))
    …`claude -p /usage` under env now says 12 % and 41 %…
    account.fails(429)                          # or account.hangs(), account.goes_offline()

Claude Code asks api.anthropic.com, whatever its settings say. It reaches our server because that is its
proxy, and believes it because of a certificate made for the test; Codex can be told another address.
Nothing here is anyone's: names, tokens and signatures say themselves that they are made up.
"""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, Optional

from model_server import CutStream, Hang, ModelServer, Page

CLAUDE_HOST = "api.anthropic.com"
MADE_UP_MAIL = "made-up@example.com"
MADE_UP_TOKEN = "made-up-token-not-real"
YEAR_S = 365 * 86400


@dataclass(frozen=True)
class Window:
    percent: Optional[float]    # of the quota that is used; None = the account has no such window
    resets_in_s: int = 7200


@dataclass
class Account:
    """An account of one CLI; until a test says more, nothing of its quota is used."""
    server: ModelServer
    page: str                   # "GET /path" that the CLI asks for the quota
    reply: Callable[[Mapping[str, Window]], Any]  # windows -> what that path answers
    error: Callable[[int], Any]

    def has(self, **windows: Window) -> None:
        """The windows by the names in the CLI's own protocol: five_hour, seven_day, or primary, secondary."""
        self.server.pages[self.page] = Page(200, self.reply(windows))

    def answers(self, body: Any) -> None:
        self.server.pages[self.page] = Page(200, body)

    def fails(self, status: int) -> None:
        self.server.pages[self.page] = Page(status, self.error(status))

    def hangs(self) -> None:
        self.server.pages[self.page] = Hang()

    def goes_offline(self) -> None:
        self.server.pages[self.page] = CutStream("")

    @property
    def times_asked(self) -> int:
        path = self.page.split()[1]
        return sum(request.path.partition("?")[0] == path for request in self.server.requests)


# =============================================================================
# 1. Claude Code
# =============================================================================

def claude_account(server: ModelServer, env: dict[str, str]) -> Account:
    """Logs the home of this environment in to a made-up subscription, and changes the environment for it."""
    home = Path(env["HOME"])
    env.pop("CLAUDE_CODE_OAUTH_TOKEN", None)  # it wins over a login, and may not ask for the quota
    env["NODE_EXTRA_CA_CERTS"] = str(speak_for(server, CLAUDE_HOST, home))
    login = {"accessToken": MADE_UP_TOKEN, "refreshToken": MADE_UP_TOKEN,
             "expiresAt": int((time.time() + YEAR_S) * 1000),  # ms; an expired one would be refreshed first
             "scopes": ["user:inference", "user:profile"], "subscriptionType": "max",
             "rateLimitTier": "default_claude_max_20x"}
    write_private(home / ".claude" / ".credentials.json", {"claudeAiOauth": login})
    server.pages["GET /api/oauth/profile"] = Page(200, claude_profile())
    account = Account(server, "GET /api/oauth/usage", claude_usage, claude_error)
    account.has(five_hour=Window(0), seven_day=Window(0))
    return account


def speak_for(server: ModelServer, host: str, folder: Path) -> Path:
    """Lets the server, as a proxy, answer for a host; returns the certificate that a client has to trust."""
    key, certificate = folder / "made-up-host.key", folder / "made-up-host.pem"
    made = subprocess.run(  # signed by itself: as trusted as an authority of its own, and one command
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}",
         "-keyout", str(key), "-out", str(certificate)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30)
    assert made.returncode == 0, made.stdout
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.hosts[f"{host}:443"] = context
    return certificate


def claude_profile() -> dict[str, Any]:
    return {"account": {"uuid": "00000000-0000-4000-8000-000000000001", "full_name": "Made Up",
                        "display_name": "Made Up", "email": MADE_UP_MAIL, "has_claude_max": True,
                        "has_claude_pro": False, "created_at": "2025-01-01T00:00:00Z"},
            "organization": {"uuid": "00000000-0000-4000-8000-000000000002", "name": "Made Up",
                             "organization_type": "claude_max", "rate_limit_tier": "default_claude_max_20x",
                             "billing_type": "stripe_subscription", "has_extra_usage_enabled": False,
                             "subscription_status": "active"}}


def claude_usage(windows: Mapping[str, Window]) -> dict[str, Any]:
    """What GET /api/oauth/usage answers, as far as claude 2.1.329 shows it."""
    return {**{name: None for name in ("five_hour", "seven_day", "seven_day_opus", "seven_day_sonnet")},
            **{name: claude_window(window) for name, window in windows.items()},
            "extra_usage": {"is_enabled": False, "monthly_limit": None, "used_credits": None,
                            "utilization": None},
            "limits": [claude_limit(name, window) for name, window in windows.items()
                       if window.percent is not None]}


def claude_window(window: Window) -> Optional[dict[str, Any]]:
    if window.percent is None:
        return None
    return {"utilization": window.percent, "resets_at": reset_time(window)}


def claude_limit(name: str, window: Window) -> dict[str, Any]:
    model = name.rpartition("_")[2].title() if name.count("_") == 2 else None
    kind = {"five_hour": "session", "seven_day": "weekly_all"}.get(name, "weekly_scoped")
    scope = model and {"model": {"id": None, "display_name": model}, "surface": None}
    return {"kind": kind, "group": kind.partition("_")[0], "percent": window.percent, "severity": "normal",
            "resets_at": reset_time(window), "scope": scope, "is_active": bool(window.percent)}


def reset_time(window: Window) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000000+00:00", time.gmtime(time.time() + window.resets_in_s))


def claude_error(status: int) -> dict[str, Any]:
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    details = {"details": {"error_code": "token_expired"}} if status == 401 else {}
    return {"type": "error", "error": {"type": kinds.get(status, "api_error"),
                                       "message": f"made-up error {status}", **details}}


# =============================================================================
# 2. Codex
# =============================================================================

CODEX_SECONDS = {"primary": 5 * 3600, "secondary": 7 * 86400}
CODEX_ACCOUNT = "acct-made-up"


def codex_account(server: ModelServer, env: dict[str, str]) -> Account:
    """Logs the home of this environment in to a made-up ChatGPT plan; its runs use that login too."""
    folder = Path(env["CODEX_HOME"])
    env.pop("MADE_UP_KEY", None)
    config = folder / "config.toml"
    text = config.read_text(encoding="utf-8")
    text = text.replace('env_key = "MADE_UP_KEY"', "requires_openai_auth = true")
    config.write_text(f'chatgpt_base_url = "{server.url}/backend-api/"\n{text}', encoding="utf-8")
    write_private(folder / "auth.json", codex_login())
    # without it a turn, or the question who is logged in, ends with "workspace routing discovery failed"
    server.pages["GET /backend-api/wham/accounts/check"] = Page(200, {"accounts": [
        {"id": CODEX_ACCOUNT, "account_id": CODEX_ACCOUNT, "plan_type": "plus",
         "workspace_backend_origin": "https://chatgpt.com", "account_routing_override": "NO_CONSTRAINT"}]})
    account = Account(server, "GET /backend-api/wham/usage", codex_usage, codex_error)
    account.has(primary=Window(0), secondary=Window(0))
    return account


def codex_login() -> dict[str, Any]:
    now = int(time.time())
    claims = {"iss": "https://auth.example.com", "sub": "made-up", "email": MADE_UP_MAIL, "iat": now,
              "exp": now + YEAR_S, "https://api.openai.com/profile": {"email": MADE_UP_MAIL},
              "https://api.openai.com/auth": {
                  "chatgpt_plan_type": "plus", "chatgpt_account_id": CODEX_ACCOUNT,
                  "chatgpt_user_id": "user-made-up", "user_id": "user-made-up"}}
    tokens = {"id_token": unsigned_token(claims), "access_token": unsigned_token(claims),
              "refresh_token": MADE_UP_TOKEN, "account_id": CODEX_ACCOUNT}
    return {"auth_mode": "chatgpt", "OPENAI_API_KEY": None, "tokens": tokens,
            "last_refresh": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))}


def unsigned_token(claims: Mapping[str, Any]) -> str:
    parts = [json.dumps({"alg": "none", "typ": "JWT"}), json.dumps(claims), MADE_UP_TOKEN]
    return ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts)


def codex_usage(windows: Mapping[str, Window]) -> dict[str, Any]:
    """What GET wham/usage answers; codex 0.169.0 makes of it what account/rateLimits/read says."""
    found = {f"{name}_window": codex_window(name, window) for name, window in windows.items()}
    limit_reached = any((window.percent or 0) >= 100 for window in windows.values())
    return {"plan_type": "plus", "credits": {"has_credits": False, "unlimited": False, "balance": None},
            "rate_limit": {"allowed": not limit_reached, "limit_reached": limit_reached,
                           "primary_window": None, "secondary_window": None, **found}}


def codex_window(name: str, window: Window) -> Optional[dict[str, Any]]:
    if window.percent is None:
        return None
    return {"used_percent": round(window.percent), "limit_window_seconds": CODEX_SECONDS[name],
            "reset_after_seconds": window.resets_in_s, "reset_at": int(time.time()) + window.resets_in_s}


def codex_error(status: int) -> dict[str, Any]:
    return {"error": {"message": f"made-up error {status}", "type": "made_up", "code": None}}


def write_private(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    path.chmod(0o600)
