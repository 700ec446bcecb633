//! Holds the colours of the mails, light and dark. A test holds their contrasts.

/// Represents one scheme. Each colour is `#rrggbb`: three digits are read differently by some mail
/// programs.
#[derive(Debug)]
pub(super) struct Palette {
    /// Lies behind the card.
    pub(super) page: &'static str,
    /// Lies behind the text.
    pub(super) card: &'static str,
    /// Lies behind a figure or a remark.
    pub(super) panel: &'static str,
    /// Colours thin rules.
    pub(super) line: &'static str,
    pub(super) ink: &'static str,
    /// Colours secondary text.
    pub(super) muted: &'static str,
    pub(super) link: &'static str,
    pub(super) button: &'static str,
    pub(super) button_ink: &'static str,
    /// Fills the part of a bar that is not reached.
    pub(super) track: &'static str,
    /// Colours words about a ceiling that comes near.
    pub(super) near: &'static str,
    /// Fills the bar of a ceiling that comes near.
    pub(super) near_bar: &'static str,
    /// Colours words about a ceiling exceeded.
    pub(super) over: &'static str,
    /// Colours words about a figure to verify.
    pub(super) check: &'static str,
}

pub(super) const LIGHT: Palette = Palette {
    page: "#f2f4f8",
    card: "#ffffff",
    panel: "#f4f6fb",
    line: "#dfe4ee",
    ink: "#1a2233",
    muted: "#566178",
    link: "#1f4fc4",
    button: "#1f4fc4",
    button_ink: "#ffffff",
    track: "#dfe4ee",
    near: "#8f4a00",
    near_bar: "#bd5f08",
    over: "#b3261e",
    check: "#4a5a86",
};

pub(super) const DARK: Palette = Palette {
    page: "#0e131d",
    card: "#171e2b",
    panel: "#202939",
    line: "#333f54",
    ink: "#e9edf5",
    muted: "#a8b3c7",
    link: "#9dbcff",
    button: "#9dbcff",
    button_ink: "#0e1a33",
    track: "#333f54",
    near: "#ffc069",
    near_bar: "#ffc069",
    over: "#ff9a91",
    check: "#b4c3ec",
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contrast::contrast;

    #[test]
    fn text_can_be_read_in_both_schemes() {
        for p in [&LIGHT, &DARK] {
            let on_every_ground = [p.ink, p.muted, p.link, p.near, p.over, p.check];
            for ground in [p.page, p.card, p.panel] {
                for ink in on_every_ground {
                    assert!(contrast(ink, ground) >= 4.5, "{ink} on {ground}: {}", contrast(ink, ground));
                }
            }
            assert!(contrast(p.button_ink, p.button) >= 4.5);
        }
    }

    #[test]
    fn bars_and_buttons_stand_out() {
        for p in [&LIGHT, &DARK] {
            for fill in [p.near_bar, p.over, p.check] {
                assert!(contrast(fill, p.track) >= 3.0, "{fill} on {}", p.track);
            }
            assert!(contrast(p.button, p.card) >= 3.0);
        }
    }
}
