//! Keeps paces that all instances share: a provider's rate limit is the account's, not a process's.
//!
//! Turns are leased from the database a part of a second or a second at a time, so that a hundred requests cost a few
//! calls. A turn whose time has passed is gone: another instance's may have come since. Where the database does not
//! answer, this process keeps the pace by itself: an instance that cannot lease cannot settle either, and soon stops
//! asking. [`SharedPace`] is told how fast it may ask; [`LearnedPace`] finds it out.

mod law;
mod learned;
mod shared;
mod store;
mod turns;

#[cfg(test)]
pub(crate) mod tests;

pub use law::Bounds;
pub use learned::{LearnedPace, LearnedTurn};
pub use shared::{SharedPace, Turn};
