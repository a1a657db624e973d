"""A reader executes queries of the lake and nothing else; files get the rows it gives."""

import csv
import threading
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import retail_assets
from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.lake.connection import extension_path
from retail_assets.lake.reader import open_reader
from retail_assets.lake.row_files import write_rows
from retail_assets_tests.lake.revenue import FIRST, SECOND, publish, rows_of

# Enough for a Parquet file: fewer rows are kept in the catalog.
ROWS = [(FIRST, f"r{n:02}", "10.00") for n in range(30)]


@pytest.fixture(scope="module")
def published(tmp_path_factory, new_lake):
    """A lake with these rows, for all tests that only read it."""
    lake = new_lake(tmp_path_factory.mktemp("published"))
    publish(lake, ROWS, [FIRST])
    return lake


@pytest.fixture(scope="module")
def reader(published):
    with open_reader(published) as reader:
        yield reader


@pytest.mark.parametrize(
    "query",
    [
        "SELECT count(*) FROM daily_revenue",
        "FROM daily_revenue",
        "TABLE daily_revenue;",
        "WITH a AS (FROM daily_revenue) SELECT region, sum(total_revenue) FROM a GROUP BY ALL",
        "VALUES (1), (2)",
        "SHOW TABLES",
        "DESCRIBE daily_revenue",
        "SUMMARIZE daily_revenue",
        "EXPLAIN SELECT 1",
        "EXPLAIN (FORMAT json) SELECT 1",
        "explain analyze FROM daily_revenue",
        "PIVOT daily_revenue ON region IN ('r01', 'r02') USING sum(total_revenue)",
        "FROM lake.snapshots()",
        "FROM lake.current_snapshot()",
        "FROM lake.table_changes('daily_revenue', 1, 2)",
        "FROM daily_revenue AT (VERSION => 2)",
        "SELECT unnest([1, 2]), x FROM range(2) AS t(x)",
        """SELECT key, value FROM json_each('{"a": 1}')""",
        "SELECT value FROM duckdb_settings() WHERE name = 'TimeZone'",
        "SELECT 1; SELECT 2",
    ],
)
def test_what_reads_the_lake_is_executed(reader, query):
    assert reader.execute(query).fetchall()
    assert reader.sql(query).fetchall()


@pytest.mark.parametrize(
    ("statement", "instead"),
    [
        ("DELETE FROM daily_revenue", "changed by `backfill`"),
        ("INSERT INTO daily_revenue FROM daily_revenue", "changed by `backfill`"),
        ("DROP TABLE lake.daily_revenue", "changed by `backfill`"),
        ("MERGE INTO daily_revenue USING daily_revenue AS d ON true WHEN MATCHED THEN DELETE", ""),
        ("DELETE FROM __ducklake_metadata_lake.ducklake_data_file", ""),
        ("CREATE TEMP TABLE a AS SELECT 1", "WITH name AS"),
        ("PIVOT daily_revenue ON region", "name the values"),
        ("COPY daily_revenue TO '{folder}/out.csv'", "--output"),
        ("COPY (SELECT 1) TO '{file}' (FORMAT parquet)", "--output"),
        ("EXPORT DATABASE '{folder}/out'", "--output"),
        ("ATTACH 'sqlite:{catalog}' AS s", "only the lake"),
        ("ATTACH 'sqlite:{catalog}' AS s; DROP TABLE s.ducklake_snapshot; SELECT 1", "only the"),
        ("SELECT 1; DELETE FROM daily_revenue", "changed by `backfill`"),
        ("DETACH lake", "only the lake"),
        ("CALL ducklake_expire_snapshots('lake', older_than => now())", "FROM instead of CALL"),
        ("FROM ducklake_expire_snapshots('lake', older_than => now())", "SHOW TABLES"),
        ("FROM ducklake_cleanup_old_files('lake', cleanup_all => true)", "SHOW TABLES"),
        ("FROM ducklake_delete_orphaned_files('lake', cleanup_all => true)", "SHOW TABLES"),
        ("FROM sqlite_query('__ducklake_metadata_lake', 'SELECT 1')", "SHOW TABLES"),
        ("FROM sqlite_scan('{catalog}', 'ducklake_snapshot')", "SHOW TABLES"),
        ("FROM query('SELECT 1')", "SHOW TABLES"),
        ("FROM read_text('/etc/hostname')", "SHOW TABLES"),
        ("SELECT (SELECT any_value(content) FROM read_text('/etc/hostname'))", "SHOW TABLES"),
        ("SELECT 1 WHERE EXISTS (FROM lake.main.glob('/*'))", "SHOW TABLES"),
        ("EXPLAIN ANALYZE FROM read_text('/etc/hostname')", "SHOW TABLES"),
        ("EXPLAIN ANALYZE DELETE FROM daily_revenue", ""),
        ("/* EXPLAIN (*/ EXPLAIN ANALYZE DELETE FROM daily_revenue -- ) */ SELECT 1", ""),
        ("EXPLAIN (ANALYZE /* ) SELECT 1 -- */) DELETE FROM daily_revenue", ""),
        ("FROM duckdb_databases", "SHOW TABLES"),
        ("SELECT getenv('HOME')", ""),
        ("SET threads = 1", "settings come from the environment"),
        ("SET VARIABLE a = 1", "settings come from the environment"),
        ("PRAGMA database_list", "SHOW TABLES"),
        ("USE memory", ""),
        ("INSTALL httpfs", "is loaded"),
        ("LOAD '/tmp/x.duckdb_extension'", "is loaded"),
        ("CHECKPOINT", ""),
        ("VACUUM", ""),
        ("BEGIN", "connect(at="),
        ("PREPARE a AS SELECT 1", "binds values"),
        ("", "write a SELECT"),
        (" ; -- nothing", "write a SELECT"),
    ],
)
def test_all_else_is_refused_before_it_is_executed(published, reader, tmp_path, statement, instead):
    (file,) = Path(published.data_path).rglob("*.parquet")
    written = file.read_bytes(), Path(published.catalog).read_bytes()
    text = statement.format(catalog=published.catalog, folder=tmp_path, file=file)
    for method in (reader.execute, reader.sql, lambda sql: list(reader.statements(sql))):
        with pytest.raises(RetailAssetsError) as caught:
            method(text)
        assert instead in str(caught.value)
    assert len(reader.execute("FROM duckdb_tables()").fetchall()) > 1
    assert (file.read_bytes(), Path(published.catalog).read_bytes()) == written
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    "query",
    ["FROM '/etc/hostname'", "FROM '{folder}/mine.csv'", "FROM '{folder}/mine.parquet'"],
)
def test_files_outside_of_the_lake_are_out_of_reach_for_names_of_tables_too(
    reader, tmp_path, query
):
    (tmp_path / "mine.csv").write_text("a\n1\n")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "mine.parquet")
    with pytest.raises(duckdb.Error):
        reader.execute(query.format(folder=tmp_path))


def test_the_settings_that_keep_files_out_of_reach_cannot_be_changed_back(reader):
    for setting in ("enable_external_access = true", "allowed_directories = ['/']"):
        with pytest.raises(duckdb.InvalidInputException, match="locked"):
            # Past the parser, as a statement that it misread would be.
            reader._connection.execute(f"SET {setting}")


def test_connect_is_a_reader_with_the_callers_frames_and_bound_values(lake):
    publish(lake, ROWS, [FIRST])
    mine = pd.DataFrame({"region": ["r03"], "manager": ["Ada"]})
    with retail_assets.connect() as connection:
        connection.register("mine", mine)
        found = connection.sql(
            "SELECT manager, total_revenue FROM daily_revenue JOIN mine USING (region)"
        ).fetchall()
        assert found == [("Ada", Decimal("10.00"))]
        count = "SELECT count(*) FROM daily_revenue WHERE region > ?"
        assert connection.execute(count, ["r27"]).fetchone() == (2,)
        assert connection.table("daily_revenue").count("*").fetchone() == (30,)
        with pytest.raises(AttributeError, match="no 'install_extension'"):
            connection.install_extension("httpfs")


def test_cursors_of_a_reader_read_the_same_snapshot_in_other_threads(lake):
    snapshot = publish(lake, ROWS, [FIRST]).snapshot
    publish(lake, [(SECOND, "North", "1.00")], [SECOND])
    found = []
    with open_reader(lake, snapshot) as reader:
        thread = threading.Thread(
            target=lambda: found.append(
                reader.cursor().execute("SELECT count(*) FROM daily_revenue").fetchone()
            )
        )
        thread.start()
        thread.join()
        with pytest.raises(RetailAssetsError):
            reader.cursor().execute("DROP TABLE daily_revenue")
    assert found == [(30,)]


# --- files --------------------------------------------------------------------------------------

VALUES = """
    SELECT 7 AS n, 219720189.25::DECIMAL(12,2) AS money, '=1+1' AS formula, 'North' AS region,
        DATE '2026-10-05' AS day, TIMESTAMPTZ '2026-10-05 09:30:00+01:00' AS at, [1, 2] AS list,
        NULL::VARCHAR AS nothing, 'n' AS n
"""


def test_a_parquet_file_has_the_rows_and_types_of_the_query(published, reader, tmp_path):
    path = tmp_path / "out.parquet"
    assert write_rows(published, reader, VALUES, path, raw=False) == 1
    found = pq.read_table(path)
    assert found.column_names[0::8] == ["n", "n_1"]
    assert found["money"].to_pylist() == [Decimal("219720189.25")]
    assert found["formula"].to_pylist() == ["=1+1"]
    assert found["list"].to_pylist() == [[1, 2]]


def test_a_csv_file_is_safe_for_spreadsheets_unless_it_is_to_be_raw(published, reader, tmp_path):
    path = tmp_path / "out.csv"
    texts = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "＝1", "a=1", "", "'=1"]  # noqa: RUF001
    values = ", ".join(f"('{text.replace(chr(39), chr(39) * 2)}', -5)" for text in texts)
    query = f'SELECT t AS "=t", n FROM (VALUES {values}) AS v(t, n)'
    write_rows(published, reader, query, path, raw=False)
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["'=t", "n"]
    assert [text for text, _ in rows] == [f"'{text}" for text in texts[:7]] + texts[7:]
    assert {number for _, number in rows} == {"-5"}
    write_rows(published, reader, query, path, raw=True)
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["=t", "n"]
    assert [text for text, _ in rows] == texts


def test_an_excel_file_has_numbers_as_numbers_and_formulas_as_texts(published, reader, tmp_path):
    path = tmp_path / "out.xlsx"
    write_rows(published, reader, VALUES, path, raw=False)
    with duckdb.connect() as connection:
        connection.execute(f"LOAD '{extension_path('excel')}'")
        found = connection.sql(f"FROM read_xlsx('{path}')")
        row = dict(zip(found.columns, found.fetchone(), strict=True))
    assert (row["n"], row["money"], row["formula"]) == (7, 219720189.25, "=1+1")
    assert str(row["at"]) == "2026-10-05 09:30:00"
    assert row["list"] == "[1, 2]"


def test_numbers_that_excel_would_change_are_refused_by_name(published, reader, tmp_path):
    path = tmp_path / "out.xlsx"
    with pytest.raises(RetailAssetsError, match=r"wide.*more than 15 digits.*CSV or Parquet"):
        write_rows(published, reader, "SELECT 1234567890123456 AS wide", path, raw=False)
    assert list(tmp_path.glob("*out*")) == []


def test_a_failed_query_leaves_an_existing_file_as_it_was(published, reader, tmp_path):
    path = tmp_path / "out.csv"
    path.write_text("before")
    query = "SELECT CASE WHEN range = 99999 THEN error('late') ELSE 1 END AS x FROM range(100000)"
    with pytest.raises(RetailAssetsError, match="late"):
        write_rows(published, reader, query, path, raw=False)
    assert path.read_text() == "before"
    assert [found.name for found in tmp_path.glob("*out*")] == ["out.csv"]


@pytest.mark.parametrize("name", ["out.txt", "out", "lake/out.csv", "lake/files/main/out.csv"])
def test_other_kinds_of_files_and_the_lakes_own_folders_are_refused(published, reader, name):
    data_dir = Path(published.catalog).parents[1]
    with pytest.raises(UsageError):
        write_rows(published, reader, "SELECT 1", data_dir / name, raw=False)


def test_a_place_that_cannot_be_written_to_is_one_sentence(published, reader, tmp_path):
    path = tmp_path / "missing" / "out.csv"
    with pytest.raises(RetailAssetsError, match=r"missing/out\.csv was not written"):
        write_rows(published, reader, "SELECT 1", path, raw=False)


@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from(
            [
                *(
                    "SELECT",
                    "FROM",
                    "WITH a AS (",
                    ")",
                    "(",
                    ";",
                    "EXPLAIN",
                    "ANALYZE",
                    "1",
                    "--\n",
                ),
                *("/*", "*/", "DELETE", "COPY", "TO '/x.csv'", "daily_revenue", "read_text('/x')"),
                *("ATTACH ':memory:' AS m", "CALL", "lake.snapshots()", "WHERE", "INSERT INTO"),
            ]
        ),
        max_size=8,
    )
)
def test_whatever_is_made_of_words_of_sql_the_lake_stays_as_it_is(reader_and_state, words):
    reader, state, before = reader_and_state
    with suppress(RetailAssetsError, duckdb.Error):
        reader.execute(" ".join(words))
    assert state() == before


@pytest.fixture(scope="module")
def reader_and_state(tmp_path_factory, new_lake):
    """A reader, and what it could change: the rows of the lake, and the databases."""
    lake = new_lake(tmp_path_factory.mktemp("words"))
    publish(lake, ROWS, [FIRST])
    with open_reader(lake) as reader, lake.connect(read_only=True) as connection:

        def state():
            return rows_of(connection), reader._connection.execute("SHOW DATABASES").fetchall()

        yield reader, state, state()
