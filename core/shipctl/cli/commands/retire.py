"""`shipctl retire`."""

from __future__ import annotations

from pathlib import Path

import click

from shipctl.cli.output import Output, common_options, json_option
from shipctl.cli.registering import opened_registry
from shipctl.cli.stores import store_options


@click.command("retire")
@click.argument("reference", metavar="NAME@REF")
@click.option("--reason", metavar="TEXT", help="Why; shown to everybody who asks for the version.")
@click.option("--force", is_flag=True, help="Drop the aliases and the A/B test that need it; needs --reason.")
@store_options
@json_option
@common_options
def command(
    reference: str,
    reason: str | None,
    force: bool,  # noqa: FBT001
    store: str | None,
    spec: Path | None,
    environment: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Retire a version of a model, so that nobody takes it any more.

    Refused while an alias, an A/B test or a deployment needs it. What is deployed is never touched, with --force
    neither. The files stay until `shipctl gc` finds that the version was retired for long enough.
    """
    from shipctl.cli.documents.registry import RetireDocument

    output = Output.current()
    with opened_registry(store, spec, environment, overrides) as registry:
        done = registry.retire(reference, reason=reason, force=force)
        uri = registry.objects.uri
    name = reference.partition("@")[0]
    state = "is retired" if done.changed else "was retired before; nothing was changed"
    output.say(f"{name}@{done.version} {state}")
    for alias in done.aliases:
        output.say(f"  alias {alias} is gone")
    if done.ab is not None:
        output.say(f"  the A/B test {done.ab} is gone")
    for deployment in done.deployments:
        output.complain(
            f"{deployment.stage} on {deployment.target} (from {deployment.host}) still needs {name}@{done.version}; "
            "its files stay as long",
            label="warning",
        )
    output.document(
        RetireDocument(
            store=uri,
            name=name,
            version=done.version,
            changed=done.changed,
            aliases=done.aliases,
            ab=done.ab,
            deployments=done.deployments,
        )
    )
