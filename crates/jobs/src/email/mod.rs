//! This folder makes and sends the mails: what they say, how they look, how each leaves exactly once.
//!
//! `facts` is what a mail is about, `render` what it looks like, `links` where it leads to; `mailer` works the
//! `outbox` empty through the `sender`, within its `quotas`; `feedback` is what comes back.

mod allowance;
mod domain;
mod facts;
pub mod feedback;
pub mod links;
mod mailer;
pub mod objections;
mod outbox;
mod outcome;
mod quotas;
mod remarks;
mod render;
pub mod samples;
mod sender;
mod settings;

pub use self::{
    domain::Domain,
    facts::{
        ActivityTotal, ActivityTurnover, BooksVerdict, Definitive, DigestPoint, Facts, IncompleteMonth,
        MonthTwice, SourceTotal, UnreadSource,
    },
    links::LinkKeys,
    mailer::{MailLimits, MailReport, Mailer},
    outcome::MAIL_REFUSED,
    remarks::{AlertRemarks, Assumed, Retracted, Uncounted},
    render::{Branding, Links, Promo, Rendered, render},
    settings::{MailConfig, Prices},
};
