//! Makes a mail out of facts: subject, HTML part, text part.
//!
//! Pure and deterministic: the same facts and the same branding give the same bytes, on any machine and any day.
//! Each kind has a module that chooses the words and a pair of templates that arrange them.

mod alert;
mod alert_remarks;
mod alert_words;
mod branding;
mod ceiling;
mod consequence;
mod declaration;
mod definitive;
mod digest;
mod foreign;
mod frame;
mod french;
mod incomplete;
mod layout;
mod marketing;
mod palette;
mod recap;
mod recap_words;
mod reminder;
mod retraction;
#[cfg(test)]
mod tests;
mod trouble;
mod twice;

pub use self::branding::{Branding, Links, Promo};
use self::frame::{Frame, Mail};
use super::Facts;

/// Represents a mail ready to be sent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rendered {
    /// Is one line, without a line break.
    pub subject: String,
    pub html: String,
    pub text: String,
}

/// Renders a mail.
pub fn render(facts: &Facts, branding: &Branding, links: Links<'_>) -> Result<Rendered, askama::Error> {
    let (first_name, mail): (_, Box<dyn Mail>) = match facts {
        Facts::MarketingDay3 { first_name } => (first_name, Box::new(marketing::View::new(branding))),
        Facts::MonthlyReminder {
            first_name,
            month,
            recorded,
            entries,
            books,
            profile,
            mixed,
            verdict,
            definitive,
            uncounted,
            today,
            incomplete,
            assumed,
            retracted,
        } => {
            let view = reminder::View::new(*month, *recorded, *entries)
                .declaring(books.as_deref().unwrap_or_default(), *profile)
                .uncounted(uncounted)
                .confirmed(mixed, *verdict)
                .definitive(*definitive)
                .incomplete(incomplete)
                .assumed(assumed, books.as_deref().unwrap_or_default())
                .retracting(retracted)
                .on(*today);
            (first_name, Box::new(view))
        }
        Facts::MonthlyRecap {
            first_name,
            month,
            total,
            sources,
            provisional_at,
            typed,
            uncounted,
            unread,
            not_theirs,
            ended,
            partial,
            maybe_twice,
            passed_on,
            year,
            created,
            contradiction,
            mixed,
            verdict,
            activities,
            ahead,
            empty,
            assumed,
            retracted,
        } => {
            let view = recap::View::new(*month, *total, sources)
                .provisional(*provisional_at)
                .typed(*typed)
                .missing(uncounted, *partial)
                .unread(unread, not_theirs)
                .ended(ended)
                .maybe_twice(*maybe_twice)
                .passed_on(*passed_on)
                .year(year.as_deref().unwrap_or_default(), *created, mixed)
                .contradicting(*contradiction)
                .confirmed(mixed, *verdict)
                .activities(activities)
                .assumed(assumed, activities)
                .retracting(retracted)
                .months(empty, *ahead);
            (first_name, Box::new(view))
        }
        Facts::DefinitiveMonth { first_name, month, definitive, incomplete, uncounted } => {
            let view = definitive::View::new(*month, *definitive).lacking(incomplete, uncounted);
            (first_name, Box::new(view))
        }
        Facts::ThresholdAlert {
            first_name,
            year,
            crossings,
            unknown_activities,
            state,
            as_of,
            remarks,
            consequences,
            retracted,
        } => {
            let view = alert::View::new(*year, crossings, consequences, *state, *as_of)
                .remarking(remarks, unknown_activities)
                .retracting(retracted);
            (first_name, Box::new(view))
        }
        Facts::IntegrationTrouble { first_name, provider, reason, read_until } => {
            (first_name, Box::new(trouble::View::new(provider, reason, *read_until)))
        }
        Facts::OperatorDigest { day, points, status_url } => {
            (&None, Box::new(digest::View::new(*day, points, status_url)))
        }
    };
    finish(facts, mail.as_ref(), first_name.as_deref(), branding, links)
}

/// Puts a mail into its frame.
fn finish(
    facts: &Facts,
    mail: &dyn Mail,
    first_name: Option<&str>,
    branding: &Branding,
    links: Links<'_>,
) -> Result<Rendered, askama::Error> {
    let headline = mail.headline();
    let subject = french::typeset(&foreign::one_line(&headline.subject, 150));
    let frame = Frame {
        greeting: frame::greeting(first_name),
        ..Frame::new(facts.kind(), subject, headline.preheader, branding, links)
    };
    Ok(Rendered {
        html: layout::html(&mail.html(&frame)?),
        text: layout::text(&mail.text(&frame)?),
        subject: frame.subject,
    })
}
