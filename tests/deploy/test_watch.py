"""Alerts, dashboard, docs/operations.md: Prometheus understands them, and they name metrics and events that exist."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.engine import make_url

from srm.config import Settings
from srm.db.database import Database
from srm.db.embedded import programs
from tests import tools
from tests.concurrency.players import Player
from tests.entitlement_server import EntitlementServer, entitlement_server
from tests.support import ROOT, Factory, api, environment, http, wait_until

ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "srm.json"
PAGE = ROOT / "docs" / "operations.md"
SECTION = re.compile(r"^### (\w+)\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)

REQUESTS = 'srm_request_seconds_count{method="PUT",route="/srm/v1/sessions/<session_id>",instance="%s",outcome="%s"}'
BUCKET = 'srm_request_seconds_bucket{method="PUT",route="/srm/v1/sessions/<session_id>",outcome="2xx",le="%s"}'
WAITS = 'srm_thread_wait_seconds_bucket{instance="a",le="%s"}'
REFUSALS = 'srm_refusals_total{error_code="SRM-0006",rule="max_sessions",observed="false"}'
UP = 'srm_database_up{instance="a"}'

Series = dict[str, str]
Result = subprocess.CompletedProcess[str]

CASES: dict[str, tuple[Series, Series, str]] = {
    "SrmDown": ({'up{job="srm",instance="a"}': "0x120"}, {'up{job="srm",instance="a"}': "1x120"}, "5m"),
    "SrmErrors": (
        {REQUESTS % ("a", "2xx"): "0+980x120", REQUESTS % ("b", "SRM-0010"): "0+20x120"},
        {REQUESTS % ("a", "2xx"): "0+980x120", REQUESTS % ("b", "SRM-0006"): "0+20x120"},
        "15m",
    ),
    "SrmKeepAlivesSlow": (
        {BUCKET % "0.1": "0+950x120", BUCKET % "0.3": "0+1000x120", BUCKET % "+Inf": "0+1000x120"},
        {BUCKET % "0.1": "0+995x120", BUCKET % "0.3": "0+1000x120", BUCKET % "+Inf": "0+1000x120"},
        "30m",
    ),
    "SrmThreadsBusy": (
        {WAITS % "0.3": "0+980x120", WAITS % "1": "0+1000x120", WAITS % "+Inf": "0+1000x120"},
        {WAITS % "0.3": "0+995x120", WAITS % "1": "0+1000x120", WAITS % "+Inf": "0+1000x120"},
        "15m",
    ),
    "SrmRefusalsJump": (
        {REFUSALS: "0+2x1400 2800+40x40", "srm_setups_total": "0+100x1440"},
        {REFUSALS: "0+12x1400 16800+20x40", "srm_setups_total": "0+100x1440"},
        "1439m",
    ),
    "SrmDatabaseDown": ({UP: "0x120"}, {UP: "1x120"}, "5m"),
    "SrmDatabaseUnsteady": (
        {
            'srm_database_connect_failures_total{instance="a"}': "0x120",
            'srm_database_not_asked_total{instance="a"}': "0+1x120",
        },
        {
            'srm_database_connect_failures_total{instance="a"}': "7x120",
            'srm_database_not_asked_total{instance="a"}': "5x120",
        },
        "20m",
    ),
    "SrmDatabaseNotSeen": (
        {'srm_database_look_failed{instance="a",part="sessions"}': "1x120", UP: "1x120"},
        {'srm_database_look_failed{instance="a",part="sessions"}': "1x120", UP: "0x120"},
        "20m",
    ),
    "SrmSchemaBehind": (
        {"srm_schema_behind": "1x120", "srm_schema_ahead": "0x120"},
        {"srm_schema_behind": "0x120", "srm_schema_ahead": "1x120"},
        "20m",
    ),
    "SrmSchemaAhead": (
        {"srm_schema_behind": "0x400", "srm_schema_ahead": "1x400"},
        {"srm_schema_behind": "0x400", "srm_schema_ahead": "1x200 0x200"},
        "300m",
    ),
    "SrmOutage": ({"srm_available_seconds": "0+60x120"}, {"srm_available_seconds": "300+60x120"}, "4m"),
    "SrmTickStale": (
        {'srm_tick_age_seconds{instance="a"}': "6x120", 'srm_tick_age_seconds{instance="b"}': "7x120"},
        {'srm_tick_age_seconds{instance="a"}': "6x120", 'srm_tick_age_seconds{instance="b"}': "1x120"},
        "5m",
    ),
    "SrmReaperNotRunning": (
        {"srm_reaper_run_age_seconds": "0+60x120", UP: "1x120"},
        {"srm_reaper_run_age_seconds": "10x120", UP: "1x120"},
        "10m",
    ),
    "SrmReaperLagging": ({"srm_reaper_lag_seconds": "31x120"}, {"srm_reaper_lag_seconds": "4x120"}, "10m"),
    "SrmReaperFailing": (
        {"srm_reaper_failure_age_seconds": "3x120"},
        {"srm_reaper_failure_age_seconds": "0+60x120"},
        "15m",
    ),
    "SrmPartitionsNotAhead": (
        {'srm_partitions_ahead{table="denials"}': "1x120"},
        {'srm_partitions_ahead{table="denials"}': "2x120"},
        "90m",
    ),
    "SrmRowsInDefaultPartition": (
        {'srm_default_partition_rows{table="denials"}': "1x120"},
        {'srm_default_partition_rows{table="denials"}': "0x120"},
        "10m",
    ),
    "SrmEntitlementServiceFailing": (
        {"srm_entitlement_failures_total": "0+10x120", "srm_entitlement_answers_total": "0+90x120"},
        {"srm_entitlement_failures_total": "0+1x120", "srm_entitlement_answers_total": "0+90x120"},
        "15m",
    ),
}
"""Alert → series, minute by minute, at which it fires, series at which it does not, and when to look."""


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def expressions() -> list[str]:
    """Expressions of the dashboard's panels, with its variables filled in."""
    targets = [target for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel.get("targets", [])]
    return [target["expr"].replace("$__rate_interval", "1m") for target in targets]


def promtool(*arguments: object) -> Result:
    command = [tools.need("promtool"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_prometheus_understands_the_alerts() -> None:
    result = promtool("check", "rules", ALERTS)

    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(rules())} rules found" in result.stdout


def firing_rules(tmp_path: Path, series: Series, at: str, name: str) -> str:
    """Output of promtool for the expectation that the alert does not fire; "" when it does not."""
    test = {
        "rule_files": [str(ALERTS)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name_, "values": values} for name_, values in series.items()],
                "alert_rule_test": [{"eval_time": at, "alertname": name, "exp_alerts": []}],
            }
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(json.dumps(test))
    result = promtool("test", "rules", file)
    return "" if result.returncode == 0 else result.stdout + result.stderr


@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires_for_its_fault_and_stays_calm_without_it(name: str, tmp_path: Path) -> None:
    firing, calm, at = CASES[name]

    assert firing_rules(tmp_path, calm, at, name) == ""
    assert f'alertname="{name}"' in firing_rules(tmp_path, firing, at, name)


@pytest.mark.parametrize(
    ("name", "at", "series"),
    [
        pytest.param("SrmDown", "5m", {"other": "1x120"}, id="a host that is not there at all"),
        pytest.param("SrmErrors", "15m", {REQUESTS % ("a", "SRM-0010"): "0+20x120"}, id="nothing but errors"),
        pytest.param("SrmReaperNotRunning", "10m", {UP: "1x120"}, id="a reaper that never ran"),
        pytest.param(
            "SrmEntitlementServiceFailing",
            "15m",
            {'srm_entitlement_failures_total{kind="timeout",answered_as="deny"}': "0+10x120"},
            id="a service that has never answered",
        ),
        pytest.param(
            "SrmRefusalsJump", "30m", {REFUSALS: "0+60x120", "srm_setups_total": "0+40x120"}, id="on the first day"
        ),
        pytest.param(
            "SrmRefusalsJump", "30m", {REFUSALS: "0+60x120", "srm_setups_total": "0x120"}, id="nobody ever let in"
        ),
        pytest.param(
            "SrmRefusalsJump",
            "2880m",
            {REFUSALS: "0+60x3000", "srm_setups_total": "0+40x3000"},
            id="for two days, as on the first",
            marks=pytest.mark.long(10),
        ),
        pytest.param(
            "SrmRefusalsJump",
            "2880m",
            {REFUSALS: "0+30x2820 84600+60x180", "srm_setups_total": "0+70x2820 197400+40x180"},
            id="a second fault on top of a lasting one",
        ),
    ],
)
def test_an_alert_fires_in_an_unusual_case_too(name: str, at: str, series: Series, tmp_path: Path) -> None:
    assert f'alertname="{name}"' in firing_rules(tmp_path, series, at, name)


@pytest.mark.parametrize("name", ["SrmReaperNotRunning", "SrmReaperLagging", "SrmReaperFailing"])
def test_alerts_wait_longer_than_two_of_the_longest_intervals_of_the_reaper(name: str) -> None:
    """A run may come late by an interval, and the metric about it be as old as the last look at the database."""
    interval = Settings.model_json_schema()["properties"]["reaper_interval_seconds"]["maximum"]
    (rule,) = (rule for rule in alerts() if rule["alert"] == name)
    (seconds,) = re.findall(r"_seconds\) [<>] (\d+)", rule["expr"])

    assert float(seconds) >= 2 * interval


@pytest.mark.parametrize(
    ("name", "at", "series"),
    [
        pytest.param("SrmReaperNotRunning", "10m", {UP: "0x120"}, id="the database is away"),
        pytest.param("SrmErrors", "15m", {REQUESTS % ("a", "2xx"): "0+20x120"}, id="without an error"),
        pytest.param("SrmRefusalsJump", "30m", {"srm_setups_total": "0+40x120"}, id="without a refusal"),
        pytest.param(
            "SrmRefusalsJump", "30m", {REFUSALS: "0+30x120", "srm_setups_total": "0+70x120"}, id="what is usual unknown"
        ),
        pytest.param(
            "SrmEntitlementServiceFailing", "15m", {"srm_entitlement_answers_total": "0+9x120"}, id="without a failure"
        ),
    ],
)
def test_an_alert_stays_calm_in_an_unusual_case_too(name: str, at: str, series: Series, tmp_path: Path) -> None:
    assert firing_rules(tmp_path, series, at, name) == ""


def test_each_alert_has_a_section_of_the_operations_page_and_each_section_an_alert() -> None:
    sections = dict(SECTION.findall(PAGE.read_text()))

    assert [rule["alert"] for rule in alerts()] == list(sections)
    assert list(CASES) == list(sections)
    for rule in alerts():
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("critical", "warning")
        for word in ("Means", "Viewers notice", "Check", "Do", "Over"):
            assert f"**{word}:**" in sections[rule["alert"]], (rule["alert"], word)
        assert "```sh" in sections[rule["alert"]]


def test_links_of_the_operations_page_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)]+)\)", PAGE.read_text()):
        path, _, anchor = link.partition("#")
        page = PAGE.parent / path if path else PAGE
        assert page.exists()
        headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {heading.lower().replace(",", "").replace(" ", "-") for heading in headings}, (
            link
        )


def test_the_scrape_configuration_of_the_operations_page_is_right(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "prometheus.yml").write_text(block)
    (tmp_path / "alerts.yml").write_text(ALERTS.read_text())

    result = promtool("check", "config", tmp_path / "prometheus.yml")

    assert result.returncode == 0, result.stdout + result.stderr


def test_the_operations_page_asks_where_nginx_listens() -> None:
    """SRM itself listens on a socket of systemd, or on a port of its container."""
    (address,) = re.findall(r"^listen ([^;]+);", (ROOT / "deploy/nginx/srm/operators.conf").read_text(), re.MULTILINE)
    text = PAGE.read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (job,) = yaml.safe_load(block)["scrape_configs"]

    assert job["static_configs"] == [{"targets": [address]}]
    assert set(re.findall(r"http://([^/\s]+)", text)) == {address}
    published = yaml.safe_load((ROOT / "deploy/container/compose.yaml").read_text())["services"]["nginx"]["ports"]
    assert f"{address}:{address.rpartition(':')[2]}" in published


@pytest.fixture
def server() -> Iterator[EntitlementServer]:
    with entitlement_server() as server:
        yield server


@pytest.fixture
def watched_url(clone: Callable[[], str]) -> str:
    """A database that notes a failed run of the reaper, and an outage that is over."""
    url = clone()
    make_reaper_failed_and_outage_over(url)
    return url


@pytest.fixture
def as_pasted(watched_url: str, outside: Callable[[str], str], tmp_path: Path) -> Callable[[str], Result]:
    """Runs a command of the page in a shell where "The way in" has been pasted, on `watched_url`."""
    url = watched_url
    place, superuser = conninfo_to_dict(url), conninfo_to_dict(outside(url))["user"]

    def run(code: str) -> Result:
        for shown, here in {
            "db.example": str(place["host"]),
            "dbname=srm": f"dbname={place['dbname']}",
            ":srm:": f":{place['dbname']}:",
            "user=postgres": f"user={superuser}",
            "/opt/srm/bin/srm": f"{sys.executable} -m srm.cli",
        }.items():
            code = code.replace(shown, here)
        variables = {
            "HOME": str(tmp_path),
            "PATH": f"{programs()}:{os.environ['PATH']}",
            "PGPORT": str(place.get("port", 5432)),
        }
        if "user=srm_owner" in code:
            variables["PGPASSWORD"] = "password"
        command = ["bash", "-c", code]
        return subprocess.run(
            command,
            env=environment(**variables),
            input="password\n",
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    way_in = re.findall(r"## The way in\n.*?```sh[^\n]*\n(.*?)```", PAGE.read_text(), re.DOTALL)
    result = run(way_in[0])
    assert result.returncode == 0, result.stderr
    assert "srm_readonly" in result.stdout
    assert (tmp_path / ".pgpass").stat().st_mode & 0o777 == 0o600
    return run


def checks() -> list[str]:
    """The shell blocks of the page that change nothing: all but the way in, and ending and vacuuming."""
    blocks = re.findall(
        r"^```sh test=tests/deploy/test_watch\.py\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    return [block for block in blocks if ".pgpass" not in block and "psql 'host=" not in block]


def test_every_check_of_the_operations_page_runs_as_srm_readonly(
    as_pasted: Callable[[str], Result], watched_url: str, server: EntitlementServer, tmp_path: Path
) -> None:
    """On a real database, service, metrics and log; only `systemctl` and `journalctl` are stubs."""
    assert len(checks()) >= 20
    variables = {"SRM_ENTITLEMENTS": "http", "SRM_ENTITLEMENTS_URL": server.url, "SRM_LOG_FORMAT": "json"}
    log = tmp_path / "api.log"
    with api(watched_url, log, workers=1, variables=variables) as (base, _):
        http("POST", f"{base}/srm/v1/sessions")
        here = f'journalctl() {{ cat "{log}"; }}; systemctl() {{ echo "active (running)"; }}\n'
        for block in checks():
            result = as_pasted(here + block.replace("http://127.0.0.1:8081", base))
            assert result.stderr == "", block
            assert result.stdout or "grep" in block, block


def test_the_audit_of_the_operations_page_works(as_pasted: Callable[[str], Result]) -> None:
    (command,) = re.findall(r"`(SRM_DATABASE_URL=.*? audit)`", PAGE.read_text())

    assert as_pasted(command).stdout.startswith("clean")


def test_the_holder_of_a_lock_is_found_by_srm_readonly_and_ended_by_a_dba(
    as_pasted: Callable[[str], Result], url: str
) -> None:
    (look,) = re.findall(
        r'^psql service=srm -c "[^"]*"', dict(SECTION.findall(PAGE.read_text()))["SrmErrors"], re.MULTILINE
    )
    end, vacuum = re.findall(r"^psql 'host=.*$", PAGE.read_text(), re.MULTILINE)
    database = as_pasted("psql service=srm -Atc 'SELECT current_database()'").stdout.strip()
    mine = make_url(url).set(database=database).render_as_string(hide_password=False)
    with psycopg.connect(mine) as holder, psycopg.connect(mine, autocommit=True) as waiter:
        holder.execute("SET idle_in_transaction_session_timeout = 0; LOCK TABLE srm.accounts")
        waiter.execute("SET statement_timeout = '60s'; SET lock_timeout = '60s'")
        waiter.pgconn.send_query(b"SELECT 'somebody waits' FROM srm.accounts")
        wait_until(lambda: "somebody waits" in (seen := as_pasted(look).stdout) and "LOCK TABLE" in seen)
        pid = str(holder.info.backend_pid)
        assert pid in as_pasted(look).stdout

        assert "ermission denied" in as_pasted(f"psql service=srm -c 'SELECT pg_terminate_backend({pid})'").stderr
        assert as_pasted(end.replace("4711", pid)).returncode == 0

        assert (result := waiter.pgconn.get_result()) is not None
        assert result.error_message == b""
        assert waiter.pgconn.get_result() is None
        holder.close()
    assert (done := as_pasted(vacuum)).returncode == 0
    assert (done.stdout, done.stderr) == ("VACUUM\n", "")


def test_the_dashboard_can_be_imported() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]

    assert len({panel["id"] for panel in panels}) == len(panels)
    (variable,) = dashboard["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    source = {"type": "prometheus", "uid": f"${{{variable['name']}}}"}
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"] == source
            assert panel["targets"]
        for target in panel.get("targets", []):
            assert target["datasource"] == source


def test_prometheus_understands_each_expression_of_the_dashboard(tmp_path: Path) -> None:
    panels = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(expressions())]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": panels}]}))

    result = promtool("check", "rules", file)

    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(panels)} rules found" in result.stdout


def named_metrics() -> set[str]:
    return {
        name
        for expr in [*expressions(), *(rule["expr"] for rule in rules())]
        for name in re.findall(r"\bsrm_\w+", expr)
    }


def test_metrics_have_each_name_in_alerts_dashboard_and_operations_page(
    clone: Callable[[], str], server: EntitlementServer, tmp_path: Path
) -> None:
    """After a setup, a denial and a teardown."""
    url = clone()
    database = Database(url, application_name="srm-tests")
    Factory(database).account("a", max_sessions=1)
    make_reaper_failed_and_outage_over(url)
    variables = {"SRM_ENTITLEMENTS": "http", "SRM_ENTITLEMENTS_URL": server.url}
    with api(url, tmp_path / "log", workers=2, variables=variables) as (base, _):
        with Player(base, "a", "tv") as player:
            session = player.set_up().session_id
            assert player.set_up().error_code == "SRM-0006"
            player.keep_alive(str(session))
            player.tear_down(str(session))
            player.set_up()
            server.behave = lambda call: call.answer([])
            assert player.set_up().error_code == "SRM-0010"
        text = http("GET", f"{base}/metrics", timeout=30).text
    database.dispose()

    told = {re.split(r"[ {]", line)[0] for line in text.splitlines() if not line.startswith("#")}
    assert len(named_metrics()) >= 25
    assert named_metrics() - told == set()
    looked_for = re.findall(r"/metrics \| grep (?:-E )?'(\^[^']*)'", PAGE.read_text())
    assert len(looked_for) >= 6
    for pattern in looked_for:
        for one in alternatives(pattern):
            assert re.search(one, text, re.MULTILINE), one


def alternatives(pattern: str) -> list[str]:
    """The pattern once for each word in its first brackets."""
    before, bracket, rest = pattern.partition("(")
    words, _, after = rest.partition(")")
    return [before + word + after for word in words.split("|")] if bracket else [pattern]


def test_the_operations_page_looks_for_events_that_the_service_logs() -> None:
    source = "".join(path.read_text() for path in (ROOT / "srm").rglob("*.py"))
    looked_for = re.findall(r"""journalctl .*grep (?:-E )?'"\(?([a-z |]+)\)?"'""", PAGE.read_text())
    assert len(looked_for) >= 4
    for event in "|".join(looked_for).split("|"):
        assert f'"{event}"' in source, event


def make_reaper_failed_and_outage_over(url: str) -> None:
    """Note a failed run of the reaper, and an outage that is over."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "UPDATE srm.reaper_state SET ran_at = now(), failed_at = now(), failure = 'expire: it failed'"
        )
        connection.execute("UPDATE srm.availability SET seen_at = now(), available_since = now()")
