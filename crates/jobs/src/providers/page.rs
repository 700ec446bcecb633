//! Pages of movements, and the guard against pages that never end.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Movement, OrderPayment, Provider, ProviderError, RefusedReason};

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

    /// Adds a movement. The same row again is one movement; another row under the same id is an answer that
    /// cannot be trusted.
    pub(super) fn add(
        &mut self,
        seen: &mut HashMap<String, usize>,
        movement: Movement,
    ) -> Result<(), RefusedReason> {
        match seen.get(&movement.external_id) {
            None => {
                seen.insert(movement.external_id.clone(), self.movements.len());
                self.movements.push(movement);
                Ok(())
            }
            Some(&first) if self.movements[first] == movement => Ok(()),
            Some(_) => Err(RefusedReason::InvalidAnswer("two rows with one id")),
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
        page.add(&mut seen, movement("a", 1)).unwrap();
        page.add(&mut seen, movement("b", 1)).unwrap();
        page.add(&mut seen, movement("a", 1)).unwrap();
        assert_eq!(page.movements.len(), 2);
        assert!(page.add(&mut seen, movement("b", 2)).is_err());
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
