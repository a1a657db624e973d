"""Lookups as a mapping declares them: what cannot be used is refused, and a value stays a value."""

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from retail_assets.mapping.lookups import MAX_VALUE, Lookup
from retail_assets.mapping.model import Mapping

URL = "https://crm.example.org/customers/{value}/tier?key=1"


def lookup(**changed: object) -> Lookup:
    return Lookup(**{"field": "customer_id", "url": URL, "keep": {"tier": "$.tier"}} | changed)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"url": "crm.example.org/{value}"}, "it is no URL"),
        ({"url": "ftp://crm.example.org/{value}"}, "it is no URL"),
        ({"url": "https://{value}.example.org/"}, "once, in its path or its query"),
        ({"url": "https://crm.example.org/customers"}, "once, in its path or its query"),
        ({"url": "https://crm.example.org/{value}/{value}"}, "once, in its path"),
        ({"url": "https://crm.example.org/#{value}"}, "once, in its path"),
        ({"url": "https://crm.example.org/{value}/{other}"}, "nothing in braces but"),
        ({"url": "https://user:password@crm.example.org/{value}"}, "no password"),
        ({"keep": {}}, "at least 1 item"),
        ({"keep": {"tier": "tier"}}, "no JSON path"),
        ({"keep": {"tier": "$..tier"}}, "no JSON path"),
        ({"field": "a' OR 1"}, "pattern"),
        ({"headers": {"A b": "x"}}, "no name of a header"),
        ({"headers": {"Authorization": "x\r\nHost: other"}}, "visible ASCII"),
        ({"other": 1}, "not permitted"),
    ],
)
def test_what_cannot_be_used_is_refused(changed, problem):
    with pytest.raises(ValidationError, match=problem):
        lookup(**changed)


def test_a_mapping_has_lookups_by_name():
    text = {"field": "store", "url": URL, "keep": {"town": "$.a[0].b-c"}, "per_second": "2.5"}
    found = Mapping.model_validate({"lookups": {"store_town": text}}).lookups["store_town"]
    assert (found.per_second, found.keep) == (2.5, {"town": "$.a[0].b-c"})
    with pytest.raises(ValidationError, match="pattern"):
        Mapping.model_validate({"lookups": {"Store:Town": text}})


def test_headers_have_the_secrets_that_they_name():
    found = lookup(headers={"Authorization": "Bearer {crm}", "X-Shop": "7"})
    assert found.secrets == {"crm"}
    assert found.header_values({"crm": "s3cret"}) == {
        "Authorization": "Bearer s3cret",
        "X-Shop": "7",
    }


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_no_value_changes_host_path_or_query(value):
    for url in (URL, "https://crm.example.org/a/b?customer={value}"):
        found = lookup(url=url).url_of(value)
        if found is None:
            assert not value.strip(". ") or not value.isprintable()
            continue
        parts, model = urlsplit(found), urlsplit(url)
        assert parts.netloc == model.netloc
        assert parts.path.count("/") == model.path.count("/")
        assert parts.query.count("&") == parts.query.count("#") == 0
        assert ".." not in parts.path.split("/")


def test_some_values_are_not_asked_for():
    for value in ("", " ", ".", "..", "a\nb", "a\0b", "x" * (MAX_VALUE + 1)):
        assert lookup().url_of(value) is None
    assert lookup().url_of("../x") == "https://crm.example.org/customers/..%2Fx/tier?key=1"
