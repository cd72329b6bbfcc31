"""``archiver config``: what is in force, what is wrong, what there is; never a secret."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from archiver.settings import SECRETS, LtsBucketSettings, S3Settings, Settings, load
from cli.config import shown
from tests.cli.running import archiver

SECRET = "hunter2-never-shown"
GOOD = f"""
[scicat]
username = "archiver"
password = "{SECRET}"
[s3]
endpoint = "http://127.0.0.1:7070"
secret_key = "{SECRET}"
[lts]
root = "/somewhere"
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "archiver.toml"
    path.write_text(GOOD)
    return path


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_p8_show_masks_every_secret(good: Path, tmp_path: Path, flags: list[str]) -> None:
    shown = archiver(*flags, "-c", good, "config", "show", cwd=tmp_path)
    assert shown.returncode == 0
    assert "/somewhere" in shown.stdout
    assert shown.stdout.count("**********") == 2
    assert SECRET not in shown.stdout + shown.stderr


def test_show_tells_the_environment_over_the_file(good: Path, tmp_path: Path) -> None:
    shown = archiver("--json", "config", "show", cwd=tmp_path, ARCHIVER_LTS__ROOT="/elsewhere")
    assert json.loads(shown.stdout)["settings"]["lts"]["root"] == "/elsewhere"


def test_check_names_the_file_that_is_used(good: Path, tmp_path: Path) -> None:
    checked = archiver("config", "check", cwd=tmp_path)
    assert (checked.returncode, checked.stdout) == (0, "ok: archiver.toml\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[lts]\nrooot = '/lts'", "lts.rooot: is not a known setting"),
        ("[slots]\nlts_copy = 0", "slots.lts_copy: Input should be greater than or equal to 1"),
        ("[scicat]\nusername = 'archiver'", "username and password belong together"),
        ("[scicat]\ntoken = 't'\nusername = 'a'\npassword = 'p'", "give either token, or username and password"),
        ("[staging]\nbucket = 'landing'", "name the same bucket 'landing'"),
        ("[landing]\nurl_template = 's3://landing/'", "every dataset would share one place"),
        ("[landing]\nurl_template = 's3://landing{source_folder}/'", "a / must come first, as in s3://landing/{pid}/"),
        ("[landing]\nurl_template = 's3://{owner_group}/{pid}/'", "a field in the name of the bucket"),
        ("[landing]\nurl_template = 's3:///{pid}/'", "'' is no name of a bucket"),
        ("[landing]\nurl_template = 's3://land ing/{pid}/'", "'land ing' is no name of a bucket"),
        ("[landing]\nurl_template = 's3://landing/{pid:>9}/'", "write {pid}, without : and !"),
        ("[landing]\nurl_template = 's3://landing/{pid!r}/'", "write {pid}, without : and !"),
        ("[landing]\nurl_template = 's3://landing/{pid'", "is not a template"),
        ("[landing]\nurl_template = 'file:///data/../x/{pid}'", "climbs with '..'"),
        ("[landing]\nurl_template = 'file:///data/{pid}'\n[lts]\nroot = '/data/lts'", "lies inside the landing zone"),
        ("[datablock]\ntarget_bytes = 'much'", "is not a size such as 20GiB"),
        ("[retrieval]\nbucket = 'staging'", "name the same bucket 'staging'"),
        ("[retrieval]\nprefix = 'out'", "retrieval.prefix: must end with /"),
        ("[retrieval]\nexpire_days = 6", "expire_days ends before the links"),
        ("[retrieval]\nreserve = '100%'", "retrieval.reserve: must be below 100%"),
        ("[retrieval]\nroots = ['/data']\n[lts]\nroot = '/data/lts'", "lie in one another"),
        ("[lts.bucket]\nname = 'staging'", "lts.bucket and staging.bucket name the same bucket 'staging'"),
        ("[lts.bucket]\nname = 'retrieval'", "lts.bucket and retrieval.bucket name the same bucket"),
        ("[lts.bucket]\nname = 'landing'", "lts.bucket and landing.url_template name the same bucket"),
        ("[lts.bucket]\nprefix = 'in/'", "lts.bucket.name"),
        ("[lts.bucket]\nname = 'a'\nstorage_class = 'glacier'", "lts.bucket.storage_class"),
        ("[lts.bucket]\nname = 'a'\nstorage_class = 'DEEP_ARCHIVE'\nrestore_tier = 'Expedited'", "no Expedited for"),
        ("[lts\nroot = 3", "is not TOML"),
    ],
)
def test_each_mistake_in_the_file_is_named_with_exit_code_2(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    checked = archiver("-c", path, "config", "check", cwd=tmp_path)
    assert checked.returncode == 2
    assert checked.stdout == ""
    assert checked.stderr.startswith("error    ")
    assert said in checked.stderr
    assert "\nnext     " in checked.stderr
    assert "Traceback" not in checked.stderr


def test_p8_a_mistaken_secret_is_named_and_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(f"[scicat]\nusername = 'a'\npasword = '{SECRET}'")
    checked = archiver("-c", path, "config", "check", cwd=tmp_path)
    assert "scicat.pasword" in checked.stderr
    assert SECRET not in checked.stderr


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    checked = archiver("-c", tmp_path / "none.toml", "config", "check", cwd=tmp_path)
    assert checked.returncode == 2
    assert "none.toml is not there" in checked.stderr


def test_a_misspelt_environment_variable_is_refused(tmp_path: Path) -> None:
    checked = archiver("config", "check", cwd=tmp_path, ARCHIVER_LTS__ROOOT="/lts")
    assert checked.returncode == 2
    assert "environment variable ARCHIVER_LTS__ROOOT is no setting" in checked.stderr


def test_nothing_configured_is_not_ok_and_what_is_missing_is_named(tmp_path: Path) -> None:
    checked = archiver("config", "check", cwd=tmp_path)
    assert checked.returncode == 2
    assert checked.stderr.startswith("error    nothing is configured\nexpected scicat.token, or scicat.username")
    assert "lts.root or lts.bucket.name" in checked.stderr
    some = archiver("config", "check", cwd=tmp_path, ARCHIVER_SCICAT__TOKEN="t")
    assert some.returncode == 0
    assert "not set: lts.root or lts.bucket.name" in some.stderr


def test_show_tells_what_temporals_own_environment_overrides(good: Path, tmp_path: Path) -> None:
    more = {"TEMPORAL_ADDRESS": "temporal.example:7233", "TEMPORAL_NAMESPACE": "archive"}
    shown = json.loads(archiver("--json", "config", "show", cwd=tmp_path, **more).stdout)["settings"]["temporal"]
    assert (shown["address"], shown["namespace"]) == ("temporal.example:7233", "archive")
    text = archiver("config", "show", cwd=tmp_path, **more).stdout
    assert "# temporal.address = 'temporal.example:7233' is Temporal's own environment's" in text
    assert tomllib.loads(text)["temporal"]["address"] == "temporal.example:7233"


def test_the_variables_of_the_servers_are_no_settings_and_no_mistakes(good: Path, tmp_path: Path) -> None:
    given = {"ARCHIVER_TEMPORAL_BIN": "/bin/true", "ARCHIVER_VERSITYGW_BIN": "/bin/true", "ARCHIVER_CACHE_DIR": "/tmp"}
    assert archiver("config", "check", cwd=tmp_path, **given).returncode == 0


def test_schema_uncommented_is_a_settings_file_of_the_defaults(tmp_path: Path) -> None:
    text = archiver("config", "schema", cwd=tmp_path).stdout
    lines = [line.removeprefix("#") if line[:1] == "#" and line[:2] != "# " else line for line in text.splitlines()]
    assert Settings(**tomllib.loads("\n".join(lines))) == Settings()


def test_schema_explains_every_setting_and_names_its_variable(tmp_path: Path) -> None:
    text = archiver("config", "schema", cwd=tmp_path).stdout
    tables = {section: field.annotation for section, field in Settings.model_fields.items()}
    tables |= {"landing.s3": S3Settings, "lts.bucket": LtsBucketSettings, "lts.bucket.s3": S3Settings}
    for section, table in tables.items():
        assert isinstance(table, type)
        assert f"[{section}]" in text
        for name, setting in table.model_fields.items():
            assert f"ARCHIVER_{section.replace('.', '__')}__{name}".upper() in text
            assert setting.description, f"{section}.{name} has no description"


@pytest.mark.parametrize("secret", SECRETS, ids=".".join)
def test_every_secret_may_come_from_a_file_and_is_masked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: tuple[str, str]
) -> None:
    section, name = secret
    (tmp_path / "secret").write_text("amqp://user:canary@host/%2F\n")
    variables = {f"ARCHIVER_{section.replace('.', '__')}__{name}_FILE".upper(): str(tmp_path / "secret")}
    if section == "lts.bucket.s3":
        variables["ARCHIVER_LTS__BUCKET__NAME"] = "archive"
    if name == "password":
        variables[f"ARCHIVER_{section}__USERNAME".upper()] = "archiver"
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    found: Any = load(None)
    for part in (*section.split("."), name):
        found = getattr(found, part)
    assert found.get_secret_value() == "amqp://user:canary@host/%2F"
    assert "canary" not in shown(load(None))[0]


def test_schema_as_json_is_a_json_schema(tmp_path: Path) -> None:
    schema = json.loads(archiver("--json", "config", "schema", cwd=tmp_path).stdout)
    assert set(schema["properties"]) == set(Settings.model_fields)
