"""SRM_CORS_ORIGINS, as a real browser sees it: a player in a page of another origin plays, and reads every answer."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from srm.db.database import Database
from tests.browser import Browser, Site, browser, site
from tests.deploy.service import instance, nginx
from tests.entitlement_server import Call, entitlement_server
from tests.support import NO_SESSION, ROOT, SETUP, Factory, api, free_port, issue_token, rows, wait_until

PLAYER = """
async function ask(method, session = "", {body, headers, ...options} = {}) {
    headers = {"Client-Token": given.token, ...headers};
    const path = `/srm/v1/sessions${session && "/"}${session}`;
    try {
        const answer = await fetch(given.api + path, {method, headers, body: body && JSON.stringify(body), ...options});
        const text = await answer.text();
        return {status: answer.status, headers: Object.fromEntries(answer.headers), body: text && JSON.parse(text)};
    } catch (error) {
        throw new Error(`${method} ${path}: ${error}`);
    }
}
const idOf = (setup) => setup.body.successResponse.sessionId;
const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
"""

PLAYS = """
const headers = {"Content-Type": "application/json", "Idempotency-Key": "play-1", "X-Correlation-Id": "of-a-page"};
const setup = await ask("POST", "", {body: given.setup, headers});
const session = idOf(setup);
const keepAlive = await ask("PUT", session);
await sleep(given.pause);
const answers = [setup, keepAlive, await ask("PUT", session), await ask("GET"), await ask("DELETE", session)];
report(answers);
"""

IS_REFUSED = """
const first = await ask("POST", "", {body: given.setup});
const answers = [
    await ask("POST", "", {body: given.setup}),
    await ask("POST", "", {body: {content: "?"}}),
    await ask("PUT", given.noSession, {headers: {"Client-Token": "none"}}),
    await ask("PUT", given.noSession),
];
await ask("DELETE", idOf(first));
answers.push(await ask("PUT", idOf(first)));
answers.push(await ask("POST", "", {body: {content: {contentID: "unknown today", contentType: "COD"}}}));
report(answers);
"""

IS_A_STRANGER = """
const failures = [];
for (const [method, session, options] of [
    ["POST", "", {body: given.setup}],
    ["PUT", given.session],
    ["DELETE", given.session],
    ["GET", ""],
]) {
    failures.push(await ask(method, session, options).then((answer) => answer.status, () => "failed"));
}
const unasked = {method: "POST", body: JSON.stringify(given.setup)};  // needs no preflight
failures.push(await fetch(`${given.api}/srm/v1/sessions`, unasked).then((answer) => answer.status, () => "failed"));
const blind = await fetch(`${given.api}/healthz`, {mode: "no-cors"});
report([failures, blind.type]);
"""

SCRIPT = r"^```js test=tests/service/test_browser_player\.py\n(.*?)^```"
(TEARS_DOWN,) = re.findall(SCRIPT, (ROOT / "docs" / "client-api.md").read_text(), re.MULTILINE | re.DOTALL)

GOES_AWAY = f"""
const {{api, token}} = given;
const session = idOf(await ask("POST", "", {{body: given.setup}}));
{TEARS_DOWN}
if (given.keepsAlive) await ask("PUT", session);
await report("plays");
if (given.elsewhere) location.href = given.elsewhere;
"""

IS_TOO_FAST = """
report(await Promise.all(Array.from({length: given.times}, () => ask("GET"))));
"""

ASKS_ON = """
while ((await ask("GET")).status != 200) await sleep(0.2);
await report("asked");
let answer;
do {
    await sleep(0.2);
    answer = await ask("GET");
} while (answer.status == 200);
report(answer);
"""

REMEMBERED_SECONDS = 5
"""Seconds that a browser remembers a preflight by default (Fetch Standard, "CORS-preflight fetch")."""


@dataclass(frozen=True)
class Service:
    """The API, which allows the pages of one site, and its database."""

    base: str
    page: Site
    database: Database
    log: Path

    def let_play(self, page: Site, account: str, script: str, **given: Any) -> None:
        """Make the page a player on the television of the account that runs this script."""
        player = {"api": self.base, "token": issue_token(account, "tv"), "setup": SETUP}
        page.show(PLAYER + script, **player, **given)

    def end_reasons(self, account: str) -> list[str | None]:
        """End reasons of all sessions of the account; None for an active one."""
        sql = "SELECT end_reason FROM srm.sessions WHERE account_id = :account"
        return [row[0] for row in rows(self.database, sql, account=account)]

    def methods(self) -> list[str]:
        """HTTP methods of all requests for sessions so far, preflights included, in their order."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line["method"] for line in lines if "method" in line and line["route"] not in ("/readyz", "/healthz")]


@pytest.fixture(scope="module")
def service(clone: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An API that logs every request. Its entitlement service grants the film and breaks all other connections."""

    def know_the_film(call: Call) -> None:
        if b'"film"' in call.question.body:
            call.answer({"granted": True})
        else:
            call.hang_up()

    url = clone()
    log = tmp_path_factory.mktemp("browser") / "api.log"
    database = Database(url, application_name="srm-tests")
    with site() as page, entitlement_server(know_the_film) as entitlements:
        variables = {
            "SRM_CORS_ORIGINS": page.origin,
            "SRM_ACCESS_LOG_SAMPLE": "1",
            "SRM_LOG_FORMAT": "json",
            "SRM_ENTITLEMENTS": "http",
            "SRM_ENTITLEMENTS_URL": entitlements.url,
        }
        with api(url, log, workers=1, variables=variables) as (base, _):
            yield Service(base, page, database, log)
    database.dispose()


@pytest.fixture
def account(service: Service) -> str:
    """Id of a new account with one slot."""
    return Factory(service.database).account(str(uuid4()), max_sessions=1)


@pytest.fixture
def elsewhere() -> Iterator[Site]:
    """Site that SRM_CORS_ORIGINS does not name."""
    with site() as started:
        started.show("")
        yield started


@pytest.fixture
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


def test_an_allowed_page_sets_up_keeps_alive_lists_and_tears_down(
    service: Service, account: str, chromium: Browser
) -> None:
    """The browser sends one preflight for each URL, not one before every keep-alive."""
    before = service.methods()
    service.let_play(service.page, account, PLAYS, pause=REMEMBERED_SECONDS + 1)

    chromium.open(service.page.origin)
    setup, *keep_alives, listing, teardown = service.page.report()

    admitted = setup["body"]["successResponse"]
    assert admitted["timeout"] == 30
    assert setup["headers"]["x-correlation-id"] == "of-a-page"
    assert [one["sessionId"] for one in listing["body"]["successResponse"]["sessions"]] == [admitted["sessionId"]]
    for answer in (*keep_alives, teardown):
        assert (answer["status"], answer["body"]) == (200, "")
        assert len(answer["headers"]["x-correlation-id"]) == 36
    assert service.end_reasons(account) == ["teardown"]
    asked = service.methods()[len(before) :]
    assert asked == ["OPTIONS", "POST", "OPTIONS", "PUT", "PUT", "GET", "DELETE"]


def test_an_allowed_page_reads_denials_and_errors(service: Service, account: str, chromium: Browser) -> None:
    service.let_play(service.page, account, IS_REFUSED, noSession=NO_SESSION)

    chromium.open(service.page.origin)
    answers = service.page.report()

    errors = [(answer["status"], answer["body"]["errorResponse"]) for answer in answers]
    assert [(status, error["status"], error["errorCode"]) for status, error in errors] == [
        (200, "DENIED", "SRM-0006"),
        (400, "ERROR", "SRM-0002"),
        (401, "ERROR", "SRM-0003"),
        (404, "ERROR", "SRM-0008"),
        (410, "ERROR", "SRM-0009"),
        (503, "ERROR", "SRM-0010"),
    ]
    *_, ended, unavailable = (answer["headers"] for answer in answers)
    assert ended["srm-end-reason"] == "teardown"
    assert int(unavailable["retry-after"]) > 0
    assert all(answer["headers"]["x-correlation-id"] for answer in answers)


def test_a_page_of_another_origin_reads_no_answer_and_sets_nothing_up(
    service: Service, account: str, elsewhere: Site, chromium: Browser
) -> None:
    """Its preflights are refused. A request without a preflight is sent, but the page cannot read the answer."""
    stranger = Factory(service.database).account(f"stranger at {account}")
    session = Factory(service.database).session(stranger)
    before = service.methods()
    service.let_play(elsewhere, stranger, IS_A_STRANGER, session=str(session))

    chromium.open(elsewhere.origin)
    outcomes, blind = elsewhere.report()

    assert outcomes == ["failed"] * 5
    assert blind == "opaque"
    assert service.methods()[len(before) :] == ["OPTIONS", "OPTIONS", "OPTIONS", "OPTIONS", "POST"]
    assert service.end_reasons(stranger) == [None]


@pytest.mark.parametrize("keeps_alive", [True, False], ids=["after a keep-alive", "before any keep-alive"])
@pytest.mark.parametrize("closes", [True, False], ids=["tab closed", "gone elsewhere"])
def test_a_page_that_goes_away_tears_its_session_down(
    service: Service, account: str, elsewhere: Site, chromium: Browser, closes: bool, keeps_alive: bool
) -> None:
    """The page runs the block of docs/client-api.md, also before the browser has sent a preflight for the teardown."""
    target = None if closes else elsewhere.origin
    service.let_play(service.page, account, GOES_AWAY, keepsAlive=keeps_alive, elsewhere=target)

    tab = chromium.open(service.page.origin)
    assert service.page.report() == "plays"
    if closes:
        assert service.end_reasons(account) == [None]
        chromium.close(tab)

    wait_until(lambda: service.end_reasons(account) == ["teardown"])


def test_an_allowed_page_reads_429_and_503_of_nginx(
    clone: Callable[[], str], chromium: Browser, tmp_path: Path
) -> None:
    """The page reads the 503 of nginx after a successful preflight."""
    bind = f"127.0.0.1:{free_port()}"
    with (
        site() as page,
        instance(clone(), tmp_path / "api.log", bind, variables={"SRM_CORS_ORIGINS": page.origin}) as gunicorn,
        nginx(tmp_path / "nginx", bind, origins=f'"{page.origin}" $http_origin;\n') as front,
    ):
        player = {"api": front.world, "token": issue_token("a", "tv")}
        page.show(PLAYER + IS_TOO_FAST, **player, times=100)
        chromium.open(page.origin)
        answers = page.report()
        page.show(PLAYER + ASKS_ON, **player)
        chromium.open(page.origin)
        assert page.report() == "asked"
        gunicorn.kill_group()
        away = page.report()

    assert {answer["status"] for answer in answers} == {200, 429}
    for answer in (*(answer for answer in answers if answer["status"] == 429), away):
        assert int(answer["headers"]["retry-after"]) > 0
        assert answer["headers"]["x-correlation-id"]
    assert (away["status"], away["body"]["errorResponse"]["errorCode"]) == (503, "SRM-0010")
