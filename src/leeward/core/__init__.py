"""Units, identifiers, clock, extents, errors, JSON codec. Knows nothing of any other room."""
