//! Secrets: comparing them, deriving keys from them, reading tokens encrypted by the web application,
//! believing webhooks.

pub mod keys;
pub mod secret;
pub mod svix;
pub mod tokens;
