//! Who is told of trouble.

use std::collections::BTreeMap;

use url::Url;

use super::{Environment, Faults, mail::is_sender};
use crate::schedule::Task;

/// Where trouble is told; all of it optional.
#[derive(Clone, Debug, Default)]
pub struct OperatorConfig {
    /// A monitor's address for each task.
    pub pings: BTreeMap<Task, Url>,
    /// Gets the daily digest.
    pub email: Option<String>,
}

pub(super) fn operator(env: &Environment, faults: &mut Faults) -> OperatorConfig {
    let pings = Task::ALL.into_iter().filter_map(|task| {
        let name = format!("PING_URL_{}", task.as_str().to_ascii_uppercase());
        let url = env.get(&name)?;
        Environment::url(&name, &url, faults).map(|url| (task, url))
    });
    let pings = pings.collect();
    let email = env.get("OPERATOR_EMAIL").filter(|address| {
        let sound = is_sender(address) && !address.contains('<');
        if !sound {
            faults.add("OPERATOR_EMAIL doit être une adresse");
        }
        sound
    });
    OperatorConfig { pings, email }
}
