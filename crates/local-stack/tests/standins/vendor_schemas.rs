//! What the stand-ins answer passes the vendors' own schemas.
