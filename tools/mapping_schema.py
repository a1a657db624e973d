"""What a mapping file may say, as JSON Schema: `python -m tools.mapping_schema` prints it."""

import json
import sys

from retail_assets.mapping import Mapping


def mapping_schema() -> str:
    """The schema, as editors read it."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    schema |= Mapping.model_json_schema(by_alias=True)
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(mapping_schema())
