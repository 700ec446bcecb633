//! Pages of movements, and the guard against pages that never end.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};

use super::{Movement, OrderPayment, Provider, ProviderError, RefusedReason};

/// Dates may lie so far after the end of what was asked for.
const CLOCKS_DIFFER: TimeDelta = TimeDelta::days(1);

/// Represents one page of a provider's list.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Page {
    /// Holds no external id twice.
    pub movements: Vec<Movement>,
    /// Says where the next page begins; `None` when this is the last.
    pub next: Option<String>,
    /// Counts the movements of a kind that this version does not know, by the provider's name for
    /// it.
    pub unknown: BTreeMap<String, u32>,
    /// Holds what orders say was paid, where this was asked for.
    pub order_payments: Vec<OrderPayment>,
}

impl Page {
    /// Notes one movement of an unknown kind.
    pub(super) fn note_unknown(&mut self, source_kind: &str) {
        *self.unknown.entry(source_kind.to_owned()).or_default() += 1;
    }

    /// Adds a movement. The same row again is one movement; of another row under the same id nobody knows which is true:
    /// it is kept, and does not count.
    pub(super) fn add(&mut self, seen: &mut HashMap<String, usize>, movement: Movement) {
        match seen.get(&movement.external_id) {
            None => {
                seen.insert(movement.external_id.clone(), self.movements.len());
                self.movements.push(movement);
            }
            Some(&first) if self.movements[first] == movement => {}
            Some(&first) => {
                let contradicted = self.movements[first].clone().contradicted();
                if self.movements[first].source_kind != contradicted.source_kind {
                    self.note_unknown(&contradicted.source_kind);
                }
                self.movements[first] = contradicted;
            }
        }
    }

    /// Forgets the dates of what a list that ends at `listed` shows more than a day later, and of what would count as late
    /// after `counted`: they cannot be true, and a month in which nobody looks would have the money.
    pub(super) fn forget_dates_after(&mut self, listed: DateTime<Utc>, counted: DateTime<Utc>) {
        let is_true = |end: DateTime<Utc>, at: &DateTime<Utc>| *at <= end + CLOCKS_DIFFER;
        for movement in &mut self.movements {
            if movement.listed_at.is_some_and(|at| !is_true(listed, &at)) {
                (movement.listed_at, movement.occurred_at) = (None, None);
            }
            movement.occurred_at = movement.occurred_at.filter(|at| is_true(counted, at));
        }
    }
}

/// Watches one walk through the pages of a list: a cursor that comes back would read the same pages until the
/// time is over, every time, and never settle.
///
/// A walk that a later invocation goes on with starts a new guard at the stored cursor.
#[derive(Debug)]
pub struct CursorGuard {
    provider: Provider,
    seen: HashSet<String>,
}

impl CursorGuard {
    /// Starts a walk at `cursor` (`None`: the first page).
    pub fn new(provider: Provider, cursor: Option<&str>) -> Self {
        Self { provider, seen: cursor.into_iter().map(str::to_owned).collect() }
    }

    /// Takes the `next` of a page that was just read; an error when the walk was there already.
    pub fn advance(&mut self, next: &str) -> Result<(), ProviderError> {
        if self.seen.insert(next.to_owned()) {
            Ok(())
        } else {
            Err(ProviderError::refused(self.provider, RefusedReason::EndlessPages))
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use proptest::prelude::*;

    use super::*;
    use crate::money::{Currency, MinorAmount};
    use crate::providers::MovementKind;

    fn movement(id: &str, amount_minor: i64) -> Movement {
        let amount = MinorAmount::new(amount_minor, Currency::EUR);
        Movement::new(id, MovementKind::Payment, "charge", DateTime::UNIX_EPOCH, amount)
    }

    #[test]
    fn one_id_is_one_movement() {
        let (mut page, mut seen) = (Page::default(), HashMap::new());
        for (id, amount_minor) in [("a", 1), ("b", 1), ("a", 1)] {
            page.add(&mut seen, movement(id, amount_minor));
        }
        assert_eq!((page.movements.len(), page.unknown.len()), (2, 0));
        for amount_minor in [2, 1, 3] {
            page.add(&mut seen, movement("b", amount_minor));
            let kept = &page.movements[1];
            assert_eq!((kept.kind, kept.amount_minor), (MovementKind::Unknown, None));
            assert_eq!(kept.original.as_ref().unwrap().amount.as_deref(), Some("1"));
        }
        assert_eq!((page.movements.len(), page.unknown["two_rows_with_one_id"]), (2, 1));
        assert_eq!(page.movements[0], movement("a", 1));
    }

    #[test]
    fn a_date_that_cannot_be_true_is_none() {
        let at = |days| DateTime::UNIX_EPOCH + TimeDelta::days(days);
        let dated = |listed, counted| Movement {
            listed_at: Some(at(listed)),
            occurred_at: Some(at(counted)),
            ..movement("a", 1)
        };
        for (listed, counted, expected) in [
            (1, 1, (Some(at(1)), Some(at(1)))),
            (1, 9, (Some(at(1)), Some(at(9)))),
            (3, 10, (Some(at(3)), Some(at(10)))),
            (1, 11, (Some(at(1)), None)),
            (4, 4, (None, None)),
        ] {
            let mut page = Page { movements: vec![dated(listed, counted)], ..Page::default() };
            page.forget_dates_after(at(2), at(9));
            assert_eq!((page.movements[0].listed_at, page.movements[0].occurred_at), expected);
        }
    }

    #[test]
    fn a_cursor_that_comes_back_is_an_error() {
        let mut guard = CursorGuard::new(Provider::Shopify, Some("a"));
        guard.advance("b").unwrap();
        guard.advance("c").unwrap();
        let error = guard.advance("a").unwrap_err();
        assert_eq!(error.code(), "endless_pages");
        assert!(CursorGuard::new(Provider::Stripe, Some("x")).advance("x").is_err());
        assert!(CursorGuard::new(Provider::Stripe, None).advance("x").is_ok());
    }

    proptest! {
        /// However a list leads back into itself, a walk through it ends within one round.
        #[test]
        fn a_walk_that_loops_ends(length in 1_usize..30, back in any::<prop::sample::Index>(), started: bool) {
            let next = |at: usize| if at + 1 < length { at + 1 } else { back.index(length) };
            let mut guard = CursorGuard::new(Provider::Stripe, started.then_some("0"));
            let (mut at, mut steps) = (0, 0);
            while guard.advance(&next(at).to_string()).is_ok() {
                (at, steps) = (next(at), steps + 1);
                prop_assert!(steps <= length, "still going");
            }
        }
    }
}
