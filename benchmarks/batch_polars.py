"""The batch job in Polars: raw, rejected, completed and revenue rows as Parquet files, synced.

It repeats the rules on purpose, and imports nothing of the platform.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.batch_input import FIELDS, STATUSES, by_header


def job(data: Path, out: Path) -> Callable[[], dict[str, Any]]:
    """Return the job over all exports of a data folder."""
    import polars as pl

    def read(paths: list[Path], names: tuple[str, ...]) -> pl.LazyFrame:
        # Polars does not tell which rows had a field too many: there is a column for it.
        return pl.scan_csv(
            paths,
            has_header=False,
            skip_rows=1,
            schema=dict.fromkeys((*names, "surplus"), pl.String),
            missing_columns="insert",
            truncate_ragged_lines=True,
            encoding="utf8-lossy",
            include_file_paths="file",
            row_index_name="row_number",
        )

    def typed(rows: pl.LazyFrame) -> pl.LazyFrame:
        value, when = pl.col("order_value_gbp"), pl.col("order_timestamp")
        zoned = when.str.contains(r"(?:[zZ]|[+-]\d\d:?\d\d)$")
        spelled = when.str.replace(" ", "T", literal=True)
        local = spelled.str.to_datetime("%Y-%m-%dT%H:%M:%S", strict=False)
        iso = spelled.str.to_datetime("%Y-%m-%dT%H:%M:%S%#z", strict=False, time_zone="UTC")
        london = iso.dt.convert_time_zone("Europe/London").dt.replace_time_zone(None)
        plain = value.str.contains(r"^[+-]?\d{1,10}(\.\d{1,2}0*)?$")
        missing = pl.any_horizontal(pl.col(*FIELDS).fill_null("") == "")
        lossy = pl.any_horizontal(pl.col(*FIELDS).str.contains("\ufffd", literal=True))
        date = pl.col("file").str.extract(r"orders_(.{10})").str.to_date("%Y_%m_%d")
        days_late = (pl.col("export_date") - pl.col("when").dt.date()).dt.total_days()
        return (
            rows.with_columns(pl.col(*FIELDS).str.strip_chars(), export_date=date)
            .with_columns(
                status=pl.col("status").str.to_lowercase(),
                value=pl.when(plain).then(value).cast(pl.Decimal(12, 2), strict=False),
                when=pl.when(zoned).then(london).otherwise(local),
                is_lossy=lossy,
                is_missing=missing,
                is_ragged=pl.col("surplus").is_not_null(),
            )
            .with_columns(
                reason=pl.when("is_ragged")
                .then(pl.lit("malformed_row"))
                .when(pl.col("is_lossy").fill_null(value=False))
                .then(pl.lit("not_utf8"))
                .when("is_missing")
                .then(pl.lit("missing_value"))
                .when(pl.col("value").is_null())
                .then(pl.lit("invalid_number"))
                .when(pl.col("when").is_null())
                .then(pl.lit("invalid_timestamp"))
                .when(pl.col("value") <= 0)
                .then(pl.lit("not_positive"))
                .when(~pl.col("status").is_in(STATUSES))
                .then(pl.lit("unknown_status"))
                .when(days_late < 0)
                .then(pl.lit("future_order"))
                .when(days_late > 7)
                .then(pl.lit("too_late"))
            )
            .drop(
                "is_lossy",
                "is_missing",
                "is_ragged",
                "surplus",
                "order_value_gbp",
                "order_timestamp",
            )
        )

    def run() -> dict[str, Any]:
        read_all = [typed(read(paths, names)) for names, paths in by_header(data)]
        rows = pl.concat(read_all, how="diagonal").collect()
        usable = rows.filter(pl.col("reason").is_null()).drop("reason")
        last = usable.group_by("export_date", "order_id").agg(pl.col("row_number").max())
        raw = usable.join(last, on=["export_date", "order_id", "row_number"])
        rejected = pl.concat(
            [
                rows.filter(pl.col("reason").is_not_null()),
                usable.join(
                    last, on=["export_date", "order_id", "row_number"], how="anti"
                ).with_columns(reason=pl.lit("duplicate_order")),
            ],
            how="diagonal",
        )
        products = pl.read_csv(data / "reference/products.csv", infer_schema=False)
        customers = pl.read_csv(data / "reference/customers.csv", infer_schema=False)
        latest = raw.group_by("order_id").agg(pl.col("export_date").max())
        completed = (
            raw.join(latest, on=["order_id", "export_date"])
            .filter(pl.col("status") == "completed")
            .join(products, on="product_id", how="left")
            .join(customers, on="customer_id", how="left")
            .with_columns(order_date=pl.col("when").dt.date())
        )
        results = {"raw": raw, "rejected": rejected, "completed": completed}
        for name, keys in (
            ("daily_revenue", ["order_date", "region"]),
            ("daily_revenue_by_category", ["order_date", "region", "product_category"]),
        ):
            results[name] = completed.group_by(keys).agg(
                total_revenue=pl.col("value").sum(),
                order_count=pl.len(),
                avg_order_value=pl.col("value").mean(),
            )
        for name, frame in results.items():
            frame.write_parquet(out / f"{name}.parquet")
            with (out / f"{name}.parquet").open("rb") as file:
                os.fsync(file.fileno())
        return {
            "revenue": float(completed["value"].sum()),
            "rows": len(completed),
            "rejected": len(rejected),
        }

    return run
