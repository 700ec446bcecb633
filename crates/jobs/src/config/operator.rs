//! Reads who is told of trouble; all of it is optional.

use super::{environment::Environment, mail::is_sender};
use crate::{config_faults::ConfigFaults, deployment_file::DeploymentFile, ping::Monitors, schedule::Task};

pub(super) fn monitors(env: &Environment, faults: &mut ConfigFaults) -> Monitors {
    let addresses = Task::ALL.into_iter().filter_map(|task| {
        let name = format!("PING_URL_{}", task.as_str().to_ascii_uppercase());
        let url = env.get(&name)?;
        Environment::url(&name, &url, faults).map(|url| (task, url))
    });
    addresses.collect()
}

pub(super) fn email(env: &Environment, faults: &mut ConfigFaults) -> Option<String> {
    env.whole("OPERATOR_EMAIL", faults).filter(|address| {
        let sound = is_sender(address) && !address.contains('<');
        if !sound {
            faults.add("OPERATOR_EMAIL doit être une adresse");
        }
        sound
    })
}

/// Reads `DEPLOYMENT_FILE`: which of the three files the deployment was made with, the default where nothing is said.
pub(super) fn deployment_file(env: &Environment, faults: &mut ConfigFaults) -> DeploymentFile {
    let Some(name) = env.get("DEPLOYMENT_FILE") else { return DeploymentFile::default() };
    DeploymentFile::named(&name).unwrap_or_else(|| {
        faults.add("DEPLOYMENT_FILE doit être vercel.json, vercel.hobby.json ou vercel.pro.json");
        DeploymentFile::default()
    })
}
