//! Told in time: the monitor's pings, the operator's digest, and users whose connection has to be made again.

mod digest;
mod outage;
mod pings;
mod reconnect;
