"""`srm operator`: who may use the operator API."""

from typing import get_args

import click

from srm import config
from srm.cli.common import open_database, user
from srm.db.models import Role
from srm.operators import keys


@click.group("operator")
def operator_group() -> None:
    """Manage operators and their keys for the operator API."""


@operator_group.command("add")
@click.argument("name")
@click.option(
    "--role",
    required=True,
    type=click.Choice(get_args(Role)),
    help="viewer: reads. care: also ends sessions. admin: also changes everything else",
)
def add_operator(name: str, role: Role) -> None:
    """Create an operator and print the Operator-Key. The key cannot be shown again."""
    with open_database(config.load()) as database, database.transaction() as connection:
        key = keys.add(connection, user(), name, role)
    click.echo(f"{name} has role {role}. Send this in the header Operator-Key:")
    click.echo(key)


@operator_group.command("list")
def list_operators() -> None:
    """List all operators with role, time of creation and time of revocation."""
    with open_database(config.load()) as database, database.transaction() as connection:
        everybody = keys.list_operators(connection)
    for operator in everybody:
        state = "active" if operator.revoked_at is None else f"revoked {operator.revoked_at:%Y-%m-%d %H:%M:%SZ}"
        click.echo(f"{operator.name}\t{operator.role}\tcreated {operator.created_at:%Y-%m-%d %H:%M:%SZ}\t{state}")


@operator_group.command("revoke")
@click.argument("name")
def revoke_operator(name: str) -> None:
    """Revoke the key of an operator. The key stops working at once, in every process."""
    with open_database(config.load()) as database, database.transaction() as connection:
        keys.revoke(connection, user(), name)
    click.echo(f"the key of {name} is revoked")
