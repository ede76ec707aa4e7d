//! Whole stories with nothing made up: real processes, real guests in QEMU, real nftables, dnsmasq and namespaces.
//!
//! They need root. Each story has the machine for itself (but for those in `long`, which share it).

// A test that cannot go on says so by a panic, in its helpers too.
#![allow(clippy::unwrap_used)]

mod house;
mod people;

mod crash;
mod doors;
mod drift;
mod keycloak;
mod ldap;
mod lease;
mod life;
mod long;
mod mesh;
mod partition;
mod provider;
mod refuse;
mod servers;
mod simulated;
mod snapshot;
mod split;
mod ssh;
mod totp;
mod wireguard;
mod words;
