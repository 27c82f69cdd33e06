"""deploy/container: each container has the fewest rights that work, and the files of the image serve requests.

Few machines that run tests have a container engine. So the tests read the files and run the steps of the build.
"""

import hashlib
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy.engine import make_url

from srm.config import Settings
from tests import tools
from tests.deploy.service import DEPLOY, configure, wait_until_ready
from tests.service.test_serve import open_folder, python  # noqa: F401
from tests.support import ROOT, SECRET, SETUP, Factory, Process, environment, free_port, http, issue_token, psql

CONTAINER = DEPLOY / "container"
MADE_BY_OPERATORS = {"./tls"}
SERVICES = ["database", "migrate", "api", "reaper", "nginx"]


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((CONTAINER / "compose.yaml").read_text())


def instructions(name: str) -> list[list[str]]:
    """Arguments of each instruction of this name in the Dockerfile."""
    text = (CONTAINER / "Dockerfile").read_text().replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith(f"{name} ")]


def sources() -> list[str]:
    """Paths that the Dockerfile copies from the checkout."""
    return [word for words in instructions("COPY") if "--from=build" not in words for word in words[:-1]]


def test_compose_has_every_service_and_migrates_before_it_serves(compose: Any) -> None:
    assert list(compose["services"]) == SERVICES
    assert compose["services"]["migrate"]["command"] == ["srm", "db", "upgrade"]
    assert {service["image"] for service in compose["services"].values() if "build" not in service} == {
        compose["services"][name]["image"] for name in ("database", "nginx")
    }
    for name in ("api", "reaper"):
        assert compose["services"][name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"


@pytest.mark.parametrize("name", SERVICES)
def test_each_container_has_no_privileges_and_a_read_only_file_system(compose: Any, name: str) -> None:
    service = compose["services"][name]

    assert service["read_only"] is True
    assert service["user"].partition(":")[0] not in ("", "0", "root")
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices", "userns_mode"} & service.keys()
    assert not [volume for volume in service.get("volumes", []) if "docker.sock" in volume]


def test_compose_publishes_ports_of_nginx_only(compose: Any) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}

    assert published == {"nginx": ["443:8443", "127.0.0.1:8081:8081"]}


def test_compose_and_dockerfile_contain_no_secret(compose: Any) -> None:
    for service in compose["services"].values():
        for variable, value in service.get("environment", {}).items():
            if re.search("SECRET|PASSWORD|URL", variable):
                assert "${" in value, variable
                assert not re.search(r"://[^:]+:[^$]", value), variable
    assert not re.search("SECRET|PASSWORD|DATABASE_URL", (CONTAINER / "Dockerfile").read_text())
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"/deploy/container/.env", "/deploy/container/tls/"} <= set(ignored)


def test_each_container_connects_as_the_role_with_the_fewest_rights(compose: Any) -> None:
    """The scripts of a new database run in the order of their names: first the roles, then their passwords."""
    users = {
        name: make_url(re.sub(r"\$\{[^}]*\}", "x", service["environment"]["SRM_DATABASE_URL"])).username
        for name, service in compose["services"].items()
        if service["image"] == "srm"
    }
    scripts = [volume for volume in compose["services"]["database"]["volumes"] if "initdb.d" in volume]

    assert users == {"migrate": "srm_owner", "api": "srm_application", "reaper": "srm_application"}
    assert [script.split(":")[0] for script in scripts] == ["../postgres/roles.sql", "./passwords.sql"]
    assert scripts == sorted(scripts, key=lambda script: script.split(":")[1])


def test_the_password_script_sets_the_passwords_of_the_environment(
    compose: Any, server_url: str, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transaction is rolled back, because all tests share the roles."""
    given = {"srm_owner": ("OWNER_PASSWORD", "o'wner"), "srm_application": ("APPLICATION_PASSWORD", "application")}
    for variable, password in given.values():
        assert variable in compose["services"]["database"]["environment"]
        monkeypatch.setenv(variable, password)
    look = "SELECT rolname || ' ' || rolpassword FROM pg_authid WHERE rolpassword IS NOT NULL AND rolname LIKE 'srm_%'"
    steps = ["--command", "BEGIN; SET password_encryption = md5", "--file", str(CONTAINER / "passwords.sql")]

    result = psql(
        server_url,
        "--tuples-only",
        "--no-align",
        "--quiet",
        "--set",
        "ON_ERROR_STOP=1",
        *steps,
        "--command",
        look,
        "--command",
        "ROLLBACK",
    )

    assert result.returncode == 0, result.stderr
    found = dict(line.split(" ") for line in result.stdout.splitlines())
    for role, (_, password) in given.items():
        assert found[role] == "md5" + hashlib.md5(f"{password}{role}".encode()).hexdigest()


def test_deploy_names_only_variables_that_srm_has() -> None:
    files = [path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    named = {name for path in files for name in re.findall(r"\bSRM_[A-Z_]+\b", path.read_text())}

    assert {"SRM_DATABASE_URL", "SRM_TOKEN_SECRET", "SRM_TRUSTED_PROXIES"} <= named
    assert named <= {f"SRM_{option.upper()}" for option in Settings.model_fields}


def test_every_mounted_or_copied_file_exists(compose: Any) -> None:
    mounted = [volume.split(":")[0] for volume in compose["services"]["nginx"]["volumes"]]

    assert mounted
    assert sources()
    assert [path for path in mounted if path not in MADE_BY_OPERATORS and not (CONTAINER / path).is_file()] == []
    assert [path for path in sources() if not (ROOT / path).exists()] == []
    build = compose["services"]["migrate"]["build"]
    assert (CONTAINER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).resolve() == CONTAINER / "Dockerfile"


def test_every_image_is_pinned_to_a_version(compose: Any) -> None:
    images = {service["image"] for service in compose["services"].values()} - {"srm"}
    images |= {words[0] for words in instructions("FROM")}

    for image in images:
        assert re.fullmatch(r"[a-z/-]+:\d+\.\d+(\.\d+)?(-[a-z]+)*", image), image


def test_the_image_does_not_run_as_root() -> None:
    assert instructions("USER") == [["10001:10001"]]


def test_only_the_build_stage_has_a_compiler() -> None:
    build, run = (CONTAINER / "Dockerfile").read_text().split("\nFROM ")[1:]

    assert "apt-get install --yes --no-install-recommends gcc libc6-dev" in build
    assert "--requirement requirements/fast.txt" in build
    assert "apt-get" not in run


def test_the_image_installs_only_locked_packages() -> None:
    """pip checks hashes of all packages. It builds SRM with the setuptools that is already installed."""
    commands = [command.split() for words in instructions("RUN") for command in " ".join(words).split("&&")]
    installs = [command for command in commands if "install" in command and command[0].endswith("pip")]

    assert len(installs) == 3
    for command in installs:
        assert ("--require-hashes" in command) is ("." not in command)
        assert "--only-binary" in command or {"--no-deps", "--no-build-isolation"} <= set(command)


def test_nginx_accepts_the_mounted_configuration(compose: Any, tmp_path: Path) -> None:
    """Without two directives that Debian's nginx does not know: `resolve` and the resolver of Docker."""
    folder = tmp_path / "n"
    configure(folder, ["127.0.0.1:1"], 1, 2)
    changes = {
        "api:8080 resolve": "127.0.0.1:8080",
        "resolver 127.0.0.11 valid=2s ipv6=off;": "",
        "/tmp/": f"{folder}/",
    }
    changes |= {"/etc/nginx/tls/": f"{folder}/srm/", "/etc/nginx/conf.d/default.conf": f"{folder}/conf.d/srm.conf"}
    changes |= {"/etc/nginx/": f"{folder}/"}
    replaced = set()
    for volume in compose["services"]["nginx"]["volumes"]:
        source, target, _ = volume.split(":")
        if source in MADE_BY_OPERATORS:
            continue
        text = (CONTAINER / source).read_text()
        for there, here in changes.items():
            text, target = text.replace(there, here), target.replace(there, here)
        Path(target).unlink()
        Path(target).write_text(text)
        replaced.add(Path(target))
    assert replaced == set(folder.rglob("*.conf"))

    result = subprocess.run(
        [tools.need("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-t"], capture_output=True, text=True
    )

    assert result.returncode == 0, result.stderr


def test_nginx_accepts_a_connection_from_each_viewer(compose: Any) -> None:
    """At least 30,000 connections; the configuration of the image allows 1,024."""
    (connections,) = re.findall(r"worker_connections (\d+);", (CONTAINER / "nginx" / "nginx.conf").read_text())

    assert int(connections) >= 30_000
    assert compose["services"]["nginx"]["ulimits"]["nofile"] >= int(connections) + 1000


def test_nginx_looks_up_the_address_of_the_api_again(compose: Any) -> None:
    """The test reads the file: nginx can do this since 1.27.3, and Debian's nginx is older."""
    version = re.findall(r":1\.(\d+)\.", compose["services"]["nginx"]["image"])[0]
    text = (CONTAINER / "nginx" / "upstream.conf").read_text()

    assert int(version) >= 28
    for part in (r"^zone \w+ \w+;$", r"^resolver 127\.0\.0\.11 .*valid=\d+s", r"^server api:8080 resolve\b"):
        assert re.search(part, text, re.MULTILINE)


def test_docker_gets_only_the_copied_files() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()

    assert lines[1] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == set(sources())


@pytest.fixture
def image() -> Iterator[Path]:
    """Folder with SRM as the build stage installs it from the copied files. Dependencies are those of the tests."""
    with open_folder() as folder:
        (folder / "src").mkdir()
        for source in sources():
            (folder / "src" / source).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            copy(ROOT / source, folder / "src" / source)
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--no-compile",
            "--target",
            str(folder / "srm"),
        ]
        subprocess.run([*command, "."], cwd=folder / "src", check=True, capture_output=True)
        shutil.rmtree(folder / "src")
        shutil.copy(DEPLOY / "gunicorn.conf.py", folder / "gunicorn.conf.py")
        subprocess.run(["chmod", "-R", "a=rX", str(folder / "srm")], check=True)
        (folder / "tmp").mkdir()
        (folder / "tmp").chmod(0o777)
        yield folder
        subprocess.run(["chmod", "-R", "u+w", str(folder / "srm")], check=True)


def somebody(url: str) -> dict[str, Any]:
    """Arguments for Popen: a user who is not root, owns no file of the image, and reaches the database.

    For a database on a Unix socket that is the user of the socket.
    """
    if os.geteuid() != 0:
        return {}
    host = make_url(url).query.get("host")
    user = Path(host).stat().st_uid if isinstance(host, str) else pwd.getpwnam("nobody").pw_uid
    return {"user": user, "group": pwd.getpwuid(user).pw_gid, "extra_groups": []}


def test_the_image_serves_requests_without_the_checkout_and_writes_no_file(
    image: Path,
    url: str,
    factory: Factory,
    python: tuple[str, dict[str, str]],  # noqa: F811
) -> None:
    """Start the CMD of the image as a user who owns no file of it. The files are read-only."""
    factory.account("a")
    interpreter, variables = python
    *_, command = instructions("CMD")
    assert [word.strip("[],") for word in command] == ["gunicorn", "--config", "/etc/srm/gunicorn.conf.py", "wsgi:app"]
    bind = f"127.0.0.1:{free_port()}"
    path = os.pathsep.join([str(image / "srm"), *variables.get("PYTHONPATH", "").split(os.pathsep)[1:]])
    variables = {
        "PYTHONPATH": path,
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(image / "tmp"),
        "SRM_BIND": bind,
        "SRM_DATABASE_URL": url,
        "SRM_TOKEN_SECRET": SECRET,
    }
    arguments = ["-m", "gunicorn", "--config", str(image / "gunicorn.conf.py"), "wsgi:app"]
    before = {path: path.stat().st_mtime_ns for path in (image / "srm").rglob("*")}

    with (image / "output").open("wb") as output:
        popen = subprocess.Popen(
            [interpreter, *arguments],
            **somebody(url),
            env=environment(HOME="/nonexistent", **variables),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    process = Process(popen, image / "output")
    try:
        wait_until_ready(process, bind)
        headers = {"Client-Token": issue_token("a", "tv")}
        answer = http("POST", f"http://{bind}/srm/v1/sessions", json=SETUP, headers=headers, timeout=20)
        assert process.stop() == 0, process.text()
    finally:
        process.kill_group()

    assert "successResponse" in answer.text
    assert {path: path.stat().st_mtime_ns for path in (image / "srm").rglob("*")} == before
    assert list((image / "tmp").iterdir()) == []
