//! Reads and checks the variables of a process one by one.

use url::Url;

use crate::{config_faults::ConfigFaults, http};

/// Holds the variables of a process, trimmed; blank is missing.
pub(super) struct Environment<'a>(pub(super) &'a dyn Fn(&str) -> Option<String>);

impl Environment<'_> {
    pub(super) fn get(&self, name: &str) -> Option<String> {
        let value = (self.0)(name)?;
        let value = value.trim();
        (!value.is_empty()).then(|| value.to_owned())
    }

    /// Reads a variable that must be there, under its own name or an older one.
    pub(super) fn required(&self, name: &str, or: Option<&str>, faults: &mut ConfigFaults) -> Option<String> {
        let value = self.get(name).or_else(|| self.get(or?));
        if value.is_none() {
            let or = or.map(|or| format!(" (ou {or})")).unwrap_or_default();
            faults.add(format!("{name}{or} n’est pas définie"));
        }
        value
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
        let plain = Some(value).filter(|value| !value.chars().any(char::is_control));
        let url = plain.and_then(|value| Url::parse(value).ok()).filter(http::is_safe);
        if url.is_none() {
            faults.add(format!("{name} doit être une adresse https://… complète"));
        }
        url
    }
}

/// Says whether a value can stand in a header as it is.
pub(super) fn sendable(name: &str, value: &str, faults: &mut ConfigFaults) -> bool {
    let sendable = value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if !sendable {
        faults.add(format!(
            "{name} contient un saut de ligne ou un caractère qui ne peut pas être envoyé ; collez la valeur à nouveau"
        ));
    }
    sendable
}

/// Returns a part of the configuration, or what is wrong with it.
pub(super) fn checked<T>(value: Option<T>, faults: ConfigFaults) -> Result<T, ConfigFaults> {
    match value {
        Some(value) if faults.is_empty() => Ok(value),
        _ => Err(faults),
    }
}
