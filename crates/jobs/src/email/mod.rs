//! Mails: what they say, how they look, how each leaves exactly once.

mod facts;
mod render;
pub mod samples;

pub use self::{
    facts::{Facts, Kind, SourceTotal},
    render::{Look, Promo, Rendered, render},
};
