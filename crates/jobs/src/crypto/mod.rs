//! Compares secrets, derives keys from them, reads the tokens that the web application encrypts and verifies webhooks.

pub mod keys;
pub mod secret;
pub mod svix;
pub mod tokens;
