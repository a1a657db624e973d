"""The command `retail-assets`: what it prints, and what only it needs. No rule is written here."""


def run() -> None:
    """Run the command; see `retail_assets.cli.app`. Scripts of earlier installs call this."""
    from retail_assets.cli.app import run as run_app

    run_app()
