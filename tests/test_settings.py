"""The environment as the program reads it: names, types, and the error for a wrong value."""

from __future__ import annotations

import ast
import json
import logging
import os
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings

from wan_engine.errors import ConfigurationError
from wan_engine.runtime import logs
from wan_engine.settings import OwnLora, Settings, described, env_name
from wan_engine.settings.environment import tell_libraries
from wan_engine.settings.gateway import GatewaySettings
from wan_engine.settings.retired import RetiredSettings

SECRET = "very/SECRET+key"
BUCKET = {
    "BUCKET_ENDPOINT_URL": "https://s3.example.com/clips",
    "BUCKET_ACCESS_KEY_ID": "AKIDEXAMPLE",
    "BUCKET_SECRET_ACCESS_KEY": SECRET,
}


def refusal() -> str:
    with pytest.raises(ConfigurationError) as caught:
        Settings.load()
    return str(caught.value)


# --- fields --------------------------------------------------------------------------------------


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_descriptions_are_one_line() -> None:
    assert [row.variable for row in described() if not row.meaning.isprintable()] == []


def test_the_table_has_every_field_with_models_first_and_the_gateway_last() -> None:
    shown = [row.variable for row in described()]
    fields = [*Settings.model_fields]
    assert shown == [env_name(name) for name in fields if name not in RetiredSettings.model_fields]
    gateways = [env_name(name) for name in GatewaySettings.model_fields]
    assert (shown[0], shown[-len(gateways) :]) == ("WAN_MODEL", gateways)


def test_no_field_is_in_two_topics() -> None:
    topics = [base for base in Settings.__bases__ if base is not BaseSettings]
    names = [name for topic in topics for name in topic.model_fields]
    assert sorted(names) == sorted(Settings.model_fields)


def test_variables_begin_with_ours_or_are_runpods() -> None:
    others = [row.variable for row in described() if not row.variable.startswith("WAN_")]
    assert others == [*BUCKET, "BUCKET_NAME"]


@pytest.mark.parametrize(
    ("field", "variable"),
    [
        ("model", "WAN_MODEL"),
        ("safety", "WAN_SAFETY"),
        ("storage", "WAN_STORAGE"),
        ("output_dir", "WAN_OUTPUT_DIR"),
        ("allow_private_urls", "WAN_ALLOW_PRIVATE_URLS"),
        ("public_base_url", "WAN_PUBLIC_BASE_URL"),
        ("frame", "WAN_FRAME"),
        ("bucket_name", "BUCKET_NAME"),
        ("BUCKET_NAME", "BUCKET_NAME"),
    ],
)
def test_a_field_has_its_fixed_variable(field: str, variable: str) -> None:
    assert env_name(field) == variable


def test_the_table_shows_nothing_for_a_field_without_a_default() -> None:
    shown = {row.variable: row.default for row in described()}
    assert [shown[name] for name in ("WAN_LORA", "WAN_STEPS", "WAN_S3_PREFIX", *BUCKET)] == [""] * 6


def test_a_default_can_be_written_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in described():
        if row.default:
            monkeypatch.setenv(row.variable, row.default)
    assert Settings.load() == Settings()


# --- values of variables -------------------------------------------------------------------------


def test_nothing_has_to_be_set() -> None:
    settings = Settings.load()
    assert (settings.model, settings.safety, settings.storage) == ("auto", None, "auto")
    assert settings.output_dir == Path("outputs")
    assert not settings.allow_private_urls


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("WAN_MODEL", "wan-tiny", "model", "wan-tiny"),
        ("WAN_MODELS_DIR", "/models", "models_dir", Path("/models")),
        ("WAN_STEPS", "8", "steps", 8),
        ("WAN_GUIDANCE_SCALE", "1", "guidance_scale", 1.0),
        ("WAN_SAFETY", "off", "safety", "off"),
        ("WAN_ALLOW_PRIVATE_URLS", "1", "allow_private_urls", True),
        ("WAN_ALLOW_PRIVATE_URLS", "0", "allow_private_urls", False),
        ("WAN_METADATA", "false", "metadata", False),
        ("WAN_JOB_SECONDS", "0.5", "job_seconds", 0.5),
        ("WAN_S3_REGION", "eu-west-1", "s3_region", "eu-west-1"),
        ("BUCKET_NAME", "clips", "bucket_name", "clips"),
    ],
)
def test_a_variable_sets_its_field(
    variable: str, text: str, field: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    read = getattr(Settings.load(), field)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize("variable", [row.variable for row in described()])
def test_an_empty_variable_is_absent(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "")
    assert Settings.load() == Settings()


def test_other_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAN_OF_SOMEBODY_ELSE", "x")
    monkeypatch.setenv("STEPS", "x")
    assert Settings.load() == Settings()


def test_loras_are_read_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    written = '[{"path": "/a.safetensors", "scale": 0.8, "expert": "high"}, {"path": "b"}]'
    monkeypatch.setenv("WAN_LORA", written)
    assert Settings.load().lora == (
        OwnLora(path=Path("/a.safetensors"), scale=0.8, expert="high"),
        OwnLora(path=Path("b"), scale=1.0, expert="both"),
    )


def test_prices_are_read_as_json_without_a_rounding_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAN_PRICES", '{"1280*720": 0.07, "1920*1080": "0.1"}')
    assert Settings.load().prices == {"1280*720": Decimal("0.07"), "1920*1080": Decimal("0.1")}


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAN_MODEL", "auto")
    assert Settings(model="wan-tiny").model == "wan-tiny"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().steps = 4


@pytest.mark.parametrize("missing", [None, *BUCKET])
def test_three_variables_make_a_bucket(
    missing: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in BUCKET.items():
        if variable != missing:
            monkeypatch.setenv(variable, value)
    assert Settings.load().has_bucket == (missing is None)


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("WAN_STEPS", "four"),
        ("WAN_STEPS", "0"),
        ("WAN_STEPS", "201"),
        ("WAN_GUIDANCE_SCALE", "0.5"),
        ("WAN_GUIDANCE_SCALE_2", "21"),
        ("WAN_FLOW_SHIFT", "0"),
        ("WAN_FRAME", "stretch"),
        ("WAN_SAFETY", "maybe"),
        ("WAN_STORAGE", "ftp"),
        ("WAN_IMAGE_MIN_SIDE", "0"),
        ("WAN_IMAGE_MAX_SIDE", "20000"),
        ("WAN_IMAGE_MAX_BYTES", "20MB"),
        ("WAN_AUDIO_MAX_SECONDS", "-1"),
        ("WAN_AUDIO_MAX_SECONDS", "nan"),
        ("WAN_FETCH_SECONDS", "0"),
        ("WAN_ALLOW_PRIVATE_URLS", "perhaps"),
        ("WAN_CRF", "41"),
        ("WAN_PRESET", "placebo"),
        ("WAN_METADATA", "2"),
        ("WAN_S3_ADDRESSING", "dns"),
        ("WAN_JOB_SECONDS", "0"),
        ("WAN_PROGRESS_SECONDS", "-1"),
        ("WAN_LOG_LEVEL", "loud"),
        ("WAN_LORA", "a.safetensors"),
        ("WAN_LORA", '{"path": "a"}'),
        ("WAN_LORA", '[{"scale": 1}]'),
        ("WAN_LORA", '[{"path": "a", "strength": 1}]'),
        ("WAN_LORA", '[{"path": "a", "expert": "middle"}]'),
        ("WAN_LORA", '[{"path": "a", "scale": NaN}]'),
        ("WAN_LORA_UNUSED", "1.5"),
        ("WAN_PRICES", "0.1"),
        ("WAN_PRICES", "cheap"),
        ("WAN_PRICES", '{"1280*720": "cheap", "1920*1080": 1}'),
        ("WAN_PRICES", '{"720p": 0.1}'),
        ("WAN_PRICES", '{"1280*720": -1}'),
        ("WAN_DEVICE", "banana"),
        ("WAN_MODEL", "wan\ttiny"),
        ("WAN_SPOOL_DIR", " "),
        ("WAN_TRUSTED_PROXIES", "nginx"),
        ("WAN_CORS_ORIGINS", "www.example.com"),
        ("WAN_CORS_ORIGINS", "https://www.example.com/app"),
        ("HF_ENDPOINT", "hf-mirror.com"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_variable(
    variable: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    assert refusal().startswith(f"{variable} is wrong: ")


URLS = (
    *("WAN_PUBLIC_BASE_URL", "WAN_PUBLIC_URL", "WAN_PROMPT_URL", "WAN_RUNPOD_URL"),
    "BUCKET_ENDPOINT_URL",
)
NO_URLS = ["pub.example.com", "//h", "https://", "https:/h", "ftp://h", "https://a b", "http://["]
NO_URLS += ["https://h:0", "https://h:99999", "https://<bucket>.example.com", '"https://h"']
KEYS = ("WAN_PROMPT_API_KEY", "WAN_RUNPOD_KEY", "WAN_RUNPOD_ENDPOINT", "BUCKET_NAME")
KEYS += ("BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY")


@pytest.mark.parametrize("text", NO_URLS)
@pytest.mark.parametrize("variable", URLS)
def test_a_text_that_is_not_a_url_is_refused_with_an_example(
    variable: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    sentence = refusal()
    assert sentence.startswith(f"{variable} is wrong: it must be an http or https URL such as http")


@pytest.mark.parametrize("text", ["https://h/?a=b", "https://h/#a", "https://me:pw@h"])
@pytest.mark.parametrize("variable", ["WAN_PUBLIC_BASE_URL", "WAN_PUBLIC_URL", "WAN_RUNPOD_URL"])
def test_a_url_to_which_paths_are_added_must_have_no_query(
    variable: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    assert refusal().startswith(f"{variable} is wrong: it must be without a query")


@pytest.mark.parametrize("around", ["{}\n", " {}", "{}\r\n", "\t{} "])
@pytest.mark.parametrize("variable", [*KEYS, "WAN_MODEL"])
def test_blanks_around_a_value_are_removed_with_a_warning(
    variable: str, around: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(variable, around.format(SECRET))
    settings = Settings.load()
    assert SECRET in settings.with_secrets().values()
    assert f"{variable} has blanks or line breaks around it" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("text", ["{}\n{}", "{}\0", "a {}", "'{}'", '"{}"', "{}\u200b", "\ufeff{}"])
@pytest.mark.parametrize("variable", KEYS)
def test_a_key_that_no_header_accepts_is_refused_and_not_shown(
    variable: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "\0" not in text:  # no variable can hold it, but a Python caller can
        monkeypatch.setenv(variable, text.format(SECRET, SECRET))
        assert refusal().startswith(f"{variable} is wrong: it must be ")
        assert SECRET not in refusal()
    field = variable.removeprefix("WAN_").lower()
    with pytest.raises(ValidationError) as caught:
        Settings(**{field: text.format(SECRET, SECRET)})
    assert SECRET not in str(caught.value)


def test_a_list_may_have_line_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAN_CORS_ORIGINS", "https://a.example,\n  http://localhost:3000\n")
    monkeypatch.setenv("WAN_TRUSTED_PROXIES", "10.0.0.0/8,\n ::1")
    settings = Settings.load()
    assert settings.cors_origins == ("https://a.example", "http://localhost:3000")
    assert settings.trusted_proxies == ("10.0.0.0/8", "::1")


def test_a_refusal_is_one_sentence_that_says_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAN_STEPS", "four")
    sentence = refusal()
    assert sentence.isprintable()
    assert sentence.endswith(" `python -m wan_engine settings` describes each setting.")


def test_a_refusal_does_not_show_its_internals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAN_STEPS", "four")
    with pytest.raises(ConfigurationError) as caught:
        Settings.load()
    assert (caught.value.__cause__, caught.value.__suppress_context__) == (None, True)


# --- secrets -------------------------------------------------------------------------------------


SECRETS = {
    "BUCKET_ACCESS_KEY_ID": "AKIDEXAMPLE",
    "BUCKET_SECRET_ACCESS_KEY": SECRET,
    "WAN_PROMPT_API_KEY": "sk-prompts",
    "WAN_PROMPT_URL": "api-key=in-a-query",
    "WAN_RUNPOD_KEY": "rpa_EXAMPLE",
    "WAN_DATABASE_URL": "pass/word:1",
}
URLS_AROUND = {
    "WAN_PROMPT_URL": "https://prompts.example/v1?{}",
    "WAN_DATABASE_URL": "postgresql://wan:{}@db.example/wan",
}


def shows_a_secret(text: object) -> bool:
    return any(secret in str(text) for secret in SECRETS.values())


@pytest.fixture
def secretive(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with every secret set."""
    for variable, secret in SECRETS.items():
        monkeypatch.setenv(variable, URLS_AROUND.get(variable, "{}").format(secret))
    return Settings.load()


def test_every_field_named_like_a_secret_is_a_secret(secretive: Settings) -> None:
    values = {env_name(name): getattr(secretive, name) for name in Settings.model_fields}
    assert {name for name, value in values.items() if isinstance(value, SecretStr)} == set(SECRETS)
    # Names and hashes of the gateway's keys, and a number.
    others = {"WAN_API_KEYS", "WAN_IN_FLIGHT_KEY_BYTES"}
    named = {name for name in values if re.search("KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", name)}
    assert named - others <= set(SECRETS)


SHOWN: dict[str, Callable[[Settings], object]] = {
    "repr": repr,
    "str": str,
    "format": "{}".format,
    "dump": Settings.model_dump,
    "json": Settings.model_dump_json,
}


@pytest.mark.parametrize("show", SHOWN.values(), ids=SHOWN)
def test_no_secret_is_shown(show: Callable[[Settings], object], secretive: Settings) -> None:
    assert not shows_a_secret(show(secretive))


def test_no_secret_gets_into_the_log(secretive: Settings) -> None:
    formatter = logs.RedactingFormatter("%(message)s", logs.secrets_of(secretive))
    for secret in SECRETS.values():
        line = formatter.format(logging.makeLogRecord({"msg": f"somebody logs {secret} here"}))
        assert line == "somebody logs ... here"


def test_a_password_in_the_buckets_url_is_not_shown() -> None:
    shown = repr(Settings(bucket_endpoint_url="https://me:hunter2@s3.example.com/clips"))
    assert "hunter2" not in shown


def test_only_the_secret_part_of_a_url_is_removed_from_the_log(secretive: Settings) -> None:
    formatter = logs.RedactingFormatter("%(message)s", logs.secrets_of(secretive))
    record = logging.makeLogRecord({"msg": "https://prompts.example/v1 does not answer"})
    assert formatter.format(record) == "https://prompts.example/v1 does not answer"


def test_another_process_gets_the_secrets(secretive: Settings) -> None:
    sent = json.loads(json.dumps(secretive.with_secrets()))
    assert Settings(**sent) == secretive
    assert sent["runpod_key"] == SECRETS["WAN_RUNPOD_KEY"]


@pytest.mark.parametrize("name", RetiredSettings.model_fields)
def test_a_deprecated_setting_is_read_with_advice(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    Settings.load()
    assert caplog.text == ""
    monkeypatch.setenv(env_name(name), "0" if name == "runpod_claims" else "2048")
    if name == "reference_min_fps":
        monkeypatch.setenv(env_name(name), "12")
    found = getattr(Settings.load(), name)
    assert found == {"runpod_claims": False, "reference_min_fps": 12}.get(name, 2048)
    assert f"{env_name(name)} is deprecated: unset it" in caplog.text


def test_one_key_may_use_a_quarter_of_the_bytes_in_flight() -> None:
    assert Settings(in_flight_max_bytes=4096).in_flight_of_key_bytes == 1024
    assert Settings(in_flight_key_bytes=2048).in_flight_of_key_bytes == 2048


def test_a_refusal_does_not_show_the_secret_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in BUCKET.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("WAN_STEPS", "four")
    assert SECRET not in refusal()


ROOT = Path(__file__).parents[1]
READERS = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv", "expandvars"}
READERS |= {"BaseSettings", "EnvSettingsSource", "load_dotenv", "dotenv_values"}


def _reads_the_environment(source: str) -> bool:
    """Whether a name that reads the environment is used, imported or spelled for `getattr`, or
    typer's option for it."""
    return any(
        (isinstance(node, ast.Attribute) and node.attr in READERS)
        or (isinstance(node, ast.ImportFrom) and READERS & {name.name for name in node.names})
        or (isinstance(node, ast.Name) and node.id in READERS)
        or (isinstance(node, ast.Constant) and node.value in READERS)
        or (isinstance(node, ast.keyword) and node.arg == "envvar")
        for node in ast.walk(ast.parse(source))
    )


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.environ['A']",
        "import os as o\no.getenv('A')",
        "from os import environ",
        "import os\ngetattr(os, 'environ')",
        "typer.Option(envvar='A')",
        "class Mine(BaseSettings): ...",
    ],
)
def test_the_search_for_readers_of_the_environment_finds_them(source: str) -> None:
    assert _reads_the_environment(source)


def test_only_the_settings_and_the_handler_read_the_environment() -> None:
    sources = [ROOT / "handler.py", *(ROOT / "wan_engine").rglob("*.py")]
    readers = {
        path.relative_to(ROOT).as_posix()
        for path in sources
        if _reads_the_environment(path.read_text("utf-8"))
    }
    settings = {"wan_engine/settings/__init__.py", "wan_engine/settings/environment.py"}
    assert readers == {"handler.py", *settings}


OURS = "pinned_max_round_threshold_mb:1,expandable_segments:True"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, OURS),
        ({"PYTORCH_ALLOC_CONF": OURS}, OURS),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, f"max_split_size_mb:64,{OURS}"),
        (
            {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"},
            "expandable_segments:False,pinned_max_round_threshold_mb:1",
        ),
    ],
)
def test_torch_gets_its_memory_settings(
    given: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    tell_libraries()
    assert os.environ["PYTORCH_ALLOC_CONF"] == expected


def test_the_image_has_the_memory_settings_of_torch() -> None:
    assert f"PYTORCH_ALLOC_CONF={OURS}\n" in (ROOT / "Dockerfile").read_text("utf-8")


def test_the_handler_sets_only_the_log_level_of_the_sdk() -> None:
    read = re.findall(r"os\.(?:environ|getenv)\S*", (ROOT / "handler.py").read_text("utf-8"))
    assert read == ['os.environ.setdefault("RUNPOD_LOG_LEVEL",']


def test_every_wrong_variable_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAN_STEPS", "zero")
    monkeypatch.setenv("WAN_CRF", "99")
    monkeypatch.setenv("WAN_LORA", "not json")
    monkeypatch.setenv("WAN_FPS", "1000")
    told = refusal()
    assert told.count("WAN_FPS is wrong: ") == 1 and "60, or 'native'." in told
    assert "WAN_STEPS is wrong: " in told and "WAN_LORA is wrong: it must be JSON." in told
    assert "WAN_CRF is wrong: Input should be less than or equal to 40." in told


def test_a_list_is_shown_in_the_form_of_its_variable() -> None:
    shown = {row.variable: row.default for row in described()}
    assert shown["WAN_ENDPOINTS"] == "wan-2-6-i2v,wan-2-6-r2v,wan-2-6-t2v"
