"""The consumer of fraud: rules and a model decide which orders look wrong."""
