//! Checks what the stand-ins answer against the vendors' own schemas.
