"""The `srm` command: its commands, and its exit code and one line of text after an error."""

import sys
from importlib import import_module

import click

from srm import version

COMMANDS = {
    "serve": "processes.serve",
    "reaper": "processes.reaper",
    "token": "tokens.token",
    "operator": "operators.operator_group",
    "db": "db.db",
    "audit": "limit_check.audit",
    "demo": "demo.demo_group",
    "import": "bulk.import_",
    "export": "bulk.export",
}
"""Commands, each with its module in this package and its name there."""


class LazyGroup(click.Group):
    """The commands of COMMANDS. A call imports only the module of its command: all modules together take a second."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names of all commands."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return the command; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(".")
        command: click.Command = getattr(import_module(f"srm.cli.{module}"), name)
        return command


def _print_version(context: click.Context, _: click.Parameter, is_asked: bool) -> None:
    if is_asked and not context.resilient_parsing:
        click.echo(f"srm, version {version.build()}")
        context.exit()


@click.group(cls=LazyGroup)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Session Resource Manager. Environment variables SRM_… configure it: see docs/configuration.md."""


def main() -> None:
    """Run the command. An error that an operator can mend is one line on standard error, with exit code 1."""
    try:
        cli()
    except Exception as error:
        from srm.cli.failures import one_line  # SQLAlchemy and Alembic, which not every command imports

        line = one_line(error)
        if line is None:
            raise
        sys.exit(f"srm: {line}")
