//! Mails: what they say, how they look, how each leaves exactly once.

mod facts;

pub use self::facts::{Facts, Kind, SourceTotal};
