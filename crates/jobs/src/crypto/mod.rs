//! Secrets: comparing them, deriving keys from them, reading tokens encrypted by the web application.

pub mod keys;
pub mod secret;
pub mod tokens;
