//! Shopify's search syntax ("API search syntax"). Timestamps are single-quoted: unquoted, the colons in them end
//! the term and the filter is dropped.

use chrono::{DateTime, SecondsFormat, Utc};

use crate::schedule::Window;

/// Writes `field:>='from' AND field:<'to'`, in whole seconds.
pub(super) fn within(field: &str, window: Window) -> String {
    let Window { from, to } = window.in_whole_seconds();
    format!("{field}:>='{}' AND {field}:<'{}'", timestamp(from), timestamp(to))
}

/// Writes the search of the orders of which something may have been paid within `window`: placed before its end, and
/// changed since its beginning.
pub(super) fn orders_paid_within(window: Window) -> String {
    let Window { from, to } = window.in_whole_seconds();
    format!("updated_at:>='{}' AND processed_at:<'{}'", timestamp(from), timestamp(to))
}

fn timestamp(instant: DateTime<Utc>) -> String {
    instant.to_rfc3339_opts(SecondsFormat::Secs, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_and_half_open() {
        let window = Window {
            from: "2026-10-31T23:00:00Z".parse().unwrap(),
            to: "2026-11-21T10:00:00.5Z".parse().unwrap(),
        };
        assert_eq!(
            within("processed_at", window),
            "processed_at:>='2026-10-31T23:00:00Z' AND processed_at:<'2026-11-21T10:00:01Z'"
        );
    }
}
