"""Holds the settings: their defaults and bounds, the refusal to start without a key, and that no error quotes a value."""

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from zopilot_gpu.settings import MAX_REQUEST_TIMEOUT_S, Settings, SettingsError, load_settings

CANARY = "canary-7f3a"
Environment = dict[str, str]


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"PATH": os.environ["PATH"]}
    monkeypatch.setattr(os, "environ", kept)


def load(**env: str) -> Settings:
    os.environ.update(env)
    return load_settings()


def revealed(secrets: tuple[SecretStr, ...]) -> list[str]:
    return [secret.get_secret_value() for secret in secrets]


def test_defaults() -> None:
    assert load(ZOPILOT_GPU_API_KEY="k").model_dump() == {
        "api_key": (SecretStr("k"),),
        "keys_file": None,
        "allow_anonymous": False,
        "health_check_public": True,
        "allowed_origins": (),
        "model": "mistralai/Mixtral-8x7B-Instruct-v0.1",
        "revision": None,
        "volume": None,
        "hf_home": None,
        "hf_token": None,
        "allow_download": False,
        "pack": True,
        "runner": "auto",
        "device": "auto",
        "kv_dtype": "auto",
        "playground": True,
        "max_context_tokens": 32768,
        "max_waiting": 32,
        "max_waiting_tokens": 262_144,
        "request_timeout_s": 300.0,
        "max_body_bytes": 1_048_576,
        "body_timeout_s": 10.0,
        "max_headers": 64,
        "max_header_bytes": 16_384,
        "num_engines": None,
        "drain_s": 25.0,
        "hung_step_s": 30.0,
        "max_deaths": 5,
        "restart_wait_s": 1.0,
        "jobs_path": None,
        "jobs_running": 8,
        "jobs_max": 10_000,
        "jobs_max_bytes": 1_073_741_824,
        "jobs_retention_s": 86_400.0,
        "callback_hosts": (),
        "callback_secret": None,
        "callback_allow_http": False,
        "callback_retry_s": 5.0,
        "face": "http",
        "log_level": "info",
        "port": 3000,
    }


@pytest.mark.parametrize(
    ("value", "keys"),
    [("one", ["one"]), ("one,two", ["one", "two"]), (" one , two ,", ["one", "two"]), ("schlüssel,k=v", ["schlüssel", "k=v"])],
)
def test_keys_are_comma_separated(value: str, keys: list[str]) -> None:
    assert revealed(load(ZOPILOT_GPU_API_KEY=value).api_key) == keys


@pytest.mark.parametrize(
    ("value", "origins"),
    [("*", ("*",)), ("https://a.example, http://b.example:3000", ("https://a.example", "http://b.example:3000")), (" ,", ())],
)
def test_origins_are_comma_separated(value: str, origins: tuple[str, ...]) -> None:
    assert load(ZOPILOT_GPU_API_KEY="k", ALLOWED_ORIGINS=value).allowed_origins == origins


@pytest.mark.parametrize(
    "env", [{}, {"ZOPILOT_GPU_API_KEY": ""}, {"ZOPILOT_GPU_API_KEY": " , "}, {"ZOPILOT_GPU_ALLOW_ANONYMOUS": "false"}]
)
def test_without_a_key_the_refusal_names_both_remedies(env: Environment) -> None:
    with pytest.raises(SettingsError, match="No API key") as refusal:
        load(**env)
    assert "ZOPILOT_GPU_API_KEY" in str(refusal.value)
    assert "ZOPILOT_GPU_ALLOW_ANONYMOUS=true" in str(refusal.value)


def test_anonymous_use_is_allowed_on_purpose() -> None:
    assert load(ZOPILOT_GPU_ALLOW_ANONYMOUS="true").api_key == ()


@pytest.mark.parametrize(
    ("env", "token"),
    [
        ({"HF_TOKEN": "a"}, "a"),
        ({"HUGGING_FACE_TOKEN": "b"}, "b"),
        ({"HF_TOKEN": "a", "HUGGING_FACE_TOKEN": "b"}, "a"),
        ({"HF_TOKEN": "", "HUGGING_FACE_TOKEN": "b"}, "b"),
    ],
)
def test_the_hub_token_has_two_names(env: Environment, token: str) -> None:
    found = load(ZOPILOT_GPU_API_KEY="k", **env).hf_token
    assert found is not None
    assert found.get_secret_value() == token


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("HF_HOME", "/mnt/hf", "hf_home", Path("/mnt/hf")),
        ("ZOPILOT_GPU_VOLUME", "/mnt/v", "volume", Path("/mnt/v")),
        ("HEALTH_CHECK_PUBLIC", "false", "health_check_public", False),
        ("PORT", "8000", "port", 8000),
        ("ZOPILOT_GPU_MODEL", "demo", "model", "demo"),
        ("ZOPILOT_GPU_REVISION", "", "revision", None),
        ("ZOPILOT_GPU_UNKNOWN", "x", "model", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
    ],
)
def test_variables_have_their_documented_names(name: str, value: str, field: str, expected: Any) -> None:
    assert getattr(load(ZOPILOT_GPU_API_KEY="k", **{name: value}), field) == expected


BOUNDS = [
    ("ZOPILOT_GPU_MAX_CONTEXT_TOKENS", "16", "1048576", ["15", "1048577"]),
    ("ZOPILOT_GPU_MAX_WAITING", "0", "10000", ["-1", "10001"]),
    ("ZOPILOT_GPU_REQUEST_TIMEOUT_S", "0.001", str(MAX_REQUEST_TIMEOUT_S), ["0", str(MAX_REQUEST_TIMEOUT_S + 1), "nan", "inf"]),
    ("ZOPILOT_GPU_MAX_BODY_BYTES", "1024", "67108864", ["1023", "67108865"]),
    ("ZOPILOT_GPU_BODY_TIMEOUT_S", "0.001", "600", ["0", "601", "nan", "inf"]),
    ("ZOPILOT_GPU_MAX_HEADERS", "8", "1000", ["7", "1001"]),
    ("ZOPILOT_GPU_MAX_HEADER_BYTES", "1024", "1048576", ["1023", "1048577"]),
    ("PORT", "1", "65535", ["0", "65536"]),
]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, low, high, _ in BOUNDS for value in (low, high)])
def test_values_at_a_bound_are_taken(name: str, value: str) -> None:
    assert load(ZOPILOT_GPU_API_KEY="k", **{name: value})


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, _, _, beyond in BOUNDS for value in beyond])
def test_values_beyond_a_bound_are_refused_by_the_variables_name(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        load(ZOPILOT_GPU_API_KEY="k", **{name: value})


@pytest.mark.parametrize(
    "name",
    [
        "ZOPILOT_GPU_ALLOW_ANONYMOUS",
        "HEALTH_CHECK_PUBLIC",
        "ZOPILOT_GPU_ALLOW_DOWNLOAD",
        "ZOPILOT_GPU_DEVICE",
        "ZOPILOT_GPU_MAX_CONTEXT_TOKENS",
        "ZOPILOT_GPU_MAX_WAITING",
        "ZOPILOT_GPU_REQUEST_TIMEOUT_S",
        "ZOPILOT_GPU_MAX_BODY_BYTES",
        "ZOPILOT_GPU_LOG_LEVEL",
        "PORT",
    ],
)
def test_no_error_quotes_a_value(name: str) -> None:
    with pytest.raises(SettingsError, match=name) as refusal:
        load(ZOPILOT_GPU_API_KEY=f"{CANARY}-key", HF_TOKEN=f"{CANARY}-token", **{name: CANARY})
    assert CANARY not in str(refusal.value)
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__


def test_printed_settings_show_no_secret() -> None:
    settings = load(ZOPILOT_GPU_API_KEY=f"{CANARY}-key", HF_TOKEN=f"{CANARY}-token")
    assert CANARY not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load(ZOPILOT_GPU_API_KEY="k").port = 1  # type: ignore[misc]
