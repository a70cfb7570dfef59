"""The product's nouns and legal states: frozen values, no I/O."""
