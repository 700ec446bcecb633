//! The mails of the last days as bars: one a day, its parts as high as their numbers.

use chrono::{DateTime, Datelike, Days, NaiveDate, Utc};

use crate::{
    operations::facts::{MAIL_DAYS, MailCounts, MailDay},
    schedule::paris,
    words::counted,
};

/// Represents a day's bar.
#[derive(Debug)]
pub(super) struct Bar {
    pub(super) day: NaiveDate,
    pub(super) counts: MailCounts,
    /// Counts percents of the highest bar, none of them lost to rounding: what there is can be
    /// seen.
    pub(super) sent: u64,
    pub(super) kept: u64,
    pub(super) failed: u64,
    pub(super) unknown: u64,
}

impl Bar {
    /// Returns the number that stands under the bar.
    pub(super) fn label(&self) -> u32 {
        self.day.day()
    }

    /// Tells the bar to those who see none, as in `24 novembre 2026 : 1 envoyé, 0 écarté, 0 en
    /// échec, 0 d’issue inconnue`.
    pub(super) fn said(&self) -> String {
        let MailCounts { sent, failed, unknown, .. } = self.counts;
        let (sent, kept) =
            (counted(sent, "envoyé", "envoyés"), counted(self.counts.kept(), "écarté", "écartés"));
        let day = paris::french(self.day);
        format!("{day}\u{a0}: {sent}, {kept}, {failed}\u{a0}en échec, {unknown}\u{a0}d’issue inconnue")
    }
}

/// Returns one bar for each of the last days, today's last.
pub(super) fn bars(now: DateTime<Utc>, mails: &[MailDay]) -> Vec<Bar> {
    let today = paris::date(now);
    let days: Vec<(NaiveDate, MailCounts)> = (0..MAIL_DAYS)
        .rev()
        .map(|back| today - Days::new(back.into()))
        .map(|day| {
            let mut counts = MailCounts::default();
            mails.iter().filter(|mail| mail.day == day).for_each(|mail| counts.add(mail.counts));
            (day, counts)
        })
        .collect();
    let highest = days.iter().map(|(_, counts)| counts.all()).max().unwrap_or_default().max(1);
    // At least three of a hundred: a single failure among thousands must not vanish.
    let part = |n: u64| if n == 0 { 0 } else { (n * 100).div_ceil(highest).max(3) };
    days.into_iter()
        .map(|(day, counts)| Bar {
            day,
            counts,
            sent: part(counts.sent),
            kept: part(counts.kept()),
            failed: part(counts.failed),
            unknown: part(counts.unknown),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_among_thousands_is_seen() {
        let now: DateTime<Utc> = "2026-11-25T23:30:00Z".parse().unwrap(); // the 26th in Paris
        let day = |text: &str, counts| MailDay { kind: "k".into(), day: text.parse().unwrap(), counts };
        let many = MailCounts { sent: 9_999, ..MailCounts::default() };
        let bad = MailCounts { failed: 1, suppressed: 1, ..MailCounts::default() };
        let bars = bars(now, &[day("2026-11-26", many), day("2026-11-26", bad), day("2026-11-25", many)]);
        assert_eq!(bars.len(), 14);
        let today = &bars[13];
        assert_eq!((today.label(), today.sent, today.failed, today.kept, today.unknown), (26, 100, 3, 3, 0));
        assert_eq!(bars[12].counts, many);
        assert_eq!((bars[0].label(), bars[0].counts.all()), (13, 0));
    }
}
