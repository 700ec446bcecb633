//! Reads who is told of trouble; all of it is optional.

use super::{environment::Environment, mail::is_sender};
use crate::{config_faults::ConfigFaults, ping::Monitors, schedule::Task};

pub(super) fn monitors(env: &Environment, faults: &mut ConfigFaults) -> Monitors {
    let addresses = Task::ALL.into_iter().filter_map(|task| {
        let name = format!("PING_URL_{}", task.as_str().to_ascii_uppercase());
        let url = env.get(&name)?;
        Environment::url(&name, &url, faults).map(|url| (task, url))
    });
    addresses.collect()
}

pub(super) fn email(env: &Environment, faults: &mut ConfigFaults) -> Option<String> {
    env.get("OPERATOR_EMAIL").filter(|address| {
        let sound = is_sender(address) && !address.contains('<');
        if !sound {
            faults.add("OPERATOR_EMAIL doit être une adresse");
        }
        sound
    })
}
