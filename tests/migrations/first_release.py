"""The first release, whose schema is 0004, as processes on the libraries of today.

That release is on the road, and does not change with the code: `first_release.zip` is its code as of 2026-11-22, of
the last commit before 0005, "Give a request one patience, connecting and repeating included":

    TZ=UTC git archive --format=zip -9 --output tests/migrations/first_release.zip 34dd253 migrations srm wsgi.py
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

from tests import support
from tests.cli import command
from tests.support import Process

REVISION = "0004"


@dataclass(frozen=True)
class FirstRelease:
    """The code of the first release, unpacked into a folder."""

    folder: Path

    @classmethod
    def unpacked(cls, folder: Path) -> "FirstRelease":
        """Unpack the code into the folder."""
        with ZipFile(Path(__file__).with_suffix(".zip")) as file:
            file.extractall(folder)
        return cls(folder)

    def srm(self, url: str, *arguments: str) -> command.Result:
        """Return the command `srm …` of the first release for a database."""
        return command.srm(*arguments, cwd=self.folder, SRM_DATABASE_URL=url, PYTHONPATH=str(self.folder))

    def api(self, url: str, output: Path) -> AbstractContextManager[tuple[str, Process]]:
        """Run its API; yield the process and the base URL once it is alive. It is ready only at its own schema."""
        return support.api(
            url,
            output,
            cwd=self.folder,
            up="/healthz",
            variables={
                "PYTHONPATH": str(self.folder),
                "GUNICORN_CMD_ARGS": "--http-parser auto",  # it asks for the one in C, which not everybody can build
            },
        )

    def reaper(self, url: str, output: Path, variables: Mapping[str, str]) -> AbstractContextManager[Process]:
        """Run its reaper."""
        all_variables = {"PYTHONPATH": str(self.folder), **variables}
        return support.reaper(url, output, cwd=self.folder, variables=all_variables)
