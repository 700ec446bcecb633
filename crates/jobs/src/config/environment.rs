//! Reads and checks the variables of a process one by one.

use url::Url;

use crate::{config_faults::ConfigFaults, http};

/// No value of ours is longer; a server refuses a header that is, in words that nobody understands.
const MOST_BYTES: usize = 4096;
const TOO_LONG: &str = "est trop longue ; collez la valeur seule";

/// Holds the variables of a process, trimmed. Blank is missing, and so is what a script writes for nothing.
pub(super) struct Environment<'a>(pub(super) &'a dyn Fn(&str) -> Option<String>);

impl Environment<'_> {
    pub(super) fn get(&self, name: &str) -> Option<String> {
        let value = (self.0)(name)?;
        let value = value.trim();
        (!matches!(value, "" | "undefined" | "null")).then(|| value.to_owned())
    }

    /// Reads an optional variable as it was meant: not with the quotes of a file, not a whole file.
    pub(super) fn whole(&self, name: &str, faults: &mut ConfigFaults) -> Option<String> {
        self.get(name).filter(|value| is_whole(name, value, faults))
    }

    /// Reads a variable that must be there, under its own name or an older one.
    pub(super) fn required(&self, name: &str, or: Option<&str>, faults: &mut ConfigFaults) -> Option<String> {
        let value = self.get(name).or_else(|| self.get(or?));
        if value.is_none() {
            let or = or.map(|or| format!(" (ou {or})")).unwrap_or_default();
            faults.add(format!("{name}{or} n’est pas définie"));
        }
        value.filter(|value| is_whole(name, value, faults))
    }

    /// Reads a variable that must be there and that leaves in a header, a URL or a form: a line break that was pasted
    /// along would stop each request before it is made, and what was never asked would look unknown.
    pub(super) fn required_to_send(
        &self,
        name: &str,
        or: Option<&str>,
        faults: &mut ConfigFaults,
    ) -> Option<String> {
        self.required(name, or, faults).filter(|value| sendable(name, value, faults))
    }

    /// Reads a whole number in `range`, `default` where the variable is missing.
    pub(super) fn number(
        &self,
        name: &str,
        range: std::ops::RangeInclusive<u64>,
        default: u64,
        faults: &mut ConfigFaults,
    ) -> u64 {
        let Some(text) = self.get(name) else { return default };
        match text.parse() {
            Ok(number) if range.contains(&number) => number,
            _ => {
                let (least, most) = range.into_inner();
                faults.add(format!("{name} doit être un entier de {least} à {most}"));
                default
            }
        }
    }

    pub(super) fn url(name: &str, value: &str, faults: &mut ConfigFaults) -> Option<Url> {
        // `Url` drops a line break silently; letters of other alphabets it writes in ASCII.
        let plain =
            Some(value).filter(|value| value.len() <= MOST_BYTES && !value.chars().any(char::is_control));
        let url = plain.and_then(|value| Url::parse(value).ok()).filter(http::is_safe);
        if url.is_none() {
            faults.add(format!("{name} doit être une adresse https://… complète"));
        }
        url
    }

    /// Reads an address that paths are put behind: what follows a `?` or `#` would swallow them.
    pub(super) fn base(name: &str, value: &str, faults: &mut ConfigFaults) -> Option<Url> {
        let url = Self::url(name, value, faults)?;
        let is_base = url.query().is_none() && url.fragment().is_none();
        if !is_base {
            faults.add(format!("{name} doit être une adresse https://… complète, sans « ? » ni « # »"));
        }
        is_base.then_some(url)
    }
}

/// Says whether a value is what was meant. Quotes around it come from a file of variables, where they are none of it; what is
/// as long as a file is one; and no variable needs a control character but the line breaks of an address.
fn is_whole(name: &str, value: &str, faults: &mut ConfigFaults) -> bool {
    let quoted = |quote| value.len() > 1 && value.starts_with(quote) && value.ends_with(quote);
    let fault = if quoted('"') || quoted('\'') {
        "est entre guillemets ; collez la valeur sans eux"
    } else if value.len() > MOST_BYTES {
        TOO_LONG
    } else if value.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r')) {
        "contient un caractère invisible ; collez la valeur à nouveau"
    } else {
        return true;
    };
    faults.add(format!("{name} {fault}"));
    false
}

/// Says whether a value can stand in a header as it is.
pub(super) fn sendable(name: &str, value: &str, faults: &mut ConfigFaults) -> bool {
    let fault = if value.len() > MOST_BYTES {
        TOO_LONG
    } else if !value.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        "contient un saut de ligne ou un caractère qui ne peut pas être envoyé ; collez la valeur à nouveau"
    } else {
        return true;
    };
    faults.add(format!("{name} {fault}"));
    false
}

/// Returns a part of the configuration, or what is wrong with it.
pub(super) fn checked<T>(value: Option<T>, faults: ConfigFaults) -> Result<T, ConfigFaults> {
    match value {
        Some(value) if faults.is_empty() => Ok(value),
        _ => Err(faults),
    }
}
