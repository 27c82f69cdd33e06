"""`srm token`: Client-Tokens for tests and trials."""

import click

from srm import config
from srm.clients import tokens


@click.group()
def token() -> None:
    """Make Client-Tokens."""


@token.command("issue")
@click.option("--account", required=True, help="Account id")
@click.option("--device", required=True, help="Device id")
@click.option("--ttl", type=click.IntRange(1), default=3600, show_default=True, help="Seconds until the token expires")
def issue_token(account: str, device: str, ttl: int) -> None:
    """Print a Client-Token signed with the configured key."""
    click.echo(tokens.issue(config.load(), account, device, ttl))
