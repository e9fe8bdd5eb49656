"""Common person names of many countries, packed: data, and how they were gathered."""
