"""Update rules of first-order methods: one file per rule, one face."""
