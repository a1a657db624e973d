"""A shop's database on each kind of server."""

import pytest

from retail_assets_tests.extract.shops import Shop, mariadb_shop, postgres_shop


@pytest.fixture(params=["postgres", "mariadb"])
def shop(request: pytest.FixtureRequest) -> Shop:
    """An empty database, on PostgreSQL and on MariaDB."""
    server = request.getfixturevalue(request.param)
    return postgres_shop(server) if request.param == "postgres" else mariadb_shop(server)
