//! Says what is wrong with a part of the configuration. It lies at the ground: `config` finds faults, the tasks answer
//! them.

use std::fmt;

/// Holds all that is wrong with a part of the configuration.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ConfigFaults(Vec<String>);

impl ConfigFaults {
    /// Adds one fault: a French phrase that names its variable and never repeats a value.
    pub fn add(&mut self, fault: impl Into<String>) {
        self.0.push(fault.into());
    }

    /// Puts several parts' faults together, each once: two parts may need the same variable.
    pub fn all<'a>(parts: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut all = Vec::new();
        for fault in parts.into_iter().flat_map(|part| &part.0) {
            if !all.contains(fault) {
                all.push(fault.clone());
            }
        }
        Self(all)
    }

    /// Returns whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns one French phrase for each fault, each naming its variable.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Configuration à corriger : {}", self.0.join(" ; "))
    }
}

impl std::error::Error for ConfigFaults {}
