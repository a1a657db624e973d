"""Invented products and customers, and ids that orders mention but the reference lacks."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np

from retail_assets.samples.files import StagedFiles

PRODUCT_COLUMNS = (
    "product_id",
    "product_name",
    "product_category",
    "unit_price_gbp",
    "stock_on_hand",
)
CUSTOMER_COLUMNS = ("customer_id", "customer_segment", "home_region", "joined_on")

REGIONS = ("London", "Midlands", "North West", "Scotland", "Wales")
SEGMENTS = ("consumer", "small business", "corporate", "student")

# category: median price in pence, items
ASSORTMENT: dict[str, tuple[int, tuple[str, ...]]] = {
    "Bakery": (
        320,
        ("Sourdough Loaf", "Croissants, 4", "Crème Brûlée", "Seeded Rolls", "Carrot Cake"),
    ),
    "Books": (
        1_100,
        ("Crime Novel", "Cookery Book", "Atlas, pocket edition", "Poetry", "Picture Book"),
    ),
    "Clothing": (
        3_400,
        ("Wool Jumper", "Rain Jacket", "Denim Jeans", "Cotton Shirt", "Running Socks"),
    ),
    "Electronics": (12_500, ("Headphones", "Tablet", 'Monitor 27"', "Coffee Machine", "E-reader")),
    "Garden": (2_300, ("Secateurs", "Rose Bush", "Compost, 40 l", "Watering Can", "Bird Feeder")),
    "Grocery": (
        450,
        ("Olive Oil", "Jalapeño Salsa", "Rooibos Tea", "Basmati Rice", "Dark Chocolate"),
    ),
    "Home": (2_800, ("Table Lamp", "Duvet Set", "Saucepan", "Bath Towels", "Wall Clock")),
    "Toys": (
        1_900,
        ("Wooden Train", "Jigsaw, 1,000 pieces", "Teddy Bear", "Building Bricks", "Board Game"),
    ),
}
RANGES = ("Everyday", "Classic", "Finest")
PRICE_SPREAD = 0.5  # sigma of the log-normal price around its category's median

UNKNOWN_PRODUCTS = ("P9001", "P9002", "P9003")
UNKNOWN_CUSTOMERS = ("990001", "990002", "990003", "990004", "990005")


@dataclass(frozen=True)
class Reference:
    """Products and customers as parallel lists; ids go on past the others with the unknown ones."""

    product_ids: list[str]
    product_pence: list[int]
    customer_ids: list[str]
    home_regions: list[int]
    product_rows: list[Sequence[object]]
    customer_rows: list[Sequence[object]]

    @property
    def known_products(self) -> int:
        """How many products `products.csv` holds."""
        return len(self.product_rows)

    @property
    def known_customers(self) -> int:
        """How many customers `customers.csv` holds."""
        return len(self.customer_rows)


def draw_reference(customers: int, start: date, seed: int) -> Reference:
    """Invent the assortment and so many customers, who joined in the three years before `start`."""
    rng = np.random.default_rng([seed, 0])
    products = [
        (category, median, f"{name} {item}")
        for category, (median, items) in ASSORTMENT.items()
        for item in items
        for name in RANGES
    ]
    medians = np.array([median for _, median, _ in products])
    spread = np.exp(PRICE_SPREAD * rng.standard_normal(len(products)))
    pence = [int(price) for price in np.maximum(50, np.rint(medians * spread))]
    stock = rng.integers(0, 500, len(products)).tolist()
    segments = rng.integers(0, len(SEGMENTS), customers).tolist()
    homes = rng.integers(0, len(REGIONS), customers).tolist()
    joined = rng.integers(1, 3 * 365, customers).tolist()
    product_ids = [f"P{number:04d}" for number in range(1, len(products) + 1)]
    # ids with leading zeros: whoever reads them as numbers loses them
    customer_ids = [f"{number:06d}" for number in range(1, customers + 1)]
    return Reference(
        product_ids=[*product_ids, *UNKNOWN_PRODUCTS],
        product_pence=[*pence, *(1_500 for _ in UNKNOWN_PRODUCTS)],
        customer_ids=[*customer_ids, *UNKNOWN_CUSTOMERS],
        home_regions=[*homes, *(0 for _ in UNKNOWN_CUSTOMERS)],
        product_rows=[
            (product_ids[i], name, category, pounds(pence[i]), stock[i])
            for i, (category, _, name) in enumerate(products)
        ],
        customer_rows=[
            (
                customer_ids[i],
                SEGMENTS[segments[i]],
                REGIONS[homes[i]],
                start - timedelta(days=joined[i]),
            )
            for i in range(customers)
        ],
    )


def pounds(pence: int) -> str:
    """Pence as pounds with two decimals: 1234 is `12.34`."""
    return f"{pence // 100}.{pence % 100:02d}"


def write_reference(
    staged: StagedFiles,
    data_dir: Path,
    products: Sequence[Sequence[object]],
    customers: Sequence[Sequence[object]],
) -> None:
    """Write `products.csv` and `customers.csv` from rows in the order of their columns."""
    for name, columns, rows in (
        ("products.csv", PRODUCT_COLUMNS, products),
        ("customers.csv", CUSTOMER_COLUMNS, customers),
    ):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
        with staged.open(data_dir / "reference" / name) as handle:
            handle.write(text.getvalue().encode("utf-8"))
