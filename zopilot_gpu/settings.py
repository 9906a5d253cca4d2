"""The settings, read once from the environment. Knows names, defaults and bounds; refuses to guess.

Each field's description is its row in `docs/settings.md` (a test holds the two together). Try it:
`ZOPILOT_GPU_API_KEY=k python -c "from zopilot_gpu.settings import Settings; print(Settings())"`.
"""

from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

DEMO_MODEL = "demo"
MAX_REQUEST_TIMEOUT_S = 3600
NO_KEY = (
    "No API key is set. Set ZOPILOT_GPU_API_KEY to one or several keys, comma-separated, or ZOPILOT_GPU_KEYS_FILE, "
    "or set ZOPILOT_GPU_ALLOW_ANONYMOUS=true to let anybody who reaches the port use the model."
)


class SettingsError(ValueError):
    """The environment does not make valid settings; the text says which variable and why, without its value."""


class Settings(BaseSettings):
    """Everything an operator can choose. Frozen; built by `load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix="ZOPILOT_GPU_", frozen=True, env_ignore_empty=True, populate_by_name=True, extra="ignore"
    )

    api_key: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(), description="One or several API keys, comma-separated. Without one the service refuses to start."
    )
    keys_file: Path | None = Field(
        default=None, description="A TOML or JSON file of named keys with limits, read again when it changes (see operations)."
    )
    allow_anonymous: bool = Field(
        default=False, description="`true` serves every caller without a key. Only for a port that nobody else reaches."
    )
    health_check_public: bool = Field(
        default=True,
        validation_alias="HEALTH_CHECK_PUBLIC",
        description="`true` answers `GET /health` without a key (without the operator's details).",
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        validation_alias="ALLOWED_ORIGINS",
        description="Origins that browsers may call from, comma-separated; `*` for all. Empty: no cross-origin calls.",
    )
    model: str = Field(
        default="mistralai/Mixtral-8x7B-Instruct-v0.1",
        description="What to serve: `ORG/NAME` in the mounted cache, a directory, or `demo` for the embedded demo model.",
    )
    revision: str | None = Field(
        default=None, description="Commit or ref of the model. Unset: `main`, or the only snapshot that is there."
    )
    volume: Path | None = Field(
        default=None, description="A mount to look for the model on before the usual places (see operations)."
    )
    hf_home: Path | None = Field(
        default=None, validation_alias="HF_HOME", description="The Hugging Face cache, searched after the volumes."
    )
    hf_token: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices("HF_TOKEN", "HUGGING_FACE_TOKEN"),
        description="Token for gated models; needed only to download. `HUGGING_FACE_TOKEN` is read too.",
    )
    allow_download: bool = Field(
        default=False, description="`true` downloads a model that is not in the cache. Otherwise its absence is an error."
    )
    pack: bool = Field(
        default=True,
        description="`true` packs a large Mixtral on a writable volume once it answers: the next start reads a quarter.",
    )
    runner: Literal["auto", "mixtral", "plain"] = Field(
        default="auto",
        description="`mixtral`: many requests at once; `plain`: any model, one at a time. `auto`: the first where it can.",
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        default="auto",
        description="Where the model runs. `auto`: the GPU, or the CPU on a machine without one (a GPU that can't be used is "
        "an error).",
    )
    num_engines: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Engines of the `mixtral` runner, each with the whole model. Unset: one a visible GPU, or one on the CPU.",
    )
    kv_dtype: Literal["auto", "bf16", "fp8"] = Field(
        default="auto",
        description="What keys and values are kept in (`mixtral`). `fp8`: e4m3, half of bf16. `auto`: bf16, on a CPU float32.",
    )
    playground: bool = Field(
        default=True, description="`false` takes the page `GET /playground` away. It is open, and holds nothing but itself."
    )
    max_context_tokens: int = Field(
        default=32768,
        ge=16,
        le=1_048_576,
        description="Longest prompt plus answer, in tokens; the model's own limit holds too.",
    )
    max_waiting: int = Field(
        default=32, ge=0, le=10_000, description="Requests that may wait for their turn; one more is answered 429."
    )
    max_waiting_tokens: int = Field(
        default=262_144,
        ge=0,
        le=100_000_000,
        description="Tokens (prompts and `max_tokens`) that may wait beyond what the KV pool holds; more is answered 429.",
    )
    request_timeout_s: float = Field(
        default=300.0, gt=0, le=MAX_REQUEST_TIMEOUT_S, description="Longest time from arrival to the last token, in seconds."
    )
    drain_s: float = Field(
        default=25.0,
        ge=0,
        le=MAX_REQUEST_TIMEOUT_S,
        description="How long a stop waits for the answers in progress, in seconds; then they end with 503 `shutting_down`.",
    )
    hung_step_s: float = Field(
        default=30.0,
        ge=1,
        le=3600,
        description="A step of the engine that takes longer ends the worker (status 71), in seconds; after 8 it isn't ready.",
    )
    max_deaths: int = Field(
        default=5,
        ge=1,
        le=1_000_000,
        description="So many deaths of the worker within ten minutes end the service (status 72).",
    )
    restart_wait_s: float = Field(
        default=1.0,
        ge=0,
        le=30,
        description="Wait before a second restart within ten minutes, in seconds, doubled for each next; the first is at once.",
    )
    max_body_bytes: int = Field(default=1_048_576, ge=1024, le=67_108_864, description="Largest request body, in bytes.")
    body_timeout_s: float = Field(default=10.0, gt=0, le=600, description="Longest time a body may take to arrive, in seconds.")
    max_headers: int = Field(default=64, ge=8, le=1000, description="Most header lines in a request.")
    max_header_bytes: int = Field(default=16_384, ge=1024, le=1_048_576, description="Most header bytes in a request.")
    jobs_path: Path | None = Field(
        default=None,
        description="The file that holds the jobs, on a disk that keeps locks. Unset: `~/.local/state/zopilot-gpu/jobs.db`.",
    )
    jobs_running: int = Field(
        default=8, ge=1, le=256, description="Jobs that run at once, at most; they begin only while no request waits."
    )
    jobs_max: int = Field(
        default=10_000, ge=1, le=1_000_000, description="Jobs that may be open, and ended ones that are kept."
    )
    jobs_max_bytes: int = Field(
        default=1_073_741_824, ge=1_048_576, le=2**40, description="What the jobs may take on disk, in bytes."
    )
    jobs_retention_s: float = Field(
        default=86_400.0, ge=1, le=31_536_000, description="How long a job is kept after it has ended, in seconds."
    )
    callback_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Hosts that callbacks may go to, comma-separated: `name`, `name:port` or an address; and networks "
        "(`10.1.0.0/16`) that need not be public for those names to lead there. Empty: no callbacks.",
    )
    callback_secret: SecretStr | None = Field(
        default=None, min_length=16, description="What callbacks are signed with; needed where there are callback hosts."
    )
    callback_allow_http: bool = Field(default=False, description="`true` sends callbacks to `http` URLs too.")
    callback_retry_s: float = Field(
        default=5.0,
        gt=0,
        le=3600,
        description="Wait before the second of five tries, in seconds; each next one is four times as long.",
    )
    face: Literal["http", "runpod-queue"] = Field(
        default="http", description="What the image starts: the HTTP service, or a worker of a RunPod queue (docs/runpod.md)."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least severe level logged.")
    port: int = Field(default=3000, ge=1, le=65535, validation_alias="PORT", description="Port that `make serve` listens on.")

    def jobs_file(self) -> Path:
        """Where the jobs are."""
        return self.jobs_path or Path.home() / ".local" / "state" / "zopilot-gpu" / "jobs.db"

    @field_validator("api_key", "allowed_origins", "callback_hosts", mode="before")
    @classmethod
    def _comma_separated(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part for part in (piece.strip() for piece in value.split(",")) if part)
        return value

    @model_validator(mode="after")
    def _a_key_or_a_decision(self) -> Self:
        if not self.api_key and not self.keys_file and not self.allow_anonymous:
            raise ValueError(NO_KEY)
        if self.callback_hosts and not self.callback_secret:
            raise ValueError("Callbacks are signed: set ZOPILOT_GPU_CALLBACK_SECRET beside ZOPILOT_GPU_CALLBACK_HOSTS.")
        return self

    @field_validator("callback_hosts")
    @classmethod
    def _networks_are_networks(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        for entry in entries:
            try:
                _ = "/" in entry and ip_network(entry)
            except ValueError:
                raise ValueError(
                    "an entry with a slash must be a network, like 10.1.0.0/16; hosts have no scheme or path"
                ) from None
        return entries


def load_settings() -> Settings:
    """The settings of this process's environment.

    Raises:
        SettingsError: with one sentence a problem. Values are left out: they may be secrets.
    """
    try:
        return Settings()
    except ValidationError as error:
        problems = []
        for problem in error.errors(include_input=False, include_url=False):
            where = ".".join(str(part) for part in problem["loc"])
            reason = problem["msg"].removeprefix("Value error, ")
            problems.append(f"{variable_name(where)}: {reason}" if where else reason)
        raise SettingsError(" ".join(problems)) from None


def variable_name(field: str) -> str:
    """The environment variable of a field, as documented."""
    info = Settings.model_fields.get(field)
    if info is None or info.validation_alias is None:
        return f"ZOPILOT_GPU_{field.upper()}" if info else field
    alias = info.validation_alias
    return str(alias.choices[0]) if isinstance(alias, AliasChoices) else str(alias)
